//! Why something that was heard in the LAN was not taken; each is counted.

virga_routing::reasons! {
    /// No DNS message, or one with more records than are read.
    Malformed = "malformed",
    /// It came from another port than mDNS has.
    Port = "port",
    /// A node's service without a record that can be read, or with one of another node.
    NoRecord = "no_record",
    /// More was said at once than is looked at.
    Busy = "busy",
    /// One address has announced more nodes than are kept.
    SenderFull = "sender_full",
    /// There is no room for another record until those that are there were looked at.
    Full = "full",
}
