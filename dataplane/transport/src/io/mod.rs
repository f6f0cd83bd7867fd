//! All that touches the operating system: the clock, the UDP socket, waking and waiting.
//!
//! Everything else in this crate takes the time and the bytes as arguments.
//!
//! - [`driver`]: how a worker's datagrams come and go; one interface, an implementation a module.
//! - [`socket`]: the UDP socket that a driver runs; [`counters`]: what it counts.
//! - [`steer`]: several workers' sockets at one address; [`topology`]: the cores that they stay on.
//! - [`mmsg`]: the driver on plain system calls; [`uring`]: the driver on io_uring.
//! - [`xsk`]: the driver on AF_XDP.
//! - `simulated` (with the feature `sim`): the driver on a network that is not there, and its clock.
//! - `message` and `outbound`: the bytes around a datagram, and what the kernel is shown of them.
//! - [`wake`]: how other threads end a worker's wait; [`clock`]: what time it is.

pub mod clock;
pub mod counters;
pub mod driver;
mod message;
pub mod mmsg;
mod outbound;
#[cfg(any(test, feature = "sim"))]
pub mod simulated;
pub mod socket;
pub mod steer;
pub mod topology;
pub mod uring;
pub mod wake;
pub mod xsk;
