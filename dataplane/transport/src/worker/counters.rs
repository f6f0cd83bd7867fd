//! What a worker counts of its own work.

/// What the worker itself counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerCounters {
    /// Turns of its loop.
    pub turns: u64,
    /// Datagrams that were sent on, or were to be.
    pub forwarded: u64,
    /// Datagrams that were to be sent on while the socket was full: lost.
    pub forward_blocked: u64,
    /// Datagrams of this node's own to a node that no live next hop leads to: lost.
    pub unroutable: u64,
    /// Datagrams of this node's own that the next hop's link does not take: lost, and the session was
    /// told. Probes of the packet size end so.
    pub too_big: u64,
    /// Commands taken.
    pub commands: u64,
    /// Datagrams that were another worker's, and were handed over.
    pub handed_over: u64,
    /// Datagrams that were another worker's, whose ring was full: lost.
    pub hand_over_full: u64,
    /// Datagrams that other workers handed over.
    pub taken_over: u64,
}

/// What waited for a worker when its last turn began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Commands, at most [`super::COMMANDS_MAX`].
    pub commands: usize,
    /// Datagrams that other workers handed over, at most [`super::HANDED_OVER_MAX`] and
    /// [`super::HANDSHAKES_HANDED_OVER_MAX`].
    pub handed_over: usize,
}
