//! The worker's UDP socket: fragments forbidden, offload on where the kernel has it.
#![allow(unsafe_code)]

use quinn_udp::{UdpSockRef, UdpSocketState};
use std::{
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

/// Bytes that are asked for as the socket's kernel buffers; the kernel may give less.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// A bound UDP socket that never blocks, for a [`super::driver::Driver`] to run.
#[derive(Debug)]
pub struct Socket {
    pub(super) socket: UdpSocket,
    pub(super) state: UdpSocketState,
    address: SocketAddr,
    segments: bool,
}

impl Socket {
    /// Binds it.
    ///
    /// # Errors
    /// When the address cannot be bound or an option that Virga needs is refused.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        Self::new(UdpSocket::bind(address)?)
    }

    /// Takes over a bound socket.
    ///
    /// # Errors
    /// When an option that Virga needs is refused.
    pub fn new(socket: UdpSocket) -> io::Result<Self> {
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        // The kernel caps these at its own limits (net.core.rmem_max) unless this process may pass over
        // them; a smaller buffer holds shorter bursts and is not wrong.
        let _capped = state.set_send_buffer_size(UdpSockRef::from(&socket), SOCKET_BUFFER_BYTES);
        let _capped = state.set_recv_buffer_size(UdpSockRef::from(&socket), SOCKET_BUFFER_BYTES);
        let bytes = libc::c_int::try_from(SOCKET_BUFFER_BYTES).unwrap_or(libc::c_int::MAX);
        let _may_not = set_option(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, bytes);
        let _may_not = set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes);
        // Nobody here reads with which class of service a datagram came, and hardly ever when; a
        // kernel that goes on telling is slower, not wrong.
        let _kept = set_option(&socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 0);
        let _kept = set_option(&socket, libc::IPPROTO_IP, libc::IP_RECVTOS, 0);
        let _kept = set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 0);
        let address = socket.local_addr()?;
        Ok(Self {
            socket,
            state,
            address,
            segments: true,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Segments of one send; 1 where the kernel does not segment.
    #[must_use]
    pub fn segments_max(&self) -> usize {
        if self.segments {
            self.state.max_gso_segments()
        } else {
            1
        }
    }

    /// A NIC was found not to segment.
    pub(super) fn stop_segmenting(&mut self) {
        self.segments = false;
    }

    /// Whether requests wait or give up where there is nothing to do.
    pub(super) fn set_blocking(&mut self, blocking: bool) -> io::Result<()> {
        self.socket.set_nonblocking(!blocking)
    }

    /// Datagrams that the kernel had no room for in this socket's receive buffer; 0 where it does not say.
    #[must_use]
    pub fn lost(&self) -> u64 {
        /// Its place among the words (linux/sock_diag.h); the same for those below.
        const DROPS: usize = 8;
        self.memory()[DROPS].into()
    }

    /// Bytes of the kernel's that received datagrams take which nobody has read, and sent ones that are not on the
    /// wire; 0 where it does not say.
    #[must_use]
    pub fn queued_bytes(&self) -> [u64; 2] {
        const RECEIVED: usize = 0;
        const SENT: usize = 2;
        let words = self.memory();
        [words[RECEIVED], words[SENT]].map(u64::from)
    }

    /// What `SO_MEMINFO` gives.
    fn memory(&self) -> [u32; 9] {
        let mut words = [0u32; 9];
        let mut bytes = libc::socklen_t::try_from(size_of_val(&words)).unwrap_or(0);
        // SAFETY: the kernel writes at most `bytes` bytes into `words`, and its count into `bytes`.
        let got = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_MEMINFO,
                words.as_mut_ptr().cast(),
                &raw mut bytes,
            )
        };
        if got == 0 { words } else { [0; 9] }
    }

    /// Has the kernel tell when it got each datagram, or no more. It notes that in any case: it was asked to
    /// when the state was made, and forgets that with the socket alone.
    pub(super) fn set_stamped(&self, is_stamped: bool) {
        let value = is_stamped.into();
        // Where it refuses, datagrams come without.
        let _without = set_option(&self.socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, value);
    }

    /// Has each read poll the NIC's queue; what became of it. A socket that never blocks polls once a call, however long it may,
    /// and `ppoll` asks it only where the system's own time is not 0 (`sk_busy_loop` and `sock_poll` in the kernel's net/).
    pub(super) fn busy_poll(&mut self, us: u32) -> String {
        let value = libc::c_int::try_from(us).unwrap_or(libc::c_int::MAX);
        match set_option(&self.socket, libc::SOL_SOCKET, libc::SO_BUSY_POLL, value) {
            Ok(()) => format!(
                "each read polls the NIC once (SO_BUSY_POLL = {us} µs); waits do where net.core.busy_poll is not 0, for that long"
            ),
            Err(error) => format!("busy polling was refused (SO_BUSY_POLL): {error}"),
        }
    }

    /// For how long the kernel was told to poll the NIC.
    #[cfg(test)]
    pub(super) fn busy_poll_us(&self) -> libc::c_int {
        let mut value: libc::c_int = -1;
        let mut bytes = libc::socklen_t::try_from(size_of_val(&value)).unwrap();
        // SAFETY: the kernel writes at most `bytes` bytes into `value`, and its count into `bytes`.
        let got = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_BUSY_POLL,
                (&raw mut value).cast(),
                &raw mut bytes,
            )
        };
        assert_eq!(got, 0);
        value
    }

    /// Whether the kernel sends each datagram whole or not at all.
    #[must_use]
    pub fn forbids_fragments(&self) -> bool {
        !self.state.may_fragment()
    }

    /// Whether the kernel hands over runs of more than one datagram.
    #[must_use]
    pub fn coalesces(&self) -> bool {
        self.state.gro_segments() > 1
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

pub(super) fn set_option(
    socket: &impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let bytes = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or(0);
    // SAFETY: the kernel reads `bytes` bytes of `value`, which lives until the call returns.
    let set = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            bytes,
        )
    };
    if set == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
