//! Why packets are dropped, and how often.

use crate::{classes::Classes, close::CloseReason};

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why a datagram changed nothing. The name is the counter's label everywhere.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason { $($(#[doc = $doc])+ $variant,)+ }

        impl DropReason {
            /// Every reason there is, in the order of the checks.
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
    /// Shorter than a mesh header.
    Truncated = "truncated",
    /// Does not start with the magic number.
    Magic = "magic",
    /// A header version that this node does not speak.
    Version = "version",
    /// A priority above 7.
    Priority = "priority",
    /// The header's payload length is not what arrived.
    PayloadLength = "payload_length",
    /// Addressed to another node.
    NotForUs = "not_for_us",
    /// A handshake message with a wrong length, type or header.
    HandshakeMalformed = "handshake_malformed",
    /// A suite that this node does not offer.
    HandshakeSuite = "handshake_suite",
    /// Made with another generation of the network's key.
    HandshakePskGeneration = "handshake_psk_generation",
    /// The keyed tag is wrong: another network key, or changed in flight.
    HandshakeTag = "handshake_tag",
    /// From a node that is not a configured peer, or with another entity's origin.
    HandshakePeer = "handshake_peer",
    /// This node is stopping: it takes no new sessions.
    HandshakeStopping = "handshake_stopping",
    /// An initiation that was answered before and is a session now.
    HandshakeReplayed = "handshake_replayed",
    /// An initiation that was answered a moment ago; a later one is answered alike.
    HandshakeRepeated = "handshake_repeated",
    /// Both ends started: the one of the lower node id goes on, or the one that has led to a session.
    HandshakeSimultaneous = "handshake_simultaneous",
    /// Made before the last initiation of this peer that was proven: a replay, or its clock went
    /// back. Answered with a cookie: whoever returns it is there now.
    HandshakeStale = "handshake_stale",
    /// Under load: answered with a cookie instead.
    HandshakeCookie = "handshake_cookie",
    /// Under load: this ingress source had its share of handshakes or cookies, or all had theirs.
    HandshakeRate = "handshake_rate",
    /// No room for another half-open session.
    HandshakeFull = "handshake_full",
    /// Noise refused it: another network id, a wrong static key, or a forgery.
    HandshakeNoise = "handshake_noise",
    /// The node key that Noise proved is not the sender's.
    HandshakeNodeKey = "handshake_node_key",
    /// The two ends' policies contradict each other: pattern nk where more is asked for, or ML-KEM-768
    /// required at one end and off at the other.
    HandshakePolicy = "handshake_policy",
    /// A response, completion, cookie, refusal or reset that answers nothing this node asked.
    HandshakeUnasked = "handshake_unasked",
    /// A reset whose token is not the session's.
    ResetToken = "reset_token",
    /// A subprotocol that this node does not speak.
    Subprotocol = "subprotocol",
    /// A session that this node does not have.
    UnknownSession = "unknown_session",
    /// The session belongs to another entity.
    Origin = "origin",
    /// An epoch whose keys are not held.
    KeyPhase = "key_phase",
    /// A sequence that was opened before.
    Replayed = "replayed",
    /// A sequence too far behind to tell.
    TooOld = "too_old",
    /// The seal is broken: forged, or changed in flight.
    Forged = "forged",
    /// Data before the peer has proven its entity.
    BeforeProof = "before_proof",
    /// The peer's proof is wrong, or of another entity.
    Proof = "proof",
    /// An ML-KEM key or ciphertext that is none, or that gives another secret than the peer's: the session is
    /// closed.
    Kem = "kem",
    /// Sealed frames that do not parse, or stand where they may not.
    FrameMalformed = "frame_malformed",
    /// An acknowledgement of a packet that was never sent: the session is closed.
    NeverSent = "never_sent",
    /// The sealed channel name and salt do not hash to the header's channel.
    ChannelMismatch = "channel_mismatch",
    /// The stream is bound to another channel.
    StreamChannel = "stream_channel",
    /// Data of a stream whose opening has not arrived.
    UnknownStream = "unknown_stream",
    /// The peer has as many streams open as it may.
    StreamsFull = "streams_full",
    /// Data of a stream that was finished or refused.
    StreamClosed = "stream_closed",
    /// More bytes than were granted.
    Credit = "credit",
    /// Messages or fragments of one stream that overlap or contradict each other.
    Overlap = "overlap",
    /// A stream with more holes than are kept track of: the bytes are to travel again.
    Fragments = "fragments",
    /// Streams with more holes in all than any honest sender leaves: the session is closed.
    Entries = "entries",
    /// An unreliable event found the owner's queue full.
    EventQueueFull = "event_queue_full",
    /// An unreliable message of which fragments did not come: lost, in time or for want of room.
    Unfinished = "unfinished",
    /// The session was closed.
    Draining = "draining",
}

/// Counters of one node. Cheap to read, never reset.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeCounters {
    drops: [u64; DropReason::ALL.len()],
    pub(crate) classes: Classes,
    /// Datagrams given to [`crate::Node::handle`].
    pub received_datagrams: u64,
    /// Datagrams given out by [`crate::Node::poll_transmit`].
    pub sent_datagrams: u64,
    /// Initiations sent, repetitions included.
    pub initiations_sent: u64,
    /// Initiations answered with a response.
    pub initiations_answered: u64,
    /// Refusals sent: a peer's initiation, or the peer's response, contradicts this node's policy.
    pub refusals_sent: u64,
    /// Refusals received of peers whose policy contradicts this node's.
    pub refusals_received: u64,
    /// Sessions that became established, by the place of their pattern in [`crate::Pattern::ALL`].
    pub established_by_pattern: [u64; 3],
    /// Sessions that became established with ML-KEM-768 mixed into their keys.
    pub established_hybrid: u64,
    /// Sessions that ended, by the place of the reason in [`CloseReason::ALL`]; attempts among them.
    pub closed: [u64; CloseReason::ALL.len()],
    /// Cookies sent under load.
    pub cookies_sent: u64,
    /// Handshake messages given up because too many waited to be sent.
    pub outbox_full: u64,
    /// Resets sent for unknown sessions.
    pub resets_sent: u64,
    /// Sessions whose peer was recognised as restarted.
    pub resets_received: u64,
    /// Sessions that became established.
    pub sessions_established: u64,
    /// Key epochs moved to.
    pub epochs_advanced: u64,
    /// Messages and events refused to the caller as [`crate::SendError::Full`].
    pub sends_refused: u64,
    /// Messages that were not sent because their deadline had passed.
    pub messages_expired: u64,
    /// Half-open sessions that gave way to another's.
    pub half_open_evicted: u64,
}

impl Default for NodeCounters {
    fn default() -> Self {
        Self {
            drops: [0; DropReason::ALL.len()],
            classes: Classes::default(),
            received_datagrams: 0,
            sent_datagrams: 0,
            initiations_sent: 0,
            initiations_answered: 0,
            refusals_sent: 0,
            refusals_received: 0,
            established_by_pattern: [0; 3],
            established_hybrid: 0,
            closed: [0; CloseReason::ALL.len()],
            cookies_sent: 0,
            outbox_full: 0,
            resets_sent: 0,
            resets_received: 0,
            sessions_established: 0,
            epochs_advanced: 0,
            sends_refused: 0,
            messages_expired: 0,
            half_open_evicted: 0,
        }
    }
}

impl NodeCounters {
    /// How many datagrams (or unreliable events, or messages of refused streams) were dropped so.
    #[must_use]
    pub const fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// Every reason with its count.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL
            .iter()
            .map(|&reason| (reason, self.dropped(reason)))
    }

    /// All drops together.
    #[must_use]
    pub fn dropped_total(&self) -> u64 {
        self.drops.iter().sum()
    }

    pub(crate) fn drop(&mut self, reason: DropReason) {
        self.drop_many(reason, 1);
    }

    pub(crate) fn drop_many(&mut self, reason: DropReason, count: u64) {
        self.drops[reason as usize] += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_name_and_slot() {
        let mut names: Vec<_> = DropReason::ALL.iter().map(|r| r.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DropReason::ALL.len());
        for (at, &reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(reason as usize, at);
        }
    }
}
