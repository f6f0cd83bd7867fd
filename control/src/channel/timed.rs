//! What is timed of a channel's events while somebody asks: a batch on its way to the streams, and what arrives.

use super::{delivery::Outlet, publish::Batch, service::ChannelService};
use virga_ebpf::header::NodeId;
use virga_transport::{
    ChannelName, Node, SessionState,
    flow::{Notes, Stage},
};

/// A batch's times so far.
#[derive(Clone, Debug)]
pub struct BatchTimes {
    notes: Notes,
    /// When the stage began that it is in.
    since_ns: u64,
}

impl BatchTimes {
    /// The first stage begins.
    #[must_use]
    pub fn begin(notes: Notes) -> Self {
        let since_ns = notes.now_ns();
        Self { notes, since_ns }
    }

    /// The batch is handed to a worker: the first one ends, and the next begins.
    pub fn handed(&mut self) {
        self.passed(Stage::Accept, self.notes.now_ns());
    }

    /// A stage has ended, and the next one begins.
    pub(crate) fn passed(&mut self, stage: Stage, now_ns: u64) {
        let took_ns = now_ns.saturating_sub(self.since_ns);
        self.notes.note(stage, took_ns);
        self.since_ns = now_ns;
    }
}

impl Batch {
    /// Has its way timed.
    #[must_use]
    pub fn timed(mut self, times: Option<BatchTimes>) -> Self {
        self.times = times;
        self
    }
}

/// An event has come to the service; when that was, if more of it is to be timed: it is 0 otherwise.
pub(crate) fn came(
    node: &mut Node,
    now_ns: u64,
    (channel, entity): (&ChannelName, &[u8; 32]),
) -> u64 {
    let Some(flow) = node.flow_mut() else {
        return 0;
    };
    if !flow.is_heard(channel, entity) || !flow.admits(Stage::Open, now_ns) {
        return 0;
    }
    flow.received();
    let came_ns = flow.notes().now_ns();
    flow.notes()
        .note(Stage::Open, came_ns.saturating_sub(now_ns));
    came_ns
}

/// It may be delivered; when that was, likewise.
pub(crate) fn checked(node: &mut Node, came_ns: u64) -> u64 {
    let Some(flow) = node.flow_mut().filter(|_| came_ns > 0) else {
        return 0;
    };
    let checked_ns = flow.notes().now_ns();
    let took_ns = checked_ns.saturating_sub(came_ns);
    flow.notes().note(Stage::Check, took_ns);
    checked_ns
}

/// An event that was published here goes to programs here; when that was, likewise.
pub(crate) fn stays(node: &mut Node, now_ns: u64, channel: &ChannelName) -> u64 {
    let Some(flow) = node.flow_mut().filter(|flow| flow.is_sent(channel)) else {
        return 0;
    };
    match flow.admits(Stage::Deliver, now_ns) {
        true => flow.notes().now_ns(),
        false => 0,
    }
}

impl<O: Outlet> ChannelService<O> {
    /// Events of a channel since the start that this worker has published, sent to nodes, and received.
    #[must_use]
    pub fn flow_totals(&self, channel: &ChannelName) -> Option<(u64, u64, u64)> {
        let counters = self.entries[*self.names.get(channel)?].counters;
        Some((counters.published, counters.sent, counters.received))
    }

    /// Smoothed round trips, in microseconds, to nodes that subscribe to a channel here, or publish on it.
    #[must_use]
    pub fn flow_paths(&self, node: &Node, channel: &ChannelName) -> Vec<(NodeId, Option<u64>)> {
        let Some(&index) = self.names.get(channel) else {
            return Vec::new();
        };
        let is_publisher = |peer: &NodeId| {
            let session = self.sessions.get(peer);
            session.is_some_and(|session| !session.streams_of(index).is_empty())
        };
        let is_on_it =
            |peer: &NodeId| self.entries[index].roster.contains_key(peer) || is_publisher(peer);
        let sessions = node.sessions();
        let open = sessions.filter(|s| s.state == SessionState::Established && is_on_it(&s.peer));
        open.map(|s| (s.peer, s.path.rtt_us)).collect()
    }
}
