//! Routing: what a router of 1,000 destinations and 8 neighbours does with what it hears, until it has told the others.
//!
//! The limit: an announcement is 202 bytes under one ed25519 signature, whose strict verification is 45 µs and nearly all
//! of it; its destination is found by a hash map (40 ns), a way is chosen among what 8 neighbours said (8 comparisons, 50
//! ns), and 7 neighbours are told: a message of one item each (an allocation, a look-up of what they were told last, 202
//! bytes copied: 150 ns), 1 µs in all. So 47 µs, 21,000 a second; a destination announces itself twice an hour.
//!
//! A metric has no signature: 14 bytes read, a choice, and 7 messages: 1.5 µs, where it falls: one that rises is told later.
//!
//! A neighbour that dies while all 1,000 destinations are reached over it: each is chosen anew (100 ns), put into two
//! ordered sets (100 ns) and given out as a change (50 ns): 250 to 300 µs until the tables can be written.
//!
//! Reading a message of four announcements checks forms and hashes each node key (BLAKE2s, one block, 100 ns): 0.6 µs.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ed25519_dalek::{Signer, SigningKey};
use virga_ebpf::{
    hash,
    header::{NodeId, Subnet},
};
use virga_routing::{
    Aggregation, Announcement, Authority, Claim, Destination, Doubt, Liveness, Now, Router, Setup,
    Speaker,
    announcement::network,
    limits::{DESTINATIONS_MAX, LIFETIME_S, TICK_NS},
    message::{self, Item},
};

const DESTINATIONS: u32 = 1_000;
const NEIGHBOURS: u32 = 8;
/// Numbers of the neighbours; destinations are counted from 0.
const FIRST_NEIGHBOUR: u32 = 1 << 20;
/// Number of the router's own node.
const OWN: u32 = 1 << 21;
/// What a link costs, and how far a destination is from the nearest neighbour.
const COST: u32 = 300;
const METRIC: u32 = 60_000;
/// By how much it falls.
const STEP: u32 = COST / 4;
const UNIX_S: u64 = 1_800_000_000;
/// A round ends before the announcements that it began with do.
const ROUND_NS: u64 = LIFETIME_S / 2 * 1_000_000_000;

fn node_key(number: u32) -> [u8; 32] {
    let mut key = [1; 32];
    key[..4].copy_from_slice(&number.to_be_bytes());
    key
}

fn entity(number: u32) -> SigningKey {
    let mut secret = [2; 32];
    secret[..4].copy_from_slice(&number.to_be_bytes());
    SigningKey::from_bytes(&secret)
}

fn id(number: u32) -> NodeId {
    hash::node_id(&node_key(number))
}

/// This node's keys; it knows all others, as they prove themselves.
struct Keys(SigningKey);

impl Authority for Keys {
    fn network(&self) -> [u8; 32] {
        network("bench")
    }

    fn node_key(&self) -> [u8; 32] {
        node_key(OWN)
    }

    fn entity_key(&self) -> [u8; 32] {
        self.0.verifying_key().to_bytes()
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }

    fn knows(&self, _: &Speaker) -> Result<(), Doubt> {
        Ok(())
    }
}

fn announcement(number: u32, seqno: u64) -> Announcement {
    let entity = entity(number);
    let claim = Claim {
        network: network("bench"),
        node_key: node_key(number),
        entity_key: entity.verifying_key().to_bytes(),
        subnet: Subnet(0),
        announced: 0,
        seqno,
        not_after_s: UNIX_S + LIFETIME_S,
    };
    let signed = Announcement::issue(&claim, |message| entity.sign(message).to_bytes());
    signed.expect("a node may announce itself")
}

fn written(item: &Item) -> Vec<u8> {
    let mut bytes = Vec::new();
    item.write(&mut bytes);
    bytes
}

/// A router that knows all destinations over all neighbours; the nearest is neighbour 0.
struct Scene {
    ns: u64,
    router: Router<Keys>,
}

impl Scene {
    fn new(announcements: &[Announcement]) -> Self {
        let setup = Setup {
            subnet: Subnet(0),
            aggregation: Aggregation::Exact,
            seqno: 1,
            quiet_ns: 0,
            destinations_max: DESTINATIONS_MAX,
        };
        let now = Now {
            ns: 0,
            unix_s: UNIX_S,
        };
        let router = Router::new(now, setup, Keys(entity(OWN)));
        let mut scene = Self { ns: 0, router };
        for neighbour in 0..NEIGHBOURS {
            let from = id(FIRST_NEIGHBOUR + neighbour);
            let now = scene.now();
            scene.router.neighbour_up(now, from, Subnet(0), COST);
            for announcement in announcements {
                let item = Item::Route {
                    metric: METRIC + neighbour * COST / 3,
                    announcement: announcement.clone(),
                };
                scene.router.handle(now, from, &written(&item));
            }
        }
        // All of it is told.
        for _ in 0..1_000 {
            scene.answer();
        }
        let routes = scene.router.routes();
        let over_the_first = routes.filter(|route| route.next_hops.primary == id(FIRST_NEIGHBOUR));
        assert_eq!(over_the_first.count(), announcements.len());
        scene
    }

    fn now(&self) -> Now {
        Now {
            ns: self.ns,
            unix_s: UNIX_S + self.ns / 1_000_000_000,
        }
    }

    /// Takes what the router has for the tables, and after a tick what it says; how much of each.
    fn answer(&mut self) -> (usize, usize) {
        let changes = std::iter::from_fn(|| self.router.poll_route()).count();
        self.ns += TICK_NS;
        let now = self.now();
        self.router.handle_timeout(now);
        while self.router.poll_route().is_some() {}
        let said = std::iter::from_fn(|| self.router.poll_transmit());
        (changes, said.count())
    }

    fn hear(&mut self, neighbour: u32, message: &[u8]) {
        let now = self.now();
        let from = id(FIRST_NEIGHBOUR + neighbour);
        self.router.handle(now, from, message);
    }
}

fn routing(c: &mut Criterion) {
    let announcements: Vec<Announcement> = (0..DESTINATIONS).map(|n| announcement(n, 1)).collect();
    let mut group = c.benchmark_group("routing");
    group.throughput(Throughput::Elements(1));

    let mut scene = Scene::new(&announcements);
    let mut seqno = 1;
    group.bench_function("announcement", |b| {
        b.iter_custom(|turns| {
            let mut took = Duration::ZERO;
            for turn in 0..turns {
                if scene.ns > ROUND_NS {
                    (scene, seqno) = (Scene::new(&announcements), 1);
                }
                let number = u32::try_from(turn % u64::from(DESTINATIONS)).unwrap_or(0);
                seqno += 1;
                let message = written(&Item::Route {
                    metric: METRIC,
                    announcement: announcement(number, seqno),
                });
                let start = Instant::now();
                scene.hear(0, black_box(&message));
                let (_, said) = scene.answer();
                took += start.elapsed();
                assert!(said >= 7, "{said} messages");
            }
            took
        });
    });

    // Nearer each time, in turn over all destinations.
    let mut scene = Scene::new(&announcements);
    let mut turn = 0;
    group.bench_function("metric", |b| {
        b.iter_custom(|turns| {
            let mut took = Duration::ZERO;
            for _ in 0..turns {
                if scene.ns > ROUND_NS || turn / DESTINATIONS * STEP > METRIC / 2 {
                    (scene, turn) = (Scene::new(&announcements), 0);
                }
                turn += 1;
                let message = written(&Item::Metric {
                    metric: METRIC - (turn / DESTINATIONS + 1) * STEP,
                    destination: Destination::Node(id(turn % DESTINATIONS)),
                });
                let start = Instant::now();
                scene.hear(0, black_box(&message));
                let (_, said) = scene.answer();
                took += start.elapsed();
                assert!(said >= 7, "{said} messages");
            }
            took
        });
    });

    let mut scene = Scene::new(&announcements);
    group.throughput(Throughput::Elements(DESTINATIONS.into()));
    group.bench_function("neighbour_dies", |b| {
        b.iter_custom(|turns| {
            let mut took = Duration::ZERO;
            for _ in 0..turns {
                if scene.ns > ROUND_NS {
                    scene = Scene::new(&announcements);
                }
                let (now, first) = (scene.now(), id(FIRST_NEIGHBOUR));
                let start = Instant::now();
                scene.router.set_liveness(now, first, Liveness::Dead);
                let changes = std::iter::from_fn(|| scene.router.poll_route()).count();
                took += start.elapsed();
                assert_eq!(changes, announcements.len());
                scene.router.set_liveness(now, first, Liveness::Alive);
                while scene.answer() != (0, 0) {}
            }
            took
        });
    });

    let mut message = Vec::new();
    for announcement in &announcements[..4] {
        let item = Item::Route {
            metric: METRIC,
            announcement: announcement.clone(),
        };
        item.write(&mut message);
    }
    group.throughput(Throughput::Elements(4));
    group.bench_function("parse", |b| {
        b.iter(|| message::parse(black_box(&message)).expect("four announcements"));
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = routing
}
criterion_main!(benches);
