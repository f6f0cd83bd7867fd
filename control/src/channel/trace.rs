//! What neighbours ask each other about the way of packets: the worker passes it on to the task that follows it,
//! as often as a neighbour may ask.

use super::{delivery::Outlet, message::Message, reason::Reason, service::ChannelService};
use crate::trace::{End, Inbox, Said, Way};
use std::collections::BTreeMap;
use virga_ebpf::header::NodeId;
use virga_routing::allowance::Allowance;
use virga_transport::Node;

/// Questions of one neighbour, all at once.
const ASKED_BURST: u32 = 32;
/// One more each.
const ASKED_PAUSE_NS: u64 = 100_000_000;

/// What neighbours ask.
#[derive(Debug, Default)]
pub(crate) struct Traces {
    /// None where nobody follows it.
    inbox: Option<Inbox>,
    /// How often each may ask.
    left: BTreeMap<NodeId, Allowance>,
}

impl Traces {
    fn may_ask(&mut self, now_ns: u64, peer: NodeId) -> bool {
        let fresh = || Allowance::new(ASKED_BURST, ASKED_PAUSE_NS);
        self.left.entry(peer).or_insert_with(fresh).take(now_ns)
    }
}

impl<O: Outlet> ChannelService<O> {
    /// Tells `traces` what neighbours ask about the way of packets.
    #[must_use]
    pub fn tracing(mut self, traces: &Inbox) -> Self {
        self.traces.inbox = Some(traces.clone());
        self
    }

    pub(crate) fn on_trace(&mut self, now_ns: u64, node: &mut Node, peer: NodeId, said: Said) {
        let asked = match said {
            Said::Ask { number, .. } => Some(number),
            Said::Answer { .. } => None,
        };
        // Of those that are neighbours alone it is kept in mind how often they ask.
        let may = self.neighbours.contains(&peer)
            && (asked.is_none() || self.traces.may_ask(now_ns, peer));
        let inbox = self.traces.inbox.as_ref().filter(|_| may);
        if inbox.is_some_and(|inbox| inbox.tell(peer, said)) {
            return;
        }
        self.reasons.add(Reason::TraceRefused);
        if let Some(number) = asked {
            let way = Way::ends(End::Busy);
            let answer = Message::Trace(Said::Answer { number, way });
            self.tell(now_ns, node, peer, &answer);
        }
    }

    /// Says something to a neighbour about the way of packets; whether there is a session with it here. If there
    /// is none, there will be.
    pub fn say_trace(&mut self, now_ns: u64, node: &mut Node, peer: NodeId, said: Said) -> bool {
        let has_session = self.sessions.contains_key(&peer);
        match has_session {
            true => self.tell(now_ns, node, peer, &Message::Trace(said)),
            false if self.share.owns(peer) && self.neighbours.contains(&peer) => {
                // It is configured.
                let _known = node.connect(now_ns, peer);
            }
            false => {}
        }
        has_session
    }
}
