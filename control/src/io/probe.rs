//! Whether this process may use a system call: by using it, and undoing it at once.

use std::{
    io,
    os::fd::{FromRawFd as _, OwnedFd},
};

/// `struct io_uring_params`: 120 bytes.
const URING_PARAMS_WORDS: usize = 30;
/// `BPF_MAP_CREATE`.
const MAP_CREATE: libc::c_int = 0;
/// `BPF_MAP_TYPE_ARRAY`.
const MAP_TYPE_ARRAY: u32 = 2;

/// Makes a ring of one entry.
pub(crate) fn io_uring() -> io::Result<()> {
    let mut params = [0_u32; URING_PARAMS_WORDS];
    // SAFETY: the kernel reads and writes `struct io_uring_params`, which `params` has room for;
    // zeros ask for no option.
    let result = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1_u32, params.as_mut_ptr()) };
    close(result)
}

/// Makes an array map of one entry.
pub(crate) fn bpf() -> io::Result<()> {
    // map type, key bytes, value bytes, entries
    let attributes = [MAP_TYPE_ARRAY, 4, 4, 1_u32];
    // SAFETY: the kernel reads as many bytes of `union bpf_attr` as it is told there are, and takes
    // the rest as zeros.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            MAP_CREATE,
            attributes.as_ptr(),
            size_of_val(&attributes),
        )
    };
    close(result)
}

/// Closes what a system call has opened.
fn close(result: libc::c_long) -> io::Result<()> {
    match libc::c_int::try_from(result) {
        Ok(descriptor @ 0..) => {
            // SAFETY: the kernel has just given us this descriptor; nobody else knows it.
            drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
            Ok(())
        }
        _ => Err(io::Error::last_os_error()),
    }
}
