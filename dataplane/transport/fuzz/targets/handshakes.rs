//! Two nodes that begin sessions by any patterns and policies over a network that loses, repeats, reorders and
//! changes what it likes, and a member that seals what it likes before a session is established: nothing panics or
//! grows, no data is taken early, and once the network is honest both ends have a session if their policies let them.

use super::{
    MS, Network,
    transport::{Event, HandshakePolicy, NodeLimits, Pattern, Pq, SessionState},
};
use arbitrary::Arbitrary;
use virga_ebpf::header::Flags;

#[derive(Arbitrary, Debug)]
enum Act {
    /// A node begins.
    Connect(bool),
    /// What a node wants to send is on its way.
    Take(bool),
    /// One that was sent arrives, perhaps again, perhaps late.
    Arrive(u8),
    /// The same, but for a byte.
    Changed(u8, u16, u8),
    /// A part of a key or a ciphertext, sealed by a session that there is.
    Part(bool, u8, Vec<u8>),
    /// Anything sealed by a session that there is.
    Sealed(bool, Vec<u8>),
    /// Time.
    Wait(u16),
}

fn policy(byte: u8) -> HandshakePolicy {
    let patterns = [
        None,
        Some(Pattern::Nk),
        Some(Pattern::Ik),
        Some(Pattern::Xx),
    ];
    HandshakePolicy {
        pattern: patterns[usize::from(byte & 3)],
        pq: Pq::ALL[usize::from(byte >> 2) % 3],
    }
}

/// Whether a session can come about that either end begins.
fn agree(policies: [HandshakePolicy; 2]) -> bool {
    let [a, b] = policies.map(|policy| policy.pq);
    let is_taken = |from: usize| {
        let takes_nk = matches!(policies[1 - from].pattern, None | Some(Pattern::Nk));
        policies[from].pattern != Some(Pattern::Nk) || takes_nk
    };
    let is_refused = matches!((a, b), (Pq::Off, Pq::Required) | (Pq::Required, Pq::Off));
    !is_refused && (is_taken(0) || is_taken(1))
}

/// Does what an input says.
pub fn run(input: &[u8]) {
    let Some(input) = super::read::<(u8, u8, Vec<Act>)>(input) else {
        return;
    };
    let policies = [policy(input.0), policy(input.1)];
    let mut network = Network::apart(&policies, &NodeLimits::default());
    let ids = [network.id(0), network.id(1)];
    let mut sent: Vec<(usize, Vec<u8>)> = Vec::new();
    let mut is_tampered = false;
    for act in input.2.iter().take(96) {
        match act {
            Act::Connect(at) => {
                let (at, now_ns) = (usize::from(*at), network.now_ns);
                network.nodes[at]
                    .connect(now_ns, ids[1 - at])
                    .expect("it is configured");
            }
            Act::Take(at) => {
                if let Some((_, datagrams)) = network.take(usize::from(*at)) {
                    sent.extend(datagrams.into_iter().map(|bytes| (usize::from(*at), bytes)));
                }
            }
            Act::Arrive(n) | Act::Changed(n, ..) => {
                let chosen = sent.get(usize::from(*n) % sent.len().max(1)).cloned();
                let Some((from, mut datagram)) = chosen else {
                    continue;
                };
                if let Act::Changed(_, at, by) = act {
                    let at = usize::from(*at) % datagram.len();
                    datagram[at] ^= by;
                }
                network.give(from, 1 - from, &mut datagram);
            }
            Act::Part(at, part, bytes) => {
                let mut payload = vec![15, *part];
                payload.extend_from_slice(
                    &u16::try_from(bytes.len().min(1_000))
                        .unwrap_or(0)
                        .to_be_bytes(),
                );
                payload.extend_from_slice(&bytes[..bytes.len().min(1_000)]);
                is_tampered |= seal(&mut network, usize::from(*at), &payload);
            }
            Act::Sealed(at, bytes) => {
                let payload = &bytes[..bytes.len().min(1_000)];
                is_tampered |= seal(&mut network, usize::from(*at), payload);
            }
            Act::Wait(ms) => network.advance(u64::from(*ms % 3_000) * MS),
        }
        for (node, events) in network.nodes.iter().zip(&network.events) {
            assert!(
                node.sessions().count() <= 8,
                "handshakes hold bounded state"
            );
            let of_data =
                |e: &Event| matches!(e, Event::Message { .. } | Event::StreamOpened { .. });
            let is_early = !events.iter().any(|e| matches!(e, Event::Connected { .. }));
            assert!(
                !is_early || !events.iter().any(of_data),
                "data before a session"
            );
        }
    }
    if is_tampered {
        return;
    }
    for at in 0..2 {
        let now_ns = network.now_ns;
        network.nodes[at]
            .connect(now_ns, ids[1 - at])
            .expect("it is configured");
    }
    let mut is_both = false;
    for _ in 0..40_000 {
        network.exchange();
        let is_up = |at: usize| {
            let mut sessions = network.nodes[at].sessions();
            sessions.any(|s| s.state == SessionState::Established)
        };
        is_both = is_up(0) && is_up(1);
        if is_both || !agree(policies) && network.now_ns > 30_000 * MS {
            break;
        }
        network.advance(3 * MS);
    }
    assert_eq!(is_both, agree(policies), "{policies:?}");
}

/// Seals and delivers a payload of node `from`, if it has a session; whether it had one.
fn seal(network: &mut Network, from: usize, payload: &[u8]) -> bool {
    let to = network.id(1 - from);
    if !network.nodes[from].sessions().any(|s| s.peer == to) {
        return false;
    }
    let label = (Flags::CONTROL, 0, 0, 0);
    let mut packet = network.nodes[from].seal_raw(to, label, payload);
    network.give(from, 1 - from, &mut packet);
    true
}
