//! What issuers say of entities, where a channel asks its publishers for capabilities.
//!
//! Of each issuer's statements about an entity the latest is held until it ends. One that its issuer has taken back is
//! held as well, and gives nothing: an earlier one that comes meanwhile stays without effect. Whoever issues a later
//! one gives it at least the earlier one's time, or takes that one back.

use super::{EVIDENCE_MAX, EvidenceId, Kind, Store, Taken, Verdict};
use crate::{
    capability::{Statement, Statements, statement::By},
    channel::capabilities::STATEMENTS_MAX,
};
use std::collections::BTreeMap;

/// Bytes of all statements that a node holds. Each issuer has the same share of them, and of how many there are.
const STATEMENT_BYTES_HELD_MAX: usize = 64 << 20;

/// What a node holds at most.
pub(super) const MOST: Size = Size {
    count: EVIDENCE_MAX,
    bytes: STATEMENT_BYTES_HELD_MAX,
};

/// How many statements there are, and of how many bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) count: usize,
    pub(super) bytes: usize,
}

impl Size {
    const fn add(&mut self, bytes: usize) {
        self.count += 1;
        self.bytes += bytes;
    }

    const fn remove(&mut self, bytes: usize) {
        self.count -= 1;
        self.bytes -= bytes;
    }

    /// Whether another of so many bytes finds room. In the place of one it makes them no more, also where there are too many.
    fn has_room(self, bytes: usize, before: Option<usize>, most: Self) -> bool {
        let is_few = before.is_some() || self.count < most.count;
        is_few && self.bytes - before.unwrap_or_default() + bytes <= most.bytes
    }
}

/// What is held of statements: of each issuer, and in all.
#[derive(Clone, Debug, Default)]
pub(super) struct Vouched {
    by: BTreeMap<By, Size>,
    all: Size,
}

impl Vouched {
    pub(super) const fn count(&self) -> usize {
        self.all.count
    }

    fn of(&self, by: By) -> Size {
        self.by.get(&by).copied().unwrap_or_default()
    }

    fn add(&mut self, statement: &Statement) {
        let bytes = statement.as_bytes().len();
        self.all.add(bytes);
        self.by.entry(statement.by()).or_default().add(bytes);
    }

    fn remove(&mut self, (by, bytes): (By, usize)) {
        self.all.remove(bytes);
        if let Some(size) = self.by.get_mut(&by) {
            size.remove(bytes);
            if size.count == 0 {
                self.by.remove(&by);
            }
        }
    }
}

impl Store {
    /// Takes a statement in, if it counts where a channel asks its publishers for capabilities.
    ///
    /// # Errors
    /// [`Verdict`]: why it is not held, or gives nothing.
    pub fn take_statement(&mut self, bytes: &[u8], now_s: u64) -> Result<Taken, Verdict> {
        let read = Statement::parse(bytes).map_err(|_| Verdict::Malformed)?;
        let claimed = read.claimed();
        let (id, claim, by) = (
            EvidenceId::from(claimed.id()),
            claimed.claim(),
            claimed.by(),
        );
        if !self.is_vouching(by) {
            return Err(Verdict::Issuer);
        }
        if self.held.contains_key(&id) {
            return match claimed.revoked(now_s, &self.revocations) {
                Some(_) => Err(Verdict::Revoked),
                None => Ok(Taken::Known(id)),
            };
        }
        if claim.not_after_s <= now_s {
            return Err(Verdict::Ended);
        }
        let key = *self.revocations.current(&claim.subject);
        let known = self.holders.get(&key).map(|holder| &holder.statements);
        if known.is_some_and(|known| known.has(claimed)) {
            return Err(Verdict::Replaced);
        }
        let before = known.and_then(|known| known.of(&claim.subject, by));
        let before = before.map(|one| (EvidenceId::from(one.id()), one.as_bytes().len()));
        let has_place = before.is_some()
            || (known.map_or(0, Statements::len) < STATEMENTS_MAX
                && self.held.len() < self.most.count);
        let has_room = has_place && self.has_room(by, bytes.len(), before.map(|(_, bytes)| bytes));
        // What is forged is not counted as an issuer's.
        let statement = read.verify().map_err(|_| Verdict::Forged)?;
        if !has_room {
            self.statements_refused += 1;
            return Err(Verdict::Full);
        }
        if let Some((before, bytes)) = before {
            self.held.remove(&before);
            self.vouched.remove((by, bytes));
        }
        self.held.insert(id, (key, Kind::Statement));
        self.vouched.add(&statement);
        let revoked = statement.revoked(now_s, &self.revocations);
        let holder = self.holders.entry(key).or_default();
        holder.statements.learn(statement);
        self.derive(&key, now_s);
        match revoked {
            Some(_) => Err(Verdict::Revoked),
            None => Ok(Taken::New(id)),
        }
    }

    /// Whether its statements are taken in.
    pub(super) fn is_vouching(&self, by: By) -> bool {
        match by {
            By::Issuer(issuer) => self.issuers.contains(&(Kind::Statement, issuer)),
            By::Itself => false,
        }
    }

    /// Makes its place another's.
    pub(super) fn forget_statement(&mut self, statement: &Statement) {
        self.held.remove(&statement.id().into());
        let bytes = statement.as_bytes().len();
        self.vouched.remove((statement.by(), bytes));
    }

    /// Whether an issuer's statement of so many bytes finds room, in the place of one of its own of `before`. One that is no
    /// longer than that always does: it may say less.
    fn has_room(&self, by: By, bytes: usize, before: Option<usize>) -> bool {
        if before.is_some_and(|before| bytes <= before) {
            return true;
        }
        let most = Size {
            count: self.room(Kind::Statement),
            ..self.most
        };
        // Where issuers were added, others may have more than their share.
        self.vouched.all.has_room(bytes, before, most)
            && self.vouched.of(by).has_room(bytes, before, self.share())
    }

    /// Lets go what has ended of one holder's.
    pub(super) fn review_statements(&mut self, key: &[u8; 32], now_s: u64) {
        let Some(holder) = self.holders.get_mut(key) else {
            return;
        };
        let is_over = |one: &&Statement| one.claim().not_after_s <= now_s;
        for ended in holder.statements.iter().filter(is_over) {
            self.held.remove(&EvidenceId::from(ended.id()));
            self.vouched.remove((ended.by(), ended.as_bytes().len()));
        }
        holder.statements.expire(now_s);
    }

    /// All statements that are held.
    pub fn statements(&self) -> impl Iterator<Item = &Statement> {
        let holders = self.holders.values();
        holders.flat_map(|holder| holder.statements.iter())
    }
}
