//! What a local subscriber gets, and how it says that it is slow.

use bytes::Bytes;
use virga_transport::ChannelName;

/// One local subscriber of one node; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubscriberId(pub u64);

/// One event on its way to a local subscriber.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The channel's full name.
    pub channel: ChannelName,
    /// The proven ed25519 public key of the entity that published it.
    pub entity: [u8; 32],
    /// Counts the events of one stream as they arrive here, from 1: a gap is what this node had no
    /// room for. Starts anew with each session, and each stream.
    pub sequence: u64,
    /// When it arrived, on the node's own clock.
    pub received_ns: u64,
    /// When it was queued for programs, likewise; 0 where nobody asks how long it waits.
    pub queued_ns: u64,
    /// What was published.
    pub payload: Bytes,
    /// What its entity signed.
    pub signature: Signature,
}

/// Where an event's signature is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Signature {
    /// Nowhere: the channel's events are not signed, the session alone proves whose they are.
    #[default]
    None,
    /// With a later event, the last one of its batch.
    Later,
    /// Here: a message of the whole batch, see [`virga_state::bundle`]. Nothing of it is checked but whose
    /// it says that it is.
    Here(Bytes),
}

/// What a subscriber's queue did with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Offer {
    /// Took it, and has room for more.
    Taken,
    /// Took it, and asks for a pause: [`super::Command::Drained`] will follow. Answered until then, so
    /// that every worker that delivers to the subscriber hears of it.
    TakenSlow,
    /// Had no room.
    Full,
    /// The subscriber is gone.
    Gone,
}

/// What waits in a subscriber's queue, and what was taken out of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fill {
    /// Bytes that wait.
    pub queued_bytes: usize,
    /// Events taken out since the beginning.
    pub taken_events: u64,
    /// Whether a worker has ended it.
    pub is_ended: bool,
    /// Whether [`Offer::TakenSlow`] was answered and no [`super::Command::Drained`] is under way since.
    pub is_slow: bool,
}

/// The near end of a local subscriber's bounded queue. Each of the node's workers has a clone.
pub trait Outlet: Clone + Send + 'static {
    /// Queues an event, never waiting.
    fn offer(&mut self, delivery: &Delivery) -> Offer;

    /// How full it is now.
    fn fill(&self) -> Fill;

    /// Ends it, for all workers: after what is queued, the subscriber is told why. The first word
    /// counts.
    fn end(self, why: String);
}
