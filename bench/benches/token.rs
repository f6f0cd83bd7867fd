//! Tokens: verifying a chain once, when it arrives, and asking it afterwards.
//!
//! The limit: a signature of ed25519, verified strictly, is a double scalar multiplication of some 50 us (no batch is
//! made of a chain, whose links are at most 8), so one link is 50 us and eight are 400. It is done once a chain, by the
//! control plane. What is asked afterwards, at each subscription and each second, needs no cryptography but a digest of
//! each level of the channel's name (BLAKE2s, 150 ns each), which [`Levels`] does once for all chains: then a link costs
//! a few comparisons of 16 and 32 bytes and a look-up among what its signer revoked, 20 to 40 ns.

use std::{hint::black_box, iter::zip};

use criterion::{Criterion, criterion_group, criterion_main};
use virga::{
    keys::{EntityKey, Secret},
    rights::{Chain, Grant, Levels, Operation, Operations, Question, Reach, Revocations, Scope},
};
use virga_transport::ChannelName;

const NOW_S: u64 = 1_800_000_000;
const LINKS: usize = 8;

fn key(number: u8) -> EntityKey {
    Secret::new([number; 32]).into()
}

/// Chains of 1 to [`LINKS`] links, each to the next entity.
fn chains(scope: &Scope) -> Vec<Chain> {
    let keys: Vec<EntityKey> = (1..).map(key).take(LINKS + 1).collect();
    let grant = |to: usize| Grant {
        subject: keys[to].public,
        scope: scope.clone(),
        operations: Operations::new(&Operation::ALL).expect("operations"),
        delegations: u8::try_from(LINKS - to).expect("few links"),
        not_before_s: NOW_S,
        not_after_s: NOW_S + 3_600,
        generation: 1,
        nonce: [7; 8],
    };
    let mut chains = vec![Chain::issue(grant(1), &keys[0])];
    for to in 2..=LINKS {
        let longer = chains[to - 2].delegate(grant(to), &keys[to - 1]);
        chains.push(longer.expect("no wider than before"));
    }
    chains
}

fn tokens(c: &mut Criterion) {
    let channel = ChannelName::parse("sensors/roof/lidar").expect("a name");
    let parent = ChannelName::parse("sensors").expect("a name");
    let chains = chains(&Scope::new(&parent, Reach::Subtree));
    let issuers = [key(1).public];
    let revocations = Revocations::default();
    let mut group = c.benchmark_group("token");
    for (links, chain) in zip([1, LINKS], [&chains[0], &chains[LINKS - 1]]) {
        let bytes = chain.encode();
        group.bench_function(format!("verify/{links}"), |b| {
            b.iter(|| {
                let chain = Chain::parse(black_box(&bytes)).expect("a chain");
                chain.authenticate().expect("signed")
            });
        });
        let authentic = chain.clone().authenticate().expect("signed");
        let question = Question {
            holder: authentic.holder(),
            operation: Operation::Publish,
            channel: &channel,
            now_s: NOW_S + 1,
            issuers: &issuers,
            revocations: &revocations,
        };
        let levels = Levels::of(&channel);
        assert_eq!(authentic.allows_on(&question, &levels), Ok(()));
        group.bench_function(format!("allows/{links}"), |b| {
            b.iter(|| authentic.allows_on(black_box(&question), &levels));
        });
    }
    group.bench_function("levels", |b| b.iter(|| Levels::of(black_box(&channel))));
    group.finish();
}

criterion_group!(benches, tokens);
criterion_main!(benches);
