//! What becomes of a publish at each subscribing node, for publishers that want to know: counted by the
//! workers as it happens, read by whoever waits for the outcome.
//!
//! On a reliable channel an event counts as arrived at a node once that node has acknowledged all of its
//! bytes: it keeps them and delivers them to its programs, or drops them with a reason of its own. On an
//! unreliable one nothing is acknowledged, and what was handed to the node's session counts.

use super::{delivery::Outlet, reason::Reason, service::ChannelService};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    num::NonZeroU64,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::Notify;
use virga_ebpf::header::NodeId;
use virga_transport::{Fate, Node, Receipt};

/// Events of a publish that one node may have unacknowledged, where the publisher does not say.
pub const IN_FLIGHT_DEFAULT: usize = 64;
/// How long a publish waits for acknowledgements, where the publisher does not say.
pub const WITHIN_DEFAULT: Duration = Duration::from_secs(10);

/// When a publish has succeeded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Always: the report says what arrived where.
    #[default]
    BestEffort,
    /// When everything arrived at every subscribing node; the first failure ends it, and what had not been
    /// begun by then is withheld.
    FailFast,
    /// As soon as everything arrived at so many nodes.
    Quorum(usize),
}

/// How a publish goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// When it has succeeded.
    pub policy: Policy,
    /// Events that one node may have unacknowledged; the next waits until it has fewer.
    pub in_flight_max: usize,
    /// An event that was not sent to a node this long after the publish began is given up there, and one
    /// that was not acknowledged by then is no longer waited for.
    pub within: Duration,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            in_flight_max: IN_FLIGHT_DEFAULT,
            within: WITHIN_DEFAULT,
        }
    }
}

/// What became of a publish at one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Events handed to the node's session, or left to the node that brings them there.
    pub sent: u64,
    /// Of those, events that the node has acknowledged: on reliable channels only.
    pub acknowledged: u64,
    /// Events that were given up because their time was over.
    pub expired: u64,
    /// Events that did not get there for another reason.
    pub lost: u64,
    /// Events sent and neither acknowledged nor given up: they may still arrive.
    pub pending: u64,
    /// The last reason why one expired or was lost, as `virga status` counts it.
    pub reason: Option<String>,
}

/// What became of a publish.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FanOut {
    /// Whether the policy is met.
    pub is_met: bool,
    /// Events that were offered to every subscriber there was.
    pub published: u64,
    /// Events that were not begun, because an earlier one had failed.
    pub withheld: u64,
    /// Programs on this node that took the last event.
    pub programs: usize,
    /// Every node that had subscribed.
    pub nodes: BTreeMap<NodeId, Outcome>,
}

#[derive(Debug, Default)]
struct State {
    result: FanOut,
    /// Whether any event failed at any node.
    is_failed: bool,
    /// Whether every worker is through with its part.
    is_handed_out: bool,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Tally {
    plan: Plan,
    events: u64,
    is_reliable: bool,
    state: Mutex<State>,
    changed: Notify,
}

impl Tally {
    /// For a publish of so many events.
    #[must_use]
    pub fn new(plan: Plan, events: u64, is_reliable: bool) -> Self {
        Self {
            plan,
            events,
            is_reliable,
            state: Mutex::default(),
            changed: Notify::new(),
        }
    }

    pub(crate) const fn in_flight_max(&self) -> usize {
        self.plan.in_flight_max
    }

    pub(crate) const fn is_reliable(&self) -> bool {
        self.is_reliable
    }

    /// Whether what has not been begun shall not be: an event failed, and the policy is to stop then.
    pub(crate) fn is_stopped(&self) -> bool {
        self.plan.policy == Policy::FailFast && self.state().is_failed
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, peer: NodeId, note: impl FnOnce(&mut Outcome)) {
        note(self.state().result.nodes.entry(peer).or_default());
        self.changed.notify_one();
    }

    /// An event was handed to a node's session.
    pub(crate) fn sent(&self, peer: NodeId) {
        let pending = u64::from(self.is_reliable);
        self.note(peer, |outcome| {
            outcome.sent += 1;
            outcome.pending += pending;
        });
    }

    /// A node has acknowledged an event.
    fn acknowledged(&self, peer: NodeId) {
        self.note(peer, |outcome| {
            outcome.acknowledged += 1;
            outcome.pending = outcome.pending.saturating_sub(1);
        });
    }

    /// Events did not get to a node; `pending` of them had been sent.
    pub(crate) fn failed(&self, peer: NodeId, reason: Reason, (events, pending): (u64, u64)) {
        if events == 0 {
            return;
        }
        self.state().is_failed = true;
        self.note(peer, |outcome| {
            match reason {
                Reason::Expired => outcome.expired += events,
                _ => outcome.lost += events,
            }
            outcome.pending = outcome.pending.saturating_sub(pending);
            outcome.reason = Some(reason.name().to_owned());
        });
    }

    /// An event was offered to every subscriber of the worker that counts.
    pub(crate) fn published(&self) {
        self.state().result.published += 1;
    }

    /// So many programs on this node took an event.
    pub(crate) fn programs(&self, taken: usize) {
        self.state().result.programs = taken;
    }

    /// Events were not begun at a worker.
    pub(crate) fn withheld(&self, events: u64) {
        let withheld = &mut self.state().result.withheld;
        *withheld = events.max(*withheld);
    }

    /// Every worker is through with its part.
    pub fn handed_out(&self) {
        self.state().is_handed_out = true;
        self.changed.notify_one();
    }

    /// Waits until the policy is met, or cannot be.
    pub async fn decided(&self) -> FanOut {
        loop {
            if let Some(result) = self.look(Patience::Some) {
                return result;
            }
            self.changed.notified().await;
        }
    }

    /// How it stands; nobody waits any more.
    #[must_use]
    pub fn now(&self) -> FanOut {
        self.look(Patience::None).unwrap_or_default()
    }

    fn look(&self, patience: Patience) -> Option<FanOut> {
        let state = self.state();
        let nodes = &state.result.nodes;
        let arrived = |outcome: &&Outcome| {
            let events = match self.is_reliable {
                true => outcome.acknowledged,
                false => outcome.sent,
            };
            events == self.events
        };
        let is_settled = state.is_handed_out && nodes.values().all(|outcome| outcome.pending == 0);
        let is_over = is_settled || patience == Patience::None;
        let is_met = match self.plan.policy {
            Policy::BestEffort => is_over.then_some(true),
            Policy::FailFast if state.is_failed => Some(false),
            Policy::FailFast => is_over.then_some(is_settled),
            Policy::Quorum(wanted) => match nodes.values().filter(arrived).count() >= wanted {
                true => Some(true),
                false => is_over.then_some(false),
            },
        }?;
        Some(FanOut {
            is_met,
            ..state.result.clone()
        })
    }
}

/// Whether what is outstanding is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Patience {
    Some,
    None,
}

/// There are no more channels than hashes.
const CHANNELS_MAX: NonZeroU64 = NonZeroU64::MIN.saturating_add(u16::MAX as u64);

/// A batch that is tallied.
#[derive(Clone, Debug)]
pub(crate) struct Tallied {
    pub(crate) tally: Arc<Tally>,
    pub(crate) receipt: Receipt,
}

impl Tallied {
    /// `number` counts a worker's tallied batches; `index` is the channel's.
    pub(crate) fn new(tally: Arc<Tally>, number: NonZeroU64, index: usize) -> Self {
        let receipt = number.saturating_mul(CHANNELS_MAX);
        let receipt = Receipt(receipt.saturating_add(index as u64));
        Self { tally, receipt }
    }
}

/// The channel that a receipt is of.
pub(crate) fn index_of(receipt: Receipt) -> usize {
    usize::try_from(receipt.0.get() % CHANNELS_MAX).unwrap_or(usize::MAX)
}

/// What one node has not acknowledged of tallied batches. Whatever is left when it is dropped is lost.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    batches: BTreeMap<Receipt, Awaited>,
    events: usize,
}

#[derive(Debug)]
struct Awaited {
    tally: Arc<Tally>,
    peer: NodeId,
    events: u64,
}

impl Pending {
    /// Events of all batches.
    pub(crate) const fn events(&self) -> usize {
        self.events
    }

    /// One more event was handed to the node's session.
    pub(crate) fn add(&mut self, peer: NodeId, tallied: &Tallied) {
        let awaited = self.batches.entry(tallied.receipt);
        let awaited = awaited.or_insert_with(|| Awaited {
            tally: Arc::clone(&tallied.tally),
            peer,
            events: 0,
        });
        awaited.events += 1;
        self.events += 1;
    }

    /// One of them is acknowledged, or given up.
    pub(crate) fn settle(&mut self, receipt: Receipt, fate: Fate) {
        let Some(awaited) = self.batches.get_mut(&receipt) else {
            return;
        };
        let Awaited { tally, peer, .. } = awaited;
        match fate {
            Fate::Acknowledged => tally.acknowledged(*peer),
            Fate::Expired => tally.failed(*peer, Reason::Expired, (1, 1)),
        }
        awaited.events -= 1;
        if awaited.events == 0 {
            self.batches.remove(&receipt);
        }
        self.events -= 1;
    }

    /// Nothing more will be heard of any.
    pub(crate) fn end(&mut self, reason: Reason) {
        self.events = 0;
        for Awaited {
            tally,
            peer,
            events,
        } in std::mem::take(&mut self.batches).into_values()
        {
            tally.failed(peer, reason, (events, events));
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.end(Reason::PeerGone);
    }
}

impl<O: Outlet> ChannelService<O> {
    /// A tallied event is acknowledged, or was given up: the next one may have waited for that.
    pub(crate) fn on_receipt(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        peer: NodeId,
        (receipt, fate): (Receipt, Fate),
    ) {
        let index = index_of(receipt);
        let entry = self.entries.get_mut(index);
        if let Some(remote) = entry.and_then(|entry| entry.roster.get_mut(&peer)) {
            remote.pending.settle(receipt, fate);
        }
        if self.blocked.remove(&index) {
            self.pump(now_ns, node, index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(policy: Policy) -> Tally {
        let plan = Plan {
            policy,
            ..Plan::default()
        };
        Tally::new(plan, 2, true)
    }

    fn is_met(tally: &Tally) -> Option<bool> {
        tally.look(Patience::Some).map(|result| result.is_met)
    }

    #[test]
    fn each_policy_is_decided_as_soon_as_it_can_be_and_not_before() {
        let peers = [NodeId(1), NodeId(2), NodeId(3)];
        let all = [
            tally(Policy::BestEffort),
            tally(Policy::FailFast),
            tally(Policy::Quorum(1)),
            tally(Policy::Quorum(2)),
        ];
        let verdicts = || all.each_ref().map(is_met);
        let each = |call: &dyn Fn(&Tally)| all.iter().for_each(call);
        for peer in peers {
            each(&|tally| (tally.sent(peer), tally.sent(peer), ()).2);
        }
        assert_eq!(verdicts(), [None; 4]);
        each(&|tally| tally.acknowledged(peers[0]));
        assert_eq!(verdicts(), [None; 4], "one of two events is not all");
        each(&|tally| tally.acknowledged(peers[0]));
        assert_eq!(verdicts(), [None, None, Some(true), None]);
        each(&|tally| tally.failed(peers[1], Reason::PeerGone, (2, 2)));
        assert_eq!(verdicts(), [None, Some(false), Some(true), None]);
        each(&|tally| tally.acknowledged(peers[2]));
        each(&Tally::handed_out);
        assert_eq!(verdicts(), [None, Some(false), Some(true), None]);
        assert!(!all[3].now().is_met, "nobody waits any more");
        each(&|tally| tally.failed(peers[2], Reason::Expired, (1, 1)));
        let end = [Some(true), Some(false), Some(true), Some(false)];
        assert_eq!(verdicts(), end);
        let nodes = all[0].now().nodes;
        assert_eq!((nodes[&peers[1]].lost, nodes[&peers[2]].expired), (2, 1));
        assert_eq!(nodes[&peers[1]].reason.as_deref(), Some("peer_gone"));
    }

    #[test]
    fn what_a_node_had_not_acknowledged_is_lost_with_it() {
        let tally = Arc::new(tally(Policy::BestEffort));
        let tallied = Tallied::new(Arc::clone(&tally), NonZeroU64::MIN, 65_535);
        assert_eq!(index_of(tallied.receipt), 65_535);
        let mut pending = Pending::default();
        for _ in 0..2 {
            tally.sent(NodeId(7));
            pending.add(NodeId(7), &tallied);
        }
        pending.settle(tallied.receipt, Fate::Acknowledged);
        assert_eq!(pending.events(), 1);
        tally.handed_out();
        assert_eq!(is_met(&tally), None);
        drop(pending);
        assert_eq!(is_met(&tally), Some(true));
        let outcome = &tally.now().nodes[&NodeId(7)];
        let counts = (outcome.acknowledged, outcome.lost, outcome.pending);
        assert_eq!(counts, (1, 1, 0));
    }
}
