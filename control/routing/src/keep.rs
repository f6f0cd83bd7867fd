//! What is looked at again: what has ended, what was refused and may pass now, whose word counts no more.

use crate::{
    announcement::{Announcement, Authority},
    limits::{CLOCK_STEP_S, FORGET_NS, LIFETIME_S, RENEW_NS, SKEW_S},
    neighbour::{Refused, Slot},
    reason::Reason,
    router::{Now, Router},
    table::Heard,
};
use std::sync::Arc;

/// Why what was refused may pass now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mended {
    /// Other nodes are known.
    Keys,
    /// The wall clock was set.
    Clock,
    /// Time has passed.
    Time,
    /// The table has room.
    Room,
}

impl<A: Authority> Router<A> {
    /// By whose keys it goes from here on. What it believed of nodes that are not known any more counts no
    /// more, and what it refused of those that are known now is to be said again.
    pub fn set_authority(&mut self, now: Now, authority: A) {
        self.now = now;
        self.authority = authority;
        for place in self.table.taken() {
            self.judge_anew(place);
        }
        self.reconsider(Mended::Keys);
    }

    /// Forgets what is not of a node that is known, and signs its own by the keys that it has now.
    fn judge_anew(&mut self, place: u32) {
        let Some(entry) = self.table.at_mut(place) else {
            return;
        };
        if let Some(own) = &entry.own {
            let speaker = own.announcement.speaker();
            if speaker.entity_key != self.authority.entity_key() {
                let next = own.announcement.seqno().saturating_add(1);
                self.renumber(place, next);
            }
            return;
        }
        let is_known = |said: &Arc<Announcement>| self.authority.knows(&said.speaker()).is_ok();
        if entry
            .heard
            .iter()
            .all(|heard| is_known(&heard.announcement))
        {
            return;
        }
        let gone = entry
            .heard
            .extract_if(.., |heard| !is_known(&heard.announcement));
        for Heard {
            from, announcement, ..
        } in gone
        {
            if let Some(neighbour) = self.neighbours.at_mut(from) {
                let refused = Refused {
                    why: Reason::Stranger,
                    speaker: Some(announcement.speaker()),
                    from_s: 0,
                };
                neighbour.refuse(entry.destination, refused);
            }
        }
        // It is not told on either until there is room for another.
        entry.advert.take_if(|(said, _)| !is_known(said));
        self.choose(place);
    }

    /// Has said again what was refused, and may pass now.
    pub(crate) fn reconsider(&mut self, mended: Mended) {
        let (authority, now_s) = (&self.authority, self.now.unix_s);
        let may_pass = |refused: &Refused| match (mended, refused.why) {
            (_, Reason::Stranger | Reason::Elsewhere) => {
                let speaker = refused.speaker.as_ref();
                mended == Mended::Keys && speaker.is_some_and(|s| authority.knows(s).is_ok())
            }
            (Mended::Clock, Reason::Expired | Reason::Ahead) => true,
            (Mended::Time, Reason::Expired | Reason::Ahead) => refused.from_s <= now_s,
            (Mended::Room, Reason::Full) => true,
            _ => false,
        };
        let mut is_any = false;
        for neighbour in self.neighbours.all_mut() {
            is_any |= neighbour.reconsider(may_pass);
        }
        if is_any {
            self.speaks_to = 0;
            self.flush_soon();
        }
    }

    /// Whether the wall clock has been set since they were last compared.
    pub(crate) fn is_set_anew(&mut self) -> bool {
        let since_s = self.now.ns.saturating_sub(self.compared.ns) / 1_000_000_000;
        let expected_s = self.compared.unix_s.saturating_add(since_s);
        let is_set = self.now.unix_s.abs_diff(expected_s) > CLOCK_STEP_S;
        // Compared over long times the one runs away from the other by itself.
        if is_set || since_s > 10 {
            self.compared = self.now;
        }
        is_set
    }

    /// What has ended goes, what is about to end is signed anew.
    pub(crate) fn sweep(&mut self) {
        let now_ns = self.now.ns;
        let mut is_roomy = false;
        for place in self.table.taken() {
            let Some(entry) = self.table.at(place) else {
                continue;
            };
            let destination = entry.destination;
            if let Some(own) = &entry.own {
                let next = own.announcement.seqno().saturating_add(1);
                let is_wrong = own.is_refused && !self.fits(&own.announcement);
                if own.is_refused && self.is_ahead(destination, next) {
                    // Signed while the clock was ahead: nobody believes it.
                    self.renumber(place, self.now.unix_s.saturating_mul(1_000));
                } else if is_wrong || own.signed_ns.saturating_add(RENEW_NS) <= now_ns {
                    self.renumber(place, next);
                }
                continue;
            }
            let Some(entry) = self.table.at_mut(place) else {
                continue;
            };
            entry.look_whether_torn();
            let before = entry.heard.len();
            entry.heard.retain(|heard| heard.until_ns > now_ns);
            let has_ended = entry.heard.is_empty() && entry.until_ns <= now_ns;
            let has_fewer = entry.heard.len() < before;
            let is_silent = entry.chosen.is_none() && self.is_forgotten_by_all(place);
            let silent_ns = self.look_how_long_silent(place, is_silent);
            if has_fewer || silent_ns > FORGET_NS && self.forget_what_was_told(place) {
                self.choose(place);
            } else if has_ended && is_silent {
                self.table.remove(place);
                self.asking.remove(&place);
                self.later.remove(&place);
                for neighbour in self.neighbours.all_mut() {
                    neighbour.forget(place);
                }
                is_roomy = true;
            }
        }
        if is_roomy && std::mem::take(&mut self.is_crowded) {
            self.reconsider(Mended::Room);
        }
    }

    /// For how long it has told nobody that it leads there.
    fn look_how_long_silent(&mut self, place: u32, is_silent: bool) -> u64 {
        let now_ns = self.now.ns;
        let entry = self.table.at_mut(place);
        entry.map_or(0, |entry| {
            entry.silent_ns = is_silent.then(|| entry.silent_ns.unwrap_or(now_ns));
            now_ns.saturating_sub(entry.silent_ns.unwrap_or(now_ns))
        })
    }

    /// Whether there was something: see [`FORGET_NS`].
    fn forget_what_was_told(&mut self, place: u32) -> bool {
        let entry = self.table.at_mut(place);
        entry.is_some_and(|entry| {
            (entry.proof, entry.wanted) = (None, 0);
            entry.feasible.take().is_some()
        })
    }

    /// Whether an announcement of its own says until when as it would be said now.
    pub(crate) fn fits(&self, announcement: &Announcement) -> bool {
        let left_s = announcement.not_after_s().saturating_sub(self.now.unix_s);
        (LIFETIME_S / 2 - SKEW_S..=LIFETIME_S + SKEW_S / 2).contains(&left_s)
    }

    /// Whether nobody still has to be told anything of it.
    fn is_forgotten_by_all(&self, place: u32) -> bool {
        let is_told = |slot: Slot| self.neighbours.at(slot).is_some_and(|n| n.was_told(place));
        let is_due = self.changed.contains(&place) || self.to_install.contains(&place);
        let is_shown = self
            .table
            .at(place)
            .is_some_and(|entry| entry.installed.is_some());
        !is_due && !is_shown && !self.neighbours.slots().any(is_told)
    }
}
