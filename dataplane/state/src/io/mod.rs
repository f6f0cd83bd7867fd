//! All that touches the operating system: folders, io_uring, the clock.
//!
//! - [`folder`]: a log's folder on a real disk, locked by its one writer.
//! - [`driver`]: performs what logs ask for: several logs' writes and syncs in one call of io_uring, or
//!   one after the other where io_uring is refused.
//! - [`open`]: a log by its name below a folder; [`clock`]: what time it is.

pub mod clock;
pub mod driver;
pub mod folder;
pub mod open;
mod ring;
