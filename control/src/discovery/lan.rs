//! The LANs in which this node is announced, and what is shown of them.

use crate::config::{Config, DiscoverySection};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr};
use virga_lan::{Lan, Place, Reason};

/// What this node does in the LANs that it is in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LanStatus {
    /// Whether it looks for nodes there.
    pub is_on: bool,
    /// Each of them.
    pub places: Vec<PlaceStatus>,
    /// Other nodes whose announcements count now, be they true or not.
    pub nodes: usize,
    /// Messages that were sent.
    pub sent: u64,
    /// Messages that were heard, of all that speak mDNS.
    pub heard: u64,
    /// What was heard and not taken, by reason.
    pub refused: BTreeMap<String, u64>,
}

/// A LAN.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceStatus {
    /// This node's address there.
    pub address: String,
    /// Why nothing is said or heard there.
    pub problem: Option<String>,
}

impl From<&Place> for PlaceStatus {
    fn from(place: &Place) -> Self {
        Self {
            address: place.address().to_string(),
            problem: place.problem().map(str::to_owned),
        }
    }
}

impl From<&Lan> for LanStatus {
    fn from(lan: &Lan) -> Self {
        let (sent, heard) = lan.messages();
        let refused = Reason::ALL.iter();
        let refused = refused.map(|&reason| (reason.name().to_owned(), lan.refused(reason)));
        Self {
            is_on: true,
            places: lan.places().iter().map(PlaceStatus::from).collect(),
            nodes: lan.nodes(),
            sent,
            heard,
            refused: refused.collect(),
        }
    }
}

/// The addresses whose LANs a node is announced in: where it listens, or where it does so on all interfaces, those
/// that it advertises.
#[must_use]
pub fn addresses(config: &Config, section: &DiscoverySection) -> Vec<IpAddr> {
    let listen = config.node.listen;
    if !listen.ip().is_unspecified() {
        return vec![listen.ip()];
    }
    let advertised = section.advertise.iter().map(|address| address.ip());
    advertised
        .filter(|ip| ip.is_ipv4() == listen.is_ipv4())
        .collect()
}
