//! A router between neighbours who say and do what they like, in any order: what it tells is well formed and goes to
//! neighbours that are there, what it puts into the tables leads over such too, and its memory has its bounds.

use std::collections::BTreeSet;

use arbitrary::Arbitrary;
use virga_ebpf::{
    hash,
    header::{NodeId, Subnet},
};
use virga_routing::{
    Aggregation, Announcement, Authority, Claim, Doubt, Liveness, Now, Router, Setup, Speaker,
    announcement,
    limits::MESSAGE_BYTES_MAX,
    message::{self, Item, Number},
};

/// Nodes that there are; the first is this one.
const NODES: u8 = 12;
/// Of them those that may be neighbours, from the second on.
const NEIGHBOURS: u8 = 4;
const DESTINATIONS_MAX: usize = 8;

#[derive(Arbitrary, Debug)]
enum Act {
    Up {
        neighbour: u8,
        cost: u8,
    },
    Down(u8),
    Cost {
        neighbour: u8,
        cost: u16,
    },
    Live {
        neighbour: u8,
        state: u8,
    },
    Raw {
        neighbour: u8,
        bytes: Vec<u8>,
    },
    Route {
        neighbour: u8,
        of: Of,
        metric: u16,
    },
    Metric {
        neighbour: u8,
        of: Of,
        metric: u16,
    },
    Request {
        neighbour: u8,
        of: Of,
        hops: u8,
        is_higher: bool,
    },
    Again {
        neighbour: u8,
        of: Of,
    },
    Wait {
        ms: u16,
    },
    /// Other nodes are known, a bit each.
    Know(u16),
    /// The clock on the wall is set.
    Clock {
        seconds: i16,
    },
}

/// Whose announcement.
#[derive(Arbitrary, Debug)]
struct Of {
    node: u8,
    /// Levels of its subnet that it announces: none is itself.
    levels: u8,
    number: u16,
    is_signed: bool,
    /// Seconds that it holds, from the beginning on.
    holds: u16,
}

/// Knows these nodes, a bit each; a signature is one byte.
struct Trusting(u16);

const ALL: Trusting = Trusting(u16::MAX);

fn key(node: u8) -> [u8; 32] {
    [node + 1; 32]
}

fn id(node: u8) -> NodeId {
    hash::node_id(&key(node))
}

/// Two regions of three subnets each.
fn subnet(node: u8) -> Subnet {
    Subnet(u32::from(node % 2 + 1) << 24 | u32::from(node % 3 + 1) << 16)
}

impl Authority for Trusting {
    fn network(&self) -> [u8; 32] {
        announcement::network("fuzz")
    }
    fn node_key(&self) -> [u8; 32] {
        key(0)
    }
    fn entity_key(&self) -> [u8; 32] {
        key(0)
    }
    fn sign(&self, _: &[u8]) -> [u8; 64] {
        [1; 64]
    }
    fn knows(&self, speaker: &Speaker) -> Result<(), Doubt> {
        let knows = |node: &u8| self.0 >> (node % 16) & 1 == 1;
        match (0..NODES)
            .filter(knows)
            .any(|node| key(node) == speaker.node_key)
        {
            true => Ok(()),
            false => Err(Doubt::Stranger),
        }
    }
    fn is_signed(&self, announcement: &Announcement) -> bool {
        announcement.signature() == [1; 64]
    }
}

/// Unix seconds at the beginning.
const BEGINNING_S: u64 = 1_800_000_000;

fn announced(of: &Of) -> Option<Announcement> {
    let node = of.node % NODES;
    let claim = Claim {
        node_key: key(node),
        entity_key: key(node),
        announced: of.levels % 4 * 8,
        subnet: subnet(node),
        seqno: BEGINNING_S * 1_000 + u64::from(of.number),
        not_after_s: BEGINNING_S + u64::from(of.holds),
        network: ALL.network(),
    };
    Announcement::issue(&claim, |_| [u8::from(of.is_signed); 64])
}

/// What an act says, and which neighbour.
fn said(act: &Act) -> Option<(u8, Item)> {
    Some(match act {
        Act::Route {
            neighbour,
            of,
            metric,
        } => {
            let (metric, announcement) = (u32::from(*metric), announced(of)?);
            (
                *neighbour,
                Item::Route {
                    metric,
                    announcement,
                },
            )
        }
        Act::Metric {
            neighbour,
            of,
            metric,
        } => {
            // The highest takes it back.
            let metric = if *metric == u16::MAX {
                u32::MAX
            } else {
                u32::from(*metric)
            };
            let destination = announced(of)?.destination();
            (
                *neighbour,
                Item::Metric {
                    metric,
                    destination,
                },
            )
        }
        Act::Request {
            neighbour,
            of,
            hops,
            is_higher,
        } => {
            let number = if *is_higher {
                Number::Higher
            } else {
                Number::AsHigh
            };
            let (hops, announcement) = (*hops, announced(of)?);
            (
                *neighbour,
                Item::Request {
                    hops,
                    number,
                    announcement,
                },
            )
        }
        Act::Again { neighbour, of } => {
            let destination = announced(of)?.destination();
            (*neighbour, Item::Again { destination })
        }
        _ => return None,
    })
}

/// Does what an input says.
pub fn run(input: &[u8]) {
    let Some(acts) = super::read::<Vec<Act>>(input) else {
        return;
    };
    let neighbour = |n: u8| id(n % NEIGHBOURS + 1);
    let mut now = Now {
        ns: 1_000_000_000,
        unix_s: BEGINNING_S,
    };
    let setup = Setup {
        subnet: subnet(0),
        aggregation: Aggregation::BySubnet,
        seqno: BEGINNING_S * 1_000,
        quiet_ns: 100_000_000,
        destinations_max: DESTINATIONS_MAX,
    };
    let mut router = Router::new(now, setup, ALL);
    let mut up = BTreeSet::new();
    for act in acts.iter().take(300) {
        match act {
            Act::Up { neighbour: n, cost } => {
                router.neighbour_up(
                    now,
                    neighbour(*n),
                    subnet(n % NEIGHBOURS + 1),
                    u32::from(*cost) + 1,
                );
                up.insert(neighbour(*n));
            }
            Act::Down(n) => {
                router.neighbour_down(now, neighbour(*n));
                up.remove(&neighbour(*n));
            }
            Act::Cost { neighbour: n, cost } => {
                router.set_cost(now, neighbour(*n), u32::from(*cost) + 1)
            }
            Act::Live {
                neighbour: n,
                state,
            } => {
                let liveness = match state % 3 {
                    0 => Liveness::Alive,
                    1 => Liveness::Dead,
                    _ => Liveness::Barred,
                };
                router.set_liveness(now, neighbour(*n), liveness);
            }
            Act::Raw {
                neighbour: n,
                bytes,
            } => {
                if let Ok(items) = message::parse(bytes) {
                    let mut again = Vec::new();
                    items.iter().for_each(|item| item.write(&mut again));
                    assert_eq!(again, *bytes, "there is one way to write a message");
                }
                router.handle(now, neighbour(*n), bytes);
            }
            Act::Know(nodes) => router.set_authority(now, Trusting(*nodes)),
            Act::Wait { ms } => now.ns += u64::from(*ms) * 1_000_000,
            Act::Clock { seconds } => {
                now.unix_s = now.unix_s.saturating_add_signed(i64::from(*seconds))
            }
            act => {
                let Some((n, item)) = said(act) else { continue };
                let mut bytes = Vec::new();
                item.write(&mut bytes);
                router.handle(now, neighbour(n), &bytes);
            }
        }
        if router.poll_timeout().is_some_and(|at| at <= now.ns) {
            router.handle_timeout(now);
        }
        while let Some(change) = router.poll_route() {
            let hops = change.next_hops.into_iter();
            for hop in hops
                .flat_map(|hops| [Some(hops.primary), hops.backup])
                .flatten()
            {
                assert!(
                    up.contains(&hop),
                    "{} over {hop}, which is not up",
                    change.destination
                );
            }
            assert!(
                change
                    .next_hops
                    .is_none_or(|hops| hops.backup != Some(hops.primary))
            );
        }
        let mut told = 0;
        while let Some((to, bytes)) = router.poll_transmit() {
            assert!(up.contains(&to), "{to} is told, and is not up");
            assert!(bytes.len() <= MESSAGE_BYTES_MAX && message::parse(&bytes).is_ok());
            told += 1;
            assert!(told <= 32 * usize::from(NEIGHBOURS), "too much at once");
        }
        while router.poll_muted().is_some() {}
        assert!(router.routes().count() <= DESTINATIONS_MAX);
    }
}
