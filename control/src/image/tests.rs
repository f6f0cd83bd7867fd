//! What the tables shall say, for made-up configurations and facts.

use std::{collections::BTreeMap, convert::Infallible, net::IpAddr, path::Path};

use virga_ebpf::{
    header::{NodeId, OriginHash, Subnet},
    subnet::Visibility,
};

use super::*;
use crate::{
    hex,
    keys::{EntityKey, Keys, NodeKey, Secret},
    nic::kernel::{Interface, Link as KernelLink},
};

const ONE: &str = "10.1.0.2";
const TWO: &str = "10.2.0.2";
const ETH0: u32 = 2;
const ETH1: u32 = 3;
const ETH0_5: u32 = 4;

fn secret(fill: u8) -> Secret {
    Secret::new([fill; 32])
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Neighbours `one` and `two`, and `far` behind both.
fn config(listen: &str, more: &str) -> Config {
    let mut text = format!(
        "[node]\nname = \"us\"\nnetwork = \"test\"\nnode_key_file = \"n\"\nentity_key_file = \"e\"\n\
         psk_file = \"p\"\nlisten = \"{listen}\"\n"
    );
    let reaches = [
        ("one", 10, format!("address = \"{ONE}:4783\"")),
        (
            "two",
            20,
            format!("address = \"{TWO}:4790\"\nsubnet = \"7.9.0.0/16\""),
        ),
        ("far", 30, "via = [\"one\", \"two\"]".to_owned()),
    ];
    for (name, fill, reach) in reaches {
        text += &format!(
            "[[peers]]\nname = \"{name}\"\nnode_key = \"{}\"\nentity_key = \"{}\"\n{reach}\n",
            hex::encode(&NodeKey::from(secret(fill)).public),
            hex::encode(&EntityKey::from(secret(fill + 1)).public),
        );
    }
    let keys = Keys {
        node: secret(1).into(),
        entity: secret(2).into(),
        psk: secret(3),
    };
    Config::from_toml(&(text + more), Path::new("/etc/virga/us.toml"), keys).unwrap()
}

fn interface(name: &str, ifindex: u32, mtu: u32) -> Interface {
    Interface {
        name: name.into(),
        ifindex,
        mac: [2, 0, 0, 0, 0, u8::try_from(ifindex).unwrap()],
        mtu,
        is_up: true,
        peer_here: None,
        vlan: None,
        xdp_program: None,
    }
}

/// `one` behind eth0, `two` behind VLAN 5 on it; eth1 leads nowhere.
fn facts() -> Facts {
    let vlan = Interface {
        vlan: Some((ETH0, 5)),
        ..interface("eth0.5", ETH0_5, 1_400)
    };
    let link = |ifindex, source, gateway| KernelLink {
        ifindex,
        source: ip(source),
        gateway: ip(gateway),
        mac: Some([6; 6]),
        is_kept: true,
    };
    Facts {
        interfaces: [
            interface("eth0", ETH0, 1_500),
            interface("eth1", ETH1, 9_000),
            vlan,
        ]
        .map(|i| (i.ifindex, i))
        .into(),
        addresses: [ip("10.1.0.1"), ip("10.2.0.1"), ip("fd00::1")].into(),
        links: BTreeMap::from([
            (0, link(ETH0, "10.1.0.1", ONE)),
            (1, link(ETH0_5, "10.2.0.1", TWO)),
        ]),
    }
}

fn nic(config: &Config, facts: &Facts, down: &[usize]) -> Image {
    let down = down.iter().copied().collect();
    let place = |ifindex| Ok::<u32, Infallible>(ifindex + 100);
    of_nic(config, facts, &down, place).unwrap_or_else(|never| match never {})
}

fn next_hop<'a>(image: &'a Image, target: &str) -> &'a NextHop {
    let mut all = image.next_hops.values();
    all.find(|n| n.target == ip(target).into()).unwrap()
}

fn is_alive(image: &Image, target: &str) -> bool {
    next_hop(image, target).is(NextHop::ALIVE)
}

#[test]
fn where_nats_are_crossed_packets_leave_from_the_port_that_they_come_to() {
    let nat = "[routing]\nenabled = true\n[nat]\nenabled = true\n";
    for (more, port) in [("", 0), (nat, 4790)] {
        let image = nic(&config("0.0.0.0:4790", more), &facts(), &[]);
        assert_eq!(next_hop(&image, ONE).source_port, port);
    }
}

#[test]
fn a_vlan_device_is_the_interface_below_it_and_a_tag() {
    let image = nic(&config("0.0.0.0:4783", ""), &facts(), &[]);
    let (plain, tagged) = (next_hop(&image, ONE), next_hop(&image, TWO));
    assert_eq!((plain.ifindex, plain.vlan, plain.egress), (ETH0, 0, 102));
    assert_eq!((tagged.ifindex, tagged.vlan, tagged.egress), (ETH0, 5, 102));
    assert_eq!((plain.port, tagged.port), (4_783, 4_790));
    // The tag's room and the sender's address are the VLAN device's.
    assert_eq!((plain.mtu, tagged.mtu), (1_500, 1_400));
    assert_eq!(tagged.source_mac, [2, 0, 0, 0, 0, 4]);
    assert_eq!(tagged.target_mac, [6; 6]);
    let places: Vec<(u32, u32)> = image
        .neighbours
        .keys()
        .map(|p| (p.ifindex, p.vlan))
        .collect();
    assert_eq!(places, [(ETH0, 0), (ETH0, 5)]);
}

#[test]
fn an_address_that_is_listened_on_is_the_only_own_one_and_the_source_of_what_is_sent_on() {
    let own = |listen: &str| nic(&config(listen, ""), &facts(), &[]);
    let all = |addresses: &[&str]| addresses.iter().map(|a| ip(a).into()).collect();
    let any = own("0.0.0.0:4783");
    assert_eq!(any.addresses, all(&["10.1.0.1", "10.2.0.1"]));
    assert_eq!(next_hop(&any, TWO).source, ip("10.2.0.1").into());
    let one = own("10.1.0.1:5000");
    assert_eq!(one.addresses, all(&["10.1.0.1"]));
    assert_eq!(next_hop(&one, TWO).source, ip("10.1.0.1").into());
    assert_eq!((any.port, one.port), (4_783, 5_000));
}

#[test]
fn a_next_hop_is_alive_only_with_all_that_it_takes() {
    let config = config("0.0.0.0:4783", "");
    let both = |facts: &Facts, down: &[usize]| {
        let image = nic(&config, facts, down);
        [ONE, TWO].map(|target| is_alive(&image, target))
    };
    assert_eq!(both(&facts(), &[]), [true, true]);
    assert_eq!(both(&facts(), &[0]), [false, true], "marked by an operator");
    let mut unresolved = facts();
    unresolved.links.get_mut(&1).unwrap().mac = None;
    assert_eq!(both(&unresolved, &[]), [true, false]);
    let mut without_carrier = facts();
    without_carrier.interfaces.get_mut(&ETH0).unwrap().is_up = false;
    assert!(!both(&without_carrier, &[])[0]);
    let mut unrouted = facts();
    unrouted.links.remove(&0);
    assert_eq!(both(&unrouted, &[]), [false, true]);
    let image = nic(&config, &unrouted, &[]);
    assert_eq!(image.routes.len(), 3, "a route to each, dead or alive");
    assert_eq!(image.neighbours.len(), 1);
    let mut unknown = facts();
    unknown.interfaces.clear();
    assert_eq!(both(&unknown, &[]), [false, false]);
    assert_eq!(next_hop(&nic(&config, &unknown, &[]), TWO).mtu, MTU_UNKNOWN);
}

#[test]
fn destinations_lead_over_the_next_hops_that_the_file_names() {
    let config = config("0.0.0.0:4783", "");
    let image = nic(&config, &facts(), &[]);
    let key = |target: &str| NextHopKey::from(next_hop(&image, target));
    let via = |primary: &str, backup: Option<&str>| Via {
        primary: key(primary),
        backup: backup.map(key),
    };
    let ids: Vec<NodeId> = config.peers.iter().map(|peer| peer.id).collect();
    assert_eq!(image.routes.len(), 3);
    assert_eq!(image.routes[&ids[0]], via(ONE, None));
    assert_eq!(image.routes[&ids[1]], via(TWO, None));
    // Of two next hops, one whose link is dead gives way.
    let avoidable = |target: &str| NextHopKey {
        is_avoidable: true,
        ..key(target)
    };
    let mut image = image.clone();
    image.make_avoidable();
    let either = Via {
        primary: avoidable(ONE),
        backup: Some(avoidable(TWO)),
    };
    assert_eq!(image.routes[&ids[2]], either);
    assert_eq!(image.node_id, config.node.id);
}

#[test]
fn a_dead_link_is_avoided_where_there_is_another_and_used_where_there_is_none() {
    let made = |down: &[usize]| {
        let mut image = nic(&config("0.0.0.0:4783", ""), &facts(), down);
        image.make_avoidable();
        image
    };
    let mut image = made(&[]);
    let states = |image: &Image, target: &str| {
        let there = image.next_hops.values();
        let there = there.filter(|n| n.target == ip(target).into());
        let state = |n: &NextHop| (n.is(NextHop::AVOIDABLE), n.is(NextHop::ALIVE));
        there.map(state).collect::<Vec<_>>()
    };
    assert_eq!(states(&image, ONE), [(false, true), (true, true)]);
    image.avoid(ip(ONE).into(), 4_783);
    assert_eq!(states(&image, ONE), [(false, true), (true, false)]);
    assert_eq!(states(&image, TWO), [(false, true), (true, true)]);
    let down = made(&[0]);
    assert_eq!(states(&down, ONE), [(false, false), (true, false)]);
}

#[test]
fn a_links_subnet_is_enforced_under_its_prefix() {
    let image = nic(&config("0.0.0.0:4783", ""), &facts(), &[]);
    let links: Vec<Link> = image.neighbours.values().copied().collect();
    let subnet = Subnet(0x0709_0000);
    let mask = 0xffff_0000;
    let held = |subnet, mask| Link {
        subnet,
        mask,
        ..Link::default()
    };
    assert_eq!(links, [Link::default(), held(subnet, mask)]);
    for mask in [0, 1 << 31, 0xff00_0000, u32::MAX] {
        let mut peer = config("0.0.0.0:4783", "").peers[1].clone();
        peer.subnet.as_mut().unwrap().mask = mask;
        // What lies below the link's bits is the peer's alone.
        assert_eq!(enforced(&peer), held(Subnet(subnet.0 & mask), mask));
    }
    let two = config("0.0.0.0:4783", "").peers[1].id;
    assert_eq!((image.subnet_of(two), image.subnet), (subnet, Subnet(0)));
}

#[test]
fn publishers_and_every_members_control_traffic_are_authorised_and_rates_become_intervals() {
    let channel = |name: &str, rest: &str| {
        format!("[[channels]]\nname = \"{name}\"\npublish = [\"us\", \"one\"]\n{rest}\n")
    };
    let text = channel("slow", "max_rate_pps = 1") + &channel("fast", "max_rate_pps = 20000");
    let config = config("0.0.0.0:4783", &(text + &channel("free", "")));
    let image = nic(&config, &facts(), &[]);
    let origin = |name: &str| -> OriginHash { config.peer(name).unwrap().origin };
    let [slow, fast, free] = [0, 1, 2].map(|n| config.channels[n].hash);
    let mut pairs: BTreeSet<Pair> = [slow, fast, free]
        .map(|hash| Pair::new(origin("one"), hash))
        .into();
    pairs.extend(["one", "two", "far"].map(|name| Pair::new(origin(name), ChannelHash(0))));
    assert_eq!(
        image.pairs, pairs,
        "what this node itself sends passes no guard"
    );
    let rules = |interval_ns, tolerance_ns| ChannelRules {
        interval_ns,
        tolerance_ns,
        visibility: Visibility::Global,
        ..ChannelRules::default()
    };
    let channels = [
        (slow.0, rules(1_000_000_000, 1_000_000_000)),
        (fast.0, rules(50_000, 100_000_000)),
        (free.0, rules(0, 0)),
    ];
    assert_eq!(image.channels, channels.into());
}

#[test]
fn user_space_takes_the_kernels_way_and_trusts_it_where_nothing_is_known() {
    let config = config("0.0.0.0:4783", "");
    let image = of_userspace(&config, &facts(), &Down::from([0]));
    assert!(!is_alive(&image, ONE) && is_alive(&image, TWO));
    let tagged = next_hop(&image, TWO);
    assert_eq!((tagged.ifindex, tagged.vlan, tagged.mtu), (0, 0, 1_400));
    assert_eq!(image.routes.len(), 3);
    assert_eq!(image.neighbours.len(), 2);
    let mut unrouted = facts();
    unrouted.links.remove(&1);
    assert!(!is_alive(
        &of_userspace(&config, &unrouted, &Down::new()),
        TWO
    ));
    let image = of_userspace(&config, &Facts::default(), &Down::new());
    assert!(is_alive(&image, ONE) && is_alive(&image, TWO));
    assert_eq!(next_hop(&image, ONE).mtu, MTU_UNKNOWN);
}

#[test]
fn a_worker_beside_a_nic_path_sends_on_only_what_comes_in_elsewhere() {
    let config = config("0.0.0.0:4783", "");
    let mut facts = facts();
    let places = |facts: &Facts, interfaces: &[&str]| -> Vec<(u32, u32)> {
        let interfaces: Vec<String> = interfaces.iter().map(|i| (*i).to_owned()).collect();
        let image = of_worker(&config, facts, &Down::new(), &interfaces);
        assert_eq!(image.routes.len(), 3, "it sends to all by itself");
        image
            .neighbours
            .keys()
            .map(|p| (p.ifindex, p.vlan))
            .collect()
    };
    // The frames of eth0.5 pass the program on eth0; the socket sees them without their tag.
    assert_eq!(places(&facts, &["eth0"]), []);
    assert_eq!(places(&facts, &["eth1"]), [(ETH0, 0), (ETH0_5, 0)]);
    facts.links.get_mut(&0).unwrap().ifindex = ETH1;
    assert_eq!(places(&facts, &["eth0"]), [(ETH1, 0)]);
    assert_eq!(places(&facts, &["eth1"]), [(ETH0_5, 0)]);
}

fn rated(image: &Image) -> usize {
    let rules = image.channels.values();
    rules.filter(|rules| rules.interval_ns != 0).count()
}

#[test]
fn a_worker_measures_rates_only_where_something_comes_in_beside_the_nic_path() {
    let channel = "[[channels]]\nname = \"a\"\npublish = [\"one\"]\nmax_rate_pps = 100\n";
    let config = config("0.0.0.0:4783", channel);
    let rates = |interfaces: &[&str]| {
        let interfaces: Vec<String> = interfaces.iter().map(ToString::to_string).collect();
        let image = of_worker(&config, &facts(), &Down::new(), &interfaces);
        rated(&image)
    };
    assert_eq!(rates(&["eth0"]), 0);
    assert_eq!(rates(&["eth1"]), 1);
    let alone = of_userspace(&config, &facts(), &Down::new());
    assert_eq!(rated(&alone), 1);
}

#[test]
fn user_space_knows_neighbours_by_the_interface_to_them_where_the_kernel_tells() {
    let config = config("0.0.0.0:4783", "");
    let places = |facts: &Facts| -> Vec<Place> {
        let image = of_userspace(&config, facts, &Down::new());
        image.neighbours.into_keys().collect()
    };
    let place = |ifindex, address| Place::new(ifindex, ip(address).into());
    assert_eq!(places(&facts()), [place(ETH0, ONE), place(ETH0_5, TWO)]);
    let mut unrouted = facts();
    unrouted.links.remove(&0);
    assert_eq!(places(&unrouted), [place(ETH0_5, TWO)]);
    assert_eq!(places(&Facts::default()), [place(0, ONE), place(0, TWO)]);
}
