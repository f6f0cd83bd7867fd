//! What the kernel is shown of a run that it shall send: a `msghdr` and all that it points to.
#![allow(unsafe_code)]

use super::message::{self, NAME_BYTES, SEGMENT_CONTROL_BYTES};
use std::{mem, net::SocketAddr, ptr};

const CONTROL_WORDS: usize = SEGMENT_CONTROL_BYTES / size_of::<u64>();

/// See the module. It must not move between [`Outbound::header`] and the end of the call, or of the
/// request, that reads it.
pub(super) struct Outbound {
    name: [u8; NAME_BYTES],
    name_bytes: u32,
    control: [u64; CONTROL_WORDS],
    vector: libc::iovec,
    header: libc::msghdr,
}

impl std::fmt::Debug for Outbound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbound").finish_non_exhaustive()
    }
}

impl Outbound {
    pub(super) fn new() -> Self {
        Self {
            name: [0; NAME_BYTES],
            name_bytes: 0,
            control: [0; CONTROL_WORDS],
            vector: libc::iovec {
                iov_base: ptr::null_mut(),
                iov_len: 0,
            },
            // SAFETY: a msghdr is integers and pointers, for which all zeroes are valid.
            header: unsafe { mem::zeroed() },
        }
    }

    /// Where it goes.
    pub(super) fn set_target(&mut self, to: SocketAddr) {
        let bytes = message::write_address(to, &mut self.name);
        self.name_bytes = u32::try_from(bytes).unwrap_or(0);
    }

    /// The header of `run`, to be cut into datagrams of `segment_bytes` where it is longer than
    /// that. It points into `self` and to `run`, which the kernel only reads.
    pub(super) fn header(&mut self, run: &[u8], segment_bytes: usize) -> *const libc::msghdr {
        self.vector.iov_base = run.as_ptr().cast_mut().cast();
        self.vector.iov_len = run.len();
        self.header.msg_name = self.name.as_mut_ptr().cast();
        self.header.msg_namelen = self.name_bytes;
        self.header.msg_iov = &raw mut self.vector;
        self.header.msg_iovlen = 1;
        self.header.msg_control = ptr::null_mut();
        self.header.msg_controllen = 0;
        // No datagram is longer than a u16 says: the kernel refuses such a run as one datagram.
        let segment = u16::try_from(segment_bytes).ok();
        if let Some(segment) = segment.filter(|_| run.len() > segment_bytes) {
            let control = message::segment_control(segment);
            for (word, bytes) in self.control.iter_mut().zip(control.chunks_exact(8)) {
                *word = u64::from_ne_bytes(bytes.try_into().unwrap_or_default());
            }
            self.header.msg_control = self.control.as_mut_ptr().cast();
            self.header.msg_controllen = SEGMENT_CONTROL_BYTES;
        }
        &raw const self.header
    }
}
