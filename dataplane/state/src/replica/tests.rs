//! Replicas in a simulated network, on disks that forget what was not synced: `cluster` is the simulator,
//! `schedules` lets chance drive it, `stories` does one thing after the other; `bytes` is of messages and promises.

mod bytes;
mod cluster;
mod schedules;
mod stories;
