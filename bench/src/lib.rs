//! What is measured with, shared by `virga-bench`, the suites in `benches/`, the instruction counts and `peers/`.
//!
//! - [`world`]: a router's tables, and frames that meet them.
//! - [`sealed`]: a sealed packet and its key.
//! - [`session`]: two nodes with an established session, and no network between them.
//! - [`lossy`]: two nodes over a simulated path.
//! - [`load`]: a worker over a real socket, with an application on its thread that offers, takes or answers.
//! - [`rounds`]: the median of alternating rounds.
//! - [`report`]: the table, the JSON; [`page`]: the results page, and `way`: what it says is left; [`plot`]: its plots.

pub mod load;
pub mod lossy;
pub mod page;
pub mod plot;
pub mod report;
pub mod rounds;
pub mod sealed;
pub mod session;
mod way;
pub mod world;
