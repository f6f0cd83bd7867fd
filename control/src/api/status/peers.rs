//! Each peer, and how packets get there.

use super::SessionStatus;
use crate::{
    config::{Config, PeerConfig, Reach},
    daemon::{
        nat::Crossing,
        path::{ForwardingStatus, KeepaliveStatus},
    },
    discovery::DiscoveryStatus,
    fallback::Shown,
    tags::TagsStatus,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::SocketAddr};
use virga_discovery::Origin;
use virga_nat::Way;

/// One configured peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its name.
    pub name: String,
    /// Its id, in hex.
    pub id: String,
    /// `direct`: packets go straight to it; `punched`: straight, through NATs; `relayed`: over a neighbour; `none`: no live
    /// next hop leads there.
    pub path: String,
    /// Why it is not another one.
    #[serde(default)]
    pub path_why: String,
    /// What carries packets to it, where it is a neighbour that something else than UDP could reach: `udp`, `tcp`, `ws` or
    /// `wss`.
    #[serde(default)]
    pub transport: Option<String>,
    /// Why that.
    #[serde(default)]
    pub transport_why: Option<String>,
    /// That neighbour.
    pub over: Option<String>,
    /// How far the session with it is; none: there is none.
    pub session: Option<String>,
    /// Where there is none: why the last one ended, or the last attempt at one.
    #[serde(default)]
    pub ended: Option<String>,
    /// Smoothed round trip of that.
    pub rtt_us: Option<u64>,
    /// Packets of a million that are lost on the way to it: of a neighbour's link of late, by its word; of others' session
    /// since it began.
    pub lost_ppm: Option<u64>,
    /// What the keepalive has found of the link to it, where it is a neighbour.
    pub link: Option<KeepaliveStatus>,
    /// Link tags, where it is a neighbour.
    pub tags: Option<TagsStatus>,
    /// Where it was found, where the file does not name it: see [`crate::discovery::FoundStatus::origin`].
    #[serde(default)]
    pub found: Option<String>,
    /// `alive`, `suspect` or `dead`, as members find out; none: it does not say who lives, or nobody asks.
    #[serde(default)]
    pub member: Option<String>,
    /// Seconds since it is so.
    #[serde(default)]
    pub member_s: u64,
}

/// Why the last session with a peer ended, by its id in hex.
type Ended = BTreeMap<String, String>;

/// All peers; `ways` says where packets to each go now.
pub(super) fn of(
    (config, (carried, crossing)): (&Config, (&Shown, &Crossing)),
    ways: &[Option<SocketAddr>],
    (forwarding, sessions, ended): (&ForwardingStatus, &[SessionStatus], &Ended),
    discovery: &DiscoveryStatus,
) -> Vec<PeerStatus> {
    let peers = config.peers.iter().zip(ways);
    let one = |(peer, way): (&PeerConfig, &Option<SocketAddr>)| {
        let link = forwarding.links.iter().find(|link| link.peer == peer.name);
        let next = way.and_then(|at| neighbour_at(config, carried, at));
        let by = carried.of(peer.id);
        let own = sessions.iter().filter(|s| s.name == peer.name);
        let session = own.max_by_key(|s| (s.state == "established", s.received_packets));
        let id = peer.id.to_string();
        let mut found = discovery.nodes.iter();
        let found = found.find(|node| node.id == id && node.origin != Origin::Configured.name());
        let member = discovery.members.iter().find(|member| member.id == id);
        let (path, why) = path(peer, next, crossing.way(peer.id), found.is_some());
        let path_why = if crossing.is_on() { why } else { String::new() };
        PeerStatus {
            name: peer.name.clone(),
            id: id.clone(),
            path: path.to_owned(),
            path_why,
            transport: by.as_ref().map(|(transport, _)| (*transport).to_owned()),
            transport_why: by.map(|(_, why)| why),
            over: next.filter(|next| *next != peer.name).map(str::to_owned),
            session: session.map(|s| s.state.clone()),
            ended: match session {
                Some(_) => None,
                None => ended.get(&id).cloned(),
            },
            rtt_us: session.and_then(|s| s.rtt_us),
            lost_ppm: match link.map(|link| &link.keepalive) {
                Some(found) if found.state != "off" => found.lost_ppm.map(u64::from),
                _ => session.map(lost_ppm),
            },
            link: link.map(|link| link.keepalive.clone()),
            tags: link.map(|link| link.tags.clone()),
            found: found.map(|found| found.origin.clone()),
            member: member.map(|member| member.state.clone()),
            member_s: member.map_or(0, |member| member.since_s),
        }
    };
    peers.map(one).collect()
}

/// How packets get to a peer whose next hop this is, and why.
fn path(
    peer: &PeerConfig,
    next: Option<&str>,
    way: Option<Way>,
    is_found: bool,
) -> (&'static str, String) {
    let said = match (&peer.reach, way) {
        (_, Some(Way::Punched(why))) if next == Some(peer.name.as_str()) => {
            return ("punched", why);
        }
        (_, Some(Way::Punched(_))) => {
            "there is a way through the NATs, which is silent or longer than this one".to_owned()
        }
        (_, Some(Way::Relayed(why))) => why,
        (Reach::Adjacent { .. }, None) if is_found => "it was found at an address".to_owned(),
        (Reach::Adjacent { .. }, None) => "its block has an address".to_owned(),
        (Reach::Via { .. }, None) => "its block says `via`".to_owned(),
        (Reach::Learned, None) => {
            "its block has no address, and [nat] does not look for a way".to_owned()
        }
    };
    match next {
        Some(next) if next == peer.name => ("direct", said),
        Some(_) => ("relayed", said),
        None => ("none", said),
    }
}

fn neighbour_at<'a>(config: &'a Config, carried: &Shown, at: SocketAddr) -> Option<&'a str> {
    let carried = carried.at(at);
    let is_there = |peer: &&PeerConfig| match &peer.reach {
        _ if carried.is_some() => carried == Some(peer.id),
        Reach::Adjacent { address, .. } => *address == at,
        Reach::Via { .. } | Reach::Learned => false,
    };
    let found = config.peers.iter().find(is_there)?;
    Some(&found.name)
}

/// Packets that only came late are not lost.
fn lost_ppm(session: &SessionStatus) -> u64 {
    let path = &session.path;
    let lost = path.lost_packets.saturating_sub(path.spurious_losses);
    lost * 1_000_000 / session.sent_packets.max(1)
}
