//! `GET /status` and `POST /link`: what the node is doing, and one thing to change.

use super::{
    Api, Service,
    error::{ApiError, Query},
    server::ApiStatus,
};
use crate::{
    channel::status::{ChannelStatus, SubscriberStatus, SubscriptionStatus},
    daemon::path::ForwardingStatus,
    hex,
};
use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};
use virga_ebpf::reason::{Counter, Outcome, Reason};
use virga_transport::{io::counters::IoCounters, worker::Parts};

/// Everything that the daemon tells about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Who this is.
    pub node: NodeStatus,
    /// The local API.
    pub api: ApiStatus,
    /// How packets of others pass.
    pub forwarding: ForwardingStatus,
    /// Verdicts of the worker's own forwarder, over all that reached its socket.
    pub userspace: Verdicts,
    /// The worker's loop.
    pub worker: WorkerStatus,
    /// The worker's socket.
    pub socket: SocketStatus,
    /// The sessions' protocol.
    pub transport: TransportStatus,
    /// Every session.
    pub sessions: Vec<SessionStatus>,
    /// Every channel.
    pub channels: Vec<ChannelStatus>,
    /// Subscriptions at other nodes.
    pub subscriptions: Vec<SubscriptionStatus>,
    /// Programs on this node that have subscribed.
    pub subscribers: Vec<SubscriberStatus>,
    /// Refusals and drops of the channels, by reason.
    pub channel_reasons: BTreeMap<String, u64>,
}

/// Who this is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its configured name.
    pub name: String,
    /// What headers call it, in hex.
    pub id: String,
    /// What headers call its entity, in hex.
    pub origin: String,
    /// Its network.
    pub network: String,
    /// Version of the program.
    pub version: String,
    /// Where its UDP socket listens.
    pub listen: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_s: u64,
}

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What a forwarding path decided, by name; what is 0 is listed too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdicts {
    /// `pass`, `local`, `redirect`, `transmit`, `aborted`.
    pub outcomes: BTreeMap<String, Count>,
    /// By reason.
    pub drops: BTreeMap<String, Count>,
}

impl From<&[Counter]> for Verdicts {
    fn from(counters: &[Counter]) -> Self {
        let count = |place: u32| {
            let place = usize::try_from(place).unwrap_or(usize::MAX);
            let counter = counters.get(place).copied().unwrap_or_default();
            Count {
                packets: counter.packets,
                bytes: counter.bytes,
            }
        };
        let outcomes = Outcome::ALL.iter();
        let reasons = Reason::ALL.iter();
        Self {
            outcomes: outcomes
                .map(|o| (o.name().to_owned(), count(o.counter())))
                .collect(),
            drops: reasons
                .map(|r| (r.name().to_owned(), count(r.counter())))
                .collect(),
        }
    }
}

/// The worker's loop.
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
    /// Commands taken.
    pub commands: u64,
}

/// One direction of the worker's socket.
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
            errors: errors.map(|(k, n)| (k.name().to_owned(), n)).collect(),
        }
    }
}

/// The worker's socket.
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
}

/// One session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStatus {
    /// The other node's id, in hex.
    pub peer: String,
    /// Its name in the configuration.
    pub name: String,
    /// Its entity's public key, in hex.
    pub entity: String,
    /// What this node calls the session, in hex.
    pub session: String,
    /// `proving`, `established` or `draining`.
    pub state: String,
    /// Current key epoch.
    pub epoch: u64,
    /// Packets sealed.
    pub sent_packets: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Packets opened.
    pub received_packets: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Packets whose data travelled again.
    pub retransmitted_packets: u64,
    /// Bytes that travelled again.
    pub retransmitted_bytes: u64,
    /// Smoothed round trip; none before the first packet is acknowledged.
    pub rtt_us: Option<u64>,
    /// Seconds since its keys were agreed.
    pub age_s: u64,
    /// Streams open from here.
    pub streams_sending: usize,
    /// Streams open to here.
    pub streams_receiving: usize,
}

/// What the worker's thread copies out.
struct Snapshot {
    now_ns: u64,
    worker: WorkerStatus,
    socket: SocketStatus,
    userspace: Verdicts,
    transport: TransportStatus,
    sessions: Vec<virga_transport::SessionStatus>,
    service: crate::channel::status::ServiceStatus,
}

impl Snapshot {
    fn take(now_ns: u64, parts: &Parts<Service>) -> Self {
        let worker = parts.counters();
        let sessions: Vec<_> = parts.node.sessions().collect();
        let driver = parts.driver();
        let figures = driver.figures().into_iter();
        Self {
            now_ns,
            worker: WorkerStatus {
                turns: worker.turns,
                forwarded: worker.forwarded,
                forward_blocked: worker.forward_blocked,
                unroutable: worker.unroutable,
                commands: worker.commands,
            },
            socket: SocketStatus {
                driver: driver.name().to_owned(),
                why: driver.why().to_owned(),
                gso: driver.socket().segments_max() > 1,
                gro: driver.socket().coalesces(),
                sent: driver.sent().into(),
                received: driver.received().into(),
                figures: figures.map(|(name, n)| (name.to_owned(), n)).collect(),
            },
            userspace: parts.forwarder.counters().into(),
            transport: transport(parts, &sessions),
            sessions,
            service: parts.service.status(now_ns),
        }
    }
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
    }
}

pub(super) async fn get(State(api): State<Arc<Api>>) -> Result<Json<Status>, ApiError> {
    let snapshot = api.look(Snapshot::take).await?;
    let forwarding = api.path.status().await.ok_or(ApiError::Stopping)?;
    let config = &api.config;
    let sessions = snapshot.sessions.into_iter();
    let sessions = sessions.map(|s| session(&api, snapshot.now_ns, &s));
    Ok(Json(Status {
        node: NodeStatus {
            name: config.node.name.clone(),
            id: config.node.id.to_string(),
            origin: config.node.origin.to_string(),
            network: config.node.network.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            listen: config.node.listen.to_string(),
            pid: std::process::id(),
            uptime_s: api.started.elapsed().as_secs(),
        },
        api: api.connections.status(),
        forwarding,
        userspace: snapshot.userspace,
        worker: snapshot.worker,
        socket: snapshot.socket,
        transport: snapshot.transport,
        sessions: sessions.collect(),
        channels: snapshot.service.channels,
        subscriptions: named(&api, snapshot.service.subscriptions),
        subscribers: snapshot.service.subscribers,
        channel_reasons: snapshot.service.reasons,
    }))
}

/// `GET /subscriptions`: a small part of the status, for those who ask often.
pub(super) async fn subscriptions(
    State(api): State<Arc<Api>>,
) -> Result<Json<Vec<SubscriptionStatus>>, ApiError> {
    let all = api.look(|_, parts| parts.service.subscriptions()).await?;
    Ok(Json(named(&api, all)))
}

/// Adds the peers' names.
fn named(api: &Api, mut all: Vec<SubscriptionStatus>) -> Vec<SubscriptionStatus> {
    let peers = api.config.peers.iter();
    let names: BTreeMap<String, &str> = peers.map(|p| (p.id.to_string(), &*p.name)).collect();
    for one in &mut all {
        one.peer_name = names.get(&one.peer).copied().unwrap_or_default().to_owned();
    }
    all
}

fn session(api: &Api, now_ns: u64, s: &virga_transport::SessionStatus) -> SessionStatus {
    let peer = api.config.peers.iter().find(|peer| peer.id == s.peer);
    SessionStatus {
        peer: s.peer.to_string(),
        name: peer.map(|peer| peer.name.clone()).unwrap_or_default(),
        entity: hex::encode(&s.entity),
        session: s.session.to_string(),
        state: s.state.name().to_owned(),
        epoch: s.epoch,
        sent_packets: s.sent_packets,
        sent_bytes: s.sent_bytes,
        received_packets: s.received_packets,
        received_bytes: s.received_bytes,
        retransmitted_packets: s.retransmitted_packets,
        retransmitted_bytes: s.retransmitted_bytes,
        rtt_us: s.path.rtt_us,
        age_s: now_ns.saturating_sub(s.since_ns) / 1_000_000_000,
        streams_sending: s.streams_sending,
        streams_receiving: s.streams_receiving,
    }
}

/// Which next hop, and what an operator wants of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Link {
    peer: String,
    state: LinkState,
}

/// What an operator wants of a next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkState {
    /// Used, when the kernel knows the way.
    Up,
    /// Not used, whatever the kernel knows.
    Down,
}

impl LinkState {
    /// As a request spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

pub(super) async fn link(
    State(api): State<Arc<Api>>,
    Query(link): Query<Link>,
) -> Result<StatusCode, ApiError> {
    let peers = &api.config.peers;
    let Some(index) = peers.iter().position(|peer| peer.name == link.peer) else {
        let known: Vec<&str> = peers.iter().map(|peer| peer.name.as_str()).collect();
        return Err(ApiError::Missing(format!(
            "there is no peer {:?}; the configuration has: {}",
            link.peer,
            known.join(", ")
        )));
    };
    match api.path.set_link(index, link.state).await {
        Some(Ok(())) => Ok(StatusCode::NO_CONTENT),
        Some(Err(error)) => Err(ApiError::Failed(error)),
        None => Err(ApiError::Stopping),
    }
}
