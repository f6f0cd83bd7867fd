//! A replica that copies the leader's log.

use super::{
    Event, Part, Replica, Store,
    message::{Batches, Body, Fetch},
};
use crate::{
    AppendError,
    disk::Disk,
    limits::{BEGIN_MAX, FETCH_AGAIN_NS},
    log::{BatchRefused, Boundary},
};
use virga_ebpf::header::NodeId;

/// What a follower knows of the leader.
#[derive(Debug, Default)]
pub(super) struct Following {
    leader: Option<NodeId>,
    /// What it asked for, and when it asks again.
    asked: Option<(Boundary, u64)>,
    round: u64,
    /// Where the leader's log ended when it began to lead; known once both logs are the same up to the end of
    /// this one.
    begin: Option<u64>,
    /// As the leader said last.
    committed: u64,
    /// Batches that the log has not taken yet.
    rest: Vec<u8>,
    taken: usize,
    seek: Option<Seek>,
}

/// The last batch end that both logs have is between two of the log's ends.
#[derive(Clone, Copy, Debug)]
struct Seek {
    /// Both have it, as far as is known, or as was asked.
    low: usize,
    is_sure: bool,
    /// The leader has it not.
    high: usize,
}

impl Seek {
    /// Which of the log's ends is asked for next; none where it is found.
    const fn next(&self) -> Option<usize> {
        match self.high - self.low {
            1 if self.is_sure => None,
            1 => Some(self.low),
            gap => Some(self.low + gap / 2),
        }
    }
}

impl Following {
    pub(super) fn new(leader: Option<NodeId>) -> Self {
        Self {
            leader,
            ..Self::default()
        }
    }

    pub(super) const fn leader(&self) -> Option<NodeId> {
        self.leader
    }

    pub(super) fn due_ns(&self) -> u64 {
        self.asked.map_or(u64::MAX, |(_, again_ns)| again_ns)
    }
}

impl<D: Disk> Replica<D> {
    /// What whoever leads this epoch says.
    pub(super) fn handle_leader(
        &mut self,
        now_ns: u64,
        from: NodeId,
        body: Body,
        store: &mut Store<'_, D>,
    ) {
        match &self.part {
            Part::Follows(following) if following.leader == Some(from) => {}
            Part::Follows(following) if following.leader.is_none() => self.follow(Some(from)),
            Part::Asks(_) => self.follow(Some(from)),
            // An epoch has one leader.
            Part::Follows(_) | Part::Leads(_) | Part::Ended => return,
        }
        self.put_off(now_ns);
        self.heard_ns = Some(now_ns);
        let Part::Follows(following) = &mut self.part else {
            return;
        };
        let asked = following.asked.map(|(at, _)| at);
        match body {
            Body::Batches(batches) if asked == Some(batches.at) && following.seek.is_none() => {
                self.take(batches, store);
            }
            Body::Matches(at) if asked == Some(at) => self.sought(at, true, store),
            Body::Diverges(at) if asked == Some(at) => self.sought(at, false, store),
            Body::Gone(begin) if begin.offset > BEGIN_MAX => {
                let what = format!(
                    "the leader's log begins at {}, which cannot be",
                    begin.offset
                );
                self.events.push_back(Event::Trouble(what));
            }
            Body::Gone(begin) if asked.is_some_and(|at| at.offset < begin.offset) => {
                self.gone(begin, store)
            }
            // Late, or twice.
            _ => {}
        }
        self.follow_on(now_ns, store);
    }

    /// Batches that come behind the log's end, with all before it the same.
    fn take(&mut self, batches: Batches, store: &Store<'_, D>) {
        let Part::Follows(following) = &mut self.part else {
            return;
        };
        if store.log.boundary() != batches.at || !store.log.is_durable() {
            return;
        }
        following.asked = None;
        following.begin = Some(batches.begin);
        following.committed = batches.committed;
        following.round = batches.round;
        (following.rest, following.taken) = (batches.bytes, 0);
        let is_mended = batches.is_whole && self.promise.settled == self.promise.epoch;
        if is_mended && !self.promise.is_whole {
            self.promise.is_whole = true;
            self.keep();
        }
    }

    /// Goes on as far as the log has room, and asks for more.
    pub(super) fn follow_on(&mut self, now_ns: u64, store: &mut Store<'_, D>) {
        let Part::Follows(following) = &mut self.part else {
            return;
        };
        while following.taken < following.rest.len() {
            match store.log.append_batch(&following.rest[following.taken..]) {
                Ok(bytes) => following.taken += bytes,
                Err(BatchRefused::Append(AppendError::Full | AppendError::DiskFull)) => return,
                Err(refused) => {
                    following.rest.clear();
                    // What is wrong is not asked for again and again.
                    let again_ns = now_ns.saturating_add(FETCH_AGAIN_NS);
                    following.asked = Some((store.log.boundary(), again_ns));
                    self.events.push_back(Event::Trouble(refused.to_string()));
                    return;
                }
            }
        }
        (following.rest, following.taken) = (Vec::new(), 0);
        if !store.log.is_durable() {
            return;
        }
        let end = store.log.end();
        if let Some(begin) = following.begin {
            let committed = following.committed.min(end);
            let is_new = end >= begin && self.promise.settled != self.promise.epoch;
            if is_new {
                self.promise.settled = self.promise.epoch;
                if !self.keep() {
                    return;
                }
            }
            self.commit(committed, store.log);
        }
        self.fetch(now_ns, store);
    }

    fn fetch(&mut self, now_ns: u64, store: &Store<'_, D>) {
        let Part::Follows(following) = &mut self.part else {
            return;
        };
        let is_due = following
            .asked
            .is_none_or(|(_, again_ns)| now_ns >= again_ns);
        let (Some(leader), true) = (following.leader, is_due) else {
            return;
        };
        let sought = following.seek.and_then(|seek| seek.next());
        let sought = sought.and_then(|next| store.log.ends().nth(next).copied());
        let at = sought.unwrap_or_else(|| store.log.boundary());
        following.asked = Some((at, now_ns.saturating_add(FETCH_AGAIN_NS)));
        let fetch = Fetch {
            at,
            settled: self.promise.settled,
            round: following.round,
            is_whole: self.promise.is_whole,
            is_probe: sought.is_some(),
        };
        self.say(leader, Body::Fetch(fetch));
    }

    /// Whether the leader has the batch end that it was asked for.
    fn sought(&mut self, at: Boundary, is_there: bool, store: &mut Store<'_, D>) {
        let ends = store.log.ends();
        let count = ends.len();
        let place = ends.rev().position(|end| *end == at);
        let place = place.map(|behind| count - 1 - behind);
        let Part::Follows(following) = &mut self.part else {
            return;
        };
        let Some(place) = place.filter(|_| !is_there || following.seek.is_some()) else {
            // An answer that came twice.
            return;
        };
        following.asked = None;
        let high = count.saturating_sub(1);
        let seek = following.seek.get_or_insert(Seek {
            low: 0,
            is_sure: false,
            high,
        });
        match is_there {
            true if place < seek.high => (seek.low, seek.is_sure) = (place, true),
            false if place > seek.low => seek.high = place,
            _ => return self.end_differing(at.offset),
        }
        let (low, is_found) = (seek.low, seek.next().is_none());
        if !is_found {
            return;
        }
        let offset = store.log.ends().nth(low).map_or(0, |end| end.offset);
        (following.seek, following.begin) = (None, None);
        if offset < self.committed {
            return self.end_differing(offset);
        }
        if offset < store.log.first() && !self.forget() {
            return;
        }
        let cut = self.cut(offset, store);
        if let Err(error) = cut.and_then(|()| self.note_ends(store)) {
            self.end(format!("what differs could not be cut off: {error}"));
        }
    }

    fn end_differing(&mut self, offset: u64) {
        let committed = self.committed;
        self.end(format!(
            "the log differs from the leader's at {offset}, although it is committed up to {committed}: nothing was cut; compare both with `virga log verify`, and move the folder of the wrong one away"
        ));
    }

    /// The leader's log begins behind what is asked for: retention has removed it there. Where this one has that
    /// place too, they differ behind it.
    fn gone(&mut self, begin: Boundary, store: &mut Store<'_, D>) {
        let is_seeking = matches!(&self.part, Part::Follows(f) if f.seek.is_some());
        match is_seeking && store.log.ends().any(|end| *end == begin) {
            true => self.sought(begin, true, store),
            false => self.begin_again(begin, store),
        }
    }

    /// Counts as one that has forgotten what it promised, before it loses what it had.
    fn forget(&mut self) -> bool {
        (self.promise.is_whole, self.promise.settled) = (false, 0);
        self.committed = 0;
        self.keep()
    }

    fn begin_again(&mut self, begin: Boundary, store: &mut Store<'_, D>) {
        self.follow(self.leader());
        if !self.forget() {
            return;
        }
        if let Err(error) = self.cut(0, store) {
            return self.end(format!("the log could not begin again: {error}"));
        }
        store.log.begin_at(begin);
        store.log.note_ends([begin].into());
    }

    fn leader(&self) -> Option<NodeId> {
        match &self.part {
            Part::Follows(following) => following.leader,
            _ => None,
        }
    }
}
