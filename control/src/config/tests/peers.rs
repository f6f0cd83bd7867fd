//! Every rule of the `[[peers]]` blocks, broken.

use super::*;

#[test]
fn rules_of_a_peer() {
    let mesh_with = |block: String| mesh() + &block;
    let adjacent = "address = \"10.0.0.9:4783\"";
    for (block, key, say) in [
        (peer("P", 40, adjacent), "name", "a-z"),
        (peer("p", 40, ""), "address", "no way leads to this peer"),
        (
            peer("p", 40, "address = \"10.0.0.9:1\"\nvia = [\"one\"]"),
            "via",
            "stands beside `address`",
        ),
        (
            peer("p", 40, "address = \"0.0.0.0:1\""),
            "address",
            "no destination",
        ),
        (
            peer("p", 40, "address = \"[fd00::1]:1\""),
            "address",
            "family",
        ),
        (
            peer("p", 40, "via = [\"one\"]\ninterface = \"eth0\""),
            "interface",
            "no address",
        ),
        (
            peer("p", 40, "via = [\"one\"]\nsubnet = \"1.0.0.0/8\""),
            "subnet",
            "write \"1.0.0.0\"",
        ),
        (
            format!(
                "\n[[peers]]\nname = \"p\"\nentity_key = \"{}\"\nsubnet = \"1.0.0.0\"\n",
                entity_key(41)
            ),
            "subnet",
            "gives an entity a name",
        ),
        (peer("p", 40, "via = []"), "via", "names 0 next hops"),
        (
            peer("p", 40, "via = [\"one\", \"two\", \"one\"]"),
            "via",
            "names 3 next hops",
        ),
        (
            peer("p", 40, "via = [\"one\", \"one\"]"),
            "via",
            "named twice",
        ),
        (peer("p", 40, "via = [\"p\"]"), "via", "the peer itself"),
        (peer("p", 40, "via = [\"us\"]"), "via", "this node itself"),
        (peer("p", 40, "via = [\"far\"]"), "via", "has no address"),
        (
            peer("p", 40, "via = [\"onne\"]"),
            "via",
            "did you mean `one`?",
        ),
        (
            peer("p", 40, &format!("{adjacent}\nsubnet = \"1.0.0.0/33\"")),
            "subnet",
            "not a length",
        ),
        (
            peer("p", 40, &format!("{adjacent}\ninterface = \"\"")),
            "interface",
            "not an interface name",
        ),
        (
            peer("one", 40, adjacent),
            "name",
            "the same as that of peer \"one\"",
        ),
        (peer("us", 40, adjacent), "name", "this node itself"),
        (
            peer("p", 40, "address = \"10.0.0.2:4783\""),
            "address",
            "peer \"one\"",
        ),
        (
            peer("p", 40, "address = \"10.0.0.1:4783\""),
            "address",
            "this node itself",
        ),
        (
            peer(
                "p",
                40,
                "address = \"10.0.0.2:4784\"\nsubnet = \"1.0.0.0/8\"",
            ),
            "subnet",
            "another peer at 10.0.0.2",
        ),
        (
            peer("p", 40, "via = [\"one\"]\nlink_tags = \"auto\""),
            "link_tags",
            "has no address",
        ),
    ] {
        refused(&mesh_with(block), &format!("peers[3].{key}"), say);
    }
}

#[test]
fn link_tags_that_are_required_need_an_address_of_their_own() {
    let required = "address = \"10.0.0.2:4784\"\nlink_tags = \"require\"";
    let shared = mesh() + &peer("p", 40, required);
    refused(&shared, "link_tags", "\"one\" has the same IP address");
}

#[test]
fn rules_of_a_peers_keys() {
    let block = |node_key: &str, entity_key: &str| {
        let rest = "address = \"10.0.0.9:4783\"";
        let lines = format!("node_key = \"{node_key}\"\nentity_key = \"{entity_key}\"\n{rest}\n");
        mesh() + "\n[[peers]]\nname = \"p\"\n" + &lines
    };
    let (node, entity) = (node_key(40), entity_key(41));
    assert!(parse(&block(&node, &entity)).is_ok());
    refused(&block("abcd", &entity), "peers[3].node_key", "4 characters");
    refused(
        &block(&node.replace(['a', '1', '2', '3'], "x"), &entity),
        "peers[3].node_key",
        "'x'",
    );
    refused(
        &block(&"00".repeat(32), &entity),
        "peers[3].node_key",
        "low order",
    );
    refused(
        &block(&node, &"00".repeat(32)),
        "peers[3].entity_key",
        "weak",
    );
    refused(
        &block(&node, &format!("02{}", "00".repeat(31))),
        "peers[3].entity_key",
        "not a point",
    );
    refused(
        &block(&node_key(10), &entity),
        "peers[3].node_key",
        "peer \"one\"",
    );
    refused(
        &block(&node_key(1), &entity),
        "peers[3].node_key",
        "this node itself",
    );
    refused(
        &block(&node, &entity_key(11)),
        "peers[3].entity_key",
        "peer \"one\"",
    );
    refused(
        &block(&node, &entity_key(2)),
        "peers[3].entity_key",
        "this node itself",
    );
}

#[test]
fn a_node_can_be_named_by_its_id_until_the_first_contact() {
    let id = |fill: u8| NodeKey::from(secret(fill)).id;
    let (entity, id_40) = (entity_key(41), id(40));
    let block = |id: &str, rest: &str| {
        mesh()
            + &format!(
                "\n[[peers]]\nname = \"e\"\nnode_id = \"{id}\"\nentity_key = \"{entity}\"\n{rest}\n"
            )
    };
    let (text, at) = (id_40.to_string(), "address = \"10.0.0.9:1\"");
    let config = parse(&block(&text, at)).unwrap();
    let peer = config.peer("e").unwrap();
    assert_eq!((peer.id, peer.node_key), (id_40, PeerKey::Id(id_40)));
    assert!(peer.is_adjacent());
    let key = node_key(40);
    for (text, rest, key, say) in [
        ("12", at.to_owned(), "node_id", "16 hex digits"),
        (&text, String::new(), "address", "no way leads"),
        (
            &text,
            format!("{at}\nnode_key = \"{key}\""),
            "node_id",
            "beside",
        ),
        (
            &text,
            format!("{at}\nfallback = [\"tcp://10.0.0.9:1\"]"),
            "fallback",
            "node key",
        ),
        (
            &id(10).to_string(),
            at.to_owned(),
            "node_id",
            "peer \"one\"",
        ),
        (
            &id(1).to_string(),
            at.to_owned(),
            "node_id",
            "this node itself",
        ),
    ] {
        refused(&block(text, &rest), &format!("peers[3].{key}"), say);
    }
}

#[test]
fn a_block_without_a_node_key_names_an_entity() {
    let entity = entity_key(41);
    let text = mesh() + &format!("\n[[peers]]\nname = \"e\"\nentity_key = \"{entity}\"\n");
    let config = parse(&(text.clone() + &channel("a", "subscribe = [\"e\"]"))).unwrap();
    assert_eq!(config.peers.len(), 3);
    assert_eq!(
        hex::encode(&config.channels[0].subscribe.named()[0].key),
        entity
    );
    assert_eq!(
        config.entity_name(&config.channels[0].subscribe.named()[0].key),
        Some("e")
    );
    refused(
        &(text.clone() + "address = \"10.0.0.9:1\"\n"),
        "peers[3].node_key",
        "is missing",
    );
    refused(
        &(text.clone() + "via = [\"one\"]\n"),
        "peers[3].node_key",
        "is missing",
    );
    refused(
        &(text + &peer("p", 50, "via = [\"e\"]")),
        "peers[4].via",
        "not a peer with an address",
    );
}

#[test]
fn a_broken_neighbour_does_not_make_its_users_wrong() {
    let text = mesh().replace("address = \"10.0.0.2:4783\"", "address = \"x\"");
    refused(
        &(text + &channel("a", "subscribe = [\"one\"]")),
        "peers[0].address",
        "IP address",
    );
    let text = mesh().replace(&entity_key(11), "x");
    refused(
        &(text + &channel("a", "subscribe = [\"one\"]")),
        "peers[0].entity_key",
        "not a hex digit",
    );
}
