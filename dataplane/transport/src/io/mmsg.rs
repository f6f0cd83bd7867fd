//! The driver on plain system calls: `recvmmsg` in, `sendmsg` out, `ppoll` between, with
//! segmentation offload both ways.
#![allow(unsafe_code)]

use super::{
    counters::{ErrorKind, IoCounters},
    driver::{Outlet, Run, Sent, Stamp},
    outbound::Outbound,
    socket::Socket,
    wake::{Interest, Ready, Wake, wait},
};
use crate::limits::TRANSMIT_BYTES_MAX;
use quinn_udp::{BATCH_SIZE, RecvMeta, UdpSockRef};
use std::{
    io::{self, IoSliceMut},
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
    sync::Arc,
};

/// Bytes of one receive buffer: the largest run of datagrams that the kernel coalesces.
const RECEIVE_BUFFER_BYTES: usize = 65_536;
/// Buffers of one receive call.
const RECEIVE_BUFFERS: usize = 16;

const _: () = assert!(RECEIVE_BUFFERS <= BATCH_SIZE);

/// See the module. It holds at most one run that the socket had no room for.
#[derive(Debug)]
pub struct Mmsg {
    sender: Sender,
    wake: Arc<Wake>,
    buffers: Vec<u8>,
    metas: [RecvMeta; RECEIVE_BUFFERS],
    received: IoCounters,
    outgoing: Vec<u8>,
    blocked: Option<Blocked>,
    waits: u64,
}

/// The half that sends.
#[derive(Debug)]
pub struct Sender {
    socket: Socket,
    outbound: Outbound,
    counters: IoCounters,
}

/// Where the rest of `outgoing` begins that the socket had no room for.
#[derive(Debug)]
struct Blocked {
    to: SocketAddr,
    from: usize,
    segment_bytes: usize,
}

impl Sender {
    /// Sends a run of datagrams, each `segment_bytes` long but the last: in one system call where
    /// the kernel segments, else one by one.
    pub fn send(&mut self, to: SocketAddr, run: &[u8], segment_bytes: usize) -> Sent {
        if run.is_empty() || segment_bytes == 0 {
            return Sent::Done;
        }
        self.outbound.set_target(to);
        let mut from = 0;
        if self.socket.segments_max() > 1 && run.len() > segment_bytes {
            match self.offer(run, segment_bytes) {
                Ok(()) => return Sent::Done,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Sent::Blocked { from };
                }
                // Where the kernel or the NIC does not segment, the run goes one by one.
                Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                    self.socket.stop_segmenting();
                }
                Err(_) => {}
            }
        }
        while from < run.len() {
            let end = run.len().min(from + segment_bytes);
            match self.offer(&run[from..end], segment_bytes) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Sent::Blocked { from };
                }
                Err(error) => self.counters.add_error(ErrorKind::from(&error)),
            }
            from = end;
        }
        Sent::Done
    }

    pub(super) fn counters_mut(&mut self) -> &mut IoCounters {
        &mut self.counters
    }

    /// One system call; an error that belongs to an earlier datagram is asked past once.
    fn offer(&mut self, run: &[u8], segment_bytes: usize) -> io::Result<()> {
        let sent = match self.call(run, segment_bytes) {
            Err(error) if ErrorKind::from(&error) == ErrorKind::Refused => {
                self.counters.add_error(ErrorKind::Refused);
                self.call(run, segment_bytes)
            }
            sent => sent,
        };
        match &sent {
            Ok(()) => {
                self.counters.batches += 1;
                self.counters.add_run(run.len(), segment_bytes);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.counters.would_block += run.len().div_ceil(segment_bytes) as u64;
            }
            Err(_) => {}
        }
        sent
    }

    fn call(&mut self, run: &[u8], segment_bytes: usize) -> io::Result<()> {
        let header = self.outbound.header(run, segment_bytes);
        loop {
            // SAFETY: the header points into `outbound` and to `run`, which live and stay where
            // they are until the call returns; the kernel only reads them.
            let sent = unsafe {
                libc::sendmsg(self.socket.as_fd().as_raw_fd(), header, libc::MSG_DONTWAIT)
            };
            if sent >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

impl Mmsg {
    pub(super) fn open(socket: Socket, wake: Arc<Wake>) -> Self {
        Self {
            sender: Sender {
                socket,
                outbound: Outbound::new(),
                counters: IoCounters::default(),
            },
            wake,
            buffers: vec![0; RECEIVE_BUFFER_BYTES * RECEIVE_BUFFERS],
            metas: [RecvMeta::default(); RECEIVE_BUFFERS],
            received: IoCounters::default(),
            outgoing: Vec::with_capacity(TRANSMIT_BYTES_MAX),
            blocked: None,
            waits: 0,
        }
    }

    pub(super) fn receive(&mut self, mut handle: impl FnMut(&mut Outlet<'_>, Run<'_>)) -> bool {
        self.receive_with(|sender, run| handle(&mut Outlet::Mmsg(sender), run))
    }

    /// The same for a driver that has this one's socket beside its own ways.
    pub(super) fn receive_with(&mut self, mut handle: impl FnMut(&mut Sender, Run<'_>)) -> bool {
        let runs = self.read();
        self.received.batches += u64::from(runs > 0);
        let buffers = self.buffers.chunks_mut(RECEIVE_BUFFER_BYTES);
        for (meta, buffer) in self.metas[..runs].iter().zip(buffers) {
            let bytes = meta.len.min(buffer.len());
            let segment_bytes = meta.stride.max(1);
            self.received.add_run(bytes, segment_bytes);
            let run = Run {
                source: meta.addr,
                ifindex: meta.interface_index.unwrap_or(0),
                bytes: &mut buffer[..bytes],
                segment_bytes,
                stamp: meta.timestamp.map_or(Stamp::Untold, |since_1970| {
                    Stamp::At(u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX))
                }),
            };
            handle(&mut self.sender, run);
        }
        runs == RECEIVE_BUFFERS
    }

    /// Fills the buffers with what is there, and gives how many; errors are counted.
    fn read(&mut self) -> usize {
        let mut slices = self.buffers.chunks_mut(RECEIVE_BUFFER_BYTES);
        let mut buffers: [IoSliceMut<'_>; RECEIVE_BUFFERS] =
            std::array::from_fn(|_| IoSliceMut::new(slices.next().unwrap_or_default()));
        let Socket { socket, state, .. } = &self.sender.socket;
        match state.recv(UdpSockRef::from(socket), &mut buffers, &mut self.metas) {
            Ok(runs) => runs,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => {
                self.received.add_error(ErrorKind::from(&error));
                0
            }
        }
    }

    pub(super) fn room(&mut self) -> Option<&mut Vec<u8>> {
        if !self.flush() {
            return None;
        }
        self.outgoing.clear();
        Some(&mut self.outgoing)
    }

    pub(super) fn commit(&mut self, to: SocketAddr, segment_bytes: usize) {
        self.blocked = Some(Blocked {
            to,
            from: 0,
            segment_bytes,
        });
        let _goes_on_later = self.flush();
    }

    pub(super) fn flush(&mut self) -> bool {
        let Some(blocked) = &mut self.blocked else {
            return true;
        };
        let rest = &self.outgoing[blocked.from..];
        match self.sender.send(blocked.to, rest, blocked.segment_bytes) {
            Sent::Done => {
                self.blocked = None;
                true
            }
            Sent::Blocked { from } => {
                blocked.from += from;
                false
            }
        }
    }

    pub(super) fn wait(&mut self, timeout_ns: Option<u64>) -> io::Result<Ready> {
        let interest = if self.blocked.is_none() {
            Interest::Read
        } else {
            Interest::ReadWrite
        };
        self.waits += 1;
        let ready = wait(self.socket().as_fd(), interest, &self.wake, timeout_ns)?;
        if ready.woken {
            self.wake.clear();
        }
        Ok(ready)
    }

    /// What sends, and what receiving is counted in.
    pub(super) fn halves(&mut self) -> (&mut Sender, &mut IoCounters) {
        (&mut self.sender, &mut self.received)
    }

    pub(super) fn wake(&self) -> &Arc<Wake> {
        &self.wake
    }

    pub(super) fn outlet(&mut self) -> Outlet<'_> {
        Outlet::Mmsg(&mut self.sender)
    }

    pub(super) fn sent(&self) -> &IoCounters {
        &self.sender.counters
    }

    pub(super) fn received(&self) -> &IoCounters {
        &self.received
    }

    pub(super) fn figures(&self) -> Vec<(&'static str, u64)> {
        vec![("waits", self.waits), ("socket_lost", self.socket().lost())]
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.sender.socket
    }
}
