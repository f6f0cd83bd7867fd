//! Why a stream was refused, a subscription not granted, or an event not delivered; and how often.

use crate::rights::Fault;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why something did not happen. The name is the counter's label everywhere.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason { $($(#[doc = $doc])+ $variant,)+ }

        impl Reason {
            /// Every reason there is.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The counter's label.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What it means, for an operator.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                let text = match self { $(Self::$variant => concat!($($doc),+),)+ };
                text.trim_start()
            }
        }
    };
}

reasons! {
    /// A stream of a channel that is not configured here: refused.
    StreamUnknownChannel = "stream_unknown_channel",
    /// A stream whose salt is not the configured one: refused.
    StreamSalt = "stream_salt",
    /// A stream that is reliable where the channel is not, or the other way round: refused.
    StreamMode = "stream_mode",
    /// The session's proven entity may not publish on the channel: refused.
    StreamPublisher = "stream_publisher",
    /// This node's entity may not subscribe to the channel: refused.
    StreamSubscriber = "stream_subscriber",
    /// A message of a stream that was refused or never announced.
    UnknownStream = "unknown_stream",
    /// A message on a channel whose events are signed that is no batch of the session's entity on that channel.
    Unsigned = "unsigned",
    /// Events that another node passes on, and that this one has not asked it for, or does not want from it any more: dropped.
    RelayStranger = "relay_stranger",
    /// Events that another node passed on and that are not what their publisher signed: dropped, and asked of the publisher.
    RelayForged = "relay_forged",
    /// Events that came by another node before those between them and what came by their publisher: that sends them, too.
    RelayEarly = "relay_early",
    /// Events that came by their publisher and by another node: delivered once.
    RelayDuplicate = "relay_duplicate",
    /// A node confirmed events that were not published yet: its publisher, this node, serves it itself.
    RelayClaim = "relay_claim",
    /// A node asked for another's events that this one does not pass on, or not to that node: told so.
    RelayRefused = "relay_refused",
    /// A publisher named other relays for its events too often: not heeded, it goes on by itself.
    RelayRate = "relay_rate",
    /// Events that this node passes on found no room towards a node, or may not go to it yet: it is told, and goes back to their publisher.
    RelayFull = "relay_full",
    /// A node gets events by another no more, or got them too late: their publisher, this node, sends them itself.
    RelayFailed = "relay_failed",
    /// An event that nobody on this node wants any more.
    NoSubscriber = "no_subscriber",
    /// A local subscriber's queue is full.
    SubscriberFull = "subscriber_full",
    /// A local subscriber read nothing for as long as it may hold up a reliable channel: ended.
    SubscriberStalled = "subscriber_stalled",
    /// An unreliable event that found the queue to one of several subscribers full.
    PeerFull = "peer_full",
    /// An event that was not sent to a subscriber before its publisher's deadline.
    Expired = "expired",
    /// The subscriber's session or stream ended while the event was on its way out.
    PeerGone = "peer_gone",
    /// An unreliable event while the session with the subscriber has as many streams as it may.
    StreamsFull = "streams_full",
    /// The subscriber refused the stream.
    PeerRefused = "peer_refused",
    /// A control message that does not parse.
    ControlMalformed = "control_malformed",
    /// A control message that found too many others waiting; it is asked for again.
    ControlFull = "control_full",
    /// A question about the way of packets by a peer that is no neighbour, or by one that asks too often: not followed.
    TraceRefused = "trace_refused",
    /// An introduction of a node, or what a peer says of other nodes, that this node does not look for (without `[discovery]`) or has no room for.
    DiscoveryRefused = "discovery_refused",
    /// What a peer says of ways through NATs, which this node does not look for (without `[nat]`) or has no room for.
    NatRefused = "nat_refused",
    /// What a peer says about routes that is no neighbour of this node: not looked at.
    RoutesStranger = "routes_stranger",
    /// Something about a log that is on several nodes, from or to one that holds no copy of it: not looked at.
    ReplicaStranger = "replica_stranger",
    /// Something about a log that is on several nodes that found too much else waiting; it is said again.
    ReplicaFull = "replica_full",
    /// A peer submitted more to a log on several nodes than the channel's `max_rate_pps`: told so, and not appended.
    SubmissionRate = "submission_rate",
    /// A peer asked for events of a log that it may not have: not read.
    ReadRefused = "read_refused",
    /// A peer asked for events of a log when too much else waited; it asks again.
    ReadFull = "read_full",
    /// A peer asked for a channel that it may not have, or that is not published here.
    SubscribeRefused = "subscribe_refused",
    /// A peer asked for channels more often than it may: told so, and not looked at.
    SubscribeRate = "subscribe_rate",
    /// A peer asked for a channel that does not go to its subnet.
    SubscribeSubnet = "subscribe_subnet",
    /// A token that does not parse.
    TokenMalformed = "token_malformed",
    /// A peer showed more tokens than it may, or too often: not looked at.
    TokensFull = "tokens_full",
    /// A right on a channel that requires a token was wanted, and none was shown.
    TokenMissing = "token_missing",
    /// A token with a signature that is wrong: not taken in.
    TokenSignature = "token_signature",
    /// A token that was passed on by one who may not delegate: not taken in.
    TokenNotDelegable = "token_not_delegable",
    /// A token that was passed on more often than it may be: not taken in.
    TokenTooDeep = "token_too_deep",
    /// A right was wanted by a token whose issuer the channel does not trust.
    TokenIssuer = "token_issuer",
    /// A token of another entity than the one that showed it: not taken in.
    TokenHolder = "token_holder",
    /// A right was wanted by a token for other channels.
    TokenScope = "token_scope",
    /// A token that gives more than the one that it was delegated from.
    TokenWidened = "token_widened",
    /// A right was wanted by a token that is not valid yet.
    TokenNotYetValid = "token_not_yet_valid",
    /// A right was wanted, or had, by a token that has expired.
    TokenExpired = "token_expired",
    /// A right was wanted by a token for other operations.
    TokenOperation = "token_operation",
    /// A right was wanted, or had, by a token that has been revoked.
    TokenRevoked = "token_revoked",
    /// A right was wanted, or had, without the capabilities that the channel asks for.
    Capability = "capability",
    /// A right was wanted, or had, by an entity whose node nobody vouches for the subnet of.
    Membership = "membership",
    /// A membership of a subnet that does not parse.
    MembershipMalformed = "membership_malformed",
    /// A membership of a subnet with a signature that is wrong: not taken in.
    MembershipSignature = "membership_signature",
    /// A membership of another entity than the one that showed it: not taken in.
    MembershipSubject = "membership_subject",
    /// A membership by an issuer that `[subnets]` does not name: not taken in.
    MembershipIssuer = "membership_issuer",
    /// A membership that has ended: not taken in.
    MembershipExpired = "membership_expired",
    /// A peer showed more memberships than it may, or too often: not looked at.
    MembershipsFull = "memberships_full",
    /// Words about capabilities that do not parse.
    CapabilityMalformed = "capability_malformed",
    /// Words about capabilities with a signature that is wrong: not taken in.
    CapabilitySignature = "capability_signature",
    /// Words about the capabilities of another entity than the one that showed them: not taken in.
    CapabilitySubject = "capability_subject",
    /// Words about capabilities by an issuer that no channel here trusts with them: not taken in.
    CapabilityIssuer = "capability_issuer",
    /// Words about capabilities that have ended: not taken in.
    CapabilityExpired = "capability_expired",
    /// A peer showed more words about capabilities than it may, or too often: not looked at.
    CapabilitiesFull = "capabilities_full",
    /// A revocation list that does not parse, or that its issuer did not sign.
    RevocationsMalformed = "revocations_malformed",
    /// A revocation list of an issuer that no channel here trusts: not taken in.
    RevocationsIssuer = "revocations_issuer",
    /// A revocation list that is older than the one that is known: not taken in.
    RevocationsOld = "revocations_old",
    /// A second revocation list with a version that is known: its issuer signed both. Not taken in.
    RevocationsConflict = "revocations_conflict",
    /// A peer said more about evidence than was looked at in time; neighbours compare again what they have.
    PublicationsFull = "publications_full",
    /// A session of an entity that lives elsewhere now, or has another key: ended.
    EntityMoved = "entity_moved",
    /// A placement or succession that does not parse, or is not signed: not taken in.
    IdentityBroken = "identity_broken",
    /// A placement or succession of an entity that is not configured here: not taken in.
    IdentityUnknown = "identity_unknown",
    /// A placement that is older than the one that is known: not taken in.
    IdentityOld = "identity_old",
    /// A placement or succession that contradicts what is known: not taken in.
    IdentityConflict = "identity_conflict",
    /// A placement or succession that found too many others of its sender's waiting, who is asked to
    /// show it again.
    IdentityFull = "identity_full",
    /// A declared channel that does not parse, or that its owner did not sign: not taken in.
    DeclarationMalformed = "declaration_malformed",
    /// A declared channel whose owner is no authority over its name here: not taken in.
    DeclarationAuthority = "declaration_authority",
    /// A declared channel that is older than the one that is known: not taken in.
    DeclarationOld = "declaration_old",
    /// A declared channel for which there is no room, or whose time is in the future. Where too many others of its
    /// sender's wait, that is asked to show it again.
    DeclarationsFull = "declarations_full",
    /// An event larger than its channel carries: refused to the publisher.
    TooLarge = "too_large",
}

impl Reason {
    /// Whether a token, a membership, or words about capabilities, would have helped.
    pub(crate) fn is_of_right(self) -> bool {
        Fault::ALL.into_iter().any(|fault| self == fault.into())
    }
}

impl From<Fault> for Reason {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Missing => Self::TokenMissing,
            Fault::Signature => Self::TokenSignature,
            Fault::NotDelegable => Self::TokenNotDelegable,
            Fault::TooDeep => Self::TokenTooDeep,
            Fault::Issuer => Self::TokenIssuer,
            Fault::Holder => Self::TokenHolder,
            Fault::Scope => Self::TokenScope,
            Fault::Widened => Self::TokenWidened,
            Fault::NotYetValid => Self::TokenNotYetValid,
            Fault::Expired => Self::TokenExpired,
            Fault::Operation => Self::TokenOperation,
            Fault::Revoked => Self::TokenRevoked,
            Fault::Capability => Self::Capability,
            Fault::Membership => Self::Membership,
        }
    }
}

/// One counter a reason. Never reset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reasons {
    counts: [u64; Reason::ALL.len()],
}

impl Default for Reasons {
    fn default() -> Self {
        Self {
            counts: [0; Reason::ALL.len()],
        }
    }
}

impl Reasons {
    /// How often.
    #[must_use]
    pub const fn count(&self, reason: Reason) -> u64 {
        self.counts[reason as usize]
    }

    /// Every reason with its count.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, u64)> + '_ {
        Reason::ALL
            .iter()
            .map(|&reason| (reason, self.count(reason)))
    }

    pub(crate) fn add(&mut self, reason: Reason) {
        self.add_many(reason, 1);
    }

    pub(crate) fn add_many(&mut self, reason: Reason, count: u64) {
        self.counts[reason as usize] += count;
    }
}
