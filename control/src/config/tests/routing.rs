//! Peers that neighbours say the way to.

use super::*;

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
