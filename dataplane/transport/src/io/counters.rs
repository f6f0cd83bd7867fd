//! What every driver counts, under the same names.

use std::io;

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

/// What one direction of a driver counted. Never reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoCounters {
    /// Datagrams, each segment counted.
    pub datagrams: u64,
    /// Their bytes, without outer headers.
    pub bytes: u64,
    /// Calls into the kernel that moved at least one datagram.
    pub batches: u64,
    /// Datagrams that travelled as segments of a larger run (GSO when sending, GRO when receiving).
    pub segments: u64,
    /// Datagrams that found no room (sending), at the time of asking.
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

    pub(super) fn add_error(&mut self, kind: ErrorKind) {
        self.errors[kind as usize] += 1;
    }

    /// A run that the kernel moved whole.
    pub(super) fn add_run(&mut self, bytes: usize, segment_bytes: usize) {
        let datagrams = bytes.div_ceil(segment_bytes.max(1)).max(1) as u64;
        self.datagrams += datagrams;
        self.bytes += bytes as u64;
        if datagrams > 1 {
            self.segments += datagrams;
        }
    }
}
