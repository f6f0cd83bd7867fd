//! Why something that was said or found was not taken; each is counted.

virga_routing::reasons! {
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
