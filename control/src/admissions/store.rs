//! Verified evidence, and the pairs that follow from it.
//!
//! Pairs depend on nothing but the evidence that is held, the revocation lists and the time: in whatever
//! order those came, the same evidence gives the same pairs.

mod shares;
mod vouched;

use super::wire::{BUCKETS, Digest, Piece, Verdict};
use crate::{
    capability::Statements,
    config::ChannelConfig,
    rights::{
        Authentic, Chain, Evidence, LinkId, List, Operation, Policy, Revocations,
        chain::CLOCK_SKEW_S_MAX, identity::Retired, revocation::Learned,
    },
};
use shares::Shares;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::RangeInclusive,
};
use virga_ebpf::{
    hash::{keyed, origin_hash},
    tables::Pair,
};
use vouched::{Size, Vouched};

/// Tokens and statements that a node holds in all.
pub const EVIDENCE_MAX: usize = 65_536;
/// Tokens of one holder.
pub const PER_HOLDER_MAX: usize = 64;
/// Tokens that begin with a link to the same entity: whoever may delegate can make as many as it likes,
/// and crowds out nobody else.
pub const PER_GRANTEE_MAX: usize = 4_096;

const _: () = assert!(PER_HOLDER_MAX <= PER_GRANTEE_MAX && PER_GRANTEE_MAX <= EVIDENCE_MAX / 2);

/// What evidence is called: of a token the first 16 bytes of BLAKE2s-MAC(key "virga evidence v1", all its bytes), of a
/// statement what revocation lists call it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EvidenceId(pub [u8; 16]);

impl EvidenceId {
    /// Of a token's bytes.
    #[must_use]
    pub fn of(token: &[u8]) -> Self {
        let digest = keyed(b"virga evidence v1", &[token]);
        Self(std::array::from_fn(|i| digest[i]))
    }

    /// In which part of the digest it counts.
    const fn bucket(self) -> usize {
        (self.0[0] >> 2) as usize
    }
}

const _: () = assert!(BUCKETS == 64);

impl From<LinkId> for EvidenceId {
    fn from(id: LinkId) -> Self {
        Self(id.0)
    }
}

/// A channel that asks its publishers for something.
#[derive(Clone, Debug)]
struct Guarded {
    config: ChannelConfig,
    policy: Policy,
}

#[derive(Clone, Debug, Default)]
struct Holder {
    /// The configuration names it: a filter may hold also of one of whom nothing is said.
    is_named: bool,
    tokens: BTreeMap<EvidenceId, Authentic>,
    /// The latest of each issuer, also where it has been taken back: an earlier one means nothing any more.
    statements: Statements,
    /// What follows from both, and until when (Unix seconds).
    pairs: BTreeMap<Pair, u64>,
    /// When time alone changes something, in Unix seconds.
    due_s: u64,
}

impl Holder {
    fn has_evidence(&self) -> bool {
        !self.tokens.is_empty() || !self.statements.is_empty()
    }
}

/// What a piece of evidence is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A token.
    Token,
    /// A statement of an issuer.
    Statement,
}

/// What became of evidence that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is held from now on.
    New(EvidenceId),
    /// It was held already.
    Known(EvidenceId),
}

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct Store {
    channels: Vec<Guarded>,
    /// Whose tokens and statements are taken in.
    issuers: BTreeSet<(Kind, [u8; 32])>,
    /// The entity that this node speaks for, whose packets its own guard never sees.
    own: Option<[u8; 32]>,
    pairs_max: usize,
    revocations: Revocations,
    /// By the key that each has now.
    holders: BTreeMap<[u8; 32], Holder>,
    /// The holder of each, and what it is.
    held: BTreeMap<EvidenceId, ([u8; 32], Kind)>,
    grantees: HashMap<[u8; 32], usize>,
    vouched: Vouched,
    /// How much is held of all, and in bytes of statements.
    most: Size,
    shares: Shares,
    pairs: BTreeSet<Pair>,
    /// They are others than when they were last published.
    has_changed: bool,
    /// When time alone changes something, in Unix seconds.
    next_change_s: u64,
    /// Pairs that found no room.
    pub pairs_refused: u64,
    /// Statements that found none, of all or of their issuer's share.
    pub statements_refused: u64,
}

impl Store {
    /// Holds nothing yet. At most `pairs_max` pairs will follow.
    #[must_use]
    pub fn new(own: Option<[u8; 32]>, channels: &[ChannelConfig], pairs_max: usize) -> Self {
        let channels = guarded(channels);
        Self {
            issuers: issuers(&channels),
            channels,
            own,
            pairs_max,
            revocations: Revocations::default(),
            holders: BTreeMap::new(),
            held: BTreeMap::new(),
            grantees: HashMap::new(),
            vouched: Vouched::default(),
            most: vouched::MOST,
            shares: Shares::Kept,
            pairs: BTreeSet::new(),
            has_changed: false,
            next_change_s: u64::MAX,
            pairs_refused: 0,
            statements_refused: 0,
        }
    }

    /// Has room for so many pairs from the next [`Self::follow`] on.
    pub const fn set_room(&mut self, pairs_max: usize) {
        self.pairs_max = pairs_max;
    }

    /// Holds at most so many tokens and statements, and so many bytes of these.
    #[cfg(test)]
    pub(super) const fn set_most(&mut self, count: usize, bytes: usize) {
        self.most = Size { count, bytes };
    }

    /// Goes by where entities are from now on, and by the keys that they have: this node speaks for `own`, and knows
    /// `entities`. What issuers said that are named no more is let go: it gives nothing, and would take the room of others.
    pub fn follow(
        &mut self,
        own: Option<[u8; 32]>,
        (channels, entities): (&[ChannelConfig], impl Iterator<Item = [u8; 32]>),
        retired: Retired,
        now_s: u64,
    ) {
        (self.own, self.channels) = (own, guarded(channels));
        self.issuers = issuers(&self.channels);
        self.revocations.set_retired(retired);
        for before in std::mem::take(&mut self.holders).into_values() {
            for (id, token) in before.tokens {
                let issuer = (Kind::Token, *token.chain().issuer());
                if !self.issuers.contains(&issuer) {
                    self.forget(id, &token);
                    continue;
                }
                let key = *self.revocations.current(token.holder());
                self.held.insert(id, (key, Kind::Token));
                let holder = self.holders.entry(key).or_default();
                holder.tokens.insert(id, token);
            }
            for statement in before.statements.iter() {
                if !self.is_vouching(statement.by()) {
                    self.forget_statement(statement);
                    continue;
                }
                let key = *self.revocations.current(&statement.claim().subject);
                let held = (key, Kind::Statement);
                self.held.insert(statement.id().into(), held);
                let holder = self.holders.entry(key).or_default();
                holder.statements.learn(statement.clone());
            }
        }
        if self.is_needed() {
            for entity in entities {
                let key = *self.revocations.current(&entity);
                self.holders.entry(key).or_default().is_named = true;
            }
        }
        // What follows for nobody any more goes.
        self.has_changed |= !self.pairs.is_empty();
        self.pairs.clear();
        self.review(None, now_s);
    }

    /// Whose tokens and statements are taken in.
    #[must_use]
    pub const fn issuers(&self) -> &BTreeSet<(Kind, [u8; 32])> {
        &self.issuers
    }

    /// Whether any channel asks its publishers for something: otherwise nothing is ever held.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        !self.channels.is_empty()
    }

    /// Takes evidence in, if it gives or will give somebody a right to publish. What is cheap to look at is
    /// looked at before signatures.
    ///
    /// # Errors
    /// [`Verdict`]: why it is not held, or gives nothing.
    pub fn take(&mut self, piece: &Piece, now_s: u64) -> Result<Taken, Verdict> {
        match piece {
            Piece::Token(token) => self.take_token(token, now_s),
            Piece::Statement(statement) => self.take_statement(statement, now_s),
        }
    }

    /// The same of a token.
    ///
    /// # Errors
    /// [`Verdict`].
    pub fn take_token(&mut self, token: &[u8], now_s: u64) -> Result<Taken, Verdict> {
        let id = EvidenceId::of(token);
        if self.held.contains_key(&id) {
            return Ok(Taken::Known(id));
        }
        let chain = Chain::parse(token).map_err(|_| Verdict::Malformed)?;
        let trusts = |c: &Guarded| c.policy.trusts_tokens_of(chain.issuer());
        if !self.channels.iter().any(trusts) {
            return Err(Verdict::Issuer);
        }
        let (Some(first), Some(last)) = (chain.links().first(), chain.links().last()) else {
            return Err(Verdict::Malformed);
        };
        let (grantee, last) = (first.grant().subject, last.grant());
        if !last.operations.contains(Operation::Publish) {
            return Err(Verdict::Operation);
        }
        if last.not_after_s <= now_s {
            return Err(Verdict::Ended);
        }
        let key = *self.revocations.current(&last.subject);
        let holder = self.holders.get(&key);
        if self.held.len() >= self.most.count
            || self.held.len() - self.vouched.count() >= self.room(Kind::Token)
            || holder.is_some_and(|h| h.tokens.len() >= PER_HOLDER_MAX)
            || self.grantees.get(&grantee).copied() >= Some(PER_GRANTEE_MAX)
        {
            return Err(Verdict::Full);
        }
        let token = chain.authenticate().map_err(|_| Verdict::Forged)?;
        if self.is_revoked(&token, now_s) {
            return Err(Verdict::Revoked);
        }
        self.held.insert(id, (key, Kind::Token));
        *self.grantees.entry(grantee).or_default() += 1;
        let holder = self.holders.entry(key).or_default();
        holder.tokens.insert(id, token);
        self.derive(&key, now_s);
        Ok(Taken::New(id))
    }

    /// Takes a revocation list in, and lets go what it ends. Whether it is new.
    pub fn learn(&mut self, list: List, now_s: u64) -> bool {
        let is_new = self.revocations.learn(list) == Learned::New;
        if is_new {
            self.review(None, now_s);
        }
        is_new
    }

    /// Looks at the time if it is due: what has ended goes, what has begun counts.
    pub fn pass(&mut self, now_s: u64) {
        if now_s >= self.next_change_s {
            self.review(Some(now_s), now_s);
        }
    }

    /// When [`Self::pass`] is due, in Unix seconds.
    #[must_use]
    pub const fn next_change_s(&self) -> u64 {
        self.next_change_s
    }

    /// Lets go what has ended or was taken back, and looks at what follows: of all holders, or of those that were due.
    fn review(&mut self, due_s: Option<u64>, now_s: u64) {
        let is_due = |holder: &Holder| due_s.is_none_or(|due_s| holder.due_s <= due_s);
        let due = self.holders.iter().filter(|(_, holder)| is_due(holder));
        let keys: Vec<[u8; 32]> = due.map(|(&key, _)| key).collect();
        for key in keys {
            let Some(holder) = self.holders.get_mut(&key) else {
                continue;
            };
            for (id, token) in std::mem::take(&mut holder.tokens) {
                if token.not_after_s() <= now_s || self.is_revoked(&token, now_s) {
                    self.forget(id, &token);
                } else if let Some(holder) = self.holders.get_mut(&key) {
                    holder.tokens.insert(id, token);
                }
            }
            self.review_statements(&key, now_s);
            self.derive(&key, now_s);
        }
        self.note_next();
    }

    /// Notes when the first of all holders is due.
    fn note_next(&mut self) {
        let due = self.holders.values().map(|holder| holder.due_s);
        self.next_change_s = due.min().unwrap_or(u64::MAX);
    }

    fn forget(&mut self, id: EvidenceId, token: &Authentic) {
        self.held.remove(&id);
        let Some(first) = token.chain().links().first() else {
            return;
        };
        let grantee = first.grant().subject;
        if let Some(count) = self.grantees.get_mut(&grantee) {
            *count -= 1;
            if *count == 0 {
                self.grantees.remove(&grantee);
            }
        }
    }

    fn is_revoked(&self, token: &Authentic, now_s: u64) -> bool {
        let issuer = token.chain().issuer();
        let mut links = token.chain().links().iter();
        let is_revoked = links.any(|link| {
            let grant = link.grant();
            let (subject, generation) = (&grant.subject, grant.generation);
            let revoked = self
                .revocations
                .revoke(issuer, subject, generation, link.id());
            revoked.is_some()
        });
        is_revoked || token.ends_s(&self.revocations) <= now_s
    }

    /// When time alone changes what a holder's evidence gives, or ends some of it.
    fn due_s(&self, holder: &Holder, now_s: u64) -> u64 {
        let tokens = holder.tokens.values().flat_map(|token| {
            let begins_s = token.not_before_s().saturating_sub(CLOCK_SKEW_S_MAX);
            [begins_s, token.ends_s(&self.revocations)]
        });
        let statements = holder.statements.iter().flat_map(|statement| {
            let claim = statement.claim();
            let begins_s = claim.not_before_s.saturating_sub(CLOCK_SKEW_S_MAX);
            let ends_s = statement.ends_s(&self.revocations);
            [begins_s, ends_s, claim.not_after_s]
        });
        let times = tokens.chain(statements).filter(|&time_s| time_s > now_s);
        times.min().unwrap_or(u64::MAX)
    }

    /// Brings the pairs to what one holder's evidence gives now.
    fn derive(&mut self, key: &[u8; 32], now_s: u64) {
        let Some(holder) = self.holders.get(key) else {
            return;
        };
        let is_left = holder.is_named || holder.has_evidence();
        let due_s = self.due_s(holder, now_s);
        let mut given = match is_left {
            true => self.given(key, holder, now_s),
            false => BTreeMap::new(),
        };
        let holder = self.holders.entry(*key).or_default();
        holder.due_s = due_s;
        for pair in holder.pairs.keys().filter(|p| !given.contains_key(p)) {
            self.has_changed |= self.pairs.remove(pair);
        }
        given.retain(|pair, _| {
            let has_room = self.pairs.contains(pair) || self.pairs.len() < self.pairs_max;
            match has_room {
                true => self.has_changed |= self.pairs.insert(*pair),
                false => self.pairs_refused += 1,
            }
            has_room
        });
        holder.pairs = given;
        if !is_left {
            self.holders.remove(key);
        }
        self.next_change_s = self.next_change_s.min(due_s);
    }

    fn given(&self, key: &[u8; 32], holder: &Holder, now_s: u64) -> BTreeMap<Pair, u64> {
        if Some(*key) == self.own {
            return BTreeMap::new();
        }
        let origin = origin_hash(key);
        let channels = self.channels.iter();
        let given = channels.filter_map(|channel| {
            let until_s = self.publishes_until(channel, key, holder, now_s)?;
            Some((Pair::new(origin, channel.config.hash), until_s))
        });
        given.collect()
    }

    /// Until when a holder may publish on a channel, if it may now.
    fn publishes_until(
        &self,
        channel: &Guarded,
        key: &[u8; 32],
        holder: &Holder,
        now_s: u64,
    ) -> Option<u64> {
        if !channel.config.publish.contains(key) {
            return None;
        }
        let evidence = Evidence {
            holder: key,
            tokens: &[],
            statements: &holder.statements,
        };
        let (tokens, times) = (holder.tokens.values(), (now_s, &self.revocations));
        let policy = &channel.policy;
        let until_s = policy.allows_by(tokens, evidence, Operation::Publish, times);
        until_s.ok()
    }

    /// The exact pairs that the guard has to let pass now.
    #[must_use]
    pub const fn pairs(&self) -> &BTreeSet<Pair> {
        &self.pairs
    }

    /// Whether they are others than when [`Self::publish`] was called last.
    #[must_use]
    pub const fn has_changed(&self) -> bool {
        self.has_changed
    }

    /// The same, to be published.
    pub const fn publish(&mut self) -> &BTreeSet<Pair> {
        self.has_changed = false;
        &self.pairs
    }

    /// Until when a pair holds, in Unix seconds.
    #[must_use]
    pub fn until_s(&self, key: &[u8; 32], pair: &Pair) -> Option<u64> {
        self.holders.get(key)?.pairs.get(pair).copied()
    }

    /// How many tokens and statements are held, and of how many entities.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        let holders = self.holders.values();
        let with_evidence = holders.filter(|holder| holder.has_evidence());
        (self.held.len(), with_evidence.count())
    }

    /// All tokens that are held.
    pub fn tokens(&self) -> impl Iterator<Item = &Authentic> {
        self.holders
            .values()
            .flat_map(|holder| holder.tokens.values())
    }

    /// Whether it is held.
    #[must_use]
    pub fn has(&self, id: EvidenceId) -> bool {
        self.held.contains_key(&id)
    }

    /// One piece of what is held, as it was signed.
    #[must_use]
    pub fn piece(&self, id: EvidenceId) -> Option<Piece> {
        let holder = self.holders.get(&self.held.get(&id)?.0)?;
        if let Some(token) = holder.tokens.get(&id) {
            return Some(Piece::Token(token.chain().encode()));
        }
        let mut statements = holder.statements.iter();
        let statement = statements.find(|one| EvidenceId::from(one.id()) == id)?;
        Some(Piece::Statement(statement.as_bytes().to_vec()))
    }

    /// What is held of some kinds, in short.
    #[must_use]
    pub fn digest(&self, kinds: &[Kind]) -> Digest {
        let mut digest = Digest::default();
        for (bucket, digest) in digest.0.iter_mut().enumerate() {
            let ids = self.ids(bucket, kinds).collect::<Vec<_>>();
            if !ids.is_empty() {
                let ids: Vec<&[u8]> = ids.iter().map(|id| &id.0[..]).collect();
                let hash = keyed(b"virga evidence set v1", &ids);
                *digest = std::array::from_fn(|i| hash[i]);
            }
        }
        digest
    }

    /// What is held of some kinds in one part of the digest, sorted.
    pub fn ids(&self, bucket: usize, kinds: &[Kind]) -> impl Iterator<Item = EvidenceId> {
        self.held
            .range(range(bucket))
            .filter(|(_, (_, kind))| kinds.contains(kind))
            .map(|(&id, _)| id)
            .inspect(move |id| debug_assert_eq!(id.bucket(), bucket))
    }
}

/// Those of the channels that ask their publishers for something.
fn guarded(channels: &[ChannelConfig]) -> Vec<Guarded> {
    let guarded = channels.iter().filter(|c| c.asks_publishers());
    let guarded = guarded.map(|config| Guarded {
        config: config.clone(),
        policy: Policy::of(config),
    });
    guarded.collect()
}

/// Whose tokens and statements count there.
fn issuers(channels: &[Guarded]) -> BTreeSet<(Kind, [u8; 32])> {
    let issuers = channels.iter().flat_map(|channel| {
        let policy = &channel.policy;
        let tokens = policy.token_issuers().map(|&key| (Kind::Token, key));
        let vouching = policy.vouching(Operation::Publish);
        tokens.chain(vouching.map(|&key| (Kind::Statement, key)))
    });
    issuers.collect()
}

/// All ids of one part of the digest.
fn range(bucket: usize) -> RangeInclusive<EvidenceId> {
    let first = u8::try_from((bucket % BUCKETS) << 2).unwrap_or(u8::MAX);
    let (mut least, mut most) = ([0; 16], [u8::MAX; 16]);
    (least[0], most[0]) = (first, first | 3);
    EvidenceId(least)..=EvidenceId(most)
}
