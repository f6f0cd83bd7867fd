//! What an entity may do, and what a token or a statement is good for here: in words, check by check.

use super::{
    delivery::Outlet,
    entry::Entry,
    service::{ChannelService, Session},
};
use crate::{
    capability::{Statement, Statements, statement::By},
    daemon::flood::Confirmation,
    hex,
    rights::{
        Authentic, Evidence, Operation, Refusal,
        policy::Layer,
        scope::Operation::{Publish, Subscribe},
    },
};
use serde::{Deserialize, Serialize};
use std::fmt;
use virga_transport::ChannelName;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Nothing is in the way.
    Passed,
    /// The entity is refused for it.
    Failed,
    /// It says something that refuses nobody.
    Told,
}

/// One thing that is asked before an entity may do something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// `channel`, `scope`, `list`, `token`, `capabilities`, `revocations`, `subnet`, `session`, `visibility`, `guard`,
    /// `gateway`, `rate`.
    pub name: String,
    /// How it came out.
    pub outcome: Outcome,
    /// Why, in words.
    pub words: String,
}

impl Check {
    /// One that came out so.
    #[must_use]
    pub fn new(name: &str, outcome: Outcome, words: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            outcome,
            words: words.into(),
        }
    }

    fn of(name: &str, result: Result<String, Refusal>) -> Self {
        match result {
            Ok(words) => Self::new(name, Outcome::Passed, words),
            Err(refusal) => Self::new(name, Outcome::Failed, refusal.to_string()),
        }
    }
}

/// What one worker knows of an entity's rights on a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// Whether it is this node's own, or has a session here: what others have shown elsewhere is not known.
    pub is_known: bool,
    /// The checks of each operation, in order.
    pub operations: [(Operation, Vec<Check>); 2],
}

/// What something that was presented is good for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    /// Rights that it counts for.
    pub rights: Vec<GivenRight>,
    /// Why there are none.
    pub useless: Option<String>,
    /// What the neighbours made of it, where it is a token or an issuer's statement: those that admit it let packets pass.
    #[serde(default)]
    pub neighbours: Vec<Confirmation>,
}

/// A right that something counts for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenRight {
    /// Where.
    pub channel: String,
    /// `publish` or `subscribe`.
    pub operation: String,
    /// What is still in the way.
    pub refused: Option<String>,
}

impl fmt::Display for GivenRight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            channel, operation, ..
        } = self;
        let way = if operation == "publish" { "on" } else { "to" };
        match &self.refused {
            None => write!(f, "may {operation} {way} {channel}"),
            Some(why) => write!(f, "may not yet {operation} {way} {channel}: {why}"),
        }
    }
}

/// A statement, as people see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatementStatus {
    /// Whom it is about: its public key, in hex.
    pub subject: String,
    /// Who says it: an issuer's public key in hex; none: the subject itself.
    pub issuer: Option<String>,
    /// What it says.
    pub capabilities: Vec<String>,
    /// Which one of its signer's.
    pub version: u64,
    /// Until when, exclusive, in Unix seconds.
    pub not_after_s: u64,
    /// What it is called in revocation lists.
    pub id: String,
    /// Why it counts nowhere; none: it counts on the channels that trust its issuer.
    pub discounted: Option<String>,
}

impl<O: Outlet> ChannelService<O> {
    /// What may and may not be done by an entity on a channel; `None` where there is no such channel.
    #[must_use]
    pub fn explain(
        &self,
        now_ns: u64,
        channel: &ChannelName,
        entity: &[u8; 32],
    ) -> Option<Explained> {
        let entry = &self.entries[*self.names.get(channel)?];
        let none = Statements::default();
        let nothing = Evidence {
            holder: entity,
            tokens: &[],
            statements: &none,
        };
        let session = self.sessions.values().find(|s| s.entity == *entity);
        let evidence = match session {
            _ if *entity == self.entity => Some(self.rights.own_evidence(entity)),
            Some(session) => Some(session.evidence()),
            None => None,
        };
        let checks = |operation| {
            let evidence = evidence.unwrap_or(nothing);
            let mut all = self.checks(now_ns, entry, evidence, operation);
            all.extend(session.and_then(|session| self.subnet_check(now_ns, session)));
            (operation, all)
        };
        Some(Explained {
            is_known: evidence.is_some(),
            operations: [checks(Publish), checks(Subscribe)],
        })
    }

    fn checks(
        &self,
        now_ns: u64,
        entry: &Entry,
        evidence: Evidence<'_>,
        operation: Operation,
    ) -> Vec<Check> {
        let (now_s, revocations) = (self.rights.now_s(now_ns), &self.rights.revocations);
        let asked = |layer: &Layer| {
            let tokens = (evidence.holder, evidence.tokens.iter());
            let token = match layer.asks_for_token() {
                false => Ok("none is required".to_owned()),
                true => entry
                    .policy
                    .by_token(layer, tokens, operation, (now_s, revocations))
                    .map(|until_s| format!("one gives the right for {} s", until_s - now_s)),
            };
            let capabilities = match layer.filter(operation) {
                None => Ok("none are asked for".to_owned()),
                Some(filter) => layer
                    .has_capabilities(evidence, operation, now_s, revocations)
                    .map(|_| format!("{filter} is vouched for")),
            };
            (token, capabilities)
        };
        let mut checks = Vec::new();
        // In the order of the layers.
        let mut scopes = entry.config.iter().flat_map(|config| &config.scopes);
        for layer in entry.policy.layers() {
            let (token, capabilities) = asked(layer);
            let Some(name) = layer.scope() else {
                checks.push(self.list_check(entry, evidence.holder, operation));
                checks.push(Check::of("token", token));
                checks.push(Check::of("capabilities", capabilities));
                continue;
            };
            let scope = scopes.next();
            let listed = scope.is_none_or(|scope| match operation {
                Subscribe => scope.subscribe.contains(evidence.holder),
                _ => scope.publish.contains(evidence.holder),
            });
            let right = token.and(capabilities);
            checks.push(scope_check((name, listed), operation, right));
        }
        checks.push(self.revocations_check(entry, evidence));
        checks
    }

    /// Whether its node is where it is configured; nothing where nobody is asked.
    fn subnet_check(&self, now_ns: u64, session: &Session) -> Option<Check> {
        if self.rights.subnet_issuers.is_empty() {
            return None;
        }
        let vouched = self.rights.vouch(now_ns, session);
        let words = vouched.map(|()| format!("its node is vouched for in {}", session.subnet));
        Some(Check::of("subnet", words.map_err(Refusal::Membership)))
    }

    fn list_check(&self, entry: &Entry, entity: &[u8; 32], operation: Operation) -> Check {
        let name = operation.name();
        match entry.lists(entity, operation) {
            true => Check::new(
                "list",
                Outcome::Passed,
                format!("the channel's `{name}` list does not keep it out"),
            ),
            false => {
                let has_scopes = entry.config.as_ref().is_some_and(|c| !c.scopes.is_empty());
                let left = match has_scopes {
                    true => ", as far as the scopes around it leave it,",
                    false => "",
                };
                let words = format!("the channel's `{name}` list{left} does not name it");
                Check::new("list", Outcome::Failed, words)
            }
        }
    }

    /// What its issuers have taken back of what the entity has shown; the checks before have refused it for
    /// that already where it matters.
    fn revocations_check(&self, entry: &Entry, evidence: Evidence<'_>) -> Check {
        const NAME: &str = "revocations";
        if !entry.policy.asks() {
            return Check::new(
                NAME,
                Outcome::Passed,
                "nothing is asked for that could be revoked",
            );
        }
        let revocations = &self.rights.revocations;
        let links = evidence.tokens.iter().flat_map(|token| {
            let chain = token.chain();
            let links = chain.links().iter();
            links.map(move |link| {
                let grant = link.grant();
                (chain.issuer(), &grant.subject, grant.generation, link.id())
            })
        });
        let revoked = links.filter_map(|(i, subject, g, id)| revocations.revoke(i, subject, g, id));
        let said = evidence.about(revocations).filter_map(|one| {
            let By::Issuer(issuer) = one.by() else {
                return None;
            };
            let subject = &one.claim().subject;
            revocations.revoke(&issuer, subject, one.generation(), one.id())
        });
        if let Some(what) = revoked.chain(said).next() {
            let words = format!("something that it has shown was revoked: {what}");
            return Check::new(NAME, Outcome::Told, words);
        }
        let issuers = entry.policy.issuers().into_iter();
        let lists = issuers.map(|issuer| {
            let name = hex::encode(issuer);
            match revocations.of(issuer) {
                Some(list) => format!("version {} of {name}'s list", list.version()),
                None => format!("no list of {name}'s"),
            }
        });
        let known = lists.collect::<Vec<_>>().join(", ");
        let words = format!("nothing that it has shown was revoked; known here: {known}");
        Check::new(NAME, Outcome::Passed, words)
    }

    /// What a token of this node's entity is good for on its channels.
    #[must_use]
    pub fn given_by_token(&self, now_ns: u64, token: &Authentic) -> Given {
        let (now_s, revocations) = (self.rights.now_s(now_ns), &self.rights.revocations);
        self.given(now_ns, |entry, operation| {
            let policy = &entry.policy;
            let asking = policy
                .layers()
                .iter()
                .filter(|layer| layer.asks_for_token());
            // It may be for the channel or for any scope around it: others can be for the rest.
            let rights = asking.map(|layer| {
                let shown = (token.holder(), std::iter::once(token));
                policy.by_token(layer, shown, operation, (now_s, revocations))
            });
            let right = rights.reduce(|one, other| match (one, other) {
                (Err(one), Err(other)) if one.fault() > other.fault() => Err(one),
                (Err(_), other) => other,
                (one, _) => one,
            })?;
            Some(
                right
                    .map(|_until_s| ())
                    .map_err(|r| (r.fault() as u8, r.to_string())),
            )
        })
        .or_useless("no channel of this node's configuration requires a token")
    }

    /// What a statement about this node's entity is good for on its channels.
    #[must_use]
    pub fn given_by_statement(&self, now_ns: u64, statement: &Statement) -> Given {
        let (now_s, revocations) = (self.rights.now_s(now_ns), &self.rights.revocations);
        if statement.by() == By::Itself {
            let useless =
                "an announcement lets nobody in: it tells others what this entity says of itself";
            return Given::default().or_useless(useless);
        }
        self.given(now_ns, |entry, operation| {
            if !entry.policy.asks_for_capabilities(operation) {
                return None;
            }
            let counts = entry.policy.counts(statement, now_s, revocations);
            Some(counts.map_err(|why| (0, why.to_string())))
        })
        .or_useless("no channel of this node's configuration asks for capabilities")
    }

    /// Asks of each channel and operation whether something counts there: `None` where it is not asked for.
    fn given(
        &self,
        now_ns: u64,
        counts: impl Fn(&Entry, Operation) -> Option<Result<(), (u8, String)>>,
    ) -> Given {
        let mut given = Given::default();
        let mut nearest = 0;
        for entry in &self.entries {
            for operation in [Publish, Subscribe] {
                match counts(entry, operation) {
                    None => {}
                    Some(Ok(())) => given.rights.push(GivenRight {
                        channel: entry.name().to_string(),
                        operation: operation.name().to_owned(),
                        refused: self.own_refusal(now_ns, entry, operation),
                    }),
                    Some(Err((rank, why))) if rank >= nearest => {
                        (nearest, given.useless) = (rank, Some(why));
                    }
                    Some(Err(_)) => {}
                }
            }
        }
        if !given.rights.is_empty() {
            given.useless = None;
        }
        given
    }

    fn own_refusal(&self, now_ns: u64, entry: &Entry, operation: Operation) -> Option<String> {
        if !entry.lists(&self.entity, operation) {
            let name = operation.name();
            return Some(format!(
                "the channel's `{name}` list does not name this node's entity"
            ));
        }
        let right = self.rights.own_may(now_ns, entry, &self.entity, operation);
        right.err().map(|refusal| refusal.to_string())
    }

    /// What is said about this node's entity, and about those that it has a session with.
    #[must_use]
    pub fn statements_status(&self, now_ns: u64) -> Vec<StatementStatus> {
        let (now_s, revocations) = (self.rights.now_s(now_ns), &self.rights.revocations);
        let status = |statement: &Statement| {
            let claim = statement.claim();
            let counts = self
                .entries
                .iter()
                .map(|entry| entry.policy.counts(statement, now_s, revocations));
            let discounted = counts.reduce(|one, other| one.or(other));
            StatementStatus {
                subject: hex::encode(&claim.subject),
                issuer: match statement.by() {
                    By::Itself => None,
                    By::Issuer(issuer) => Some(hex::encode(&issuer)),
                },
                capabilities: claim
                    .capabilities
                    .as_slice()
                    .iter()
                    .map(ToString::to_string)
                    .collect(),
                version: claim.version,
                not_after_s: claim.not_after_s,
                id: statement.id().to_string(),
                discounted: match discounted {
                    Some(Ok(())) => None,
                    Some(Err(why)) => Some(why.to_string()),
                    None => Some("this node has no channels".to_owned()),
                },
            }
        };
        self.statements().map(status).collect()
    }
}

/// What one scope around a channel says of an entity.
fn scope_check(
    (name, is_listed): (&ChannelName, bool),
    operation: Operation,
    right: Result<String, Refusal>,
) -> Check {
    const NAME: &str = "scope";
    let (outcome, words) = match (is_listed, right) {
        (false, _) => (
            Outcome::Failed,
            format!("{name}: its `{}` list does not name it", operation.name()),
        ),
        (true, Err(refusal)) => (Outcome::Failed, format!("{name}: {refusal}")),
        (true, Ok(_)) => (Outcome::Passed, format!("{name} does not keep it out")),
    };
    Check::new(NAME, outcome, words)
}

impl Given {
    /// With the reason for which there is nothing, unless there is one already.
    fn or_useless(mut self, why: &str) -> Self {
        if self.rights.is_empty() {
            self.useless.get_or_insert_with(|| why.to_owned());
        }
        self
    }
}
