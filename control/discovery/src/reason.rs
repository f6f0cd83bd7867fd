//! Why something that was said or found was not taken; each is counted.

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
    };
}

reasons! {
    /// The message cannot be read.
    Malformed = "malformed",
    /// The entity that the record names has not signed it.
    Forged = "forged",
    /// The record is of another network.
    OtherNetwork = "other_network",
    /// The record has ended, or is said to begin later than clocks differ.
    Expired = "expired",
    /// A newer record of the same node is known.
    Old = "old",
    /// This node admits nobody of whom its file says nothing.
    Unnamed = "unnamed",
    /// Two nodes that run have the same keys.
    Twin = "twin",
    /// A node key that another entity has shown in a session.
    KeyTaken = "key_taken",
    /// There is no room for another node.
    Full = "full",
    /// One teller has told of too many nodes that were never reached.
    TellerFull = "teller_full",
    /// A peer says more than is looked at.
    Busy = "busy",
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
