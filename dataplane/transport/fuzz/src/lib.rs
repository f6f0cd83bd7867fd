//! What `scripts/fuzz` does with an input, target by target, and what the targets share. `control/tests/corpus.rs` does it
//! with the inputs that are kept in `corpus/`, and so does the transport's own `src/tests/fuzzed.rs` with those of targets that
//! forge what a member seals.

use virga_transport as transport;

pub mod disk;
pub mod network;

#[path = "../../../../bench/src/world.rs"]
pub mod world;

#[path = "../targets/carrier.rs"]
pub mod carrier;
#[path = "../targets/datagrams.rs"]
pub mod datagrams;
#[path = "../targets/discovery.rs"]
pub mod discovery;
#[path = "../targets/ethernet.rs"]
pub mod ethernet;
#[path = "../targets/frames.rs"]
pub mod frames;
#[cfg(fuzzing)]
#[path = "../targets/handshakes.rs"]
pub mod handshakes;
#[path = "../targets/lan.rs"]
pub mod lan;
#[cfg(fuzzing)]
#[path = "../targets/member.rs"]
pub mod member;
#[path = "../targets/replicas.rs"]
pub mod replicas;
#[path = "../targets/routing.rs"]
pub mod routing;
#[path = "../targets/segments.rs"]
pub mod segments;
#[path = "../targets/streams.rs"]
pub mod streams;

use network::read;
pub use network::{MS, Network, address};

/// What is done with an input.
pub type Target = fn(&[u8]);

/// Every target and its name. Those that forge what a member seals need what only a build for fuzzing has.
pub const TARGETS: &[(&str, Target)] = &[
    ("frames", frames::run),
    ("ethernet", ethernet::run),
    ("datagrams", datagrams::run),
    #[cfg(fuzzing)]
    ("handshakes", handshakes::run),
    #[cfg(fuzzing)]
    ("member", member::run),
    ("streams", streams::run),
    ("routing", routing::run),
    ("segments", segments::run),
    ("replicas", replicas::run),
    ("discovery", discovery::run),
    ("lan", lan::run),
    ("carrier", carrier::run),
];
