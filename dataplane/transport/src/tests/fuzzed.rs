//! The inputs that fuzzing has found and that are kept, of those targets that forge what a member seals, which takes a
//! build for fuzzing or for this crate's own tests; `control/tests/corpus.rs` has all others.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "parts of a crate elsewhere: scripts/fuzz builds it"
)]

use std::{fs, path::Path};

use crate as transport;
use network::{MS, Network, read};

#[path = "../../fuzz/targets/handshakes.rs"]
mod handshakes;
#[path = "../../fuzz/targets/member.rs"]
mod member;
#[path = "../../fuzz/src/network.rs"]
mod network;

/// What is done with an input.
type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 2] = [("handshakes", handshakes::run), ("member", member::run)];

#[test]
fn every_forged_input_that_is_kept_ends_well() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, target) in TARGETS {
        let mut inputs = 0;
        for entry in fs::read_dir(corpus.join(name)).unwrap() {
            let input = entry.unwrap().path();
            // Whatever fails says which input it was.
            println!("{}", input.display());
            target(&fs::read(&input).unwrap());
            inputs += 1;
        }
        assert!(inputs >= 5, "{name}: {inputs}");
    }
}
