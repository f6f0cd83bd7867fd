//! The UDP socket: batches both ways, segmentation offload both ways, fragments forbidden.
//!
//! One socket, two halves of one thread: a [`Sender`] and a [`Receiver`], so that what was received
//! can be sent on out of the receive buffer. Both count; neither is ever stopped by what the network
//! or a single datagram does.

use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use std::{
    io::{self, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

/// Bytes of one receive buffer: the largest run of datagrams that the kernel coalesces.
const RECEIVE_BUFFER_BYTES: usize = 65_536;
/// Buffers of one receive call.
const RECEIVE_BUFFERS: usize = 16;
/// Bytes that are asked for as the socket's kernel buffers; the kernel may give less.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;

const _: () = assert!(RECEIVE_BUFFERS <= BATCH_SIZE);

/// Why the operating system refused a datagram, or a receive call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ErrorKind {
    /// An earlier datagram met a closed port.
    Refused,
    /// No route, or the host or network answers that it cannot be reached.
    Unreachable,
    /// Larger than the link carries.
    TooBig,
    /// A firewall or a permission.
    Permission,
    /// The kernel has no memory for it.
    NoBuffers,
    /// Anything else.
    Other,
}

impl ErrorKind {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::Refused,
        Self::Unreachable,
        Self::TooBig,
        Self::Permission,
        Self::NoBuffers,
        Self::Other,
    ];

    /// The counter's label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::TooBig => "too_big",
            Self::Permission => "permission",
            Self::NoBuffers => "no_buffers",
            Self::Other => "other",
        }
    }
}

impl From<&io::Error> for ErrorKind {
    fn from(error: &io::Error) -> Self {
        if quinn_udp::is_msg_size_err(error) {
            return Self::TooBig;
        }
        match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Self::Refused,
            io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::AddrNotAvailable
            | io::ErrorKind::NetworkDown => Self::Unreachable,
            io::ErrorKind::PermissionDenied => Self::Permission,
            io::ErrorKind::OutOfMemory => Self::NoBuffers,
            _ if error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error()) => {
                Self::NoBuffers
            }
            _ => Self::Other,
        }
    }
}

/// What a half of the socket counted. Never reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoCounters {
    /// Datagrams, each segment counted.
    pub datagrams: u64,
    /// Their bytes, without outer headers.
    pub bytes: u64,
    /// System calls that moved at least one datagram.
    pub batches: u64,
    /// Datagrams that travelled as segments of a larger run (GSO when sending, GRO when receiving).
    pub segments: u64,
    /// Datagrams that found no room in the socket (sending), at the time of asking.
    pub would_block: u64,
    errors: [u64; ErrorKind::ALL.len()],
}

impl IoCounters {
    /// Errors by kind: datagrams when sending, calls when receiving.
    pub fn errors(&self) -> impl Iterator<Item = (ErrorKind, u64)> + '_ {
        ErrorKind::ALL
            .iter()
            .map(|&kind| (kind, self.errors[kind as usize]))
    }
}

/// What became of a run of datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Sent {
    /// Handed to the kernel, or counted as an error: nothing is left to do.
    Done,
    /// The socket is full: the bytes from `from` on were not sent and may be offered again.
    Blocked {
        /// Where the rest of the run begins.
        from: usize,
    },
}

#[derive(Debug)]
struct Shared {
    socket: UdpSocket,
    state: UdpSocketState,
}

/// The half that sends.
#[derive(Debug)]
pub struct Sender {
    shared: Arc<Shared>,
    counters: IoCounters,
}

/// The half that receives; owns the buffers.
#[derive(Debug)]
pub struct Receiver {
    shared: Arc<Shared>,
    buffers: Vec<u8>,
    metas: [RecvMeta; RECEIVE_BUFFERS],
    counters: IoCounters,
}

/// A run of datagrams of one source: each `segment_bytes` long, the last perhaps shorter.
#[derive(Debug)]
pub struct Run<'a> {
    /// Where they came from.
    pub source: SocketAddr,
    /// The interface that they came in on; 0 where the system does not say.
    pub ifindex: u32,
    /// The datagrams, one after another.
    pub bytes: &'a mut [u8],
    /// Bytes of each but the last; never 0.
    pub segment_bytes: usize,
}

/// Binds a UDP socket: non-blocking, fragments forbidden, offload on where the kernel has it.
///
/// # Errors
/// When the address cannot be bound or an option that Virga needs is refused.
pub fn bind(address: SocketAddr) -> io::Result<(Sender, Receiver)> {
    let socket = UdpSocket::bind(address)?;
    let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
    // The kernel caps these at its own limits; a smaller buffer is slower, not wrong.
    let _capped = state.set_send_buffer_size(UdpSockRef::from(&socket), SOCKET_BUFFER_BYTES);
    let _capped = state.set_recv_buffer_size(UdpSockRef::from(&socket), SOCKET_BUFFER_BYTES);
    let shared = Arc::new(Shared { socket, state });
    let sender = Sender {
        shared: Arc::clone(&shared),
        counters: IoCounters::default(),
    };
    let receiver = Receiver {
        shared,
        buffers: vec![0; RECEIVE_BUFFER_BYTES * RECEIVE_BUFFERS],
        metas: [RecvMeta::default(); RECEIVE_BUFFERS],
        counters: IoCounters::default(),
    };
    Ok((sender, receiver))
}

impl Sender {
    /// Sends a run of datagrams, each `segment_bytes` long but the last: in one system call where
    /// the kernel segments, else one by one.
    pub fn send(&mut self, to: SocketAddr, run: &[u8], segment_bytes: usize) -> Sent {
        if run.is_empty() || segment_bytes == 0 {
            return Sent::Done;
        }
        let mut from = 0;
        if self.shared.state.max_gso_segments() > 1 && run.len() > segment_bytes {
            match self.offer(to, run, Some(segment_bytes)) {
                Ok(()) => return Sent::Done,
                Err(Refusal::Blocked) => return Sent::Blocked { from },
                // Where the kernel or the driver does not segment, the run goes one by one.
                Err(Refusal::Error(_)) => {}
            }
        }
        while from < run.len() {
            let end = run.len().min(from + segment_bytes);
            match self.offer(to, &run[from..end], None) {
                Ok(()) => {}
                Err(Refusal::Blocked) => return Sent::Blocked { from },
                Err(Refusal::Error(kind)) => self.counters.errors[kind as usize] += 1,
            }
            from = end;
        }
        Sent::Done
    }

    /// One system call; an error that belongs to an earlier datagram is asked past once.
    fn offer(&mut self, to: SocketAddr, run: &[u8], segment: Option<usize>) -> Result<(), Refusal> {
        let transmit = Transmit {
            destination: to,
            ecn: None,
            contents: run,
            segment_size: segment,
            src_ip: None,
        };
        let shared = &*self.shared;
        let send = || {
            shared
                .state
                .try_send(UdpSockRef::from(&shared.socket), &transmit)
        };
        let datagrams = segment.map_or(1, |bytes| run.len().div_ceil(bytes)) as u64;
        let sent = match send() {
            Err(error) if ErrorKind::from(&error) == ErrorKind::Refused => {
                self.counters.errors[ErrorKind::Refused as usize] += 1;
                send()
            }
            sent => sent,
        };
        match sent {
            Ok(()) => {
                self.counters.datagrams += datagrams;
                self.counters.bytes += run.len() as u64;
                self.counters.batches += 1;
                if datagrams > 1 {
                    self.counters.segments += datagrams;
                }
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.counters.would_block += datagrams;
                Err(Refusal::Blocked)
            }
            Err(error) => Err(Refusal::Error(ErrorKind::from(&error))),
        }
    }

    /// What was sent.
    #[must_use]
    pub fn counters(&self) -> &IoCounters {
        &self.counters
    }

    /// Segments of one send; 1 where the kernel does not segment.
    #[must_use]
    pub fn segments_max(&self) -> usize {
        self.shared.state.max_gso_segments()
    }
}

enum Refusal {
    Blocked,
    Error(ErrorKind),
}

impl Receiver {
    /// Reads what is there, at most [`Receiver::RUNS_MAX`] runs, and gives how many.
    /// Read them with [`Receiver::runs`]. 0: nothing is there (or an error was counted).
    pub fn receive(&mut self) -> usize {
        let mut slices = self.buffers.chunks_mut(RECEIVE_BUFFER_BYTES);
        let mut buffers: [IoSliceMut<'_>; RECEIVE_BUFFERS] =
            std::array::from_fn(|_| IoSliceMut::new(slices.next().unwrap_or_default()));
        let socket = UdpSockRef::from(&self.shared.socket);
        match self
            .shared
            .state
            .recv(socket, &mut buffers, &mut self.metas)
        {
            Ok(runs) => {
                self.count(runs);
                runs
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => {
                self.counters.errors[ErrorKind::from(&error) as usize] += 1;
                0
            }
        }
    }

    /// Most runs that one [`Receiver::receive`] reads.
    pub const RUNS_MAX: usize = RECEIVE_BUFFERS;

    fn count(&mut self, runs: usize) {
        self.counters.batches += u64::from(runs > 0);
        for meta in &self.metas[..runs] {
            let datagrams = meta.len.div_ceil(meta.stride.max(1)).max(1) as u64;
            self.counters.datagrams += datagrams;
            self.counters.bytes += meta.len as u64;
            if datagrams > 1 {
                self.counters.segments += datagrams;
            }
        }
    }

    /// The runs that the last [`Receiver::receive`] read.
    pub fn runs(&mut self, count: usize) -> impl Iterator<Item = Run<'_>> {
        let buffers = self.buffers.chunks_mut(RECEIVE_BUFFER_BYTES);
        self.metas[..count]
            .iter()
            .zip(buffers)
            .map(|(meta, buffer)| {
                let bytes = meta.len.min(buffer.len());
                Run {
                    source: meta.addr,
                    ifindex: meta.interface_index.unwrap_or(0),
                    bytes: &mut buffer[..bytes],
                    segment_bytes: meta.stride.max(1),
                }
            })
    }

    /// What was received.
    #[must_use]
    pub fn counters(&self) -> &IoCounters {
        &self.counters
    }

    /// Where the socket listens.
    ///
    /// # Errors
    /// When the operating system does not say.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.shared.socket.local_addr()
    }

    /// Whether the kernel hands over runs of more than one datagram.
    #[must_use]
    pub fn coalesces(&self) -> bool {
        self.shared.state.gro_segments() > 1
    }
}

impl AsFd for Receiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::wake::{Interest, Wake, wait};

    fn pair() -> ((Sender, Receiver), (Sender, Receiver)) {
        let any = "127.0.0.1:0".parse().unwrap();
        (bind(any).unwrap(), bind(any).unwrap())
    }

    /// Every datagram that arrives until there are `count`.
    fn datagrams(receiver: &mut Receiver, count: usize) -> Vec<Vec<u8>> {
        let wake = Wake::new().unwrap();
        let mut all = Vec::new();
        while all.len() < count {
            let ready = wait(
                receiver.as_fd(),
                Interest::Read,
                &wake,
                Some(10_000_000_000),
            );
            assert!(ready.unwrap().readable, "{} of {count}", all.len());
            let runs = receiver.receive();
            for run in receiver.runs(runs) {
                all.extend(run.bytes.chunks(run.segment_bytes).map(<[u8]>::to_vec));
            }
        }
        all
    }

    #[test]
    fn a_run_arrives_as_its_datagrams_whatever_the_kernel_offloads() {
        let ((mut sender, _), (_, mut receiver)) = pair();
        let to = receiver.local_address().unwrap();
        let run: Vec<u8> = (0..=10u8).flat_map(|i| [i; 100]).take(1_007).collect();
        assert_eq!(sender.send(to, &run, 100), Sent::Done);
        let arrived = datagrams(&mut receiver, 11);
        let sent: Vec<Vec<u8>> = run.chunks(100).map(<[u8]>::to_vec).collect();
        assert_eq!(arrived, sent);
        assert_eq!(sender.counters().datagrams, 11);
        assert_eq!(sender.counters().bytes, 1_007);
        assert_eq!(receiver.counters().datagrams, 11);
        assert_eq!(receiver.counters().bytes, 1_007);
        if sender.segments_max() > 1 {
            assert_eq!(
                (sender.counters().batches, sender.counters().segments),
                (1, 11)
            );
        }
    }

    #[test]
    fn too_large_a_datagram_is_counted_and_the_rest_of_the_run_still_travels() {
        let ((mut sender, _), (_, mut receiver)) = pair();
        let to = receiver.local_address().unwrap();
        assert_eq!(sender.send(to, &[0; 65_530], 65_530), Sent::Done);
        let (_, too_big) = sender.counters().errors().nth(2).unwrap();
        assert_eq!(too_big, 1);
        assert_eq!(sender.send(to, b"small", 5), Sent::Done);
        assert_eq!(datagrams(&mut receiver, 1), [b"small"]);
    }

    #[test]
    fn a_closed_port_stops_nothing() {
        let ((mut sender, mut own), (_, receiver)) = pair();
        let to = receiver.local_address().unwrap();
        drop(receiver);
        for _ in 0..16 {
            assert_eq!(sender.send(to, b"x", 1), Sent::Done);
            assert_eq!(own.receive(), 0);
        }
        let own_address = own.local_address().unwrap();
        assert_eq!(sender.send(own_address, b"y", 1), Sent::Done);
        assert_eq!(datagrams(&mut own, 1), [b"y"]);
    }

    #[test]
    fn an_unroutable_address_is_an_error_of_that_datagram_alone() {
        let ((mut sender, _), (_, mut receiver)) = pair();
        let elsewhere = "[2001:db8::1]:9".parse().unwrap();
        assert_eq!(sender.send(elsewhere, b"x", 1), Sent::Done);
        let errors: u64 = sender.counters().errors().map(|(_, count)| count).sum();
        assert_eq!(errors, 1);
        assert_eq!(
            sender.send(receiver.local_address().unwrap(), b"z", 1),
            Sent::Done
        );
        assert_eq!(datagrams(&mut receiver, 1), [b"z"]);
    }
}
