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
    config::{CapabilityRules, ChannelConfig, Entity},
};
use std::{collections::BTreeSet, fmt};
use virga_transport::ChannelName;

/// What a channel asks of whoever wants something of it, beside a place in its lists: everything that the scopes
/// around it ask, and what it asks itself.
#[derive(Clone, Debug)]
pub struct Policy {
    channel: Levels,
    /// From the broadest scope to the channel itself, which comes last.
    layers: Vec<Layer>,
}

/// What one scope asks, or the channel itself.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Which scope; none: the channel itself.
    scope: Option<ChannelName>,
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

impl Layer {
    fn of(scope: Option<ChannelName>, issuers: &[Entity], capabilities: &CapabilityRules) -> Self {
        let keys = |all: &[Entity]| all.iter().map(|entity| entity.key).collect();
        Self {
            scope,
            token_issuers: keys(issuers),
            publish_caps: capabilities.publish.clone(),
            subscribe_caps: capabilities.subscribe.clone(),
            capability_issuers: keys(&capabilities.issuers),
        }
    }

    /// Which scope asks; none: the channel itself does.
    #[must_use]
    pub const fn scope(&self) -> Option<&ChannelName> {
        self.scope.as_ref()
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

    /// A refusal that says which scope it is of.
    fn blame(&self, refusal: Refusal) -> Refusal {
        match &self.scope {
            None => refusal,
            Some(scope) => Refusal::Within {
                scope: scope.clone(),
                refusal: Box::new(refusal),
            },
        }
    }

    /// The filter's part of what it asks: until when it is met.
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
        let issuers = &self.capability_issuers;
        let counts = |statement: &Statement| statement.counts(issuers, now_s, revocations);
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

impl Policy {
    /// What the configuration says.
    #[must_use]
    pub fn of(config: &ChannelConfig) -> Self {
        let scopes = config.scopes.iter().map(|scope| {
            Layer::of(
                Some(scope.name.clone()),
                &scope.issuers,
                &scope.capabilities,
            )
        });
        let own = Layer::of(None, &config.issuers, &config.capabilities);
        Self {
            channel: Levels::of(&config.name),
            layers: scopes.chain([own]).collect(),
        }
    }

    /// From the broadest scope to the channel itself, which comes last.
    #[must_use]
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Whether anything has to be shown at all, and so can end.
    #[must_use]
    pub fn asks(&self) -> bool {
        let asks = |layer: &Layer| layer.publish_caps.is_some() || layer.subscribe_caps.is_some();
        self.layers
            .iter()
            .any(|layer| layer.asks_for_token() || asks(layer))
    }

    /// Whether this issuer's lists mean anything here.
    #[must_use]
    pub fn trusts(&self, issuer: &[u8; 32]) -> bool {
        self.trusts_tokens_of(issuer) || self.trusts_statements_of(issuer)
    }

    /// Whether this issuer's tokens count here.
    #[must_use]
    pub fn trusts_tokens_of(&self, issuer: &[u8; 32]) -> bool {
        let mut layers = self.layers.iter();
        layers.any(|layer| layer.token_issuers.contains(issuer))
    }

    /// Whether this issuer's statements count here.
    #[must_use]
    pub fn trusts_statements_of(&self, issuer: &[u8; 32]) -> bool {
        let mut layers = self.layers.iter();
        layers.any(|layer| layer.capability_issuers.contains(issuer))
    }

    /// Whether this issuer's statements count where a filter asks for them.
    #[must_use]
    pub fn is_vouched_by(&self, issuer: &[u8; 32], operation: Operation) -> bool {
        self.vouching(operation).any(|key| key == issuer)
    }

    /// Whose statements count where a filter asks for them.
    pub fn vouching(&self, operation: Operation) -> impl Iterator<Item = &[u8; 32]> {
        let asking = self.layers.iter();
        let asking = asking.filter(move |layer| layer.filter(operation).is_some());
        asking.flat_map(|layer| &layer.capability_issuers)
    }

    /// Whose tokens count here.
    pub fn token_issuers(&self) -> impl Iterator<Item = &[u8; 32]> {
        self.layers.iter().flat_map(|layer| &layer.token_issuers)
    }

    /// Everybody whose word counts here, each once.
    #[must_use]
    pub fn issuers(&self) -> BTreeSet<&[u8; 32]> {
        let others = self
            .layers
            .iter()
            .flat_map(|layer| &layer.capability_issuers);
        self.token_issuers().chain(others).collect()
    }

    /// Whether a statement is a reason to let its subject in here, for the channel or a scope around it.
    ///
    /// # Errors
    /// [`Discounted`].
    pub fn counts(
        &self,
        statement: &Statement,
        now_s: u64,
        revocations: &Revocations,
    ) -> Result<(), Discounted> {
        let asking = self
            .layers
            .iter()
            .filter(|layer| !layer.capability_issuers.is_empty());
        let counts =
            asking.map(|layer| statement.counts(&layer.capability_issuers, now_s, revocations));
        let any = counts.reduce(|one, other| one.or(other));
        any.unwrap_or_else(|| statement.counts(&[], now_s, revocations))
    }

    /// Whether tokens are asked for.
    #[must_use]
    pub fn asks_for_token(&self) -> bool {
        self.layers.iter().any(Layer::asks_for_token)
    }

    /// Whether capabilities are asked for.
    #[must_use]
    pub fn asks_for_capabilities(&self, operation: Operation) -> bool {
        let mut layers = self.layers.iter();
        layers.any(|layer| layer.filter(operation).is_some())
    }

    /// Whether what an entity has shown gives it the right; then until when at least, exclusive, in Unix
    /// seconds.
    ///
    /// # Errors
    /// [`Refusal`]: the first thing that is missing, from the broadest scope on, of the token that comes nearest.
    pub fn allows(
        &self,
        evidence: Evidence<'_>,
        operation: Operation,
        now_s: u64,
        revocations: &Revocations,
    ) -> Result<u64, Refusal> {
        let tokens = evidence.tokens.iter();
        self.allows_by(tokens, evidence, operation, (now_s, revocations))
    }

    /// The same with these tokens in the place of the evidence's own.
    ///
    /// # Errors
    /// As [`Policy::allows`].
    pub fn allows_by<'a>(
        &self,
        tokens: impl Iterator<Item = &'a Authentic> + Clone,
        evidence: Evidence<'_>,
        operation: Operation,
        (now_s, revocations): (u64, &Revocations),
    ) -> Result<u64, Refusal> {
        let mut until_s = u64::MAX;
        for layer in &self.layers {
            let by_token_s = self.by_token(
                layer,
                (evidence.holder, tokens.clone()),
                operation,
                (now_s, revocations),
            );
            let by_both_s = by_token_s.and_then(|by_token_s| {
                let by_capability_s =
                    layer.has_capabilities(evidence, operation, now_s, revocations)?;
                Ok(by_token_s.min(by_capability_s))
            });
            until_s = until_s.min(by_both_s.map_err(|refusal| layer.blame(refusal))?);
        }
        Ok(until_s)
    }

    /// The tokens' part of what one layer asks.
    ///
    /// # Errors
    /// As [`Policy::allows`].
    pub fn by_token<'a>(
        &self,
        layer: &Layer,
        (holder, tokens): (&[u8; 32], impl Iterator<Item = &'a Authentic>),
        operation: Operation,
        (now_s, revocations): (u64, &Revocations),
    ) -> Result<u64, Refusal> {
        if !layer.asks_for_token() {
            return Ok(u64::MAX);
        }
        let question = Question {
            holder,
            operation,
            channel: self.channel.name(),
            now_s,
            issuers: &layer.token_issuers,
            revocations,
        };
        let mut nearest = Refusal::Missing;
        let mut until_s = None;
        for token in tokens {
            match token.allows_on(&question, &self.channel) {
                Ok(()) => until_s = until_s.max(Some(token.ends_s(revocations))),
                // Of two that fail alike the one that was shown last is what its holder asks about.
                Err(refusal) if refusal.fault() >= nearest.fault() => nearest = refusal,
                Err(_) => {}
            }
        }
        until_s.ok_or(nearest)
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
