//! What is measured with, shared by `virga-bench`, the suites in `benches/` and the instruction counts.
//!
//! - [`world`]: a router's tables, and frames that meet them.
//! - [`sealed`]: a sealed packet and its key.
//! - [`session`]: two nodes with an established session, and no network between them.
//! - [`lossy`]: two nodes over a simulated path.
//! - [`load`]: a worker over a real socket, with an application on its thread that offers, takes or answers.

pub mod load;
pub mod lossy;
pub mod sealed;
pub mod session;
pub mod world;
