//! The one replica that is appended to.

use super::{
    Event, Part, Replica, Store,
    message::{Batches, Body, Fetch},
    serve::{Served, Walker, serve},
};
use crate::{
    disk::Disk,
    limits::{LEADERLESS_NS_MIN, LEADS_EVERY_NS},
};
use virga_ebpf::header::NodeId;

/// What a leader knows of the others.
#[derive(Debug)]
pub(super) struct Leading<D: Disk> {
    pub(super) due_ns: u64,
    /// Where the log ended when it began.
    begin: u64,
    round: u64,
    peers: Vec<Peer<D>>,
}

#[derive(Debug)]
struct Peer<D: Disk> {
    node: NodeId,
    /// Its log is the leader's up to there, on disk for good.
    durable: u64,
    is_settled: bool,
    /// Whether it knows all that it ever promised; another's copy may be that of one that voted for a later leader.
    is_whole: bool,
    /// The last round that it heard of.
    round: u64,
    /// The round that began when it was first heard not to be whole.
    mended_by: Option<u64>,
    /// What it asked for, while there is nothing to say.
    waiting: Option<Fetch>,
    /// Committed, round, and whether it is whole: what it was told last.
    told: Option<(u64, u64, bool)>,
    place: Option<Walker<D>>,
    heard_ns: u64,
}

impl<D: Disk> Peer<D> {
    const fn new(node: NodeId, heard_ns: u64) -> Self {
        Self {
            node,
            durable: 0,
            is_settled: false,
            is_whole: false,
            round: 0,
            mended_by: None,
            waiting: None,
            told: None,
            place: None,
            heard_ns,
        }
    }
}

impl<D: Disk> Replica<D> {
    /// Another replica was started again: what it has is not known any more.
    pub(super) fn forget_copy(&mut self, node: NodeId) {
        if let Part::Leads(leading) = &mut self.part
            && let Some(peer) = leading.peers.iter_mut().find(|peer| peer.node == node)
        {
            *peer = Peer::new(node, peer.heard_ns);
        }
    }

    pub(super) fn lead(&mut self, now_ns: u64, store: &mut Store<'_, D>) {
        let epoch = self.promise.epoch;
        self.promise.settled = epoch;
        if !self.keep() {
            return;
        }
        let others = self.group.others.iter();
        self.part = Part::Leads(Box::new(Leading {
            due_ns: now_ns.saturating_add(LEADS_EVERY_NS),
            begin: store.log.end(),
            round: 1,
            peers: others.map(|node| Peer::new(*node, now_ns)).collect(),
        }));
        self.events.push_back(Event::Leads { epoch });
        let committed = self.committed;
        self.say_all(&Body::Leads { committed });
        self.count_copies(store);
    }

    pub(super) fn handle_fetch(
        &mut self,
        now_ns: u64,
        from: NodeId,
        fetch: Fetch,
        store: &mut Store<'_, D>,
    ) {
        let Part::Leads(leading) = &mut self.part else {
            return;
        };
        let (peers, round) = (&mut leading.peers, &mut leading.round);
        let Some(peer) = peers.iter_mut().find(|peer| peer.node == from) else {
            return;
        };
        peer.heard_ns = now_ns;
        let (at, disk) = (fetch.at, store.files.disk());
        let answer = match serve(store.log, disk, &mut peer.place, at, true) {
            Ok(Served::Diverges) => Body::Diverges(at),
            Ok(Served::Gone(begin)) => Body::Gone(begin),
            Ok(Served::Batches(_)) if fetch.is_probe => Body::Matches(at),
            Ok(Served::Batches(_)) => {
                peer.durable = at.offset;
                peer.is_settled = fetch.settled == self.promise.epoch;
                peer.is_whole = fetch.is_whole;
                peer.round = fetch.round;
                if fetch.is_whole {
                    peer.mended_by = None;
                } else if peer.mended_by.is_none() {
                    *round += 1;
                    peer.mended_by = Some(*round);
                }
                peer.waiting = Some(fetch);
                return self.serve_waiting(store);
            }
            Err(error) => return self.events.push_back(Event::Trouble(error.to_string())),
        };
        self.say(from, answer);
    }

    /// Answers those for whom there is something.
    pub(super) fn serve_waiting(&mut self, store: &mut Store<'_, D>) {
        self.count_copies(store);
        let count = self.group.others.len();
        for place in 0..count {
            self.serve_one(place, store, false);
        }
    }

    fn serve_one(&mut self, place: usize, store: &mut Store<'_, D>, is_due: bool) {
        let Part::Leads(leading) = &mut self.part else {
            return;
        };
        let (begin, round) = (leading.begin, leading.round);
        let heard = leading.peers.iter().map(|peer| peer.round).min();
        let Some(peer) = leading.peers.get_mut(place) else {
            return;
        };
        let Some(fetch) = peer.waiting else {
            return;
        };
        let has_all = peer.is_settled && peer.durable >= self.committed;
        let is_mended = peer
            .mended_by
            .is_some_and(|by| heard.is_some_and(|heard| heard >= by));
        let is_whole = fetch.is_whole || has_all && is_mended;
        let tells = (self.committed, round, is_whole);
        let served = serve(
            store.log,
            store.files.disk(),
            &mut peer.place,
            fetch.at,
            false,
        );
        let bytes = match served {
            Ok(Served::Batches(bytes)) => bytes,
            // Retention has passed it: the follower asks again, and hears so.
            Ok(Served::Diverges | Served::Gone(_)) => {
                peer.waiting = None;
                return;
            }
            Err(error) => return self.events.push_back(Event::Trouble(error.to_string())),
        };
        if bytes.is_empty() && peer.told == Some(tells) && !is_due {
            return;
        }
        peer.told = Some(tells);
        peer.waiting = None;
        let node = peer.node;
        let batches = Batches {
            at: fetch.at,
            begin,
            committed: self.committed,
            round,
            is_whole,
            bytes,
        };
        self.say(node, Body::Batches(batches));
    }

    /// How many have what.
    fn count_copies(&mut self, store: &mut Store<'_, D>) {
        let Part::Leads(leading) = &self.part else {
            return;
        };
        let is_heard = leading.peers.iter().all(|peer| peer.round >= 1);
        if is_heard && !self.promise.is_whole {
            self.promise.is_whole = true;
            if !self.keep() {
                return;
            }
        }
        let Part::Leads(leading) = &self.part else {
            return;
        };
        let peers = leading.peers.iter();
        let copies = peers.map(|peer| match peer.is_settled && peer.is_whole {
            true => peer.durable,
            false => 0,
        });
        let own = match self.promise.is_whole {
            true => store.log.acknowledged(),
            false => 0,
        };
        let mut ends: Vec<u64> = copies.chain([own]).collect();
        ends.sort_unstable_by(|one, other| other.cmp(one));
        let committed = ends.get(self.group.quorum() - 1).copied().unwrap_or(0);
        let everywhere = ends.last().copied().unwrap_or(0);
        self.everywhere = self.everywhere.max(everywhere);
        self.commit(committed, store.log);
    }

    /// Says that it leads; ends leading where most are not heard any more.
    pub(super) fn lead_on(&mut self, now_ns: u64, store: &mut Store<'_, D>) {
        let Part::Leads(leading) = &mut self.part else {
            return;
        };
        leading.due_ns = now_ns.saturating_add(LEADS_EVERY_NS);
        let recent_ns = now_ns.saturating_sub(2 * LEADERLESS_NS_MIN);
        let peers = leading.peers.iter();
        let heard = peers.filter(|peer| peer.heard_ns >= recent_ns).count() + 1;
        if heard < self.group.quorum() {
            self.put_off(now_ns);
            return self.follow(None);
        }
        let quiet = leading.peers.iter().filter(|peer| peer.waiting.is_none());
        let quiet: Vec<NodeId> = quiet.map(|peer| peer.node).collect();
        let committed = self.committed;
        for node in quiet {
            self.say(node, Body::Leads { committed });
        }
        for place in 0..self.group.others.len() {
            self.serve_one(place, store, true);
        }
    }

    /// The others, as a leader knows them: up to where each has the log on disk, and whether it counts.
    pub fn copies(&self) -> impl Iterator<Item = (NodeId, u64, bool)> + '_ {
        let peers = match &self.part {
            Part::Leads(leading) => leading.peers.as_slice(),
            _ => &[],
        };
        peers
            .iter()
            .map(|peer| (peer.node, peer.durable, peer.is_settled && peer.is_whole))
    }
}
