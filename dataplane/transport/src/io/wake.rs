//! How other threads wake a worker (an eventfd), and how the worker waits (`ppoll`).

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::Errno,
};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// A counter in the kernel that becomes readable when another thread adds to it.
#[derive(Debug)]
pub struct Wake {
    fd: OwnedFd,
}

impl Wake {
    /// A wake that nobody has rung yet.
    ///
    /// # Errors
    /// When the process may open no more files.
    pub fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { fd })
    }

    /// Ends the worker's wait, now or as soon as it begins. Never blocks: a counter that is full
    /// is as awake as one can be.
    pub fn ring(&self) {
        let _full = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }

    /// Whether anybody rang since they were forgotten last.
    #[cfg(any(test, feature = "sim"))]
    pub(super) fn is_rung(&self) -> bool {
        let mut fds = [PollFd::new(self, PollFlags::IN)];
        poll(&mut fds, Some(&timespec(0))).is_ok_and(|ready| ready > 0)
    }

    /// Forgets all rings so far.
    pub fn clear(&self) {
        let _empty = rustix::io::read(&self.fd, &mut [0; 8]);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What a socket is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Datagrams to read.
    Read,
    /// Datagrams to read, or room to write.
    ReadWrite,
}

/// What ended a wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Ready {
    /// The socket has datagrams (or an error to collect).
    pub readable: bool,
    /// The socket has room.
    pub writable: bool,
    /// Someone rang.
    pub woken: bool,
}

/// Waits for the socket, for a ring, or until `timeout_ns` has passed (`None`: without end).
///
/// # Errors
/// What `ppoll` says; an interrupting signal is not an error, the wait just ends.
pub fn wait(
    socket: BorrowedFd<'_>,
    interest: Interest,
    wake: &Wake,
    timeout_ns: Option<u64>,
) -> io::Result<Ready> {
    let events = match interest {
        Interest::Read => PollFlags::IN,
        Interest::ReadWrite => PollFlags::IN | PollFlags::OUT,
    };
    let mut fds = [
        PollFd::from_borrowed_fd(socket, events),
        PollFd::new(wake, PollFlags::IN),
    ];
    let timeout = timeout_ns.map(timespec);
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) => Ok(Ready {
            readable: fds[0]
                .revents()
                .intersects(PollFlags::IN | PollFlags::ERR | PollFlags::HUP),
            writable: fds[0].revents().contains(PollFlags::OUT),
            woken: fds[1].revents().contains(PollFlags::IN),
        }),
        Err(Errno::INTR) => Ok(Ready::default()),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn timespec(ns: u64) -> Timespec {
    const SECOND_NS: u64 = 1_000_000_000;
    Timespec {
        tv_sec: i64::try_from(ns / SECOND_NS).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(ns % SECOND_NS).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn a_ring_before_the_wait_ends_it_and_is_forgotten_once_cleared() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let wake = Wake::new().unwrap();
        wake.ring();
        wake.ring();
        let ready = wait(socket.as_fd(), Interest::Read, &wake, None).unwrap();
        assert!(ready.woken && !ready.readable);
        wake.clear();
        let ready = wait(socket.as_fd(), Interest::Read, &wake, Some(0)).unwrap();
        assert_eq!(ready, Ready::default());
    }

    #[test]
    fn a_ring_from_another_thread_ends_an_endless_wait() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let wake = std::sync::Arc::new(Wake::new().unwrap());
        let other = std::sync::Arc::clone(&wake);
        let thread = std::thread::spawn(move || other.ring());
        let ready = wait(socket.as_fd(), Interest::Read, &wake, None).unwrap();
        assert!(ready.woken);
        thread.join().unwrap();
    }

    #[test]
    fn the_socket_is_readable_when_a_datagram_is_there_and_writable_when_asked() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let wake = Wake::new().unwrap();
        socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
        let ready = wait(socket.as_fd(), Interest::ReadWrite, &wake, None).unwrap();
        assert!(ready.writable && !ready.woken);
        let ready = wait(socket.as_fd(), Interest::Read, &wake, None).unwrap();
        assert!(ready.readable && !ready.writable);
    }
}
