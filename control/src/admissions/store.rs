//! Verified evidence, and the pairs that follow from it.
//!
//! Pairs depend on nothing but the evidence that is held, the revocation lists and the time: in whatever
//! order those came, the same evidence gives the same pairs.

use super::wire::{BUCKETS, Digest, Verdict};
use crate::{
    config::ChannelConfig,
    rights::{
        Authentic, Chain, List, Operation, Policy, Revocations, chain::CLOCK_SKEW_S_MAX,
        identity::Retired, revocation::Learned,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::RangeInclusive,
};
use virga_ebpf::{
    hash::{keyed, origin_hash},
    tables::Pair,
};

/// Tokens that a node holds in all.
pub const EVIDENCE_MAX: usize = 65_536;
/// Tokens of one holder.
pub const PER_HOLDER_MAX: usize = 64;
/// Tokens that begin with a link to the same entity: whoever may delegate can make as many as it likes,
/// and crowds out nobody else.
pub const PER_GRANTEE_MAX: usize = 4_096;

const _: () = assert!(PER_HOLDER_MAX <= PER_GRANTEE_MAX && PER_GRANTEE_MAX <= EVIDENCE_MAX);

/// What evidence is called: the first 16 bytes of BLAKE2s-MAC(key "virga evidence v1", all its bytes).
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

/// A channel that requires tokens.
#[derive(Clone, Debug)]
struct Guarded {
    config: ChannelConfig,
    policy: Policy,
}

#[derive(Clone, Debug, Default)]
struct Holder {
    tokens: BTreeMap<EvidenceId, Authentic>,
    /// What follows from them, and until when (Unix seconds).
    pairs: BTreeMap<Pair, u64>,
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
    /// The entity that this node speaks for, whose packets its own guard never sees.
    own: Option<[u8; 32]>,
    pairs_max: usize,
    revocations: Revocations,
    /// By the key that each has now.
    holders: BTreeMap<[u8; 32], Holder>,
    /// The holder of each.
    held: BTreeMap<EvidenceId, [u8; 32]>,
    grantees: HashMap<[u8; 32], usize>,
    pairs: BTreeSet<Pair>,
    /// They are others than when they were last published.
    has_changed: bool,
    /// When time alone changes something, in Unix seconds.
    next_change_s: u64,
    /// Pairs that found no room.
    pub pairs_refused: u64,
}

impl Store {
    /// Holds nothing yet. At most `pairs_max` pairs will follow.
    #[must_use]
    pub fn new(own: Option<[u8; 32]>, channels: &[ChannelConfig], pairs_max: usize) -> Self {
        Self {
            channels: guarded(channels),
            own,
            pairs_max,
            revocations: Revocations::default(),
            holders: BTreeMap::new(),
            held: BTreeMap::new(),
            grantees: HashMap::new(),
            pairs: BTreeSet::new(),
            has_changed: false,
            next_change_s: u64::MAX,
            pairs_refused: 0,
        }
    }

    /// Has room for so many pairs from the next [`Self::follow`] on.
    pub const fn set_room(&mut self, pairs_max: usize) {
        self.pairs_max = pairs_max;
    }

    /// Goes by where entities are from now on, and by the keys that they have: this node speaks for `own`.
    pub fn follow(
        &mut self,
        own: Option<[u8; 32]>,
        channels: &[ChannelConfig],
        retired: Retired,
        now_s: u64,
    ) {
        (self.own, self.channels) = (own, guarded(channels));
        self.revocations.set_retired(retired);
        let before = std::mem::take(&mut self.holders);
        for (id, token) in before.into_values().flat_map(|holder| holder.tokens) {
            let key = *self.revocations.current(token.holder());
            self.held.insert(id, key);
            self.holders
                .entry(key)
                .or_default()
                .tokens
                .insert(id, token);
        }
        // What follows for nobody any more goes.
        self.has_changed |= !self.pairs.is_empty();
        self.pairs.clear();
        self.review(now_s);
    }

    /// Whose tokens count on some channel.
    #[must_use]
    pub fn issuers(&self) -> BTreeSet<[u8; 32]> {
        let each = self.channels.iter();
        let issuers = each.flat_map(|channel| channel.policy.token_issuers());
        issuers.copied().collect()
    }

    /// Whether any channel requires a token: otherwise nothing is ever held.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        !self.channels.is_empty()
    }

    /// Takes a token in, if it gives or will give somebody a right to publish. What is cheap to look at is
    /// looked at before signatures.
    ///
    /// # Errors
    /// [`Verdict`]: why it is not held.
    pub fn take(&mut self, token: &[u8], now_s: u64) -> Result<Taken, Verdict> {
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
        if self.held.len() >= EVIDENCE_MAX
            || holder.is_some_and(|h| h.tokens.len() >= PER_HOLDER_MAX)
            || self.grantees.get(&grantee).copied() >= Some(PER_GRANTEE_MAX)
        {
            return Err(Verdict::Full);
        }
        let token = chain.authenticate().map_err(|_| Verdict::Forged)?;
        if self.is_revoked(&token, now_s) {
            return Err(Verdict::Revoked);
        }
        self.note_change(&token, now_s);
        self.held.insert(id, key);
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
            self.review(now_s);
        }
        is_new
    }

    /// Looks at the time if it is due: what has ended goes, what has begun counts.
    pub fn pass(&mut self, now_s: u64) {
        if now_s >= self.next_change_s {
            self.review(now_s);
        }
    }

    /// When [`Self::pass`] is due, in Unix seconds.
    #[must_use]
    pub const fn next_change_s(&self) -> u64 {
        self.next_change_s
    }

    fn review(&mut self, now_s: u64) {
        self.next_change_s = u64::MAX;
        let keys: Vec<[u8; 32]> = self.holders.keys().copied().collect();
        for key in keys {
            let tokens = std::mem::take(&mut self.holders.entry(key).or_default().tokens);
            for (id, token) in tokens {
                if token.not_after_s() <= now_s || self.is_revoked(&token, now_s) {
                    self.forget(id, &token);
                    continue;
                }
                self.note_change(&token, now_s);
                let holder = self.holders.entry(key).or_default();
                holder.tokens.insert(id, token);
            }
            self.derive(&key, now_s);
        }
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

    fn note_change(&mut self, token: &Authentic, now_s: u64) {
        let begins_s = token.not_before_s().saturating_sub(CLOCK_SKEW_S_MAX);
        let next_s = if begins_s > now_s {
            begins_s
        } else {
            token.ends_s(&self.revocations)
        };
        self.next_change_s = self.next_change_s.min(next_s);
    }

    /// Brings the pairs to what one holder's tokens give now.
    fn derive(&mut self, key: &[u8; 32], now_s: u64) {
        let Some(holder) = self.holders.get(key) else {
            return;
        };
        let mut given = self.given(key, holder, now_s);
        let holder = self.holders.entry(*key).or_default();
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
        if holder.tokens.is_empty() {
            self.holders.remove(key);
        }
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
        let tokens = (key, holder.tokens.values());
        let (publish, revocations) = (Operation::Publish, &self.revocations);
        let until_s = channel
            .policy
            .allows_by_token(tokens, publish, now_s, revocations);
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

    /// How many tokens are held, and of how many entities.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        (self.held.len(), self.holders.len())
    }

    /// Everything that is held, as it was signed.
    pub fn evidence(&self) -> impl Iterator<Item = (EvidenceId, &Authentic)> {
        let holders = self.holders.values();
        holders.flat_map(|holder| holder.tokens.iter().map(|(&id, token)| (id, token)))
    }

    /// One piece of it.
    #[must_use]
    pub fn token(&self, id: EvidenceId) -> Option<&Authentic> {
        let holder = self.holders.get(self.held.get(&id)?)?;
        holder.tokens.get(&id)
    }

    /// What is held, in short.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let mut digest = Digest::default();
        for (bucket, digest) in digest.0.iter_mut().enumerate() {
            let ids = self.ids(bucket).collect::<Vec<_>>();
            if !ids.is_empty() {
                let ids: Vec<&[u8]> = ids.iter().map(|id| &id.0[..]).collect();
                let hash = keyed(b"virga evidence set v1", &ids);
                *digest = std::array::from_fn(|i| hash[i]);
            }
        }
        digest
    }

    /// What is held in one part of the digest, sorted.
    pub fn ids(&self, bucket: usize) -> impl Iterator<Item = EvidenceId> {
        self.held
            .range(range(bucket))
            .map(|(&id, _)| id)
            .inspect(move |id| debug_assert_eq!(id.bucket(), bucket))
    }
}

/// Those of the channels that require a token.
fn guarded(channels: &[ChannelConfig]) -> Vec<Guarded> {
    let guarded = channels.iter().filter(|c| c.asks_for_token());
    let guarded = guarded.map(|config| Guarded {
        config: config.clone(),
        policy: Policy::of(config),
    });
    guarded.collect()
}

/// All ids of one part of the digest.
fn range(bucket: usize) -> RangeInclusive<EvidenceId> {
    let first = u8::try_from((bucket % BUCKETS) << 2).unwrap_or(u8::MAX);
    let (mut least, mut most) = ([0; 16], [u8::MAX; 16]);
    (least[0], most[0]) = (first, first | 3);
    EvidenceId(least)..=EvidenceId(most)
}
