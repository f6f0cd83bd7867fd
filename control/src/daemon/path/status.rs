//! The forwarding path as `virga status` shows it.

use super::Path;
use crate::{api::status::Verdicts, config::Reach, nic::Nic, tags::TagsStatus};
use serde::{Deserialize, Serialize};

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
    pub(super) fn status(&self) -> ForwardingStatus {
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
            links: self.links(),
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
            });
        }
        links
    }
}
