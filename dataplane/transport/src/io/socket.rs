//! The worker's UDP socket: fragments forbidden, offload on where the kernel has it.

use quinn_udp::{UdpSockRef, UdpSocketState};
use std::{
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
};

/// Bytes that are asked for as the socket's kernel buffers; the kernel may give less.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// A bound UDP socket that never blocks, for a [`super::driver::Driver`] to run.
#[derive(Debug)]
pub struct Socket {
    pub(super) socket: UdpSocket,
    pub(super) state: UdpSocketState,
    address: SocketAddr,
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
        // The kernel caps these at its own limits; a smaller buffer is slower, not wrong.
        let _capped = state.set_send_buffer_size(UdpSockRef::from(&socket), SOCKET_BUFFER_BYTES);
        let _capped = state.set_recv_buffer_size(UdpSockRef::from(&socket), SOCKET_BUFFER_BYTES);
        let address = socket.local_addr()?;
        Ok(Self {
            socket,
            state,
            address,
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
        self.state.max_gso_segments()
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
