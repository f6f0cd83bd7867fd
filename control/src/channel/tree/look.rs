//! What is looked at now and then: who gets events by whom, and whether they still do.

use super::{
    super::{
        delivery::Outlet,
        entry::{Entry, Index, Remote},
        reason::Reason,
        service::ChannelService,
    },
    BEGIN_PATIENCE_NS, Blame, PATIENCE_NS,
    branch::{Again, Assigned, Step},
    wire::What,
};
use std::collections::{BTreeMap, BTreeSet};
use virga_ebpf::header::NodeId;
use virga_transport::Node;

impl<O: Outlet> ChannelService<O> {
    /// What is due.
    pub(crate) fn look_at_trees(&mut self, now_ns: u64, node: &mut Node) {
        let is_due = |timer: Option<u64>| timer.is_some_and(|due| due <= now_ns);
        if is_due(self.trees.confirm_ns) {
            self.trees.confirm_ns = None;
            self.confirm_all(now_ns, node);
        }
        // A relay is waited for no longer.
        let is_over = self.trees.barred.values().any(|&until| is_due(until));
        if is_over {
            self.turn_over(now_ns, node);
        }
        if !is_over && !is_due(self.trees.look_ns) {
            return;
        }
        self.trees.look_ns = None;
        for index in 0..self.entries.len() {
            if self.entries[index].fan_out == 0 {
                continue;
            }
            self.entries[index].recount();
            self.mend(now_ns, node, index);
            if !self.is_stopping {
                self.grow(now_ns, node, index);
            }
            self.strike_again(now_ns, node, index);
            self.look_at_feeds(now_ns, node, index);
            // A relay that does not answer may have been waited for until now.
            self.settle_trees(now_ns, node, index);
            let mut remotes = self.entries[index].roster.values();
            let is_watched = |r: &Remote| {
                r.branch.assigned.is_some() || r.branch.struck.is_some() || !r.feeds.is_empty()
            };
            if remotes.any(is_watched) {
                self.trees.look_soon(now_ns);
            }
        }
        self.tell_all_able(now_ns, node);
    }

    /// Takes back whom nobody serves: the relay is gone, or too slow. Asks those again who have not come.
    fn mend(&mut self, now_ns: u64, node: &mut Node, index: Index) {
        let entry = &self.entries[index];
        let mut failed = Vec::new();
        let is_late = |since_ns: u64, patience_ns| now_ns.saturating_sub(since_ns) >= patience_ns;
        for (&child, remote) in &entry.roster {
            let Some(assigned) = &remote.branch.assigned else {
                continue;
            };
            let relay = entry.roster.get(&assigned.relay);
            let is_silent = relay.is_some_and(|relay| relay.branch.is_silent(now_ns));
            if is_silent || !self.is_relay(now_ns, index, assigned.relay) {
                failed.push((child, Blame::Nobody));
                continue;
            }
            match &assigned.step {
                Step::Asked {
                    waits_ns: Some(since_ns),
                    ..
                } if is_late(*since_ns, BEGIN_PATIENCE_NS) => {
                    failed.push((child, Blame::Relay));
                }
                Step::Asked { .. } => {}
                Step::Relayed { have, .. } => {
                    let oldest = entry.tail.after(*have).next();
                    if oldest.is_some_and(|kept| is_late(kept.begun_ns, PATIENCE_NS)) {
                        failed.push((child, Blame::Relay));
                    }
                }
            }
        }
        for (child, blame) in failed {
            self.take_back(now_ns, node, (index, child), blame);
        }
        let mut asked = Vec::new();
        for (&child, remote) in &mut self.entries[index].roster {
            if let Some(assigned) = &mut remote.branch.assigned
                && let Step::Asked { again, .. } = &mut assigned.step
                && again.is_due(now_ns)
            {
                asked.push((child, assigned.number, assigned.relay));
            }
        }
        for (child, number, relay) in asked {
            // The publisher's stream may not have reached it before.
            self.tell_tree(now_ns, node, child, (index, number, What::Redirect(relay)));
        }
    }

    /// Redirects those that are too many for the publisher. Each has got events from it before: the streams are there, and it
    /// is known from where on they are meant for it.
    fn grow(&mut self, now_ns: u64, node: &mut Node, index: Index) {
        let entry = &self.entries[index];
        let Entry {
            roster, fan_out, ..
        } = entry;
        let branches = roster.values().map(|remote| &remote.branch);
        let mut direct = roster.len() - branches.filter(|b| b.assigned.is_some()).count();
        if direct <= *fan_out || now_ns < entry.direct_until_ns {
            return;
        }
        let peers = roster.keys().copied();
        let relays: BTreeSet<NodeId> = peers
            .filter(|&peer| self.is_relay(now_ns, index, peer))
            .collect();
        let mut free = BTreeMap::new();
        for (&peer, remote) in roster.iter().filter(|(peer, _)| relays.contains(peer)) {
            let branch = &remote.branch;
            let is_idle = branch.struck.is_none() && branch.assigned.is_none();
            // One that has turned to another stream has none until the next event.
            let has_stream = remote.first.is_some() && remote.stream.is_some();
            // What it is owed another may have brought it: it knows that by the stream that it has, not by the next one.
            if is_idle && has_stream && remote.owed.is_empty() {
                free.insert(peer, branch.places);
            }
        }
        for assigned in roster.values().filter_map(|r| r.branch.assigned.as_ref()) {
            if let Some(places) = free.get_mut(&assigned.relay) {
                *places = places.saturating_sub(1);
            }
        }
        free.retain(|_, places| *places > 0);
        let mut redirected = Vec::new();
        for (
            &child,
            Remote {
                branch,
                first,
                owed,
                ..
            },
        ) in roster
        {
            // A relay that has lost its right may have to answer yet, and is owed what is published until then.
            let is_free =
                branch.assigned.is_none() && branch.struck.is_none() && !relays.contains(&child);
            let is_ready = is_free && first.is_some() && owed.is_empty();
            if direct <= *fan_out || !is_ready || branch.again_ns > now_ns {
                continue;
            }
            // The one with most room, and only where there is no other the one that has failed.
            let order =
                |(relay, places): &(&NodeId, &usize)| (Some(**relay) != branch.refused, **places);
            let Some(relay) = free.iter().max_by_key(order).map(|(&relay, _)| relay) else {
                break;
            };
            if let Some(places) = free.get_mut(&relay) {
                *places -= 1;
                if *places == 0 {
                    free.remove(&relay);
                }
            }
            direct -= 1;
            redirected.push((child, relay));
        }
        for (child, relay) in redirected {
            let number = self.trees.next();
            if let Some(remote) = self.entries[index].roster.get_mut(&child) {
                let step = Step::Asked {
                    waits_ns: None,
                    again: Again::said(now_ns),
                };
                remote.branch.assigned = Some(Assigned {
                    relay,
                    number,
                    since_ns: now_ns,
                    step,
                });
            }
            let redirect = (index, number, What::Redirect(relay));
            self.tell_tree(now_ns, node, child, redirect);
        }
    }

    /// The node ends: it sends by itself what was not confirmed, as far as its streams take it.
    pub(crate) fn end_trees(&mut self, now_ns: u64, node: &mut Node) {
        for index in 0..self.entries.len() {
            let roster = self.entries[index].roster.iter();
            let relayed = roster.filter(|(_, remote)| remote.branch.assigned.is_some());
            for child in relayed.map(|(&child, _)| child).collect::<Vec<_>>() {
                self.take_back(now_ns, node, (index, child), Blame::Nobody);
            }
            // Some may be kept for relays that have not answered.
            let roster = self.entries[index].roster.iter();
            let owed = roster.filter(|(_, remote)| !remote.owed.is_empty());
            self.trees
                .owing
                .extend(owed.map(|(&peer, _)| (index, peer)));
        }
        self.pay_owed(now_ns, node);
        for (index, peer) in std::mem::take(&mut self.trees.owing) {
            let entry = &mut self.entries[index];
            if let Some(remote) = entry.roster.get_mut(&peer) {
                let lost = remote.forgive();
                entry.counters.dropped += lost;
                self.reasons.add_many(Reason::PeerGone, lost);
            }
        }
    }
}
