//! The forwarding path as `virga status` shows it.

use super::Path;
use crate::{
    api::status::Verdicts,
    channel::Lost,
    config::Reach,
    dispatch::{Dispatch, Service},
    nic::Nic,
    tags::TagsStatus,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use virga_ebpf::header::NodeId;
use virga_transport::{LinkStatus as LinkStatusOfWorker, worker::Parts};

/// How packets of others pass.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ForwardingStatus {
    /// What the configuration asks for.
    pub mode_asked: String,
    /// `native`, `generic` or `userspace`.
    pub mode: String,
    /// Why that one.
    pub why: String,
    /// Programs on interfaces; none in user space.
    pub interfaces: Vec<InterfaceStatus>,
    /// Adjacent peers.
    pub links: Vec<LinkStatus>,
    /// Verdicts in the NIC path; none in user space.
    pub nic: Option<Verdicts>,
    /// The NIC path's guard.
    pub guard: Option<GuardStatus>,
    /// What is not as configured, and is tried again or waited for.
    pub problem: Option<String>,
}

/// A program on an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// Its name.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// `native` or `generic`.
    pub xdp_mode: String,
    /// Which program.
    pub program: String,
}

/// An adjacent peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// The peer's name.
    pub peer: String,
    /// Its address.
    pub address: String,
    /// The interface to it, where the kernel has a route.
    pub interface: Option<String>,
    /// Whether the kernel knows the link-layer address of the next hop.
    pub resolved: bool,
    /// Whether an operator took it down.
    pub down: bool,
    /// Its subnet, and the leading bits of it that all packets from it share.
    pub subnet: String,
    /// Why nothing but handshakes and control traffic is let in from it; none: more is.
    pub unvouched: Option<String>,
    /// Link tags on what comes from it and goes to it.
    pub tags: TagsStatus,
    /// Whether the link to it carries packets.
    #[serde(default)]
    pub keepalive: KeepaliveStatus,
}

/// What a link's keepalive has found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepaliveStatus {
    /// `up`; `silent`, `one-way`: dead; `unknown`: the neighbour does not speak the keepalive, or there is no
    /// session with it; `off`.
    pub state: String,
    /// Milliseconds since it is so.
    pub since_ms: u64,
    /// Milliseconds between two packets of the keepalive.
    pub interval_ms: u64,
    /// Milliseconds without any packet after which the link is dead.
    pub detect_ms: u64,
    /// What answers for the neighbour: `nic`, its NIC path; `worker`: then silence must last longer.
    #[serde(default)]
    pub answers: String,
    /// How often it was found dead.
    pub detections: u64,
    /// Milliseconds without any packet before the last time.
    pub gap_ms: u64,
    /// Packets of the keepalive that came,
    pub received: u64,
    /// and that did not come.
    pub missed: u64,
    /// Packets of a million that are lost on the way to it, of late and by its word; none: not measured.
    #[serde(default)]
    pub lost_ppm: Option<u32>,
    /// And on the way from it.
    #[serde(default)]
    pub lost_back_ppm: Option<u32>,
}

impl KeepaliveStatus {
    fn of(now_ns: u64, link: &LinkStatusOfWorker, lost: Lost) -> Self {
        const MS: u64 = 1_000_000;
        Self {
            state: link.state.name().to_owned(),
            since_ms: now_ns.saturating_sub(link.since_ns) / MS,
            interval_ms: link.interval_ns / MS,
            detect_ms: link.detect_ns / MS,
            answers: link.answers.name().to_owned(),
            detections: link.detections,
            gap_ms: link.gap_ns / MS,
            received: link.received,
            missed: link.missed,
            lost_ppm: lost.to_ppm,
            lost_back_ppm: lost.from_ppm,
        }
    }
}

/// What the workers know of links.
pub(super) async fn watched(dispatch: &Dispatch) -> BTreeMap<NodeId, KeepaliveStatus> {
    let look = |now_ns: u64, parts: &mut Parts<Service>| {
        let links = parts.node.links();
        let one = |link: LinkStatusOfWorker| {
            let lost = parts.service.lost(link.peer);
            (link.peer, KeepaliveStatus::of(now_ns, &link, lost))
        };
        links.map(one).collect::<Vec<_>>()
    };
    // With the workers, the node ends.
    let each = dispatch.with_all(look).await.unwrap_or_default();
    each.into_iter().flatten().collect()
}

/// The guard of the NIC path.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GuardStatus {
    /// Pairs it holds.
    pub pairs: usize,
    /// Banks of 4 KiB.
    pub banks: u32,
    /// Share of bits set.
    pub fill: f64,
    /// Estimated share of strangers that hit.
    pub false_positive_rate: f64,
}

impl Path {
    pub(super) fn status(&self, watched: &BTreeMap<NodeId, KeepaliveStatus>) -> ForwardingStatus {
        let attached = self.nic.as_ref().map(Nic::attached).unwrap_or_default();
        let counters = self.nic.as_ref().map(Nic::counters);
        let (nic, failed) = match counters {
            Some(Ok(counters)) => (Some(counters.as_slice().into()), None),
            Some(Err(error)) => (None, Some(error.to_string())),
            None => (None, None),
        };
        let guard = self.nic.as_ref().and_then(Nic::guard);
        ForwardingStatus {
            mode_asked: self.config.forwarding.mode.to_string(),
            mode: self.mode().to_owned(),
            why: self.why().to_owned(),
            interfaces: attached
                .into_iter()
                .map(|one| InterfaceStatus {
                    interface: one.interface,
                    ifindex: one.ifindex,
                    xdp_mode: one.xdp_mode.to_owned(),
                    program: one.program.to_owned(),
                })
                .collect(),
            links: self.links_watched(watched),
            nic,
            guard: guard.map(|guard| GuardStatus {
                pairs: guard.pairs,
                banks: guard.banks,
                fill: guard.fill,
                false_positive_rate: guard.false_positive_rate,
            }),
            problem: failed.or_else(|| self.problem.as_ref().map(|p| p.text.clone())),
        }
    }

    /// The same with what the workers have found of them.
    fn links_watched(&self, watched: &BTreeMap<NodeId, KeepaliveStatus>) -> Vec<LinkStatus> {
        let mut links = self.links();
        for link in &mut links {
            let peer = self.config.peers.iter().find(|peer| peer.name == link.peer);
            if let Some(found) = peer.and_then(|peer| watched.get(&peer.id)) {
                link.keepalive = found.clone();
            }
        }
        links
    }

    /// The adjacent peers, and how they are reached.
    pub(in crate::daemon) fn links(&self) -> Vec<LinkStatus> {
        let mut links = Vec::new();
        for (index, peer) in self.config.peers.iter().enumerate() {
            let Reach::Adjacent { address, .. } = &peer.reach else {
                continue;
            };
            let link = self.facts.links.get(&index);
            let interface = link.and_then(|l| self.facts.interfaces.get(&l.ifindex));
            links.push(LinkStatus {
                peer: peer.name.clone(),
                address: address.to_string(),
                interface: interface.map(|i| i.name.clone()),
                resolved: link.is_some_and(|l| l.mac.is_some()),
                down: self.down.contains(&index),
                subnet: peer.place().to_string(),
                unvouched: self.members.why_not(peer.id),
                tags: self.tags.status(peer.id),
                keepalive: KeepaliveStatus {
                    state: "off".to_owned(),
                    ..KeepaliveStatus::default()
                },
            });
        }
        links
    }
}
