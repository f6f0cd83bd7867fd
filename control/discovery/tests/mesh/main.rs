//! Many nodes on a network that is not there: how they find each other, what that costs, who is called dead, and
//! what liars and floods come to.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail as the test does")]

mod bad;
mod decoder;
mod growth;
mod members;
mod world;
