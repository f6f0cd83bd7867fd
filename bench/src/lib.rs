//! What is measured with, shared by `virga-bench`, the suites in `benches/` and the instruction counts.
//!
//! - [`world`]: a router's tables, and frames that meet them.
//! - [`sealed`]: a sealed packet and its key.
//! - [`session`]: two nodes with an established session, and no network between them.

pub mod sealed;
pub mod session;
pub mod world;
