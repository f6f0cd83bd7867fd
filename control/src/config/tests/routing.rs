//! Peers that neighbours say the way to.

use super::*;
use std::{collections::BTreeMap, net::SocketAddr};

const LEARNS: &str = "[routing]\nenabled = true\n";

#[test]
fn a_peer_without_any_way_is_found_by_what_neighbours_say_where_routing_is_on() {
    let near = peer("near", 40, "address = \"10.0.0.9:4783\"");
    let far = peer("far", 50, "subnet = \"1.2.0.0\"");
    let config = parse(&format!("{NODE}{LEARNS}{near}{far}")).unwrap();
    assert!(config.routing.is_enabled);
    assert_eq!(config.peers[1].reach, Reach::Learned);
    assert_eq!(config.peers[1].place().subnet, Subnet(0x0102_0000));
    refused(
        &format!("{NODE}{near}{far}"),
        "peers[1].address",
        "no way leads to this peer",
    );
}

#[test]
fn routing_is_off_where_nothing_is_said_and_half_of_it_is_refused() {
    assert_eq!(parse(NODE).unwrap().routing, RoutingSection::default());
    let by_subnet = format!("{NODE}[routing]\nby_subnet = true\n");
    refused(&by_subnet, "routing.by_subnet", "none are");
    let length = format!(
        "{NODE}{LEARNS}{}",
        peer("far", 50, "subnet = \"1.2.0.0/8\"")
    );
    refused(&length, "peers[0].subnet", "has a /length");
    let learned = peer("far", 50, "");
    let behind = peer("farther", 60, "via = [\"far\"]");
    refused(
        &format!("{NODE}{LEARNS}{learned}{behind}"),
        "peers[1].via",
        "is no next hop",
    );
}

#[test]
fn ways_through_nats_need_learned_routes_and_watched_links() {
    const NAT: &str = "[nat]\nenabled = true\n";
    assert!(
        !parse(&format!("{NODE}{LEARNS}"))
            .unwrap()
            .routing
            .crosses_nats
    );
    let on = parse(&format!("{NODE}{LEARNS}{NAT}")).unwrap();
    assert!(on.routing.crosses_nats);
    let unwatched = "[forwarding]\nmode = \"userspace\"\nkeepalive_ms = 0\n";
    for text in [
        format!("{NODE}{NAT}"),
        format!("{NODE}{LEARNS}{unwatched}{NAT}"),
    ] {
        refused(&text, "nat.enabled", "needs learned routes");
    }
    let off = format!("{NODE}[nat]\nenabled = false\n");
    assert!(!parse(&off).unwrap().routing.crosses_nats);
    let mapped = format!("{NODE}{LEARNS}{NAT}port_mapping = true\n");
    assert!(!on.routing.maps_ports && parse(&mapped).unwrap().routing.maps_ports);
    let useless = format!("{NODE}[nat]\nport_mapping = true\n");
    refused(&useless, "nat.port_mapping", "nobody is told");
}

#[test]
fn a_peer_that_may_be_reached_through_nats_may_carry_more_than_its_own_subnet_and_have_link_tags() {
    const NAT: &str = "[nat]\nenabled = true\n";
    let far = peer("far", 50, "subnet = \"1.1.0.0/8\"\nlink_tags = \"require\"");
    let config = parse(&format!("{NODE}{LEARNS}{NAT}{far}")).unwrap();
    let punched = [(config.peers[0].id, "192.0.2.1:7".parse().unwrap())].into();
    let near = &config.with_punched(&punched).peers[0];
    assert!(near.is_adjacent());
    assert_eq!(near.place().to_string(), "1.1.0.0/8");
    let off = format!("{NODE}{LEARNS}{far}");
    let keys: Vec<_> = problems(&off)
        .into_iter()
        .map(|problem| problem.key)
        .collect();
    assert_eq!(keys, ["peers[0].subnet", "peers[0].link_tags"]);
    let via = peer("via", 60, "via = [\"near\"]\nsubnet = \"1.1.0.0/8\"");
    let near = peer("near", 40, "address = \"10.0.0.9:4783\"");
    let behind = format!("{NODE}{LEARNS}{NAT}{near}{via}");
    refused(&behind, "peers[1].subnet", "has a /length");
}

#[test]
fn who_was_reached_through_nats_is_a_neighbour_there_unless_another_has_its_ip_address() {
    let near = peer("near", 40, "address = \"10.0.0.9:4783\"");
    let [far, farther] = [("far", 50), ("farther", 60)].map(|(name, fill)| peer(name, fill, ""));
    let config = parse(&format!("{NODE}{LEARNS}{near}{far}{farther}")).unwrap();
    let at = |text: &str| text.parse::<SocketAddr>().unwrap();
    let with = |addresses: [&str; 3]| {
        let ids = config.peers.iter().map(|peer| peer.id);
        let punched: BTreeMap<_, _> = ids.zip(addresses.map(at)).collect();
        let reaches = config.with_punched(&punched).peers;
        reaches
            .into_iter()
            .map(|peer| match peer.reach {
                Reach::Adjacent { address, .. } => address.to_string(),
                _ => String::new(),
            })
            .collect::<Vec<_>>()
    };
    let one = with(["192.0.2.9:1", "192.0.2.1:7", "192.0.2.2:8"]);
    assert_eq!(one, ["10.0.0.9:4783", "192.0.2.1:7", "192.0.2.2:8"]);
    // The neighbour's own address is the file's, and nobody else's.
    let taken = with(["192.0.2.9:1", "10.0.0.9:7", "192.0.2.2:8"]);
    assert_eq!(taken, ["10.0.0.9:4783", "", "192.0.2.2:8"]);
    let mut shared = with(["192.0.2.9:1", "192.0.2.1:7", "192.0.2.1:8"]);
    shared.retain(|address| !address.is_empty());
    assert_eq!(shared.len(), 2, "{shared:?}");
}
