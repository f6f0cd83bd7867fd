//! What a node tells its owner, and what its verbs return.

pub use crate::close::CloseReason;

use crate::{
    config::Congestion,
    name::ChannelName,
    policy::{Conflict, Pattern},
    reason::DropReason,
    times::TimesSummary,
};
use bytes::Bytes;
use std::{net::SocketAddr, num::NonZeroU64};
use thiserror::Error;
use virga_ebpf::header::{NodeId, SessionId, StreamId};

/// What became of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Handled {
    /// It was ours and did its work.
    Accepted,
    /// It changed nothing (but a counter, and perhaps a reply) for this reason.
    Dropped(DropReason),
}

/// One run of datagrams to send: all of one session, each `segment_bytes` long, the last perhaps
/// shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Transmit {
    /// The node that shall open them.
    pub destination: NodeId,
    /// Which way they go there.
    pub toward: Toward,
    /// Bytes appended to the buffer.
    pub bytes: usize,
    /// Bytes of each datagram but the last.
    pub segment_bytes: usize,
}

/// Which way datagrams take to their destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toward {
    /// As its route says.
    Route,
    /// To this outer address.
    Address(SocketAddr),
    /// Over the link to it, also where its route avoids that.
    Link,
}

/// What happened, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Both ends have proven their entities: streams may be opened.
    Connected {
        /// The other node.
        peer: NodeId,
        /// Its entity's ed25519 public key, proven.
        entity: [u8; 32],
    },
    /// The session is gone with all its streams.
    Closed {
        /// The other node.
        peer: NodeId,
        /// Why.
        reason: CloseReason,
    },
    /// There is no session with a peer, because its policy and this node's contradict each other. Told once
    /// of each conflict until there is a session. Where it is the peer that says so, any member of the network
    /// could have said it.
    Refused {
        /// The other node.
        peer: NodeId,
        /// How they do.
        conflict: Conflict,
    },
    /// A message on the control stream.
    Control {
        /// Who sent it.
        peer: NodeId,
        /// What [`crate::Node::send_control`] was given there.
        message: Bytes,
    },
    /// The peer opened a stream to us.
    StreamOpened {
        /// Who opened it.
        peer: NodeId,
        /// Its number, from now on.
        stream: StreamId,
        /// The channel's full name; it hashes to what the header said.
        name: ChannelName,
        /// The channel's salt.
        salt: u32,
        /// What it promises of its messages.
        mode: Mode,
    },
    /// A message on a stream that the peer opened.
    Message {
        /// Who sent it.
        peer: NodeId,
        /// On which stream.
        stream: StreamId,
        /// What [`crate::Node::send`] was given there.
        event: Bytes,
    },
    /// The peer finished a stream: no message follows.
    StreamFinished {
        /// Who finished it.
        peer: NodeId,
        /// Which one.
        stream: StreamId,
    },
    /// The peer gave a stream up: what it had not sent by then does not follow, and of a reliable
    /// stream nothing that was not delivered before.
    StreamReset {
        /// Who gave it up.
        peer: NodeId,
        /// Which one.
        stream: StreamId,
    },
    /// Messages on a stream that this node opened were not sent, because their deadline had passed.
    Expired {
        /// To whom they were.
        peer: NodeId,
        /// On which stream.
        stream: StreamId,
        /// How many.
        messages: u64,
    },
    /// What became of a message on a reliable stream that this node sent with a receipt.
    Receipt {
        /// To whom it was.
        peer: NodeId,
        /// On which stream.
        stream: StreamId,
        /// What [`crate::Node::send_with_receipt`] was given.
        receipt: Receipt,
        /// What became of it.
        fate: Fate,
    },
    /// The peer refused a stream that this node opened: it is gone.
    StreamRefused {
        /// Who refused it.
        peer: NodeId,
        /// Which one.
        stream: StreamId,
    },
    /// A neighbour answers from another outer address: packets to it go there from now on.
    AddressChanged {
        /// Which one.
        peer: NodeId,
        /// Where it is.
        address: SocketAddr,
    },
    /// Somebody who knows the network's key says who it is; nothing of that is proven. It may be no peer.
    Introduced {
        /// Where that came from.
        source: SocketAddr,
        /// What [`crate::Node::introduce`] was given there.
        words: Bytes,
    },
    /// A peer has answered from the address that [`crate::Node::probe`] asked about: packets pass both ways between
    /// it and this node.
    Reached {
        /// Which one.
        peer: NodeId,
        /// Where.
        address: SocketAddr,
    },
    /// The state of a watched link has changed; see [`crate::Node::watch_links`].
    Link {
        /// The neighbour.
        peer: NodeId,
        /// What it is now.
        state: LinkState,
        /// How long nothing had been heard of the neighbour.
        gap_ns: u64,
    },
    /// After a [`SendError::Full`] or an [`OpenError::TooMany`]: there is room again.
    Writable {
        /// Towards whom.
        peer: NodeId,
    },
}

/// A message's bytes, as its sender has them.
#[derive(Clone, Copy, Debug)]
pub enum Payload<'a> {
    /// To be copied.
    Borrowed(&'a [u8]),
    /// A reliable stream keeps a large one as it is, with all of its buffer, until the peer has it.
    Shared(&'a Bytes),
}

impl Payload<'_> {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }
}

impl<'a> From<&'a [u8]> for Payload<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Borrowed(bytes)
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for Payload<'a> {
    fn from(bytes: &'a [u8; N]) -> Self {
        Self::Borrowed(bytes)
    }
}

impl<'a> From<&'a Bytes> for Payload<'a> {
    fn from(bytes: &'a Bytes) -> Self {
        Self::Shared(bytes)
    }
}

/// What the owner calls messages that it wants to hear of again; several may share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Receipt(pub NonZeroU64);

/// What became of a message that was sent with a receipt. Where its stream or session ends first, nothing
/// is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The peer's node has opened and keeps all of its bytes, and of all messages before it on the stream: it
    /// has acknowledged the packets that carried them. Whether its owner has read them is not said, nor that it
    /// will not refuse the stream later.
    Acknowledged,
    /// Its deadline passed before any of its bytes were sent.
    Expired,
}

/// What a stream promises of its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// What is lost stays lost; what arrives is delivered as it comes.
    Unreliable,
    /// What is lost travels again, and messages are delivered in the order in which they were sent.
    Ordered,
    /// What is lost travels again, and each message is delivered as soon as it is whole.
    Unordered,
    /// As [`Mode::Ordered`]; and each message is a batch of events under their entity's signature, which is
    /// not looked at here.
    Signed,
}

impl Mode {
    /// All of them; the place of each is its number on the wire.
    pub const ALL: [Self; 4] = [
        Self::Unreliable,
        Self::Ordered,
        Self::Unordered,
        Self::Signed,
    ];

    /// Whether lost data travels again.
    #[must_use]
    pub const fn is_reliable(self) -> bool {
        matches!(self, Self::Ordered | Self::Unordered | Self::Signed)
    }

    /// Whether messages are delivered in the order in which they were sent.
    #[must_use]
    pub const fn is_ordered(self) -> bool {
        matches!(self, Self::Ordered | Self::Signed)
    }

    /// A word for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unreliable => "unreliable",
            Self::Ordered => "ordered",
            Self::Unordered => "unordered",
            Self::Signed => "signed",
        }
    }
}

/// How a stream shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamSpec {
    /// Full name of the channel it belongs to.
    pub name: ChannelName,
    /// The channel's salt.
    pub salt: u32,
    /// Class 0 to 6: a class of streams that have something to send gets its number and one more of
    /// every 28 packets of a session, where all have, and streams of one class are served in turn.
    pub priority: u8,
    /// What it promises of its messages.
    pub mode: Mode,
}

/// Why [`crate::Node::connect`] did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ConnectError {
    /// Not in the configuration.
    #[error("node {0} is not a configured peer: add its keys to the configuration")]
    UnknownPeer(NodeId),
}

/// Why no stream was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum OpenError {
    /// No proven session with that peer.
    #[error("there is no session with node {0} yet: connect and wait for `Connected`")]
    NoSession(NodeId),
    /// Class 7 is control's own.
    #[error("priority {0} is not one of 0 to 6")]
    Priority(u8),
    /// The session has as many as it may.
    #[error("the session has {max} open streams already: finish one and wait for `Writable`")]
    TooMany {
        /// How many it may have.
        max: usize,
    },
}

/// What became of messages that were to be queued, in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Taken {
    /// How many were queued: the first ones.
    pub messages: usize,
    /// Why the next one was not.
    pub refused: Option<SendError>,
}

/// Why nothing was queued; the message stays the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SendError {
    /// The queue is full; [`Event::Writable`] follows.
    #[error("the queue is full: wait for `Writable`")]
    Full,
    /// Larger than a message, or an event, may be.
    #[error("the message is larger than {max_bytes} bytes")]
    TooLarge {
        /// How large it may be.
        max_bytes: usize,
    },
    /// No proven session with that peer.
    #[error("there is no session with that node")]
    NoSession,
    /// Not open, finished, or refused by the peer.
    #[error("there is no such stream: it was never opened, was finished, or was refused")]
    NoStream,
}

/// How far a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SessionState {
    /// Keys are agreed; an entity's proof is outstanding.
    Proving,
    /// Both proven: data flows.
    Established,
    /// Closed; late packets are still recognised.
    Draining,
}

impl SessionState {
    /// A word for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Proving => "proving",
            Self::Established => "established",
            Self::Draining => "draining",
        }
    }
}

/// One session, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionStatus {
    /// The other node.
    pub peer: NodeId,
    /// The entity that it must prove, or has proven.
    pub entity: [u8; 32],
    /// The session as this node names it.
    pub session: SessionId,
    /// How far it is.
    pub state: SessionState,
    /// The Noise pattern that it began by.
    pub pattern: Pattern,
    /// Whether ML-KEM-768 is mixed into its keys, or is to be before it is established.
    pub is_hybrid: bool,
    /// Current key epoch.
    pub epoch: u64,
    /// Packets sealed.
    pub sent_packets: u64,
    /// Bytes of those, mesh headers included.
    pub sent_bytes: u64,
    /// Packets opened.
    pub received_packets: u64,
    /// Bytes of those, mesh headers included.
    pub received_bytes: u64,
    /// Packets whose data had to travel again.
    pub retransmitted_packets: u64,
    /// Stream bytes that had to travel again.
    pub retransmitted_bytes: u64,
    /// The path that its packets take.
    pub path: PathStatus,
    /// When its keys were agreed, on the node's own clock.
    pub since_ns: u64,
    /// Bytes that its streams hold for sending: they wait, or are not acknowledged.
    pub queued_bytes: u64,
    /// Each acknowledgement's, since it was established; none before and after.
    pub round_trips: Option<TimesSummary>,
    /// Streams that this node opened and did not finish.
    pub streams_sending: usize,
    /// Streams that the peer opened and did not finish.
    pub streams_receiving: usize,
}

/// The path that a session's packets take, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathStatus {
    /// Where the peer's packets come from, where it is a neighbour.
    pub address: Option<SocketAddr>,
    /// Smoothed round trip; none before the first packet is acknowledged.
    pub rtt_us: Option<u64>,
    /// The least round trip that was seen.
    pub rtt_least_us: Option<u64>,
    /// How much the round trip varies.
    pub rtt_variation_us: u64,
    /// Largest datagram, mesh header included.
    pub datagram_bytes: usize,
    /// The congestion controller.
    pub congestion: Congestion,
    /// What it does now, in a word or two.
    pub phase: &'static str,
    /// Bytes that may be on their way.
    pub window_bytes: u64,
    /// Bytes that are on their way.
    pub in_flight_bytes: u64,
    /// Bytes a second that pacing lets out.
    pub pacing_bytes_per_second: u64,
    /// Packets that were declared lost, probes of the packet size aside.
    pub lost_packets: u64,
    /// Of those, packets that arrived after all.
    pub spurious_losses: u64,
}

/// What is known of the link to a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LinkState {
    /// Nothing: the neighbour has not spoken the keepalive since it, or this node, started.
    Unknown,
    /// Packets pass both ways.
    Up,
    /// Nothing comes from the neighbour.
    Silent,
    /// The neighbour says that nothing comes to it.
    OneWay,
}

impl LinkState {
    /// Whether it is known to lose all packets, at least those of one direction.
    #[must_use]
    pub const fn is_dead(self) -> bool {
        matches!(self, Self::Silent | Self::OneWay)
    }

    /// A word for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Silent => "silent",
            Self::OneWay => "one-way",
        }
    }
}

/// What sends back the echoes of a link, and so how far its silence tells anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answers {
    /// The neighbour's worker: it is silent, too, while others have its processor.
    #[default]
    Worker,
    /// The neighbour's NIC path, and this node's own has noted them: no worker's turn is in between.
    Nic,
}

impl Answers {
    /// A word for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Nic => "nic",
        }
    }
}

/// The echoes that a node sent over one link: what it wants to hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    /// The neighbour that they come back from.
    pub peer: NodeId,
    /// Their place among the echoes.
    pub place: u32,
    /// What they carry ([`virga_ebpf::tables::Echo`]).
    pub secret: u64,
    /// Number of the newest.
    pub sent: u64,
}

/// When a link's echoes came back last, on the node's own clock; 0: never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// One that NIC paths alone had in their hands.
    pub nic_ns: u64,
    /// One that a worker had, here or there.
    pub worker_ns: u64,
}

/// A watched link, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkStatus {
    /// The neighbour.
    pub peer: NodeId,
    /// What is known of it.
    pub state: LinkState,
    /// Since when, on the node's own clock.
    pub since_ns: u64,
    /// Whether the neighbour speaks the keepalive.
    pub is_spoken: bool,
    /// Time between two frames of the keepalive.
    pub interval_ns: u64,
    /// How long the neighbour may be silent.
    pub detect_ns: u64,
    /// What answers for it.
    pub answers: Answers,
    /// How often it was found dead.
    pub detections: u64,
    /// How long nothing had been heard the last time.
    pub gap_ns: u64,
    /// Frames of the keepalive that came.
    pub received: u64,
    /// Frames that have not come.
    pub missed: u64,
}
