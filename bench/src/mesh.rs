//! The simulated mesh of the routers' own tests.

#[path = "../../control/routing/tests/mesh/checks.rs"]
mod checks;
#[path = "../../control/routing/tests/mesh/growth.rs"]
mod growth;
#[path = "../../control/routing/tests/mesh/world.rs"]
mod world;

pub(crate) use growth::{Growth, clustered, grow};
pub(crate) use world::{COST, Cut, MS, Random, SECOND, World, key};
