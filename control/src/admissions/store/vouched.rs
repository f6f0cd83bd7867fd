//! What issuers say of entities, where a channel asks its publishers for capabilities.
//!
//! Of each issuer's statements about an entity the latest is held until it ends. One that its issuer has taken back is
//! held as well, and gives nothing: an earlier one that comes meanwhile stays without effect. Whoever issues a later
//! one gives it at least the earlier one's time, or takes that one back.

use super::{EVIDENCE_MAX, EvidenceId, Kind, Store, Taken, Verdict};
use crate::{
    capability::{Statement, Statements, statement::By},
    channel::capabilities::STATEMENTS_MAX,
    rights::Operation,
};

/// Bytes of all statements that a node holds.
const STATEMENT_BYTES_HELD_MAX: usize = 64 << 20;

impl Store {
    /// Takes a statement in, if it counts where a channel asks its publishers for capabilities.
    ///
    /// # Errors
    /// [`Verdict`]: why it is not held, or gives nothing.
    pub fn take_statement(&mut self, bytes: &[u8], now_s: u64) -> Result<Taken, Verdict> {
        let read = Statement::parse(bytes).map_err(|_| Verdict::Malformed)?;
        let claimed = read.claimed();
        let (id, claim) = (EvidenceId::from(claimed.id()), claimed.claim());
        let counts = |issuer: &[u8; 32]| {
            let mut channels = self.channels.iter();
            channels.any(|c| c.policy.is_vouched_by(issuer, Operation::Publish))
        };
        match claimed.by() {
            By::Issuer(issuer) if counts(&issuer) => {}
            By::Issuer(_) | By::Itself => return Err(Verdict::Issuer),
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
        let before = known.and_then(|known| known.of(&claim.subject, claimed.by()));
        let before = before.map(|one| (EvidenceId::from(one.id()), one.as_bytes().len()));
        // A later one may say less: it finds room where there is none.
        let has_room = known.map_or(0, Statements::len) < STATEMENTS_MAX
            && self.held.len() < EVIDENCE_MAX
            && self.statement_bytes + bytes.len() <= STATEMENT_BYTES_HELD_MAX;
        if before.is_none() && !has_room {
            return Err(Verdict::Full);
        }
        let statement = read.verify().map_err(|_| Verdict::Forged)?;
        if let Some((before, bytes)) = before {
            self.held.remove(&before);
            self.statement_bytes -= bytes;
        }
        self.held.insert(id, (key, Kind::Statement));
        self.statement_bytes += bytes.len();
        let revoked = statement.revoked(now_s, &self.revocations);
        let holder = self.holders.entry(key).or_default();
        holder.statements.learn(statement);
        self.derive(&key, now_s);
        match revoked {
            Some(_) => Err(Verdict::Revoked),
            None => Ok(Taken::New(id)),
        }
    }

    /// Lets go what has ended of one holder's.
    pub(super) fn review_statements(&mut self, key: &[u8; 32], now_s: u64) {
        let Some(holder) = self.holders.get_mut(key) else {
            return;
        };
        let is_over = |one: &&Statement| one.claim().not_after_s <= now_s;
        for ended in holder.statements.iter().filter(is_over) {
            self.held.remove(&EvidenceId::from(ended.id()));
            self.statement_bytes -= ended.as_bytes().len();
        }
        holder.statements.expire(now_s);
    }

    /// All statements that are held.
    pub fn statements(&self) -> impl Iterator<Item = &Statement> {
        let holders = self.holders.values();
        holders.flat_map(|holder| holder.statements.iter())
    }
}
