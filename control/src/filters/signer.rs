//! What a gateway says of its own subnet, and when.

use super::{
    Now,
    statement::{Head, Said, Statement, WITHDRAWN_MAX},
};
use crate::keys::EntityKey;
use std::collections::BTreeSet;
use virga_ebpf::{guard::Guard, limits::FILTER_BANKS_MAX, subnet::SubnetPrefix, tables::Pair};

/// Changes that come closer to each other than this are said together.
const GAP_NS: u64 = 50_000_000;

/// Signs for one subnet.
#[derive(Debug)]
pub struct Signer {
    key: EntityKey,
    prefix: SubnetPrefix,
    life_s: u32,
    version: u64,
    /// What the last filter holds.
    published: BTreeSet<Pair>,
    /// What was taken back since, as it was last said.
    withdrawn: BTreeSet<Pair>,
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
            published: BTreeSet::new(),
            withdrawn: BTreeSet::new(),
            expires_s: 0,
            refresh_ns: 0,
            quiet_until_ns: 0,
            is_pending: true,
        }
    }

    /// Its subnet.
    #[must_use]
    pub const fn prefix(&self) -> SubnetPrefix {
        self.prefix
    }

    /// Of what it said last.
    #[must_use]
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// When [`Self::next`] is due though nothing has changed, on the monotonic clock.
    #[must_use]
    pub const fn due_ns(&self) -> u64 {
        match self.is_pending && self.quiet_until_ns < self.refresh_ns {
            true => self.quiet_until_ns,
            false => self.refresh_ns,
        }
    }

    /// What is to be said now, if `pairs` are what the subnet admits: a filter where one is due or a pair has
    /// been added, else those that were taken back. `newest` is the version that others hold, which may be one of
    /// an earlier run.
    pub fn next(
        &mut self,
        pairs: &BTreeSet<Pair>,
        newest: u64,
        now: Now,
        salt: impl FnOnce() -> [u64; 2],
    ) -> Option<Statement> {
        if now.monotonic_ns < self.quiet_until_ns {
            self.is_pending = true;
            return None;
        }
        self.is_pending = false;
        let is_added = |p: &Pair| !self.published.contains(p) || self.withdrawn.contains(p);
        let is_due = now.monotonic_ns >= self.refresh_ns || newest > self.version;
        let gone: BTreeSet<Pair> = self.published.difference(pairs).copied().collect();
        let said = if is_due || gone.len() > WITHDRAWN_MAX || pairs.iter().any(is_added) {
            let guard = Guard::build_within(FILTER_BANKS_MAX, salt(), pairs.iter());
            self.published.clone_from(pairs);
            self.withdrawn.clear();
            self.expires_s = now.unix_s() + u64::from(self.life_s);
            // Two more come before this one ends.
            let third_ns = u64::from(self.life_s) * 1_000_000_000 / 3;
            self.refresh_ns = now.monotonic_ns + third_ns;
            Said::Filter {
                salt: guard.info.salt,
                lines: guard.lines,
            }
        } else if gone != self.withdrawn {
            self.withdrawn.clone_from(&gone);
            Said::Withdrawn(gone)
        } else {
            return None;
        };
        self.quiet_until_ns = now.monotonic_ns + GAP_NS;
        // Later than any that was said before, also where a clock was set back.
        self.version = now.unix_ms.max(self.version + 1).max(newest + 1);
        let head = Head {
            signer: self.key.public,
            prefix: self.prefix,
            version: self.version,
            expires_s: self.expires_s,
        };
        Some(Statement::sign(head, said, &self.key))
    }
}
