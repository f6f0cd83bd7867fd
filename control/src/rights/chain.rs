//! A token: links from an issuer to the holder, each of which can only narrow the one before it.
//!
//! ```text
//! version 1 | issuer 32 | links 1 | each: length 2, link
//! ```
//! A question is answered in two steps. [`Chain::authenticate`] verifies signatures and that no link
//! widens the one before it: once, when the chain arrives. [`Authentic::allows`] asks the rest whenever
//! it matters, without any cryptography but for long names: time, scope, operation, holder, revocation.

use super::{
    policy::Lacking,
    revocation::{Revocations, Revoked},
    scope::{Levels, Operation, Scope},
    signed::ObjectError,
    token::{Grant, LINK_BYTES_MAX, Link},
};
use crate::{keys::EntityKey, membership::Unvouched};
use thiserror::Error;
use virga_transport::ChannelName;

/// Links of the longest chain.
pub const LINKS_MAX: usize = 8;
/// Bytes of the longest chain.
pub const CHAIN_BYTES_MAX: usize = 2 + 32 + LINKS_MAX * (2 + LINK_BYTES_MAX);
/// How far the clock of whoever signed may be ahead of ours.
pub const CLOCK_SKEW_S_MAX: u64 = 30;
const VERSION: u8 = 1;

/// A chain as it was read: its form is right, and nothing else is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    issuer: [u8; 32],
    /// 1 to [`LINKS_MAX`].
    links: Vec<Link>,
}

/// A chain whose signatures are right and whose links only narrow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authentic(Chain);

/// What is asked of a chain.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Who wants to act, as its session has proven.
    pub holder: &'a [u8; 32],
    /// What it wants to do.
    pub operation: Operation,
    /// Where.
    pub channel: &'a ChannelName,
    /// When, in Unix seconds.
    pub now_s: u64,
    /// Whose word counts on that channel.
    pub issuers: &'a [[u8; 32]],
    /// What has been taken back.
    pub revocations: &'a Revocations,
}

/// Why a chain, or all that an entity has shown, gives no right. Links are counted from 1.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Nobody has shown one.
    #[error("a token is required there, and none was shown")]
    Missing,
    /// A signature is wrong: the link was changed, or put into another chain or order.
    #[error("link {0} is not signed by whoever should have given it")]
    Signature(usize),
    /// The holder of a link passed on what it may not pass on.
    #[error("link {0} follows one that may not be delegated")]
    NotDelegable(usize),
    /// There are more links than an earlier one allows.
    #[error("link {0} is one more than the links before it allow")]
    TooDeep(usize),
    /// A link gives more than the one before it.
    #[error("link {link} gives more than the one before it: its {what} is wider")]
    Widened {
        /// Which link.
        link: usize,
        /// In what respect.
        what: &'static str,
    },
    /// Nobody here trusts the issuer.
    #[error("the token's issuer {} is not one of the channel's", crate::hex::encode(.0))]
    Issuer([u8; 32]),
    /// It is somebody else's.
    #[error("the token belongs to another entity, {}", crate::hex::encode(.0))]
    Holder([u8; 32]),
    /// It is for other channels.
    #[error("link {link} is for {scope}")]
    Scope {
        /// Which link.
        link: usize,
        /// What it is for.
        scope: Scope,
    },
    /// It allows something else.
    #[error("the token does not allow to {}", .0.name())]
    Operation(Operation),
    /// It begins later.
    #[error("link {link} is not valid for {seconds} s yet")]
    NotYetValid {
        /// Which link.
        link: usize,
        /// How much later.
        seconds: u64,
    },
    /// It has ended.
    #[error("link {link} ended {seconds} s ago")]
    Expired {
        /// Which link.
        link: usize,
        /// How long ago.
        seconds: u64,
    },
    /// What is vouched for of the entity is not what the channel asks for.
    #[error("{0}")]
    Capability(Lacking),
    /// Nobody vouches for where the entity's node is.
    #[error("{0}")]
    Membership(Unvouched),
    /// A scope around the channel refuses.
    #[error("the scope {scope} around it: {refusal}")]
    Within {
        /// Which scope.
        scope: ChannelName,
        /// Why.
        refusal: Box<Refusal>,
    },
    /// The issuer has taken it back.
    #[error("link {link} was revoked: {what}")]
    Revoked {
        /// Which link.
        link: usize,
        /// By which entry.
        what: Revoked,
    },
}

impl Refusal {
    /// What whoever was refused can do.
    #[must_use]
    pub fn fix(&self) -> &'static str {
        match self {
            Self::Within { refusal, .. } => refusal.fix(),
            Self::Capability(_) => {
                "get a statement from one of the channel's capability issuers and present it with: virga capability present FILE"
            }
            Self::Membership(_) => {
                "get a membership from one of [subnets] issuers and present it with: virga subnet present FILE"
            }
            _ => {
                "get a token from one of the channel's issuers and present it with: virga token present FILE"
            }
        }
    }

    /// Which kind it is.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Within { refusal, .. } => refusal.fault(),
            Self::Missing => Fault::Missing,
            Self::Signature(_) => Fault::Signature,
            Self::NotDelegable(_) => Fault::NotDelegable,
            Self::TooDeep(_) => Fault::TooDeep,
            Self::Issuer(_) => Fault::Issuer,
            Self::Holder(_) => Fault::Holder,
            Self::Scope { .. } => Fault::Scope,
            Self::Widened { .. } => Fault::Widened,
            Self::NotYetValid { .. } => Fault::NotYetValid,
            Self::Expired { .. } => Fault::Expired,
            Self::Operation(_) => Fault::Operation,
            Self::Revoked { .. } => Fault::Revoked,
            Self::Capability(_) => Fault::Capability,
            Self::Membership(_) => Fault::Membership,
        }
    }
}

/// The kinds of [`Refusal`], in the order in which they are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Fault {
    /// [`Refusal::Missing`].
    Missing,
    /// [`Refusal::Signature`].
    Signature,
    /// [`Refusal::NotDelegable`].
    NotDelegable,
    /// [`Refusal::TooDeep`].
    TooDeep,
    /// [`Refusal::Issuer`].
    Issuer,
    /// [`Refusal::Holder`].
    Holder,
    /// [`Refusal::Scope`].
    Scope,
    /// [`Refusal::Widened`].
    Widened,
    /// [`Refusal::NotYetValid`].
    NotYetValid,
    /// [`Refusal::Expired`].
    Expired,
    /// [`Refusal::Operation`].
    Operation,
    /// [`Refusal::Revoked`].
    Revoked,
    /// [`Refusal::Capability`].
    Capability,
    /// [`Refusal::Membership`].
    Membership,
}

impl Fault {
    /// All there are.
    pub const ALL: [Self; 14] = [
        Self::Missing,
        Self::Signature,
        Self::NotDelegable,
        Self::TooDeep,
        Self::Issuer,
        Self::Holder,
        Self::Scope,
        Self::Widened,
        Self::NotYetValid,
        Self::Expired,
        Self::Operation,
        Self::Revoked,
        Self::Capability,
        Self::Membership,
    ];

    /// A word for counters, answers and programs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Missing => "token_missing",
            Self::Signature => "token_signature",
            Self::NotDelegable => "token_not_delegable",
            Self::TooDeep => "token_too_deep",
            Self::Issuer => "token_issuer",
            Self::Holder => "token_holder",
            Self::Scope => "token_scope",
            Self::Widened => "token_widened",
            Self::NotYetValid => "token_not_yet_valid",
            Self::Expired => "token_expired",
            Self::Operation => "token_operation",
            Self::Revoked => "token_revoked",
            Self::Capability => "capability",
            Self::Membership => "membership",
        }
    }
}

/// Why bytes are not a chain.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ChainError {
    /// Ends before it should.
    #[error("the token is cut short")]
    Short,
    /// Goes on after its last link.
    #[error("{0} bytes follow the token's last link")]
    Trailing(usize),
    /// Written by a later version of Virga.
    #[error("the token has version {0}, and only {VERSION} is known")]
    Version(u8),
    /// None, or more than [`LINKS_MAX`].
    #[error("the token has {0} links; 1 to {LINKS_MAX} are allowed")]
    Links(usize),
    /// A link's form is wrong.
    #[error("link {link} of the token cannot be read: {error}")]
    Link {
        /// Which link, from 1.
        link: usize,
        /// What is wrong with it.
        error: ObjectError,
    },
}

impl Chain {
    /// A token of one link.
    #[must_use]
    pub fn issue(grant: Grant, issuer: &EntityKey) -> Self {
        Self {
            issuer: issuer.public,
            links: vec![Link::sign(grant, issuer)],
        }
    }

    /// The same with one more link, that the present holder signs. The link's generation is that of
    /// the chain, whatever `grant` says.
    ///
    /// # Errors
    /// [`Refusal`]: what the new chain would be refused for, or already is.
    pub fn delegate(&self, mut grant: Grant, holder: &EntityKey) -> Result<Self, Refusal> {
        let last = self.last().grant();
        if last.subject != holder.public {
            return Err(Refusal::Holder(last.subject));
        }
        grant.generation = last.generation;
        let mut longer = self.clone();
        longer.links.push(Link::sign(grant, holder));
        if longer.links.len() > LINKS_MAX {
            return Err(Refusal::TooDeep(longer.links.len()));
        }
        longer.authenticate().map(|Authentic(chain)| chain)
    }

    /// Who is at its beginning.
    #[must_use]
    pub const fn issuer(&self) -> &[u8; 32] {
        &self.issuer
    }

    /// Its links, from the issuer on.
    #[must_use]
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// The last link: the holder's.
    fn last(&self) -> &Link {
        &self.links[self.links.len() - 1]
    }

    /// All its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend(self.issuer);
        bytes.push(u8::try_from(self.links.len()).expect("there are at most LINKS_MAX"));
        for link in self.links.iter().map(Link::as_bytes) {
            let length = u16::try_from(link.len()).expect("there are at most LINK_BYTES_MAX");
            bytes.extend(length.to_be_bytes());
            bytes.extend(link);
        }
        bytes
    }

    /// Reads a chain, all of `bytes`.
    ///
    /// # Errors
    /// [`ChainError`]: what is wrong with its form.
    pub fn parse(bytes: &[u8]) -> Result<Self, ChainError> {
        let (&version, rest) = bytes.split_first().ok_or(ChainError::Short)?;
        if version != VERSION {
            return Err(ChainError::Version(version));
        }
        let (&issuer, rest) = rest.split_first_chunk().ok_or(ChainError::Short)?;
        let (&count, mut rest) = rest.split_first().ok_or(ChainError::Short)?;
        let count = usize::from(count);
        if count == 0 || count > LINKS_MAX {
            return Err(ChainError::Links(count));
        }
        let mut links = Vec::with_capacity(count);
        for link in 1..=count {
            let (length, after) = rest.split_first_chunk().ok_or(ChainError::Short)?;
            let length = usize::from(u16::from_be_bytes(*length));
            let (bytes, after) = after.split_at_checked(length).ok_or(ChainError::Short)?;
            links.push(Link::parse(bytes).map_err(|error| ChainError::Link { link, error })?);
            rest = after;
        }
        match rest.len() {
            0 => Ok(Self { issuer, links }),
            trailing => Err(ChainError::Trailing(trailing)),
        }
    }

    /// Verifies all signatures, and that each link only narrows the one before it. Scopes are compared
    /// by [`Authentic::allows`], on the channel that matters.
    ///
    /// # Errors
    /// [`Refusal`]: the first thing that is wrong.
    pub fn authenticate(self) -> Result<Authentic, Refusal> {
        let mut signer = self.issuer;
        for (index, link) in self.links.iter().enumerate() {
            if !link.is_signed_by(&signer) {
                return Err(Refusal::Signature(index + 1));
            }
            signer = link.grant().subject;
        }
        for (index, pair) in self.links.windows(2).enumerate() {
            narrows(pair[0].grant(), pair[1].grant(), index + 2)?;
        }
        Ok(Authentic(self))
    }
}

/// Whether a link gives no more than the one before it, but for its scope.
fn narrows(before: &Grant, after: &Grant, link: usize) -> Result<(), Refusal> {
    let widened = |what| Err(Refusal::Widened { link, what });
    if !before.operations.contains(Operation::Delegate) {
        return Err(Refusal::NotDelegable(link));
    }
    if before.delegations == 0 {
        return Err(Refusal::TooDeep(link));
    }
    if after.delegations >= before.delegations {
        return widened("number of further delegations");
    }
    if !after.operations.is_within(before.operations) {
        return widened("set of operations");
    }
    if after.not_before_s < before.not_before_s || after.not_after_s > before.not_after_s {
        return widened("time");
    }
    if after.generation != before.generation {
        return widened("generation");
    }
    Ok(())
}

impl Authentic {
    /// The chain.
    #[must_use]
    pub const fn chain(&self) -> &Chain {
        &self.0
    }

    /// Whom it gives a right.
    #[must_use]
    pub fn holder(&self) -> &[u8; 32] {
        &self.0.last().grant().subject
    }

    /// Who signed its links, in their order.
    pub fn signers(&self) -> impl Iterator<Item = &[u8; 32]> {
        let subjects = self.0.links.iter().map(|link| &link.grant().subject);
        [&self.0.issuer]
            .into_iter()
            .chain(subjects)
            .take(self.0.links.len())
    }

    /// Until when it could be valid, exclusive, in Unix seconds.
    #[must_use]
    pub fn not_after_s(&self) -> u64 {
        // No link ends later than the one before it.
        self.0.last().grant().not_after_s
    }

    /// When it counts no more: at its end, or earlier where one who signed it has had another key since.
    #[must_use]
    pub fn ends_s(&self, revocations: &Revocations) -> u64 {
        let signers = self.signers();
        let honoured = signers.filter_map(|signer| revocations.honoured_until_s(signer));
        honoured.fold(self.not_after_s(), u64::min)
    }

    /// From when it could be valid, in Unix seconds.
    #[must_use]
    pub fn not_before_s(&self) -> u64 {
        // No link begins earlier than the one before it.
        self.0.last().grant().not_before_s
    }

    /// Whether it gives a right.
    ///
    /// # Errors
    /// [`Refusal`]: the first thing that is missing.
    pub fn allows(&self, question: &Question<'_>) -> Result<(), Refusal> {
        self.allows_on(question, &Levels::of(question.channel))
    }

    /// The same, with the question's channel digested before.
    ///
    /// # Errors
    /// As [`Authentic::allows`].
    pub fn allows_on(&self, question: &Question<'_>, channel: &Levels) -> Result<(), Refusal> {
        let chain = &self.0;
        if !question.issuers.contains(&chain.issuer) {
            return Err(Refusal::Issuer(chain.issuer));
        }
        if question.revocations.current(self.holder()) != question.holder {
            return Err(Refusal::Holder(*self.holder()));
        }
        let mut before = None;
        for (link, grant) in (1..).zip(chain.links.iter().map(Link::grant)) {
            let Some(cover) = grant.scope.cover(channel) else {
                let scope = grant.scope.clone();
                return Err(Refusal::Scope { link, scope });
            };
            if before.is_some_and(|before| !cover.is_within(before)) {
                let what = "scope";
                return Err(Refusal::Widened { link, what });
            }
            before = Some(cover);
            if question.now_s + CLOCK_SKEW_S_MAX < grant.not_before_s {
                let seconds = grant.not_before_s - question.now_s;
                return Err(Refusal::NotYetValid { link, seconds });
            }
            if question.now_s >= grant.not_after_s {
                let seconds = question.now_s - grant.not_after_s;
                return Err(Refusal::Expired { link, seconds });
            }
        }
        if !chain.last().grant().operations.contains(question.operation) {
            return Err(Refusal::Operation(question.operation));
        }
        for (link, (one, signer)) in (1..).zip(chain.links.iter().zip(self.signers())) {
            let Grant {
                subject,
                generation,
                ..
            } = one.grant();
            let revocations = question.revocations;
            let revoked = revocations.revoke(&chain.issuer, subject, *generation, one.id());
            let retired = || revocations.retire(signer, question.now_s);
            if let Some(what) = revoked.or_else(retired) {
                return Err(Refusal::Revoked { link, what });
            }
        }
        Ok(())
    }
}
