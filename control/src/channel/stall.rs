//! Local subscribers that do not keep up: publishers of reliable channels pause for them, and not for
//! ever.

use super::{
    delivery::{Fill, Outlet, SubscriberId},
    entry::Index,
    message::Message,
    reason::Reason,
    service::ChannelService,
};
use virga_ebpf::header::NodeId;
use virga_transport::Node;

/// Slow subscribers are looked at this often.
pub(crate) const LOOK_AGAIN_NS: u64 = 200_000_000;

/// A subscriber while its queue is too full.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slow {
    /// Since when it is.
    pub(crate) since_ns: u64,
    /// When it was last seen to read.
    pub(crate) read_ns: u64,
    taken_events: u64,
}

impl Slow {
    pub(crate) const fn new(now_ns: u64, fill: Fill) -> Self {
        Self {
            since_ns: now_ns,
            read_ns: now_ns,
            taken_events: fill.taken_events,
        }
    }

    const fn look(&mut self, now_ns: u64, fill: Fill) {
        if fill.taken_events != self.taken_events {
            self.taken_events = fill.taken_events;
            self.read_ns = now_ns;
        }
    }
}

impl<O: Outlet> ChannelService<O> {
    /// Whether a local subscriber of the channel is slow.
    pub(crate) fn has_slow(&self, index: Index) -> bool {
        self.slow_since_ns(index).is_some()
    }

    /// Since when the channel has had a slow local subscriber.
    pub(crate) fn slow_since_ns(&self, index: Index) -> Option<u64> {
        let slow = |id| self.subscribers.get(id)?.slow;
        let locals = self.entries[index].local.iter();
        locals.filter_map(slow).map(|slow| slow.since_ns).min()
    }

    /// Has the publisher of a reliable channel pause while a local subscriber is slow.
    pub(crate) fn hold(&mut self, now_ns: u64, node: &mut Node, index: Index, peer: NodeId) {
        if self.entries[index].spec.mode.is_reliable()
            && self.has_slow(index)
            && self.entries[index].holding.insert(peer)
        {
            let message = Message::Hold(self.entries[index].name().clone());
            self.tell(now_ns, node, peer, &message);
        }
    }

    /// A local subscriber has room again.
    pub(crate) fn drained(&mut self, now_ns: u64, node: &mut Node, id: SubscriberId) {
        let Some(local) = self.subscribers.get_mut(&id) else {
            return;
        };
        // It may have filled up again while this was on its way; then the same will come again.
        if local.outlet.fill().is_slow {
            return;
        }
        local.slow = None;
        for index in 0..self.entries.len() {
            if self.entries[index].local.contains(&id) {
                self.release(now_ns, node, index);
            }
        }
        self.pump_blocked(now_ns, node);
    }

    /// Has publishers go on, unless a local subscriber is still slow.
    pub(crate) fn release(&mut self, now_ns: u64, node: &mut Node, index: Index) {
        if self.has_slow(index) {
            return;
        }
        for peer in std::mem::take(&mut self.entries[index].holding) {
            let message = Message::Release(self.entries[index].name().clone());
            self.tell(now_ns, node, peer, &message);
        }
    }

    /// Ends subscribers that have read nothing for as long as a reliable channel waits for them.
    pub(crate) fn look_at_slow(&mut self, now_ns: u64, node: &mut Node) {
        let (mut stalled, mut ended) = (Vec::new(), Vec::new());
        let mut is_any_slow = false;
        for (&id, local) in &mut self.subscribers {
            let Some(slow) = &mut local.slow else {
                continue;
            };
            let fill = local.outlet.fill();
            if fill.is_ended {
                ended.push(id);
                continue;
            }
            slow.look(now_ns, fill);
            let unread_ns = now_ns.saturating_sub(slow.read_ns);
            let mut channels = self.entries.iter().filter(|e| e.local.contains(&id));
            let waits_no_more = |max_ns: u64| unread_ns >= max_ns;
            match channels.find(|e| e.hold_max_ns.is_some_and(waits_no_more)) {
                Some(entry) => stalled.push((id, entry.name().clone(), unread_ns)),
                None => is_any_slow = true,
            }
        }
        self.look_at_slow_ns = is_any_slow.then_some(now_ns + LOOK_AGAIN_NS);
        for (id, channel, unread_ns) in stalled {
            self.reasons.add(Reason::SubscriberStalled);
            if let Some(outlet) = self.unsubscribe(now_ns, node, id) {
                let seconds = unread_ns / 1_000_000_000;
                outlet.end(format!(
                    "nothing was read for {seconds} s, and the reliable channel {channel} was paused \
                     for all its subscribers; read faster and subscribe again, or raise the channel's \
                     hold_max_s"
                ));
            }
        }
        for id in ended {
            drop(self.unsubscribe(now_ns, node, id));
        }
        self.pump_blocked(now_ns, node);
    }
}
