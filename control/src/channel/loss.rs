//! How much is lost on the links to neighbours, counted by the packets of their keepalive, whatever else is sent. Who
//! receives counts them, and tells the sender: only that one chooses where its packets go.
//!
//! What did not come while a link was dead is not counted: that is known already, and says nothing of the time after.

use super::{
    delivery::Outlet,
    message::Message,
    service::{ChannelService, OUTBOX_MAX},
};
use std::collections::BTreeMap;
use virga_ebpf::header::NodeId;
use virga_transport::{LinkState, LinkStatus, Node};

/// How often the counts are looked at.
const LOOK_EVERY_NS: u64 = 1_000_000_000;
/// Packets that a loss is counted over at least,
const PACKETS_MIN: u64 = 200;
/// and for how long.
const WINDOW_NS: u64 = 3_000_000_000;
const MILLION: u64 = 1_000_000;

/// How much of what is sent over a link is lost, of a million packets; none: not measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// On the way to the neighbour, by its word.
    pub to_ppm: Option<u32>,
    /// On the way from it.
    pub from_ppm: Option<u32>,
}

/// What was counted when a link was looked at.
#[derive(Clone, Copy, Debug)]
struct Look {
    is_up: bool,
    detections: u64,
    received: u64,
    missed: u64,
}

#[derive(Debug, Default)]
struct Link {
    last: Option<Look>,
    /// Of this window.
    received: u64,
    missed: u64,
    began_ns: u64,
    lost: Lost,
    /// What the neighbour was told in this session.
    said_ppm: Option<u32>,
}

impl Link {
    fn look(&mut self, now_ns: u64, status: &LinkStatus) {
        let look = Look {
            is_up: status.state == LinkState::Up,
            detections: status.detections,
            received: status.received,
            missed: status.missed,
        };
        let Some(last) = self.last.replace(look) else {
            self.began_ns = now_ns;
            return;
        };
        if last.is_up && look.is_up && last.detections == look.detections {
            let came = look.received.saturating_sub(last.received);
            self.received = self.received.saturating_add(came);
            // What was overtaken, and came after all, is missed no more.
            let missed = self.missed.saturating_add(look.missed);
            self.missed = missed.saturating_sub(last.missed);
        }
        let packets = self.received.saturating_add(self.missed);
        if packets >= PACKETS_MIN && now_ns.saturating_sub(self.began_ns) >= WINDOW_NS {
            let ppm = u128::from(self.missed) * u128::from(MILLION) / u128::from(packets);
            self.lost.from_ppm = u32::try_from(ppm).ok();
            (self.received, self.missed, self.began_ns) = (0, 0, now_ns);
        }
    }
}

/// The links to this worker's neighbours.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    links: BTreeMap<NodeId, Link>,
    /// None while no link is watched.
    look_ns: Option<u64>,
}

impl Losses {
    pub(crate) const fn due_ns(&self) -> Option<u64> {
        self.look_ns
    }

    /// Links are watched from now on.
    pub(crate) fn begin(&mut self, now_ns: u64) {
        self.look_ns.get_or_insert(now_ns + LOOK_EVERY_NS);
    }

    /// A session with the neighbour has begun: nothing was said in it yet.
    pub(crate) fn session_began(&mut self, peer: NodeId) {
        if let Some(link) = self.links.get_mut(&peer) {
            (link.lost.to_ppm, link.said_ppm) = (None, None);
        }
    }
}

impl<O: Outlet> ChannelService<O> {
    /// How much is lost on the link to a neighbour.
    #[must_use]
    pub fn lost(&self, peer: NodeId) -> Lost {
        let link = self.losses.links.get(&peer);
        link.map(|link| link.lost).unwrap_or_default()
    }

    pub(crate) fn on_lost(&mut self, peer: NodeId, ppm: u32) {
        // What it says may be there before the link was looked at; one that is not watched is forgotten at the next look.
        if self.losses.look_ns.is_some() && self.sessions.contains_key(&peer) {
            let link = self.losses.links.entry(peer).or_default();
            link.lost.to_ppm = Some(ppm);
        }
    }

    /// Counts what came since the last time, and tells neighbours where it is not what they know.
    pub(crate) fn look_at_losses(&mut self, now_ns: u64, node: &mut Node) {
        let watched: BTreeMap<NodeId, LinkStatus> = node.links().map(|l| (l.peer, l)).collect();
        self.losses.look_ns = (!watched.is_empty()).then_some(now_ns + LOOK_EVERY_NS);
        let links = &mut self.losses.links;
        links.retain(|peer, _| watched.contains_key(peer));
        let mut told = Vec::new();
        for (peer, status) in &watched {
            let link = links.entry(*peer).or_default();
            link.look(now_ns, status);
            let lost = link.lost.from_ppm.filter(|_| status.is_spoken);
            if let Some(ppm) = lost
                && link.said_ppm != Some(ppm)
                && self
                    .sessions
                    .get(peer)
                    .is_some_and(|session| session.outbox.len() < OUTBOX_MAX)
            {
                link.said_ppm = Some(ppm);
                told.push((*peer, ppm));
            }
        }
        for (peer, ppm) in told {
            self.tell(now_ns, node, peer, &Message::Lost(ppm));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virga_transport::Answers;

    const SECOND: u64 = 1_000_000_000;

    fn status(state: LinkState, [detections, received, missed]: [u64; 3]) -> LinkStatus {
        LinkStatus {
            peer: NodeId(1),
            state,
            since_ns: 0,
            is_spoken: true,
            interval_ns: SECOND / 80,
            detect_ns: SECOND / 20,
            answers: Answers::Nic,
            detections,
            gap_ns: 0,
            received,
            missed,
        }
    }

    #[test]
    fn a_loss_is_counted_over_some_time_and_forgotten_as_slowly() {
        let mut link = Link::default();
        for n in 0..3 {
            link.look(n * SECOND, &status(LinkState::Up, [0, 60 * n, 20 * n]));
            assert_eq!(link.lost.from_ppm, None, "{n}");
        }
        link.look(3 * SECOND, &status(LinkState::Up, [0, 180, 60]));
        assert_eq!(link.lost.from_ppm, Some(250_000));
        for n in 4..6 {
            link.look(n * SECOND, &status(LinkState::Up, [0, 80 * n, 60]));
            assert_eq!(link.lost.from_ppm, Some(250_000), "{n}");
        }
        link.look(6 * SECOND, &status(LinkState::Up, [0, 480, 60]));
        assert_eq!(link.lost.from_ppm, Some(0));
        // Some were missed at one look and had come at the next.
        link.look(7 * SECOND, &status(LinkState::Up, [0, 540, 70]));
        link.look(9 * SECOND, &status(LinkState::Up, [0, 690, 60]));
        assert_eq!(link.lost.from_ppm, Some(0));
        // Few packets say nothing, however long it takes.
        link.look(60 * SECOND, &status(LinkState::Up, [0, 710, 159]));
        assert_eq!(link.lost.from_ppm, Some(0));
    }

    #[test]
    fn what_did_not_come_while_the_link_was_dead_does_not_count() {
        let mut link = Link::default();
        let looks = [
            (LinkState::Up, [0, 0, 0]),
            (LinkState::Up, [0, 80, 0]),
            (LinkState::Silent, [1, 90, 0]),
            (LinkState::Up, [1, 100, 800]),
            (LinkState::Up, [1, 180, 800]),
            // It fell and came back between two looks.
            (LinkState::Up, [2, 200, 900]),
            (LinkState::Up, [2, 280, 900]),
        ];
        for (n, (state, counts)) in (0..).zip(looks) {
            link.look(n * SECOND, &status(state, counts));
        }
        assert_eq!(link.lost.from_ppm, Some(0));
    }
}
