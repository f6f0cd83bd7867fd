//! A node in a LAN in which anybody says anything by mDNS: what it says can be read, and of what it hears it keeps so
//! much and no more.

use std::net::SocketAddr;

use arbitrary::Arbitrary;
use virga_discovery::{Claim, Found, Record, Source as _};
use virga_ebpf::header::Subnet;
use virga_lan::{
    Speaker,
    limits::{HEARD_MAX, MESSAGE_BYTES_MAX, SERVICES_MAX},
    message::{self, Said},
    socket::PORT,
};

use super::MS;

#[derive(Arbitrary, Debug)]
enum Act {
    /// Any bytes.
    Raw {
        from: u8,
        bytes: Vec<u8>,
    },
    /// What a node says of itself, changed here and there, and cut.
    Said {
        from: u8,
        kind: u8,
        node: u8,
        sequence: u8,
        changes: Vec<(u16, u8)>,
        keep: Option<u16>,
    },
    /// Somebody reads what was heard.
    Poll(u8),
    Wait(u16),
}

/// A record that nobody has signed: whoever reads it elsewhere looks at that.
fn record(node: u8, sequence: u8) -> Record {
    let claim = Claim {
        node_key: [node; 32],
        entity_key: [2; 32],
        network: [3; 32],
        subnet: Subnet(0),
        instance: 1,
        sequence: sequence.into(),
        issued_s: 3,
        lifetime_s: 4,
        name: format!("n{node}"),
        addresses: vec![address(node.max(1), 4_783)],
    };
    Record::issue(&claim, |_| [5; 64]).expect("its form is right")
}

fn address(last: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], port))
}

fn words(kind: u8, node: u8, sequence: u8) -> Vec<u8> {
    let record = record(node, sequence);
    let words = match kind % 4 {
        0 => message::announcement(&record),
        1 => message::goodbye(&record),
        2 => message::take_back(&record),
        _ => message::question(),
    };
    words.expect("a node can say it")
}

/// Does what an input says.
pub fn run(input: &[u8]) {
    let Some(acts) = super::read::<Vec<Act>>(input) else {
        return;
    };
    let own = record(0, 1);
    let mut speaker = Speaker::new(&own, 1, 1);
    let mut now_ns = 0;
    speaker.open(now_ns, 0);
    for act in acts.iter().take(300) {
        let (from, heard) = match act {
            Act::Raw { from, bytes } => (from, bytes.clone()),
            Act::Said {
                from,
                kind,
                node,
                sequence,
                changes,
                keep,
            } => {
                let mut words = words(*kind, *node, *sequence);
                for (at, by) in changes {
                    let at = usize::from(*at) % words.len();
                    words[at] ^= by;
                }
                words.truncate(keep.map_or(usize::MAX, usize::from));
                (from, words)
            }
            Act::Poll(most) => {
                for found in speaker.poll(usize::from(*most)) {
                    assert!(matches!(found, Found::Record { .. }), "{found:?}");
                }
                continue;
            }
            Act::Wait(ms) => {
                now_ns += u64::from(*ms) * MS;
                for (_, said) in speaker.transmit(now_ns) {
                    assert!(said.len() <= MESSAGE_BYTES_MAX);
                    let read = message::read(record(1, 1).node(), &said);
                    assert!(read.is_ok(), "what it says can be read: {read:?}");
                }
                continue;
            }
        };
        if let Ok(Said::Services(services)) = message::read(own.node(), &heard) {
            // One more says that there were more.
            assert!(services.len() <= SERVICES_MAX + 1);
        }
        speaker.handle(now_ns, 0, address(*from, PORT), &heard);
        assert!(speaker.nodes() <= HEARD_MAX);
    }
}
