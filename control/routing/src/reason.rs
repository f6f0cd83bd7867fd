//! Why something that a neighbour said was not taken; each is counted.

/// Reasons by name, and a counter of each: an enum `Reason`, and a struct `Reasons` beside it.
#[macro_export]
macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $name:ident = $word:literal,)*) => {
        /// Why something was not taken.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Reason { $($(#[doc = $doc])* $name,)* }

        impl Reason {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its name, the same everywhere.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }
        }

        /// How often each.
        #[derive(Clone, Debug, Default)]
        pub(crate) struct Reasons([u64; Reason::ALL.len()]);

        impl Reasons {
            pub(crate) fn add(&mut self, reason: Reason) {
                self.0[reason as usize] += 1;
            }

            pub(crate) fn count(&self, reason: Reason) -> u64 {
                self.0[reason as usize]
            }
        }
    };
}

reasons! {
    /// The message cannot be read.
    Malformed = "malformed",
    /// The key that the announcement names has not signed it.
    Forged = "forged",
    /// The announcement is of a node that is not known here.
    Stranger = "stranger",
    /// The announcement was made in another mesh.
    OtherNetwork = "other_network",
    /// The announcement's node is in another subnet.
    Elsewhere = "elsewhere",
    /// The announcement has ended, or holds for longer than any may.
    Expired = "expired",
    /// The number of a subnet's announcement is above what the time allows.
    Ahead = "ahead",
    /// A higher sequence number has been seen.
    Old = "old",
    /// What lies there is not announced to this node.
    Scope = "scope",
    /// A metric of what was never announced in this session.
    Unannounced = "unannounced",
    /// The table is full.
    Full = "full",
    /// Too many requests wait, or came in too short a time.
    Busy = "busy",
    /// The neighbour is not listened to: too much of what it said was forged.
    Muted = "muted",
    /// There is nobody to ask.
    NowhereToAsk = "nowhere_to_ask",
}
