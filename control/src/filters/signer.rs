//! What a gateway says of its own subnet, and when.

use super::{
    Now,
    held::Beside,
    statement::{Head, Said, Statement, WITHDRAWN_MAX},
};
use crate::keys::EntityKey;
use std::collections::{BTreeMap, BTreeSet};
use virga_ebpf::{
    guard::Guard,
    limits::{FILTER_BANKS_MAX, GUARD_FALSE_POSITIVE_RATE_MAX},
    subnet::SubnetPrefix,
    tables::Pair,
};

/// Changes that come closer to each other than this are said together.
const GAP_NS: u64 = 50_000_000;
/// Pairs that were taken back and that no later filter may let through by chance.
const REMEMBERED_MAX: usize = 8 * WITHDRAWN_MAX;
/// Salts that are tried for a filter that holds none of them.
const SALTS_MAX: usize = 4;

/// Signs for one subnet.
#[derive(Debug)]
pub struct Signer {
    key: EntityKey,
    prefix: SubnetPrefix,
    life_s: u32,
    version: u64,
    /// Version of the last filter.
    base: u64,
    /// What the last filter holds.
    published: BTreeSet<Pair>,
    /// The last filter itself.
    guard: Guard,
    /// What was taken back, as the last list said it; empty where none goes with the last filter.
    withdrawn: BTreeSet<Pair>,
    /// What was taken back and not given again, and when, on the monotonic clock; the latest of it.
    remembered: BTreeMap<Pair, u64>,
    /// Pairs that found no room on the last list.
    unlisted: usize,
    expires_s: u64,
    /// When the filter is made anew, on the monotonic clock.
    refresh_ns: u64,
    /// Before this nothing is said.
    quiet_until_ns: u64,
    /// There may be something to say once it is over.
    is_pending: bool,
}

impl Signer {
    /// For a subnet; what it signs counts for `life_s`.
    #[must_use]
    pub fn new(key: EntityKey, prefix: SubnetPrefix, life_s: u32) -> Self {
        Self {
            key,
            prefix,
            life_s,
            version: 0,
            base: 0,
            published: BTreeSet::new(),
            guard: Guard::build_within(1, [0; 2], [].iter()),
            withdrawn: BTreeSet::new(),
            remembered: BTreeMap::new(),
            unlisted: 0,
            expires_s: 0,
            refresh_ns: 0,
            quiet_until_ns: 0,
            is_pending: true,
        }
    }

    /// These were taken back in an earlier run.
    pub fn recall(&mut self, taken_back: impl IntoIterator<Item = Pair>, now: Now) {
        let each = taken_back.into_iter();
        self.remembered
            .extend(each.map(|pair| (pair, now.monotonic_ns)));
    }

    /// Its subnet.
    #[must_use]
    pub const fn prefix(&self) -> SubnetPrefix {
        self.prefix
    }

    /// Of what it said last; 0: nothing.
    #[must_use]
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// Whether others may send this, by what it said last.
    #[must_use]
    pub fn admits(&self, pair: &Pair) -> bool {
        self.published.contains(pair) && !self.withdrawn.contains(pair)
    }

    /// Estimated share of strangers that the last filter lets through, where that is more than it shall be.
    #[must_use]
    pub fn excess(&self) -> Option<f64> {
        let rate = self.guard.false_positive_rate();
        (rate >= GUARD_FALSE_POSITIVE_RATE_MAX).then_some(rate)
    }

    /// Pairs that were taken back and found no room on the last list.
    #[must_use]
    pub const fn unlisted(&self) -> usize {
        self.unlisted
    }

    /// When [`Self::next`] is due though nothing has changed, on the monotonic clock.
    #[must_use]
    pub const fn due_ns(&self) -> u64 {
        match self.is_pending && self.quiet_until_ns < self.refresh_ns {
            true => self.quiet_until_ns,
            false => self.refresh_ns,
        }
    }

    /// Nothing can be said now; it is due again a second later.
    pub fn put_off(&mut self, now: Now) {
        self.is_pending = true;
        self.quiet_until_ns = now.monotonic_ns + 1_000_000_000;
        self.refresh_ns = self.refresh_ns.max(self.quiet_until_ns);
    }

    /// What is to be said now, in this order, if `pairs` are what the subnet admits: a filter where one is due or a
    /// pair has been added, after the list that goes with it; else a list of those that were taken back. `newest`
    /// is the version that others hold, which may be one of an earlier run.
    pub fn next(
        &mut self,
        pairs: &BTreeSet<Pair>,
        newest: u64,
        beside: &Beside,
        now: Now,
        salt: impl FnMut() -> [u64; 2],
    ) -> Vec<Statement> {
        if now.monotonic_ns < self.quiet_until_ns {
            self.is_pending = true;
            return Vec::new();
        }
        self.is_pending = false;
        self.remember(pairs, now);
        let is_added = |p: &Pair| !self.published.contains(p) || self.withdrawn.contains(p);
        let is_due = now.monotonic_ns >= self.refresh_ns || newest > self.version;
        let is_added = pairs.iter().any(is_added);
        let mut list = self.listed(beside, now);
        let is_too_long = self.unlisted > 0 && !self.published.is_subset(pairs);
        let mut said = Vec::new();
        if is_due || is_added || is_too_long {
            self.build(pairs, now, salt);
            self.base = self.later(newest, now);
            list = self.listed(beside, now);
            let lines = self.guard.lines.clone();
            let salt = self.guard.info.salt;
            said.push(self.sign(self.base, Said::Filter { salt, lines }));
        } else if list.is_subset(&self.withdrawn) {
            return said;
        }
        self.withdrawn.clone_from(&list);
        if !list.is_empty() {
            self.version = self.later(newest, now);
            let base = self.base;
            let list = self.sign(self.version, Said::Withdrawn { base, pairs: list });
            // Before the filter: nothing that it holds by chance passes in between.
            said.insert(0, list);
        }
        self.trim();
        self.quiet_until_ns = now.monotonic_ns + GAP_NS;
        said
    }

    /// A version later than any that was said before, also where a clock was set back.
    fn later(&mut self, newest: u64, now: Now) -> u64 {
        self.version = now.unix_ms.max(self.version + 1).max(newest + 1);
        self.version
    }

    fn sign(&self, version: u64, said: Said) -> Statement {
        let head = Head {
            signer: self.key.public,
            prefix: self.prefix,
            version,
            expires_s: self.expires_s,
        };
        Statement::sign(head, said, &self.key)
    }

    /// What has been taken back, and not been given again.
    fn remember(&mut self, pairs: &BTreeSet<Pair>, now: Now) {
        self.remembered.retain(|pair, _| !pairs.contains(pair));
        for pair in self.published.difference(pairs) {
            self.remembered.entry(*pair).or_insert(now.monotonic_ns);
        }
    }

    /// Forgets the oldest of it, beyond what there is room for.
    fn trim(&mut self) {
        let excess = self.remembered.len().saturating_sub(REMEMBERED_MAX);
        if excess > 0 {
            let mut oldest: Vec<(u64, Pair)> =
                self.remembered.iter().map(|(p, at)| (*at, *p)).collect();
            oldest.sort_unstable();
            for (_, pair) in &oldest[..excess] {
                self.remembered.remove(pair);
            }
        }
    }

    /// What a list has to hold beside the last filter: of what was taken back what that or another gateway's filter
    /// lets through, and where there are others, for one life all of it, as they may not have heard.
    fn listed(&mut self, beside: &Beside, now: Now) -> BTreeSet<Pair> {
        let life_ns = u64::from(self.life_s) * 1_000_000_000;
        let passes = |pair: &Pair, at: u64| {
            let is_new = beside.are_there && now.monotonic_ns < at.saturating_add(life_ns);
            is_new || self.guard.is_hit(pair) || beside.guards.iter().any(|one| one.is_hit(pair))
        };
        let each = self.remembered.iter().map(|(pair, at)| (*at, *pair));
        let mut all: Vec<(u64, Pair)> = each.filter(|(at, pair)| passes(pair, *at)).collect();
        all.sort_unstable();
        self.unlisted = all.len().saturating_sub(WITHDRAWN_MAX);
        let latest = all.into_iter().rev().take(WITHDRAWN_MAX);
        latest.map(|(_, pair)| pair).collect()
    }

    /// Makes the filter, with the salt of some that lets the fewest of those through that were taken back.
    fn build(&mut self, pairs: &BTreeSet<Pair>, now: Now, mut salt: impl FnMut() -> [u64; 2]) {
        let remembered = &self.remembered;
        let hits = |guard: &Guard| remembered.keys().filter(|pair| guard.is_hit(pair)).count();
        let mut best = Guard::build_within(FILTER_BANKS_MAX, salt(), pairs.iter());
        let mut fewest = hits(&best);
        for _ in 1..SALTS_MAX {
            // No salt helps where there are too many pairs.
            let is_full = best.false_positive_rate() >= GUARD_FALSE_POSITIVE_RATE_MAX;
            if fewest == 0 || is_full {
                break;
            }
            let other = Guard::build_within(FILTER_BANKS_MAX, salt(), pairs.iter());
            let through = hits(&other);
            if through < fewest {
                (best, fewest) = (other, through);
            }
        }
        self.guard = best;
        self.published.clone_from(pairs);
        self.expires_s = now.unix_s() + u64::from(self.life_s);
        // Two more come before this one ends.
        let third_ns = u64::from(self.life_s) * 1_000_000_000 / 3;
        self.refresh_ns = now.monotonic_ns + third_ns;
    }
}
