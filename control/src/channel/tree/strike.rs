//! What a publisher has its relays stop, and that they have.
//!
//! A relay learns by itself that a node has no right any more. Its publisher may have learned earlier: what it publishes then
//! goes to the relay only once that has said that it passes nothing more on to that node, or in another stream.

use super::{
    super::{
        delivery::Outlet,
        entry::{Entry, Index, Remote},
        reason::Reason,
        service::ChannelService,
    },
    Blame,
    branch::{Due, Struck},
    wire::What,
};
use std::collections::BTreeMap;
use virga_ebpf::header::NodeId;
use virga_transport::Node;

impl<O: Outlet> ChannelService<O> {
    /// Has a relay pass nothing more on to a child.
    pub(super) fn strike(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        (index, child): (Index, NodeId),
        (relay, number): (NodeId, u64),
    ) {
        let Some(remote) = self.entries[index].roster.get_mut(&relay) else {
            return;
        };
        let struck = remote.branch.struck.get_or_insert(Struck {
            due: BTreeMap::new(),
            since_ns: now_ns,
            barred_since_ns: None,
        });
        struck.due.insert(number, (child, Due::Served));
        let strike = (index, number, What::Strike(child));
        self.tell_tree(now_ns, node, relay, strike);
        self.trees.look_soon(now_ns);
    }

    /// A node is off the roster: what was kept for it is lost, and nothing that is published from now on may get there by
    /// others.
    pub(crate) fn bar(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        (index, child): (Index, NodeId),
        removed: &mut Remote,
    ) {
        let lost = removed.end();
        self.entries[index].counters.dropped += lost;
        self.reasons.add_many(Reason::PeerGone, lost);
        if self.entries[index].fan_out == 0 {
            return;
        }
        if let Some(assigned) = &removed.branch.assigned {
            let place = (assigned.relay, assigned.number);
            self.strike(now_ns, node, (index, child), place);
        }
        // Also where it was taken back before, and the relay has not answered yet: each assignment is waited for once.
        for (&relay, remote) in &mut self.entries[index].roster {
            let Some(struck) = &mut remote.branch.struck else {
                continue;
            };
            if struck.bar(now_ns, child) {
                let until_ns = remote.holds_until_ns();
                self.trees.barred.insert((index, relay), until_ns);
            }
        }
    }

    /// Has relays that have not answered get what follows in another stream. Whom they served this node serves from then on,
    /// and waits for them no more when it lets one of those go.
    pub(crate) fn turn_over(&mut self, now_ns: u64, node: &mut Node) {
        for ((index, relay), until_ns) in std::mem::take(&mut self.trees.barred) {
            let roster = &self.entries[index].roster;
            let Some(remote) = roster.get(&relay).filter(|remote| remote.is_barred()) else {
                continue;
            };
            if !remote.is_to_turn(now_ns, node, relay) {
                // Its acknowledgements have it looked at again.
                let until_ns = until_ns.filter(|until| *until > now_ns);
                self.trees.barred.insert((index, relay), until_ns);
                continue;
            }
            let served = roster.iter().filter(|(_, r)| r.branch.is_by(relay));
            for child in served.map(|(&child, _)| child).collect::<Vec<_>>() {
                self.take_back(now_ns, node, (index, child), Blame::Nobody);
            }
            if let Some(remote) = self.entries[index].roster.get_mut(&relay) {
                remote.turn_over(now_ns, node, relay);
            }
            // What it is owed waits for no event of this channel.
            self.trees.owing.insert((index, relay));
            self.trees.look_ns = Some(now_ns);
        }
    }

    /// Says it again to those that have not answered: it may have been lost to a queue that was full, or the answer. Of what
    /// they are owed lets go what nobody waits for any longer.
    pub(super) fn strike_again(&mut self, now_ns: u64, node: &mut Node, index: Index) {
        let Entry {
            roster, counters, ..
        } = &mut self.entries[index];
        for (&relay, remote) in roster {
            if remote.is_barred() {
                let expired = remote.expire(now_ns);
                counters.dropped += expired;
                self.reasons.add_many(Reason::Expired, expired);
            }
            if remote.branch.struck.is_some() && !remote.owed.is_empty() {
                self.trees.owing.insert((index, relay));
            }
        }
        let roster = self.entries[index].roster.iter();
        let due = roster.flat_map(|(&relay, remote)| {
            let due = remote.branch.struck.iter().flat_map(|struck| &struck.due);
            due.map(move |(&number, &(child, _))| (relay, number, child))
        });
        for (relay, number, child) in due.collect::<Vec<_>>() {
            let strike = (index, number, What::Strike(child));
            self.tell_tree(now_ns, node, relay, strike);
        }
    }

    /// A publisher has this node pass nothing more on to a child.
    pub(super) fn on_strike(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        (index, (publisher, number)): (Index, (NodeId, u64)),
        child: NodeId,
    ) {
        if let Some(remote) = self.entries[index].roster.get_mut(&child) {
            let feeds = &mut remote.feeds;
            feeds.retain(|of, feed| *of != publisher || !feed.is_of(number));
        }
        self.tell_tree(now_ns, node, publisher, (index, number, What::Struck));
    }

    /// A relay has done so.
    pub(super) fn on_struck(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        (index, (relay, number)): (Index, (NodeId, u64)),
    ) {
        let Some(remote) = self.entries[index].roster.get_mut(&relay) else {
            return;
        };
        let Some(struck) = &mut remote.branch.struck else {
            return;
        };
        if struck.answered(now_ns, number) {
            remote.branch.struck.take_if(|s| s.due.is_empty());
            self.trees.owing.insert((index, relay));
            self.settle_trees(now_ns, node, index);
        }
    }
}
