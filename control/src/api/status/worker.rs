//! What each worker is doing, and all of them together.

use super::{Count, Verdicts};
use crate::{channel::status::ServiceStatus, dispatch::Service};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::SocketAddr};
use virga_ebpf::header::NodeId;
use virga_transport::{
    CloseReason, Node, Pattern,
    io::{counters::IoCounters, socket::Socket},
    worker::{Parts, Times, TimesSummary, WorkerTimes},
};

/// A worker's loop; or all of them together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Turns of the loop.
    pub turns: u64,
    /// Datagrams that were sent on.
    pub forwarded: u64,
    /// Datagrams that were to be sent on while the socket was full.
    pub forward_blocked: u64,
    /// Datagrams of this node's own that no live next hop leads on.
    pub unroutable: u64,
    /// Datagrams of this node's own that were too large for the next hop's link: probes of it, mostly.
    pub too_big: u64,
    /// Commands taken.
    pub commands: u64,
    /// Datagrams that were another worker's, and were handed over.
    pub handed_over: u64,
    /// Datagrams that were another worker's, whose ring was full: lost.
    pub hand_over_full: u64,
    /// Datagrams that other workers handed over.
    pub taken_over: u64,
    /// Commands that waited when its last turn began, this question among them.
    #[serde(default)]
    pub waiting_commands: usize,
    /// Datagrams from other workers that waited then.
    #[serde(default)]
    pub waiting_datagrams: usize,
}

/// One direction of a worker's socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoStatus {
    /// Datagrams.
    pub datagrams: u64,
    /// Their bytes.
    pub bytes: u64,
    /// System calls that moved some.
    pub batches: u64,
    /// Datagrams that were part of an offloaded run.
    pub segments: u64,
    /// Datagrams that found the socket full.
    pub would_block: u64,
    /// Bytes that wait in the kernel's socket now, with what it needs for them.
    #[serde(default)]
    pub queued_bytes: u64,
    /// By kind.
    pub errors: BTreeMap<String, u64>,
}

impl From<&IoCounters> for IoStatus {
    fn from(counters: &IoCounters) -> Self {
        let errors = counters.errors();
        Self {
            datagrams: counters.datagrams,
            bytes: counters.bytes,
            batches: counters.batches,
            segments: counters.segments,
            would_block: counters.would_block,
            queued_bytes: 0,
            errors: errors.map(|(k, n)| (k.name().to_owned(), n)).collect(),
        }
    }
}

/// A worker's socket; or all of them together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketStatus {
    /// What moves its datagrams.
    pub driver: String,
    /// Why that and nothing else.
    pub why: String,
    /// Whether the kernel cuts sent runs into datagrams.
    pub gso: bool,
    /// Whether the kernel hands over received runs.
    pub gro: bool,
    /// Sending.
    pub sent: IoStatus,
    /// Receiving.
    pub received: IoStatus,
    /// What this driver counts beside.
    pub figures: BTreeMap<String, u64>,
}

/// Why policies give no session with a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflictStatus {
    /// The other node's id, in hex.
    pub peer: String,
    /// What contradicts what.
    pub why: String,
    /// What to do about it here or there.
    pub fix: String,
}

/// The sessions' protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportStatus {
    /// Datagrams given to it.
    pub received_datagrams: u64,
    /// Datagrams that it made.
    pub sent_datagrams: u64,
    /// Initiations sent.
    pub initiations_sent: u64,
    /// Initiations answered.
    pub initiations_answered: u64,
    /// Refusals sent to peers whose policy contradicts this node's.
    pub refusals_sent: u64,
    /// Refusals received.
    pub refusals_received: u64,
    /// Sessions established, by Noise pattern.
    pub established_by_pattern: BTreeMap<String, u64>,
    /// Sessions established with ML-KEM-768 mixed into their keys.
    pub established_hybrid: u64,
    /// Peers that there is no session with, because the two ends' policies contradict each other.
    pub conflicts: Vec<ConflictStatus>,
    /// Sessions that ended and attempts at one, by reason.
    #[serde(default)]
    pub closed_by_reason: BTreeMap<String, u64>,
    /// Peers that there is no session with, by id in hex, and why the last one ended.
    #[serde(default)]
    pub ended: BTreeMap<String, String>,
    /// Cookies sent.
    pub cookies_sent: u64,
    /// Resets sent.
    pub resets_sent: u64,
    /// Resets received.
    pub resets_received: u64,
    /// Sessions established.
    pub sessions_established: u64,
    /// Key epochs moved to.
    pub epochs_advanced: u64,
    /// Sends refused because a queue was full.
    pub sends_refused: u64,
    /// Messages that were not sent because their deadline had passed.
    pub messages_expired: u64,
    /// Half-open sessions that gave way.
    pub half_open_evicted: u64,
    /// Handshake messages given up because too many waited to be sent.
    pub outbox_full: u64,
    /// Packets whose data travelled again, over all sessions there are.
    pub retransmitted_packets: u64,
    /// Drops by reason.
    pub drops: BTreeMap<String, u64>,
    /// The classes of streams that anything was counted of; 7 is control.
    #[serde(default)]
    pub classes: BTreeMap<u8, ClassStatus>,
}

/// One class of streams, over all sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassStatus {
    /// Packets sealed.
    pub sent_packets: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Events that began in them.
    pub sent_events: u64,
    /// Packets opened.
    pub received_packets: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Events that began in them.
    pub received_events: u64,
    /// Packets in which data travelled again.
    pub retransmitted_packets: u64,
    /// Bytes that travelled again.
    pub retransmitted_bytes: u64,
    /// Bytes that streams hold for sending.
    pub queued_bytes: u64,
}

/// How long messages of one class took, over a worker's streams. Of each stream one at a time is followed: the last
/// of a call, until it is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassTimesStatus {
    /// From the call that queued it until all of it was sealed into packets.
    pub sent_after: TimesStatus,
    /// From that call until the peer had acknowledged all of it; reliable channels alone.
    pub acked_after: TimesStatus,
}

/// How long something took: a histogram to 1 %, of a session's round trips to 7 %.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimesStatus {
    /// How many times were taken.
    pub count: u64,
    /// Half of them were at most this.
    pub p50_ns: u64,
    /// 99 of 100.
    pub p99_ns: u64,
    /// 999 of 1,000.
    pub p999_ns: u64,
    /// All of them.
    pub max_ns: u64,
}

impl From<&Times> for TimesStatus {
    fn from(times: &Times) -> Self {
        times.summary().into()
    }
}

impl From<TimesSummary> for TimesStatus {
    fn from(summary: TimesSummary) -> Self {
        let TimesSummary {
            count,
            p50_ns,
            p99_ns,
            p999_ns,
            max_ns,
        } = summary;
        Self {
            count,
            p50_ns,
            p99_ns,
            p999_ns,
            max_ns,
        }
    }
}

/// One worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OneWorker {
    /// Its number, from 0: the low 8 bits of its sessions' ids.
    pub number: u8,
    /// The core that it stays on, if any.
    pub core: Option<usize>,
    /// Why there, or on none.
    #[serde(default)]
    pub core_why: String,
    /// Sessions that it has.
    pub sessions: usize,
    /// Time that its thread has had on a processor.
    #[serde(default)]
    pub cpu_ns: u64,
    /// Its loop.
    pub worker: WorkerStatus,
    /// Its socket.
    pub socket: SocketStatus,
    /// Verdicts of its forwarder.
    pub userspace: Verdicts,
    /// Its sessions' protocol.
    pub transport: TransportStatus,
    /// `handling`: a turn's received datagrams, until all are opened or sent on and told of;
    /// `command_wait`: commands in its queue; `hand_over_wait`: datagrams in its ring from the others.
    pub times: BTreeMap<String, TimesStatus>,
    /// The classes of streams that messages were followed of.
    #[serde(default)]
    pub class_times: BTreeMap<u8, ClassTimesStatus>,
}

/// What a worker's thread copies out.
pub(super) struct Snapshot {
    pub(super) now_ns: u64,
    pub(super) worker: OneWorker,
    pub(super) sessions: Vec<virga_transport::SessionStatus>,
    pub(super) service: ServiceStatus,
    /// Where packets to each of the peers asked about go.
    pub(super) ways: Vec<Option<SocketAddr>>,
}

impl Snapshot {
    pub(super) fn take(now_ns: u64, parts: &Parts<Service>, peers: &[NodeId]) -> Self {
        let way = |peer: &NodeId| parts.forwarder.way(*peer).map(|way| way.to);
        let counters = parts.counters();
        let sessions: Vec<_> = parts.node.sessions().collect();
        let driver = parts.driver();
        let figures = driver.figures().into_iter();
        let waiting = parts.waiting();
        let socket = driver.socket();
        let [received_bytes, sent_bytes] = socket.map_or([0; 2], Socket::queued_bytes);
        let WorkerTimes {
            handling,
            command_wait,
            hand_over_wait,
        } = parts.times();
        let times = [
            ("handling", handling),
            ("command_wait", command_wait),
            ("hand_over_wait", hand_over_wait),
        ];
        let worker = OneWorker {
            number: parts.share().worker(),
            core: parts.core(),
            core_why: String::new(),
            sessions: sessions.len(),
            cpu_ns: thread_cpu_ns(),
            worker: WorkerStatus {
                turns: counters.turns,
                forwarded: counters.forwarded,
                forward_blocked: counters.forward_blocked,
                unroutable: counters.unroutable,
                too_big: counters.too_big,
                commands: counters.commands,
                handed_over: counters.handed_over,
                hand_over_full: counters.hand_over_full,
                taken_over: counters.taken_over,
                waiting_commands: waiting.commands,
                waiting_datagrams: waiting.handed_over,
            },
            socket: SocketStatus {
                driver: driver.name().to_owned(),
                why: driver.why().to_owned(),
                gso: socket.is_some_and(|socket| socket.segments_max() > 1),
                gro: socket.is_some_and(Socket::coalesces),
                sent: IoStatus {
                    queued_bytes: sent_bytes,
                    ..driver.sent().into()
                },
                received: IoStatus {
                    queued_bytes: received_bytes,
                    ..driver.received().into()
                },
                figures: figures.map(|(name, n)| (name.to_owned(), n)).collect(),
            },
            userspace: parts.forwarder.counters().into(),
            transport: transport(parts, &sessions),
            times: times
                .map(|(name, times)| (name.to_owned(), times.into()))
                .into(),
            class_times: class_times(&parts.node),
        };
        Self {
            now_ns,
            worker,
            sessions,
            service: parts.service.status(now_ns),
            ways: peers.iter().map(way).collect(),
        }
    }
}

/// Time that the calling thread has had on a processor.
fn thread_cpu_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let (s, ns) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_nsec));
    s.unwrap_or(0) * 1_000_000_000 + ns.unwrap_or(0)
}

fn conflicts(node: &Node) -> Vec<ConflictStatus> {
    let told = node.conflicts().map(|(peer, conflict)| ConflictStatus {
        peer: peer.to_string(),
        why: conflict.to_string(),
        fix: conflict.fix().to_owned(),
    });
    told.collect()
}

fn transport(
    parts: &Parts<Service>,
    sessions: &[virga_transport::SessionStatus],
) -> TransportStatus {
    let counters = parts.node.counters();
    TransportStatus {
        received_datagrams: counters.received_datagrams,
        sent_datagrams: counters.sent_datagrams,
        initiations_sent: counters.initiations_sent,
        initiations_answered: counters.initiations_answered,
        refusals_sent: counters.refusals_sent,
        refusals_received: counters.refusals_received,
        established_by_pattern: Pattern::ALL
            .iter()
            .zip(counters.established_by_pattern)
            .map(|(pattern, count)| (pattern.name().to_owned(), count))
            .collect(),
        established_hybrid: counters.established_hybrid,
        conflicts: conflicts(&parts.node),
        closed_by_reason: CloseReason::ALL
            .iter()
            .zip(counters.closed)
            .map(|(reason, count)| (reason.name().to_owned(), count))
            .collect(),
        ended: parts
            .node
            .ended()
            .map(|(peer, reason)| (peer.to_string(), reason.to_string()))
            .collect(),
        cookies_sent: counters.cookies_sent,
        resets_sent: counters.resets_sent,
        resets_received: counters.resets_received,
        sessions_established: counters.sessions_established,
        epochs_advanced: counters.epochs_advanced,
        sends_refused: counters.sends_refused,
        messages_expired: counters.messages_expired,
        half_open_evicted: counters.half_open_evicted,
        outbox_full: counters.outbox_full,
        retransmitted_packets: sessions.iter().map(|s| s.retransmitted_packets).sum(),
        drops: counters
            .drops()
            .map(|(reason, count)| (reason.name().to_owned(), count))
            .collect(),
        classes: classes(&parts.node),
    }
}

fn classes(node: &Node) -> BTreeMap<u8, ClassStatus> {
    let each = node.classes().map(|(class, counted, queued_bytes)| {
        let status = ClassStatus {
            sent_packets: counted.sent_packets,
            sent_bytes: counted.sent_bytes,
            sent_events: counted.sent_events,
            received_packets: counted.received_packets,
            received_bytes: counted.received_bytes,
            received_events: counted.received_events,
            retransmitted_packets: counted.retransmitted_packets,
            retransmitted_bytes: counted.retransmitted_bytes,
            queued_bytes: queued_bytes as u64,
        };
        (class, status)
    });
    each.filter(|(_, status)| *status != ClassStatus::default())
        .collect()
}

fn class_times(node: &Node) -> BTreeMap<u8, ClassTimesStatus> {
    let each = node.class_times().map(|(class, times)| {
        let status = ClassTimesStatus {
            sent_after: (&times.sent_after).into(),
            acked_after: (&times.acked_after).into(),
        };
        (class, status)
    });
    each.filter(|(_, status)| status.sent_after.count > 0)
        .collect()
}

impl ClassStatus {
    fn add(&mut self, other: &Self) {
        self.sent_packets += other.sent_packets;
        self.sent_bytes += other.sent_bytes;
        self.sent_events += other.sent_events;
        self.received_packets += other.received_packets;
        self.received_bytes += other.received_bytes;
        self.received_events += other.received_events;
        self.retransmitted_packets += other.retransmitted_packets;
        self.retransmitted_bytes += other.retransmitted_bytes;
        self.queued_bytes += other.queued_bytes;
    }
}

fn add_all<T: Clone>(
    to: &mut BTreeMap<String, T>,
    from: &BTreeMap<String, T>,
    add: impl Fn(&mut T, &T),
) {
    for (name, count) in from {
        match to.get_mut(name) {
            Some(sum) => add(sum, count),
            None => {
                to.insert(name.clone(), count.clone());
            }
        }
    }
}

fn add_counts(to: &mut BTreeMap<String, u64>, from: &BTreeMap<String, u64>) {
    add_all(to, from, |sum, count| *sum += count);
}

fn add_verdicts(to: &mut BTreeMap<String, Count>, from: &BTreeMap<String, Count>) {
    add_all(to, from, |sum, count| {
        sum.packets += count.packets;
        sum.bytes += count.bytes;
    });
}

impl IoStatus {
    fn add(&mut self, other: &Self) {
        self.datagrams += other.datagrams;
        self.bytes += other.bytes;
        self.batches += other.batches;
        self.segments += other.segments;
        self.would_block += other.would_block;
        self.queued_bytes += other.queued_bytes;
        add_counts(&mut self.errors, &other.errors);
    }
}

impl OneWorker {
    /// Adds what another worker has counted.
    pub(super) fn add(&mut self, other: &Self) {
        self.sessions += other.sessions;
        let (worker, more) = (&mut self.worker, &other.worker);
        worker.turns += more.turns;
        worker.forwarded += more.forwarded;
        worker.forward_blocked += more.forward_blocked;
        worker.unroutable += more.unroutable;
        worker.too_big += more.too_big;
        worker.commands += more.commands;
        worker.handed_over += more.handed_over;
        worker.hand_over_full += more.hand_over_full;
        worker.taken_over += more.taken_over;
        worker.waiting_commands += more.waiting_commands;
        worker.waiting_datagrams += more.waiting_datagrams;
        let (socket, more) = (&mut self.socket, &other.socket);
        // A machine that offers less to one of them is told of; the others are in the list.
        if socket.driver != more.driver && !socket.driver.contains(&more.driver) {
            socket.driver = format!("{} and {}", socket.driver, more.driver);
            socket.why = format!("{}; {}", socket.why, more.why);
        }
        socket.gso &= more.gso;
        socket.gro &= more.gro;
        socket.sent.add(&more.sent);
        socket.received.add(&more.received);
        add_counts(&mut socket.figures, &more.figures);
        add_verdicts(&mut self.userspace.outcomes, &other.userspace.outcomes);
        add_verdicts(&mut self.userspace.drops, &other.userspace.drops);
        self.transport.add(&other.transport);
    }
}

impl TransportStatus {
    fn add(&mut self, other: &Self) {
        self.received_datagrams += other.received_datagrams;
        self.sent_datagrams += other.sent_datagrams;
        self.initiations_sent += other.initiations_sent;
        self.initiations_answered += other.initiations_answered;
        self.refusals_sent += other.refusals_sent;
        self.refusals_received += other.refusals_received;
        for (pattern, count) in &other.established_by_pattern {
            *self
                .established_by_pattern
                .entry(pattern.clone())
                .or_default() += count;
        }
        self.established_hybrid += other.established_hybrid;
        self.conflicts.extend(other.conflicts.iter().cloned());
        add_counts(&mut self.closed_by_reason, &other.closed_by_reason);
        self.ended.extend(other.ended.clone());
        self.cookies_sent += other.cookies_sent;
        self.resets_sent += other.resets_sent;
        self.resets_received += other.resets_received;
        self.sessions_established += other.sessions_established;
        self.epochs_advanced += other.epochs_advanced;
        self.sends_refused += other.sends_refused;
        self.messages_expired += other.messages_expired;
        self.half_open_evicted += other.half_open_evicted;
        self.outbox_full += other.outbox_full;
        self.retransmitted_packets += other.retransmitted_packets;
        add_counts(&mut self.drops, &other.drops);
        for (&class, counted) in &other.classes {
            self.classes.entry(class).or_default().add(counted);
        }
    }
}
