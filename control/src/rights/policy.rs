//! May this entity publish or subscribe on this channel now, and until when? One question, asked with what
//! the entity has shown, by whoever has to know: end nodes, and forwarders.

use super::{
    chain::{Authentic, Question, Refusal},
    revocation::Revocations,
    scope::{Levels, Operation},
};
use crate::{
    capability::{
        Filter, Key, Statement, Statements, Value,
        filter::{Known, Part},
        statement::Discounted,
    },
    config::ChannelConfig,
};
use std::fmt;

/// What a channel asks of whoever wants something of it, beside a place in its lists.
#[derive(Clone, Debug)]
pub struct Policy {
    channel: Levels,
    /// Whose tokens count; where there are none, none is required.
    token_issuers: Vec<[u8; 32]>,
    publish_caps: Option<Filter>,
    subscribe_caps: Option<Filter>,
    /// Whose statements count.
    capability_issuers: Vec<[u8; 32]>,
}

/// What one entity has shown.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// Who it is, as its session has proven.
    pub holder: &'a [u8; 32],
    /// Its tokens.
    pub tokens: &'a [Authentic],
    /// What issuers say of it, and it of itself; what is about others does not count.
    pub statements: &'a Statements,
}

/// The part of a channel's filter that an entity does not meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lacking {
    /// The part, as filters are written.
    pub part: String,
    /// What is vouched for instead.
    pub found: String,
    /// Why a statement that would have been enough is not.
    pub discounted: Option<Discounted>,
}

impl<'a> Evidence<'a> {
    /// What is said about the entity, by the key that it has now or by one that it had: an issuer that has
    /// spoken of a later key means nothing any more by what it said of an earlier one.
    pub fn about(
        self,
        revocations: &'a Revocations,
    ) -> impl Iterator<Item = &'a Statement> + use<'a> {
        let Self {
            holder, statements, ..
        } = self;
        let before = revocations.before(holder);
        let before = before.flat_map(|key| statements.about(&key));
        let before = before.filter(|one| !statements.has_of(holder, one.by()));
        statements.about(holder).chain(before)
    }
}

impl fmt::Display for Lacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { part, found, .. } = self;
        write!(f, "the channel asks for {part}, and of what counts {found}")?;
        match &self.discounted {
            Some(why) => write!(f, "; {why}"),
            None => Ok(()),
        }
    }
}

impl Policy {
    /// What the configuration says.
    #[must_use]
    pub fn of(config: &ChannelConfig) -> Self {
        let keys = |all: &[crate::config::Entity]| all.iter().map(|e| e.key).collect();
        let capabilities = &config.capabilities;
        Self {
            channel: Levels::of(&config.name),
            token_issuers: keys(&config.issuers),
            publish_caps: capabilities.publish.clone(),
            subscribe_caps: capabilities.subscribe.clone(),
            capability_issuers: keys(&capabilities.issuers),
        }
    }

    /// Whether anything has to be shown at all, and so can end.
    #[must_use]
    pub const fn asks(&self) -> bool {
        !self.token_issuers.is_empty()
            || self.publish_caps.is_some()
            || self.subscribe_caps.is_some()
    }

    /// Whether this issuer's lists mean anything here.
    #[must_use]
    pub fn trusts(&self, issuer: &[u8; 32]) -> bool {
        self.token_issuers.contains(issuer) || self.trusts_statements_of(issuer)
    }

    /// Whether this issuer's statements count here.
    #[must_use]
    pub fn trusts_statements_of(&self, issuer: &[u8; 32]) -> bool {
        self.capability_issuers.contains(issuer)
    }

    /// Everybody whose word counts here.
    pub fn issuers(&self) -> impl Iterator<Item = &[u8; 32]> {
        let others = self.capability_issuers.iter();
        let others = others.filter(|issuer| !self.token_issuers.contains(issuer));
        self.token_issuers.iter().chain(others)
    }

    /// Whether a statement is a reason to let its subject in here.
    ///
    /// # Errors
    /// [`Discounted`].
    pub fn counts(
        &self,
        statement: &Statement,
        now_s: u64,
        revocations: &Revocations,
    ) -> Result<(), Discounted> {
        statement.counts(&self.capability_issuers, now_s, revocations)
    }

    /// Whether tokens are asked for.
    #[must_use]
    pub const fn asks_for_token(&self) -> bool {
        !self.token_issuers.is_empty()
    }

    /// What is asked of whoever wants to publish or subscribe.
    #[must_use]
    pub const fn filter(&self, operation: Operation) -> Option<&Filter> {
        match operation {
            Operation::Publish => self.publish_caps.as_ref(),
            Operation::Subscribe => self.subscribe_caps.as_ref(),
            Operation::Admin | Operation::Delegate => None,
        }
    }

    /// Whether what an entity has shown gives it the right; then until when at least, exclusive, in Unix
    /// seconds.
    ///
    /// # Errors
    /// [`Refusal`]: the first thing that is missing, of the token that comes nearest.
    pub fn allows(
        &self,
        evidence: Evidence<'_>,
        operation: Operation,
        now_s: u64,
        revocations: &Revocations,
    ) -> Result<u64, Refusal> {
        let by_token_s = self.allows_by_token(evidence, operation, now_s, revocations)?;
        let by_capability_s = self.has_capabilities(evidence, operation, now_s, revocations)?;
        Ok(by_token_s.min(by_capability_s))
    }

    /// The token's part of it.
    ///
    /// # Errors
    /// As [`Policy::allows`].
    pub fn allows_by_token(
        &self,
        evidence: Evidence<'_>,
        operation: Operation,
        now_s: u64,
        revocations: &Revocations,
    ) -> Result<u64, Refusal> {
        if !self.asks_for_token() {
            return Ok(u64::MAX);
        }
        let question = Question {
            holder: evidence.holder,
            operation,
            channel: self.channel.name(),
            now_s,
            issuers: &self.token_issuers,
            revocations,
        };
        let mut nearest = Refusal::Missing;
        let mut until_s = None;
        for token in evidence.tokens {
            match token.allows_on(&question, &self.channel) {
                Ok(()) => until_s = until_s.max(Some(token.ends_s(revocations))),
                Err(refusal) if refusal.fault() > nearest.fault() => nearest = refusal,
                Err(_) => {}
            }
        }
        until_s.ok_or(nearest)
    }

    /// The filter's part of it.
    ///
    /// # Errors
    /// [`Refusal::Capability`].
    pub fn has_capabilities(
        &self,
        evidence: Evidence<'_>,
        operation: Operation,
        now_s: u64,
        revocations: &Revocations,
    ) -> Result<u64, Refusal> {
        let Some(filter) = self.filter(operation) else {
            return Ok(u64::MAX);
        };
        let counts = |statement: &Statement| self.counts(statement, now_s, revocations);
        let vouched = Vouched::of(evidence, revocations, |one| counts(one).is_ok());
        let Some(part) = filter.lacking(&vouched) else {
            let ends = vouched
                .iter()
                .map(|statement| statement.ends_s(revocations));
            return Ok(ends.min().unwrap_or(u64::MAX));
        };
        Err(Refusal::Capability(lacking(part, &vouched, counts)))
    }
}

fn lacking(
    part: Part<'_>,
    vouched: &Vouched<'_>,
    counts: impl Fn(&Statement) -> Result<(), Discounted>,
) -> Lacking {
    let mut others = vouched.about();
    let discounted = others.find_map(|statement| {
        let why = counts(statement).err()?;
        part.holds(&statement.claim().capabilities).then_some(why)
    });
    Lacking {
        part: part.to_string(),
        found: part.found(vouched),
        discounted,
    }
}

/// What is vouched for by statements that count.
struct Vouched<'a> {
    evidence: Evidence<'a>,
    revocations: &'a Revocations,
    /// One bit for each of the first 64.
    counted: u64,
}

impl<'a> Vouched<'a> {
    fn of(
        evidence: Evidence<'a>,
        revocations: &'a Revocations,
        counts: impl Fn(&Statement) -> bool,
    ) -> Self {
        let about = evidence.about(revocations).take(64);
        let counted = about.enumerate().filter(|(_, statement)| counts(statement));
        let counted = counted.fold(0, |bits, (place, _)| bits | 1 << place);
        Self {
            evidence,
            revocations,
            counted,
        }
    }

    fn iter(&self) -> impl Iterator<Item = &'a Statement> {
        let counted = self.counted;
        let about = self.about().take(64).enumerate();
        about.filter_map(move |(place, one)| (counted >> place & 1 == 1).then_some(one))
    }

    /// Whatever is said about the entity, whether it counts or not.
    fn about(&self) -> impl Iterator<Item = &'a Statement> {
        self.evidence.about(self.revocations)
    }
}

impl Known for Vouched<'_> {
    fn any(&self, key: &Key, mut is_meant: impl FnMut(Option<&Value>) -> bool) -> bool {
        let mut all = self.iter();
        all.any(|statement| statement.claim().capabilities.any(key, &mut is_meant))
    }
}
