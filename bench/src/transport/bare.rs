//! The reference: bare UDP with what the kernel offers, datagrams of the same size sealed and opened by `ring`,
//! and no protocol at all.

use std::{
    io::{self, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virga_bench::load::thread_cpu_ns;
use virga_ebpf::limits::{HEADER_BYTES, TAG_BYTES};

/// Bytes of one send at most, and datagrams.
const RUN_BYTES_MAX: usize = 65_000;
const RUN_DATAGRAMS_MAX: usize = 64;
const BUFFER_BYTES: usize = 65_536;
const BUFFERS: usize = 8;
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// How often a waiting receiver looks whether it shall end.
const WAIT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 20_000_000,
};

const _: () = assert!(BUFFERS <= BATCH_SIZE);

/// The bare cipher.
pub(crate) struct Ring(LessSafeKey);

impl Ring {
    pub(crate) fn new() -> Self {
        let key = UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).expect("a key of 32 bytes");
        Self(LessSafeKey::new(key))
    }

    fn nonce(number: u64) -> Nonce {
        let mut bytes = [0; 12];
        bytes[4..].copy_from_slice(&number.to_be_bytes());
        Nonce::assume_unique_for_key(bytes)
    }

    /// Seals what follows 64 bytes of associated data; the last 16 bytes become the tag.
    pub(crate) fn seal(&self, number: u64, packet: &mut [u8]) {
        let (header, rest) = packet.split_at_mut(HEADER_BYTES);
        let (payload, tag) = rest.split_at_mut(rest.len() - TAG_BYTES);
        let made = self
            .0
            .seal_in_place_separate_tag(Self::nonce(number), Aad::from(&*header), payload)
            .expect("a packet is below the cipher's largest message");
        tag.copy_from_slice(made.as_ref());
    }

    /// Opens it again; bytes of the payload, none of a forged one.
    pub(crate) fn open(&self, number: u64, packet: &mut [u8]) -> Option<usize> {
        let (header, sealed) = packet.split_at_mut_checked(HEADER_BYTES)?;
        let clear = self
            .0
            .open_in_place(Self::nonce(number), Aad::from(&*header), sealed);
        clear.ok().map(|clear| clear.len())
    }
}

/// How the events lie in the datagrams.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Bytes of a datagram.
    pub(crate) datagram_bytes: usize,
    /// Bytes of an event.
    pub(crate) event_bytes: usize,
    /// Events in a datagram.
    pub(crate) events: usize,
}

/// What came.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Came {
    /// Events.
    pub(crate) events: u64,
    /// From the first to the last.
    pub(crate) elapsed_ns: u64,
    /// Processor time of the sender's and the receiver's thread, and events sent.
    pub(crate) sender_cpu_ns: u64,
    pub(crate) receiver_cpu_ns: u64,
    pub(crate) sent: u64,
}

/// A socket as a driver sets it up.
pub(crate) struct Socket {
    socket: UdpSocket,
    state: UdpSocketState,
}

impl Socket {
    pub(crate) fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = UdpSocket::bind(address)?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        // The kernel caps these at its own limits.
        let _capped = state.set_send_buffer_size(UdpSockRef::from(&socket), SOCKET_BUFFER_BYTES);
        let _capped = state.set_recv_buffer_size(UdpSockRef::from(&socket), SOCKET_BUFFER_BYTES);
        Ok(Self { socket, state })
    }

    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn wait(&self, flags: PollFlags) -> io::Result<bool> {
        let mut fds = [PollFd::new(&self.socket, flags)];
        Ok(poll(&mut fds, Some(&WAIT))? > 0)
    }
}

/// Runs on a core; where that cannot be had, anywhere.
fn pin(core: usize) {
    let _pinned = core_affinity::set_for_current(core_affinity::CoreId { id: core });
}

/// One flow for a time, sender and receiver each on its core.
pub(crate) fn flow(
    [from, to]: [&Socket; 2],
    [sending, receiving]: [usize; 2],
    shape: Shape,
    time: Duration,
) -> io::Result<Came> {
    let (stop_sending, stop_receiving) = (AtomicBool::new(false), AtomicBool::new(false));
    let target = to.address()?;
    thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            pin(receiving);
            receive(to, shape, &stop_receiving)
        });
        let sender = scope.spawn(|| {
            pin(sending);
            send(from, target, shape, &stop_sending)
        });
        thread::sleep(time);
        stop_sending.store(true, Ordering::Relaxed);
        let sent = join(sender);
        stop_receiving.store(true, Ordering::Relaxed);
        let mut came = join(receiver)?;
        (came.sent, came.sender_cpu_ns) = sent?;
        Ok(came)
    })
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Builds, seals and sends runs until told to stop; events sent, and processor time.
fn send(
    socket: &Socket,
    to: SocketAddr,
    shape: Shape,
    stop: &AtomicBool,
) -> io::Result<(u64, u64)> {
    let ring = Ring::new();
    let bytes = shape.datagram_bytes;
    let datagrams = (RUN_BYTES_MAX / bytes).clamp(1, RUN_DATAGRAMS_MAX);
    let mut run = vec![0; bytes * datagrams];
    let event = vec![0x5a; shape.event_bytes];
    let (mut number, start_cpu) = (0u64, thread_cpu_ns());
    while !stop.load(Ordering::Relaxed) {
        for packet in run.chunks_mut(bytes) {
            packet[..8].copy_from_slice(&number.to_be_bytes());
            let room = bytes - TAG_BYTES;
            for place in packet[HEADER_BYTES..room]
                .chunks_mut((room - HEADER_BYTES) / shape.events.max(1))
                .take(shape.events)
            {
                let fits = event.len().min(place.len());
                place[..fits].copy_from_slice(&event[..fits]);
            }
            ring.seal(number, packet);
            number += 1;
        }
        let transmit = Transmit {
            destination: to,
            ecn: None,
            contents: &run,
            segment_size: (datagrams > 1).then_some(bytes),
            src_ip: None,
        };
        loop {
            match socket
                .state
                .try_send(UdpSockRef::from(&socket.socket), &transmit)
            {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    socket.wait(PollFlags::OUT)?;
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok((number * shape.events as u64, thread_cpu_ns() - start_cpu))
}

/// Receives and opens until told to stop.
fn receive(socket: &Socket, shape: Shape, stop: &AtomicBool) -> io::Result<Came> {
    let ring = Ring::new();
    let mut bytes = vec![0; BUFFER_BYTES * BUFFERS];
    let mut metas = [RecvMeta::default(); BUFFERS];
    let (mut came, mut first, start_cpu) = (Came::default(), None, thread_cpu_ns());
    while !stop.load(Ordering::Relaxed) {
        let mut slices = bytes.chunks_mut(BUFFER_BYTES);
        let mut buffers: [IoSliceMut<'_>; BUFFERS] =
            std::array::from_fn(|_| IoSliceMut::new(slices.next().unwrap_or_default()));
        let socket_ref = UdpSockRef::from(&socket.socket);
        let runs = match socket.state.recv(socket_ref, &mut buffers, &mut metas) {
            Ok(runs) => runs,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                socket.wait(PollFlags::IN)?;
                continue;
            }
            Err(error) => return Err(error),
        };
        let start = *first.get_or_insert_with(Instant::now);
        for (meta, buffer) in metas[..runs].iter().zip(bytes.chunks_mut(BUFFER_BYTES)) {
            for packet in buffer[..meta.len].chunks_mut(meta.stride.max(1)) {
                let Some(number) = packet.first_chunk::<8>().copied() else {
                    continue;
                };
                if ring.open(u64::from_be_bytes(number), packet).is_some() {
                    came.events += shape.events as u64;
                }
            }
        }
        came.elapsed_ns = nanoseconds(start.elapsed());
    }
    came.receiver_cpu_ns = thread_cpu_ns() - start_cpu;
    Ok(came)
}

/// Plain datagrams there and back, one at a time, for a time; each round trip in nanoseconds.
pub(crate) fn ping_pong(
    [from, to]: [&Socket; 2],
    [asking, answering]: [usize; 2],
    bytes: usize,
    time: Duration,
) -> io::Result<Vec<u64>> {
    let stop = AtomicBool::new(false);
    let (target, back) = (to.address()?, from.address()?);
    thread::scope(|scope| {
        let answerer = scope.spawn(|| {
            pin(answering);
            let mut buffer = [0; 2_048];
            while !stop.load(Ordering::Relaxed) {
                if let Some(got) = next(to, &mut buffer)? {
                    to.socket.send_to(&buffer[..got], back)?;
                }
            }
            io::Result::Ok(())
        });
        let asker = scope.spawn(|| {
            pin(asking);
            let (mut all, start) = (Vec::new(), Instant::now());
            let mut buffer = [0; 2_048];
            while start.elapsed() < time {
                let asked = Instant::now();
                from.socket.send_to(&vec![0x5a; bytes], target)?;
                if next(from, &mut buffer)?.is_some() {
                    all.push(nanoseconds(asked.elapsed()));
                }
            }
            io::Result::Ok(all)
        });
        let all = join(asker);
        stop.store(true, Ordering::Relaxed);
        join(answerer)?;
        all
    })
}

/// The next datagram, as a worker waits for one: by `poll`, then a read.
fn next(socket: &Socket, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    if !socket.wait(PollFlags::IN)? {
        return Ok(None);
    }
    match socket.socket.recv(buffer) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

pub(crate) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
