//! What is measured with, shared by `virga-bench` and the suites in `benches/`.
//!
//! - [`world`]: a router's tables, and frames that meet them.

pub mod world;
