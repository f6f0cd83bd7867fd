//! All that touches the operating system: the clock, the UDP socket, waking and waiting.
//!
//! Everything else in this crate takes the time and the bytes as arguments.
//!
//! - [`driver`]: how a worker's datagrams come and go; one interface, an implementation a module.
//! - [`socket`]: the UDP socket that a driver runs; [`counters`]: what it counts.
//! - [`mmsg`]: the driver on plain system calls.
//! - [`wake`]: how other threads end a worker's wait; [`clock`]: what time it is.

pub mod clock;
pub mod counters;
pub mod driver;
pub mod mmsg;
pub mod socket;
pub mod wake;
