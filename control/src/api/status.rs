//! `GET /status` and `POST /link`: what the node is doing, and one thing to change.

use super::{
    Api,
    error::{ApiError, Query},
    server::ApiStatus,
};
use crate::{
    channel::status::{ChannelStatus, ServiceStatus, SubscriberStatus, SubscriptionStatus},
    config::Config,
    daemon::{flood::AdmissionsStatus, path::ForwardingStatus},
    discovery::DiscoveryStatus,
    fallback::FallbackStatus,
    hex,
    kept::LogStatus,
    nat::NatStatus,
    routes::RoutesStatus,
};
use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};
use virga_ebpf::{
    header::NodeId,
    reason::{Counter, Outcome, Reason},
};

mod peers;
mod worker;

pub use peers::PeerStatus;
use worker::Snapshot;
pub use worker::{
    ClassStatus, ClassTimesStatus, IoStatus, OneWorker, SocketStatus, TimesStatus, TransportStatus,
    WorkerStatus,
};

/// Everything that the daemon tells about itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Who this is.
    pub node: NodeStatus,
    /// The local API.
    pub api: ApiStatus,
    /// How packets of others pass.
    pub forwarding: ForwardingStatus,
    /// Who may publish where, as far as tokens say it.
    #[serde(default)]
    pub admissions: AdmissionsStatus,
    /// Verdicts of the workers' own forwarders, over all that reached their sockets.
    pub userspace: Verdicts,
    /// The workers' loops, together.
    pub worker: WorkerStatus,
    /// Their sockets, together.
    pub socket: SocketStatus,
    /// Their sessions' protocol, together.
    pub transport: TransportStatus,
    /// How datagrams find their worker.
    pub steering: String,
    /// Each worker.
    pub workers: Vec<OneWorker>,
    /// From an event's arrival at its worker until a program's subscription has taken it.
    pub delivery_wait: TimesStatus,
    /// Every configured peer.
    #[serde(default)]
    pub peers: Vec<PeerStatus>,
    /// Nodes that were looked for, and which members live.
    #[serde(default)]
    pub discovery: DiscoveryStatus,
    /// Every session.
    pub sessions: Vec<SessionStatus>,
    /// Every channel.
    pub channels: Vec<ChannelStatus>,
    /// Subscriptions at other nodes.
    pub subscriptions: Vec<SubscriptionStatus>,
    /// Programs on this node that have subscribed.
    pub subscribers: Vec<SubscriberStatus>,
    /// What carries neighbours that UDP does not reach.
    #[serde(default)]
    pub fallback: FallbackStatus,
    /// The NAT that this node is behind, and ways through others.
    #[serde(default)]
    pub nat: NatStatus,
    /// Channels that this node keeps.
    #[serde(default)]
    pub logs: Vec<LogStatus>,
    /// Refusals and drops of the channels, by reason.
    pub channel_reasons: BTreeMap<String, u64>,
}

/// Who this is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Peers' declarations of channels that count, and that a restart would forget: they could not be written yet.
    #[serde(default)]
    pub unwritten: usize,
    /// Lines of its log that could not be written since it started.
    #[serde(default)]
    pub log_lines_lost: u64,
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

impl Status {
    /// Datagrams that were lost between the NIC and the sessions, or the sessions and the NIC, by where.
    #[must_use]
    pub fn lost(&self) -> BTreeMap<String, u64> {
        let figure = |name: &str| self.socket.figures.get(name).copied().unwrap_or(0);
        let lost = [
            ("socket_lost", figure("socket_lost")),
            ("xsk_lost", figure("xsk_lost")),
            ("hand_over_full", self.worker.hand_over_full),
            ("forward_blocked", self.worker.forward_blocked),
            ("unroutable", self.worker.unroutable),
        ];
        lost.map(|(name, count)| (name.to_owned(), count)).into()
    }
}

/// One session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The Noise pattern that it began by: `nk`, `ik` or `xx`.
    pub pattern: String,
    /// Whether ML-KEM-768 is mixed into its keys.
    pub hybrid: bool,
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
    /// The round trip of each acknowledgement since it was established; none before and after.
    #[serde(default)]
    pub round_trips: Option<TimesStatus>,
    /// Bytes that its streams hold for sending: they wait, or are not acknowledged.
    #[serde(default)]
    pub queued_bytes: u64,
    /// The path that its packets take.
    pub path: PathStatus,
    /// Seconds since its keys were agreed.
    pub age_s: u64,
    /// Streams open from here.
    pub streams_sending: usize,
    /// Streams open to here.
    pub streams_receiving: usize,
}

/// The path that a session's packets take.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathStatus {
    /// Where the peer's packets come from, where it is a neighbour.
    pub address: Option<String>,
    /// The least round trip that was seen.
    pub rtt_least_us: Option<u64>,
    /// How much the round trip varies.
    pub rtt_variation_us: u64,
    /// Largest datagram, mesh header included, without the outer headers.
    pub datagram_bytes: usize,
    /// `cubic` or `bbr`.
    pub congestion: String,
    /// What the congestion controller does.
    pub phase: String,
    /// Bytes that may be on their way.
    pub window_bytes: u64,
    /// Bytes that are on their way.
    pub in_flight_bytes: u64,
    /// Bytes a second that pacing lets out.
    pub pacing_bytes_per_second: u64,
    /// Packets that were declared lost, probes of the packet size aside.
    pub lost_packets: u64,
    /// Of those, packets that arrived after all.
    pub spurious_losses: u64,
}

pub(super) async fn get(State(api): State<Arc<Api>>) -> Result<Json<Status>, ApiError> {
    Ok(Json(of(&api).await?))
}

/// What the node is doing now.
pub(crate) async fn of(api: &Api) -> Result<Status, ApiError> {
    let config = &api.identity.config();
    let ids: Arc<[NodeId]> = config.peers.iter().map(|peer| peer.id).collect();
    // Before the workers: they have counted by then whatever the logs have taken.
    let logs = api.kept.status();
    let snapshots = api
        .dispatch
        .with_all(move |now_ns, parts| Snapshot::take(now_ns, parts, &ids));
    let snapshots = snapshots.await?;
    let forwarding = api.path.status().await.ok_or(ApiError::Stopping)?;
    let admissions = api.rights.admissions().await.ok_or(ApiError::Stopping)?;
    let mut all: Option<OneWorker> = None;
    let (mut sessions, mut workers, mut services) = (Vec::new(), Vec::new(), Vec::new());
    // All have the same tables.
    let ways = snapshots
        .first()
        .map(|first| first.ways.clone())
        .unwrap_or_default();
    for snapshot in snapshots {
        let now_ns = snapshot.now_ns;
        let each = snapshot.sessions.iter();
        sessions.extend(each.map(|s| session(config, now_ns, s)));
        match &mut all {
            None => all = Some(snapshot.worker.clone()),
            Some(all) => all.add(&snapshot.worker),
        }
        let place = api.placement.get(usize::from(snapshot.worker.number));
        workers.push(OneWorker {
            core_why: place.map_or_else(String::new, |place| place.why.clone()),
            ..snapshot.worker
        });
        services.push(snapshot.service);
    }
    let all = all.unwrap_or_default();
    let service = ServiceStatus::of_node(services);
    let discovery = api.finder.status(config);
    let told = (&forwarding, sessions.as_slice(), &all.transport.ended);
    let by = (&api.fallback, &api.crossing);
    let peers = peers::of((config, by), &ways, told, &discovery);
    Ok(Status {
        fallback: api.fallback.status(),
        nat: api.crossing.status(),
        peers,
        discovery,
        node: NodeStatus {
            name: config.node.name.clone(),
            id: config.node.id.to_string(),
            origin: config.node.origin.to_string(),
            network: config.node.network.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            listen: config.node.listen.to_string(),
            pid: std::process::id(),
            uptime_s: api.started.elapsed().as_secs(),
            unwritten: api.identity.unwritten(),
            log_lines_lost: crate::daemon::log::lost(),
        },
        api: api.connections.status(),
        forwarding,
        admissions,
        userspace: all.userspace,
        worker: all.worker,
        socket: all.socket,
        transport: all.transport,
        steering: api.steering.clone(),
        workers,
        delivery_wait: api.dispatch.delivery_wait(|times| TimesStatus::from(times)),
        sessions,
        channels: service.channels,
        subscriptions: named(api, service.subscriptions),
        subscribers: service.subscribers,
        logs,
        channel_reasons: service.reasons,
    })
}

/// `GET /subscriptions`: a small part of the status, for those who ask often.
pub(super) async fn subscriptions(
    State(api): State<Arc<Api>>,
) -> Result<Json<Vec<SubscriptionStatus>>, ApiError> {
    let each = api
        .dispatch
        .with_all(|_, parts| parts.service.subscriptions());
    let all = each.await?.into_iter().flatten().collect();
    Ok(Json(named(&api, all)))
}

/// Adds the peers' names.
fn named(api: &Api, mut all: Vec<SubscriptionStatus>) -> Vec<SubscriptionStatus> {
    let config = api.identity.config();
    let peers = config.peers.iter();
    let names: BTreeMap<String, &str> = peers.map(|p| (p.id.to_string(), &*p.name)).collect();
    for one in &mut all {
        one.peer_name = names.get(&one.peer).copied().unwrap_or_default().to_owned();
    }
    all
}

fn path(path: &virga_transport::PathStatus) -> PathStatus {
    PathStatus {
        address: path.address.map(|address| address.to_string()),
        rtt_least_us: path.rtt_least_us,
        rtt_variation_us: path.rtt_variation_us,
        datagram_bytes: path.datagram_bytes,
        congestion: path.congestion.name().to_owned(),
        phase: path.phase.to_owned(),
        window_bytes: path.window_bytes,
        in_flight_bytes: path.in_flight_bytes,
        pacing_bytes_per_second: path.pacing_bytes_per_second,
        lost_packets: path.lost_packets,
        spurious_losses: path.spurious_losses,
    }
}

fn session(config: &Config, now_ns: u64, s: &virga_transport::SessionStatus) -> SessionStatus {
    let peer = config.peers.iter().find(|peer| peer.id == s.peer);
    SessionStatus {
        peer: s.peer.to_string(),
        name: peer.map(|peer| peer.name.clone()).unwrap_or_default(),
        entity: hex::encode(&s.entity),
        session: s.session.to_string(),
        state: s.state.name().to_owned(),
        pattern: s.pattern.name().to_owned(),
        hybrid: s.is_hybrid,
        epoch: s.epoch,
        sent_packets: s.sent_packets,
        sent_bytes: s.sent_bytes,
        received_packets: s.received_packets,
        received_bytes: s.received_bytes,
        retransmitted_packets: s.retransmitted_packets,
        retransmitted_bytes: s.retransmitted_bytes,
        rtt_us: s.path.rtt_us,
        round_trips: s.round_trips.map(Into::into),
        queued_bytes: s.queued_bytes,
        path: path(&s.path),
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

/// `GET /routes`
pub(super) async fn routes(State(api): State<Arc<Api>>) -> Result<Json<RoutesStatus>, ApiError> {
    api.path.routes().await.map(Json).ok_or(ApiError::Stopping)
}

pub(super) async fn link(
    State(api): State<Arc<Api>>,
    Query(link): Query<Link>,
) -> Result<StatusCode, ApiError> {
    let config = api.identity.config();
    if config.peer(&link.peer).is_none() {
        let known: Vec<&str> = config.peers.iter().map(|peer| peer.name.as_str()).collect();
        return Err(ApiError::Missing(format!(
            "there is no peer {:?}; the configuration has: {}",
            link.peer,
            known.join(", ")
        )));
    }
    match api.path.set_link(link.peer, link.state).await {
        Some(Ok(())) => Ok(StatusCode::NO_CONTENT),
        Some(Err(error)) => Err(ApiError::Failed(error)),
        None => Err(ApiError::Stopping),
    }
}
