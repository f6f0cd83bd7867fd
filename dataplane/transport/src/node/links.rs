//! The links to neighbours: which are watched, and by which session.

use super::{Node, Timer};
use crate::{
    event::{Event, Heard, LinkState, LinkStatus, Toward, Transmit, Watch},
    frame::LinkFrame,
    link::{Change, Link, Terms},
    session::Queued,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use virga_ebpf::{
    header::{Flags, Header, NodeId, PRIORITY_CONTROL, SessionId, StreamId},
    limits::{ECHO_SLOTS, HEADER_BYTES},
};

/// Hops that an echo has: to the neighbour and back, nowhere else.
const ECHO_HOPS: u8 = 2;

/// Those that are watched, and whose keepalive or echo is due.
#[derive(Default)]
pub(super) struct Links {
    watched: BTreeMap<NodeId, Watched>,
    due: VecDeque<NodeId>,
    echoes_due: VecDeque<NodeId>,
}

struct Watched {
    link: Link,
    /// Where its echoes are noted, and what they carry; none where there is no more place.
    place: Option<u32>,
    secret: SessionId,
    timer_ns: Option<u64>,
    is_due: bool,
}

impl Node {
    /// Watches the links to these neighbours, and to no others: in each session with one of them that answers,
    /// [`Event::Link`] tells when the link between the two dies and when it lives again. A neighbour that does
    /// not speak the keepalive stays [`crate::LinkState::Unknown`].
    pub fn watch_links(&mut self, now_ns: u64, neighbours: &BTreeSet<NodeId>) {
        if self.limits.link_interval_ns == 0 {
            return;
        }
        let terms = Terms {
            interval_ns: self.limits.link_interval_ns,
            misses: self.limits.link_misses,
        };
        let watched = self.links.watched.keys();
        let gone: Vec<NodeId> = watched
            .filter(|peer| !neighbours.contains(peer) || !self.peers.contains_key(peer))
            .copied()
            .collect();
        for peer in gone {
            self.set_link_timer(peer, None);
            let removed = self.links.watched.remove(&peer);
            if let Some(gap_ns) = removed.and_then(|w| w.link.fallen_gap_ns()) {
                // Nobody will say that it lives again.
                self.tell_link(peer, LinkState::Unknown, gap_ns);
            }
            self.links.due.retain(|due| *due != peer);
            self.links.echoes_due.retain(|due| *due != peer);
        }
        for &peer in neighbours {
            let Some(known) = self.peers.get(&peer) else {
                continue;
            };
            if self.links.watched.contains_key(&peer) {
                continue;
            }
            let session = known.live;
            let secret = SessionId(self.generator.number());
            let watched = Watched {
                link: Link::new(terms, now_ns),
                place: self.free_place(),
                secret: self.share.mark(secret),
                timer_ns: None,
                is_due: false,
            };
            self.links.watched.insert(peer, watched);
            if session.is_some() {
                self.on_link_session(now_ns, (peer, session));
            }
        }
    }

    /// The first of this worker's places for echoes that no link has.
    fn free_place(&self) -> Option<u32> {
        let taken: BTreeSet<u32> = self
            .links
            .watched
            .values()
            .filter_map(|w| w.place)
            .collect();
        (u32::from(self.share.worker())..ECHO_SLOTS)
            .step_by(usize::from(self.share.workers()))
            .find(|place| !taken.contains(place))
    }

    /// Takes up what `heard` knows of the echoes of links whose timers are due, before [`Node::handle_timeout`].
    pub fn take_echoes(&mut self, now_ns: u64, mut heard: impl FnMut(&Watch) -> Heard) {
        let due = self
            .timers
            .iter()
            .take_while(|(due_ns, _)| *due_ns <= now_ns);
        let due = due.filter_map(|(_, timer)| match timer {
            Timer::Link(peer) => Some(*peer),
            _ => None,
        });
        for peer in due.collect::<Vec<NodeId>>() {
            let Some(watched) = self.links.watched.get_mut(&peer) else {
                continue;
            };
            if let Some(place) = watched.place {
                let watch = Watch {
                    peer,
                    place,
                    secret: watched.secret.0,
                    sent: watched.link.echoes(),
                };
                watched.link.on_echo(heard(&watch));
            }
        }
    }

    /// Every link that is watched, for people.
    pub fn links(&self) -> impl Iterator<Item = LinkStatus> + '_ {
        let watched = self.links.watched.iter();
        watched.map(|(&peer, watched)| watched.link.status(peer))
    }

    /// A session with a peer has begun, or the one that there was is over.
    pub(super) fn on_link_session(
        &mut self,
        now_ns: u64,
        (peer, session): (NodeId, Option<SessionId>),
    ) {
        if session.is_some()
            && let Some(watched) = self.links.watched.get_mut(&peer)
        {
            // Whoever has seen the last one's knows nothing of this one's.
            watched.secret = self.share.mark(SessionId(self.generator.number()));
        }
        self.with_link(now_ns, peer, |link| match session {
            Some(_) => link.begin(now_ns),
            None => link.end(now_ns),
        });
    }

    /// A session opened a packet that came straight from its peer.
    pub(super) fn on_link_packet(
        &mut self,
        now_ns: u64,
        (peer, session): (NodeId, SessionId),
        heard: Option<LinkFrame>,
    ) {
        // A session that another has taken the place of says nothing of what is now.
        if self.live(peer) != Some(session) {
            return;
        }
        self.with_link(now_ns, peer, |link| match heard {
            Some(heard) => link.on_frame(now_ns, heard),
            None => {
                link.on_packet(now_ns);
                None
            }
        });
    }

    pub(super) fn handle_link_timeout(&mut self, now_ns: u64, peer: NodeId) {
        let due_ns = self.links.watched.get(&peer).and_then(|w| w.timer_ns);
        let due_ns = due_ns.unwrap_or(now_ns);
        self.with_link(now_ns, peer, |link| link.on_timeout(now_ns, due_ns));
    }

    /// Runs `call` on a link, tells what changed, and sets its timer.
    fn with_link(
        &mut self,
        now_ns: u64,
        peer: NodeId,
        call: impl FnOnce(&mut Link) -> Option<Change>,
    ) {
        let Some(watched) = self.links.watched.get_mut(&peer) else {
            return;
        };
        let before = watched.link.state();
        let changed = call(&mut watched.link);
        if watched.link.is_frame_due(now_ns) && !watched.is_due {
            watched.is_due = true;
            self.links.due.push_back(peer);
        }
        if let Some(Change { state, gap_ns }) = changed.filter(|change| change.state != before) {
            self.tell_link(peer, state, gap_ns);
        }
        self.settle_link(peer);
    }

    fn tell_link(&mut self, peer: NodeId, state: LinkState, gap_ns: u64) {
        let event = Event::Link {
            peer,
            state,
            gap_ns,
        };
        let session = self.live(peer).unwrap_or(SessionId(0));
        self.events.push_back(Queued::new(session, event));
    }

    /// Sets a link's timer; one whose frame waits to be sent gets it afterwards.
    fn settle_link(&mut self, peer: NodeId) {
        let Some(watched) = self.links.watched.get(&peer) else {
            return;
        };
        let due_ns = match watched.is_due {
            true => watched.link.judge_ns(),
            false => watched.link.timeout(),
        };
        self.set_link_timer(peer, due_ns);
    }

    fn set_link_timer(&mut self, peer: NodeId, due_ns: Option<u64>) {
        let Some(watched) = self.links.watched.get_mut(&peer) else {
            return;
        };
        let old_ns = std::mem::replace(&mut watched.timer_ns, due_ns);
        if old_ns == due_ns {
            return;
        }
        if let Some(old_ns) = old_ns {
            self.timers.remove(&(old_ns, Timer::Link(peer)));
        }
        if let Some(due_ns) = due_ns {
            self.timers.insert((due_ns, Timer::Link(peer)));
        }
    }

    /// Appends the next echo that is due.
    fn transmit_echo(&mut self, buf: &mut Vec<u8>) -> Option<Transmit> {
        while let Some(peer) = self.links.echoes_due.pop_front() {
            let Some(watched) = self.links.watched.get_mut(&peer) else {
                continue;
            };
            let (Some(place), Some(sequence)) = (watched.place, watched.link.take_echo()) else {
                continue;
            };
            let header = Header {
                flags: Flags::ECHO,
                priority: PRIORITY_CONTROL,
                hop_limit: ECHO_HOPS,
                subnet: self.subnet,
                destination: self.id,
                origin_hash: self.origin,
                session_id: watched.secret,
                stream_id: StreamId(place),
                sequence,
                ..Header::default()
            };
            buf.extend(header.encode());
            self.counters.sent_datagrams += 1;
            return Some(Transmit {
                destination: peer,
                toward: Toward::Link,
                bytes: HEADER_BYTES,
                segment_bytes: HEADER_BYTES,
            });
        }
        None
    }

    /// Appends the next packet of a link's keepalive that is due, and then its echo.
    pub(super) fn transmit_link(&mut self, now_ns: u64, buf: &mut Vec<u8>) -> Option<Transmit> {
        if let Some(echo) = self.transmit_echo(buf) {
            return Some(echo);
        }
        while let Some(peer) = self.links.due.pop_front() {
            let Some(watched) = self.links.watched.get_mut(&peer) else {
                continue;
            };
            watched.is_due = false;
            let generator = &mut self.generator;
            let random = |below| generator.below(below);
            let frame = watched.link.take_frame(now_ns, random);
            self.settle_link(peer);
            let (Some(frame), Some(session)) = (frame, self.live(peer)) else {
                continue;
            };
            let built = self.with_session(now_ns, session, |session, ctx| {
                session.build_link(ctx, frame, buf)
            });
            if let Some(Some(bytes)) = built {
                self.counters.sent_datagrams += 1;
                self.links.echoes_due.push_back(peer);
                return Some(Transmit {
                    destination: peer,
                    toward: Toward::Link,
                    bytes,
                    segment_bytes: bytes,
                });
            }
        }
        None
    }
}
