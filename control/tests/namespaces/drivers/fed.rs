//! A driver on AF_XDP, fed by the real XDP program in veth's native mode: what a daemon does, with one neighbour.

use std::{io, net::SocketAddr, thread, time::Duration};

use aya::{Ebpf, programs::XdpMode};
use virga::nic::{
    FORWARD,
    maps::{self, Maps},
};
use virga_ebpf::{
    header::{ChannelHash, NodeId},
    image::{Image, Link, Place},
    limits::DESTINATIONS_MAX,
    publish::Publisher,
    reason::Outcome,
    tables::{NextHop, Pair, XskPort, mix},
};
use virga_transport::io::{
    driver::Driver,
    xsk::queue::{Copying, Queue, QueueConfig},
};

use super::{ECHO, ECHO_ID, MEMBER, NEAR, NEAR_ID};
use crate::hosts::Hosts;

const MTU: u32 = 1_500;
/// The kernel takes its time to let go of what an earlier driver had.
const ATTEMPTS: u32 = 500;
const PAUSE: Duration = Duration::from_millis(10);

/// Where a driver is, and whom it talks to.
pub(super) struct Side {
    pub(super) own: SocketAddr,
    id: NodeId,
    ifindex: u32,
    mac: [u8; 6],
    queues: u32,
    peer: SocketAddr,
    peer_mac: [u8; 6],
}

impl Side {
    pub(super) fn near(hosts: &Hosts) -> Self {
        Self::of(hosts, ("a", NEAR, NEAR_ID), ("b", ECHO))
    }

    pub(super) fn far(hosts: &Hosts) -> Self {
        Self::of(hosts, ("b", ECHO, ECHO_ID), ("a", NEAR))
    }

    fn of(hosts: &Hosts, own: (&str, &str, NodeId), peer: (&str, &str)) -> Self {
        let side = Self {
            own: own.1.parse().unwrap(),
            id: own.2,
            ifindex: 0,
            mac: [0; 6],
            queues: 1,
            peer: peer.1.parse().unwrap(),
            peer_mac: hosts.mac(peer.0, "v0").unwrap(),
        };
        side.at(hosts, own.0, "v0")
    }

    /// The near side, by another interface.
    pub(super) fn on(self, hosts: &Hosts, interface: &str) -> Self {
        self.at(hosts, "a", interface)
    }

    fn at(self, hosts: &Hosts, host: &str, interface: &str) -> Self {
        let shown = hosts.run(host, "ip", &["-json", "link", "show", "dev", interface]);
        let shown: serde_json::Value = serde_json::from_slice(&shown.unwrap().stdout).unwrap();
        Self {
            ifindex: shown[0]["ifindex"].as_u64().unwrap().try_into().unwrap(),
            mac: hosts.mac(host, interface).unwrap(),
            ..self
        }
    }

    pub(super) fn with_queues(self, queues: u32) -> Self {
        Self { queues, ..self }
    }

    pub(super) fn to_json(&self) -> String {
        let Self {
            own,
            id,
            ifindex,
            mac,
            queues,
            peer,
            peer_mac,
        } = self;
        serde_json::json!([own, id.0, ifindex, mac, queues, peer, peer_mac]).to_string()
    }

    pub(super) fn from_json(text: &str) -> Self {
        let (own, id, ifindex, mac, queues, peer, peer_mac) = serde_json::from_str(text).unwrap();
        Self {
            own,
            id: NodeId(id),
            ifindex,
            mac,
            queues,
            peer,
            peer_mac,
        }
    }
}

/// The way to the other side.
pub(super) fn next_hop(side: &Side) -> NextHop {
    let mut image = Image::default();
    let key = image.add_next_hop(NextHop {
        source: side.own.ip().into(),
        target: side.peer.ip().into(),
        source_mac: side.mac,
        target_mac: side.peer_mac,
        port: side.peer.port(),
        ifindex: side.ifindex,
        mtu: MTU,
        flags: NextHop::ALIVE,
        ..NextHop::default()
    });
    image.next_hops[&key]
}

/// Sockets on the first queues of the side's interface.
pub(super) fn queues(side: &Side, count: u32) -> Vec<Queue> {
    let open = |queue| {
        let config = QueueConfig {
            ifindex: side.ifindex,
            queue,
            mtu: MTU,
            copying: Copying::Always,
        };
        patiently(|| Queue::open(&config))
    };
    (0..count).map(open).collect()
}

fn patiently<T, E: std::fmt::Display>(mut attempt: impl FnMut() -> Result<T, E>) -> T {
    for _ in 1..ATTEMPTS {
        match attempt() {
            Ok(done) => return done,
            Err(_) => thread::sleep(PAUSE),
        }
    }
    match attempt() {
        Ok(done) => done,
        Err(error) => panic!("{error}"),
    }
}

/// The program on its interface; off it with this.
pub(super) struct Fed {
    _ebpf: Ebpf,
    maps: Maps,
}

impl Fed {
    /// Gives a driver its queues, and those their packets.
    pub(super) fn new(driver: &mut Driver, side: &Side) -> Self {
        let (mut ebpf, mut maps) = maps::load(None, DESTINATIONS_MAX).unwrap();
        let mut publisher = Publisher::recover(&maps).unwrap();
        let mut n = 0;
        let entropy = || {
            n += 1;
            mix(0x5eed, n)
        };
        publisher.apply(&mut maps, &image(side), entropy).unwrap();
        let queues = queues(side, side.queues);
        for (place, queue) in (0..).zip(&queues) {
            maps.set_xsk(place, queue).unwrap();
        }
        let port = XskPort {
            ifindex: side.ifindex,
            first: 0,
            queues: side.queues,
            reserved: 0,
        };
        maps.set_xsk_port(&port).unwrap();
        let program = maps::program(&mut ebpf, FORWARD).unwrap();
        patiently(|| {
            let attached = program.attach_to_if_index(side.ifindex, XdpMode::Driver);
            attached.map_err(|error| io::Error::other(format!("{error:?}")))
        });
        driver.run_queues(queues, "all that the link has");
        driver.set_next_hops(vec![next_hop(side)]);
        Self { _ebpf: ebpf, maps }
    }

    /// Packets that the program handed to the queues.
    pub(super) fn handed_over(&self) -> u64 {
        let counters = self.maps.counters().unwrap();
        counters[Outcome::Xsk.counter() as usize].packets
    }
}

fn image(side: &Side) -> Image {
    let mut image = Image {
        node_id: side.id,
        port: side.own.port(),
        subnet_mask: u32::MAX,
        ..Image::default()
    };
    image.addresses.insert(side.own.ip().into());
    let place = Place::new(side.ifindex, side.peer.ip().into());
    image.neighbours.insert(place, Link::default());
    image.pairs.insert(Pair::new(MEMBER, ChannelHash(0)));
    image
}
