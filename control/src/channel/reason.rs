//! Why a stream was refused, a subscription not granted, or an event not delivered; and how often.

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
    /// A peer asked for a channel that it may not have, or that is not published here.
    SubscribeRefused = "subscribe_refused",
    /// An event larger than its channel carries: refused to the publisher.
    TooLarge = "too_large",
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
