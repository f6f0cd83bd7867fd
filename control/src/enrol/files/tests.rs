//! What is written for a node is a configuration, and says what was meant.

use super::*;
use crate::{
    config::{Reach, Workers},
    keys::{EntityKey, NodeKey, Secret},
};
use std::os::unix::fs::PermissionsExt as _;

fn keys() -> Keys {
    Keys {
        node: NodeKey::from(Secret::generate().unwrap()),
        entity: EntityKey::from(Secret::generate().unwrap()),
        psk: Secret::generate().unwrap(),
    }
}

fn node<'a>(network: &'a str, interfaces: &'a [String]) -> NodeFile<'a> {
    NodeFile {
        name: "a",
        network,
        psk_generation: 7,
        listen: "0.0.0.0:4783".parse().unwrap(),
        subnet: Some("1.2.0.0"),
        socket: Some(Path::new("/run/a \"b\"/s.sock")),
        state: None,
        interfaces,
        routing: Some(ByEach::Subnet),
    }
}

fn other(keys: &Keys) -> Other<'static> {
    Other {
        name: "b",
        node_key: keys.node.public,
        entity_key: keys.entity.public,
        address: "192.0.2.7:4783".parse().unwrap(),
        subnet: Some("1.2.0.0"),
    }
}

#[test]
fn a_new_nodes_file_says_what_was_meant_whatever_its_words() {
    let (ours, theirs) = (keys(), keys());
    let interfaces = ["eth0".to_owned(), "eth1.5".to_owned()];
    let network = "it's \"ours\" \\ = [ünd]";
    let text = node(network, &interfaces).text() + &other(&theirs).blocks("a", "a");
    let config = Config::from_toml(&text, Path::new("/x/node.toml"), ours).unwrap();
    assert_eq!(config.node.network, network);
    assert_eq!(config.node.psk_generation, 7);
    assert_eq!(config.node.workers, Workers::Auto);
    assert_eq!(config.node.node_key_file, Path::new("/x/node.key"));
    assert_eq!(config.node.socket, Path::new("/run/a \"b\"/s.sock"));
    assert_eq!(config.forwarding.interfaces, interfaces);
    assert!(config.routing.is_enabled);
    let peer = config.peer("b").unwrap();
    assert_eq!(peer.node_key, theirs.node.public.into());
    let at = "192.0.2.7:4783".parse().unwrap();
    assert!(matches!(peer.reach, Reach::Adjacent { address, .. } if address == at));
    assert_eq!(config.channels[0].name.to_string(), channel("a"));
}

#[test]
fn blocks_are_added_where_they_keep_the_file_a_configuration_and_all_else_stays() {
    let folder = tempfile::tempdir().unwrap();
    let mut new = NewNode::begin(folder.path()).unwrap();
    let text = node("n", &[]).text() + "# no end of line";
    let config = new.write_config(&text, keys()).unwrap();
    new.keep();
    let path = folder.path().join(NODE_FILE);
    let mode = fs::Permissions::from_mode(0o640);
    fs::set_permissions(&path, mode.clone()).unwrap();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();

    let blocks = other(&keys()).blocks("a", "b");
    let longer = with_blocks(&config, &blocks).unwrap();
    assert!(longer.starts_with(&text) && longer.ends_with(&blocks));
    replace(&link, &longer).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), longer);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
    assert!(link.is_symlink());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    // The same name again is none.
    let refused = with_blocks(&config, &blocks).unwrap_err();
    assert!(matches!(refused, FilesError::Config(_)), "{refused}");
}

#[test]
fn files_of_a_node_that_does_not_come_to_be_are_gone_again() {
    let folder = tempfile::tempdir().unwrap();
    let files = || fs::read_dir(folder.path()).unwrap().count();
    let mut new = NewNode::begin(folder.path()).unwrap();
    new.write_key(KeyKind::Node, &keys().node.secret).unwrap();
    assert!(new.write_config("[node]\n", keys()).is_err());
    assert_eq!(files(), 1);
    assert!(NewNode::begin(folder.path()).is_err());
    drop(new);
    assert_eq!(files(), 0);
}
