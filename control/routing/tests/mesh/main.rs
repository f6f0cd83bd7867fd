//! Routers in a simulated mesh. Checked on every step: no walk over primaries and backups comes back.
#![allow(clippy::unwrap_used)]

mod bad;
mod changes;
mod checks;
mod gateways;
mod growth;
mod large;
mod later;
mod lossy;
mod noise;
mod removed;
mod rises;
mod shapes;
mod signed;
mod storms;
mod world;
