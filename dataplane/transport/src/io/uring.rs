//! The driver on io_uring: a `recvmsg` that stays armed and takes its buffers from a ring, runs
//! sent many a call, and one call to submit, to wait and to be woken.
//!
//! The ring belongs to one thread, and the kernel defers all its work to calls of
//! `io_uring_enter` on that thread (Linux 6.1). So the kernel touches buffers and messages within
//! those calls only, which is what the `unsafe` code below here rests on.
//!
//! Files and receive buffers are registered. Runs are sent from plain memory: registered memory serves zero-copy
//! sends only. Over loopback, where the kernel copies these after all and says so by a second completion, a
//! send of 61 KB took 7 µs of processor time as it is, 10.4 as a zero-copy one, and 9.5 from registered memory. A NIC that
//! gathers from pages may be another matter: none was there to measure.
#![allow(unsafe_code)]

mod buffers;
mod ring;
mod sends;

use super::{
    counters::{ErrorKind, IoCounters},
    driver::{Batching, DriverConfig, Outlet, Run, Sent},
    message,
    socket::Socket,
    wake::{Ready, Wake},
};
use buffers::{BUFFER_BYTES, BUFFERS, Buffers};
use io_uring::IoUring;
pub use ring::Ring;
use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
    sync::Arc,
};

/// Places of the socket and of the wake's eventfd in the ring's table of files.
const SOCKET: u32 = 0;
const WAKE: u32 = 1;
/// Requests that are submitted at once at most: all sends, the receive, and the two polls.
const REQUESTS: u32 = 32;
/// Completions that wait at most: for each buffer and each request one, and the last of a request
/// that stays armed.
const COMPLETIONS: u32 = 256;
/// Runs that one receive hands over.
const RUNS_MAX: usize = 32;

const _: () = assert!(sends::PLACES + 3 <= REQUESTS as usize);
const _: () = assert!(BUFFERS as u32 + 2 * REQUESTS <= COMPLETIONS);

/// See the module.
#[derive(Debug)]
pub struct Uring {
    // The ring is dropped first: the kernel is done with the buffers then.
    ring: Ring,
    buffers: Buffers,
    busy_poll: Option<String>,
}

impl Uring {
    /// Runs a socket, or gives it back with the reason why not.
    pub(super) fn open(
        mut socket: Socket,
        wake: Arc<Wake>,
        config: &DriverConfig,
    ) -> Result<Self, (Socket, Arc<Wake>, String)> {
        let mut buffers = Buffers::new();
        let set_up = build().map_err(|error| refusal(&error)).and_then(|uring| {
            match register(&uring, &mut buffers, &socket, &wake) {
                Ok(()) => Ok(uring),
                Err(error) => Err(format!(
                    "io_uring refused to register its buffers or files: {error}"
                )),
            }
        });
        let uring = match set_up {
            Ok(uring) => uring,
            Err(reason) => return Err((socket, wake, reason)),
        };
        // A request on a socket that never blocks ends where it would wait.
        if let Err(error) = socket.set_blocking(true) {
            let reason = format!("the socket cannot be made to wait: {error}");
            return Err((socket, wake, reason));
        }
        let busy_poll = config
            .busy_poll_us
            .map(|us| busy_poll(&uring, &mut socket, us));
        Ok(Self {
            ring: Ring::new(uring, socket, wake, config.batching, buffers.used()),
            buffers,
            busy_poll,
        })
    }

    pub(super) fn receive(&mut self, mut handle: impl FnMut(&mut Outlet<'_>, Run<'_>)) -> bool {
        self.ring.collect();
        if self.ring.take_shortage() {
            self.buffers.grow();
            self.ring.set_buffers(self.buffers.used());
        }
        let mut runs = 0;
        while runs < RUNS_MAX
            && let Some(arrived) = self.ring.next_arrived()
        {
            runs += 1;
            if arrived.bytes == 0 {
                self.buffers.give_back(arrived.buffer);
                continue;
            }
            let buffer = self.buffers.bytes(arrived.buffer, arrived.bytes);
            if let Some(buffer) = buffer
                && let Some(message) = message::received(buffer)
            {
                self.ring
                    .received
                    .add_run(message.bytes, message.segment_bytes);
                let run = Run {
                    source: message.source,
                    ifindex: message.ifindex,
                    bytes: &mut buffer[message::PAYLOAD_AT..][..message.bytes],
                    segment_bytes: message.segment_bytes,
                    stamp: message.stamp,
                };
                handle(&mut Outlet::Uring(&mut self.ring), run);
            } else {
                self.ring.received.add_error(ErrorKind::Other);
            }
            self.buffers.give_back(arrived.buffer);
        }
        if runs > 0 {
            self.buffers.publish();
        }
        self.ring.has_arrived()
    }

    pub(super) fn room(&mut self) -> Option<&mut Vec<u8>> {
        self.ring.room()
    }

    pub(super) fn commit(&mut self, to: SocketAddr, segment_bytes: usize) {
        self.ring.commit(to, segment_bytes);
    }

    pub(super) fn flush(&mut self) -> bool {
        self.ring.flush()
    }

    pub(super) fn wait(&mut self, timeout_ns: Option<u64>) -> io::Result<Ready> {
        self.ring.wait(timeout_ns)
    }

    pub(super) fn outlet(&mut self) -> Outlet<'_> {
        Outlet::Uring(&mut self.ring)
    }

    pub(super) fn sent(&self) -> &IoCounters {
        self.ring.sent()
    }

    pub(super) fn received(&self) -> &IoCounters {
        &self.ring.received
    }

    pub(super) fn figures(&self) -> Vec<(&'static str, u64)> {
        self.ring.figures()
    }

    pub(super) fn socket(&self) -> &Socket {
        self.ring.socket()
    }

    /// What became of busy polling, where it was asked for.
    pub(super) fn busy_poll(&self) -> Option<&str> {
        self.busy_poll.as_deref()
    }
}

fn build() -> io::Result<IoUring> {
    IoUring::builder()
        .dontfork()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .setup_cqsize(COMPLETIONS)
        .build(REQUESTS)
}

fn register(
    uring: &IoUring,
    buffers: &mut Buffers,
    socket: &Socket,
    wake: &Wake,
) -> io::Result<()> {
    let submitter = uring.submitter();
    buffers.register(&submitter)?;
    submitter.register_files(&[socket.as_fd().as_raw_fd(), wake.as_fd().as_raw_fd()])
}

/// Why there is no ring, in words that say what to do.
fn refusal(error: &io::Error) -> String {
    let why = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "a container's seccomp filter or kernel.io_uring_disabled forbids it"
        }
        Some(libc::ENOSYS) => "the kernel has none, or a container's seccomp filter hides it",
        Some(libc::EINVAL) => "the kernel is older than Linux 6.1",
        Some(libc::ENOMEM) => "raise the limit of locked memory (ulimit -l)",
        _ => "see dmesg",
    };
    format!("io_uring cannot be set up: {error}; {why}")
}

/// Has waits poll the NIC's queue for so long before they sleep, which is the ring's to do; what became of it.
fn busy_poll(uring: &IoUring, socket: &mut Socket, us: u32) -> String {
    let mut napi = io_uring::types::Napi::new()
        .set_busy_poll_timeout(us)
        .set_prefer_busy_poll(true);
    let Err(registered) = uring.submitter().register_napi(&mut napi) else {
        return format!("waits poll the NIC for {us} µs (io_uring's NAPI polling, preferred)");
    };
    let by_socket = socket.busy_poll(us);
    format!("waits do not poll the NIC, as the ring refused that: {registered}; {by_socket}")
}
