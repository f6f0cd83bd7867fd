//! Every other rule, broken.

use super::*;
use std::fmt::Write as _;

#[test]
fn rules_of_the_node_section() {
    let with = |from: &str, to: &str| NODE.replace(from, to);
    refused(&with("\"us\"", "\"Us\""), "node.name", "a-z");
    refused(
        &with("10.0.0.1:4783", "10.0.0.1"),
        "node.listen",
        "IP address and port",
    );
    for missing in [
        "name",
        "network",
        "node_key_file",
        "entity_key_file",
        "psk_file",
        "listen",
    ] {
        let text: String = NODE
            .lines()
            .filter(|line| !line.starts_with(&format!("{missing} ")))
            .fold(String::new(), |mut text, line| {
                writeln!(text, "{line}").unwrap();
                text
            });
        refused(
            &text,
            &format!("node.{missing}"),
            "is missing; add a line such as: ",
        );
    }
    for (line, key, say) in [
        ("subnet = \"1.0.0.0/8\"", "node.subnet", "four levels"),
        (
            "psk_generation = 65536",
            "node.psk_generation",
            "0 to 65535",
        ),
        ("socket = \"run/a.sock\"", "node.socket", "absolute"),
        (
            "socket_group = \"\"",
            "node.socket_group",
            "leave the key out",
        ),
        ("worker_cores = [-1]", "node.worker_cores", "0 to 1023"),
        ("worker_cores = []", "node.worker_cores", "at least one"),
        ("worker_cores = [1, 1]", "node.worker_cores", "twice"),
        (
            "workers = 2\nworker_cores = [1]",
            "node.worker_cores",
            "leave `workers` out",
        ),
        ("congestion = \"Cubic\"", "node.congestion", "\"bbr\""),
        ("workers = 0", "node.workers", "1 to 256"),
        ("congestion = \"reno\"", "node.congestion", "cubic"),
        ("workers = 257", "node.workers", "1 to 256"),
        ("workers = \"all\"", "node.workers", "\"auto\""),
        (
            "workers = true",
            "node.workers",
            "a whole number or \"auto\"",
        ),
        ("driver = \"urng\"", "node.driver", "uring"),
        ("busy_poll_us = 0", "node.busy_poll_us", "1 to 10000"),
        ("wake_completions = 1", "node.wake_completions", "2 to 32"),
        ("zero_copy = 1", "node.zero_copy", "a boolean"),
    ] {
        refused(&format!("{NODE}{line}\n"), key, say);
    }
}

#[test]
fn a_driver_and_its_polling_are_as_the_file_says() {
    for choice in Choice::ALL {
        let lines = format!("driver = \"{}\"\nbusy_poll_us = 50\n", choice.name());
        let driver = parse(&format!("{NODE}{lines}")).unwrap().node.driver;
        assert_eq!((driver.choice, driver.busy_poll_us), (*choice, Some(50)));
        assert_eq!(driver.batching, None);
    }
    let node = parse(&format!("{NODE}wake_completions = 8\nzero_copy = true\n"));
    let node = node.unwrap().node;
    assert_eq!(node.driver.batching.map(|b| b.completions), Some(8));
    assert_eq!(node.zero_copy, ZeroCopy::Listed);
    assert_eq!(parse(NODE).unwrap().node.zero_copy, ZeroCopy::Off);
}

#[test]
fn workers_are_a_number_a_word_or_their_cores() {
    let workers = |lines: &str| parse(&format!("{NODE}{lines}\n")).unwrap().node.workers;
    assert_eq!(workers("workers = 256"), Workers::Number(256));
    assert_eq!(workers("workers = \"auto\""), Workers::Auto);
    let cores = Workers::Cores(vec![3, 0]);
    assert_eq!(workers("worker_cores = [3, 0]"), cores);
    assert_eq!(workers("workers = 2\nworker_cores = [3, 0]"), cores);
}

#[test]
fn rules_of_the_forwarding_section() {
    for (lines, key, say) in [
        (
            "mode = \"fast\"",
            "forwarding.mode",
            "known are `auto`, `native`",
        ),
        (
            "mode = \"native\"",
            "forwarding.interfaces",
            "needs interfaces",
        ),
        (
            "mode = \"generic\"\ninterfaces = []",
            "forwarding.interfaces",
            "needs interfaces",
        ),
        (
            "interfaces = [\"a/b\"]",
            "forwarding.interfaces",
            "not an interface name",
        ),
        (
            "interfaces = [\"a\", \"a\"]",
            "forwarding.interfaces",
            "named twice",
        ),
        (
            "destinations_max = 0",
            "forwarding.destinations_max",
            "1 to",
        ),
        ("link_tags = \"on\"", "forwarding.link_tags", "auto"),
        ("link_key_s = 4", "forwarding.link_key_s", "5 to"),
        ("keepalive_ms = -1", "forwarding.keepalive_ms", "0 to"),
        (
            "detect_multiplier = 1",
            "forwarding.detect_multiplier",
            "2 to",
        ),
    ] {
        refused(&format!("{NODE}[forwarding]\n{lines}\n"), key, say);
    }
    let few = mesh() + "\n[forwarding]\ndestinations_max = 2\n";
    refused(&few, "forwarding.destinations_max", "3 to");
    for (mode, expected) in [
        ("native", ForwardingMode::Native),
        ("generic", ForwardingMode::Generic),
    ] {
        let text = format!("{NODE}[forwarding]\nmode = \"{mode}\"\ninterfaces = [\"eth0\"]\n");
        assert_eq!(parse(&text).unwrap().forwarding.mode, expected);
        assert_eq!(expected.to_string(), mode);
    }
}

#[test]
fn rules_of_a_channel() {
    for (block, key, say) in [
        (channel("a//b", ""), "name", "slash"),
        (channel("a/$host", ""), "name", "placeholder"),
        (channel("a", "salt = -1"), "salt", "0 to 4294967295"),
        (channel("a", "priority = 7"), "priority", "0 to 6"),
        (channel("a", "max_rate_pps = 0"), "max_rate_pps", "1 to"),
        (channel("a", "hold_max_s = 0"), "hold_max_s", "1 to 86400"),
        (
            channel("a", "signed = true\nfan_out = 65"),
            "fan_out",
            "0 to 64",
        ),
        (
            channel("a", "fan_out = 2"),
            "fan_out",
            "add signed = true, or remove it",
        ),
        (
            channel("a", "reliable = false\nhold_max_s = 5"),
            "hold_max_s",
            "belongs to a reliable channel",
        ),
        (
            channel("a", "reliable = false\nordered = true"),
            "ordered",
            "belongs to a reliable channel",
        ),
        (
            channel("a", "subscribe = [\"fra\"]"),
            "subscribe",
            "did you mean `far`?",
        ),
        (
            channel("a", "subscribe = [\"far\", \"far\"]"),
            "subscribe",
            "already",
        ),
        (
            channel("a", &format!("subscribe = [\"{}\"]", "00".repeat(32))),
            "subscribe",
            "weak",
        ),
        (
            channel(
                "a",
                &format!("subscribe = [\"far\", \"{}\"]", entity_key(31)),
            ),
            "subscribe",
            "already",
        ),
        (
            "[[channels]]\nname = \"a\"\n".into(),
            "publish",
            "is missing",
        ),
        (
            "[[channels]]\npublish = [\"us\"]\n".into(),
            "name",
            "is missing",
        ),
        (
            "[[channels]]\nname = \"a\"\npublish = []\n".into(),
            "publish",
            "is empty",
        ),
    ] {
        refused(&(mesh() + &block), &format!("channels[0].{key}"), say);
    }
    let twice = mesh() + &channel("a/us", "") + &channel("a/$node", "salt = 1");
    let problem = refused(&twice, "channels[1].name", "configured on line");
    assert_eq!(problem.line, twice.lines().count() - 2);
}

#[test]
fn two_channels_on_one_hash_are_refused_with_a_salt_that_works() {
    let taken = hash::channel_hash(0, "a");
    let other = (0u32..)
        .map(|number| format!("b{number}"))
        .find(|name| hash::channel_hash(0, name) == taken)
        .unwrap();
    let text = |rest| mesh() + &channel("a", "") + &channel(&other, rest);
    let problem = refused(&text(""), "channels[1].salt", "share the hash");
    let salt = problem
        .fix
        .split("salt = ")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap();
    let config = parse(&text(&format!("salt = {salt}"))).unwrap();
    assert_ne!(config.channels[0].hash, config.channels[1].hash);
}

#[test]
fn too_many_neighbours_and_routes() {
    let mut text = NODE.to_owned();
    for number in 0..=virga_ebpf::limits::NEIGHBOURS_MAX {
        let key = |domain: &[u8]| Secret::new(hash::keyed(domain, &[&number.to_be_bytes()]));
        let node_key = hex::encode(&NodeKey::from(key(b"node")).public);
        let entity_key = hex::encode(&EntityKey::from(key(b"entity")).public);
        writeln!(
            text,
            "[[peers]]\nname = \"n{number}\"\nnode_key = \"{node_key}\"\nentity_key = \"{entity_key}\"\naddress = \"10.1.{}.{}:1\"",
            number >> 8,
            number & 255,
        )
        .unwrap();
    }
    refused(&text, "peers[1024].address", "one neighbour too many");
}

#[test]
fn a_session_carries_no_more_channels_than_it_has_streams() {
    let streams_max = virga_transport::NodeLimits::default().streams_max;
    let mut hashes = BTreeSet::new();
    let names: Vec<String> = (0..)
        .map(|number| format!("c/{number}"))
        .filter(|name| hashes.insert(ChannelName::parse(name).unwrap().hash(0)))
        .take(streams_max + 1)
        .collect();
    for (publish, subscribe, say) in [
        ("us", "one", "is channel 1025 to one"),
        ("one", "us", "is channel 1025 from one"),
    ] {
        let block = |name: &String| {
            format!(
                "\n[[channels]]\nname = \"{name}\"\npublish = [\"{publish}\"]\nsubscribe = [\"{subscribe}\", \"us\"]\n"
            )
        };
        let with = |names: &[String]| {
            let blocks: String = names.iter().map(block).collect();
            let both = blocks.replace("[\"us\", \"us\"]", "[\"us\"]");
            format!("{}{both}", mesh())
        };
        parse(&with(&names[..streams_max])).unwrap();
        refused(&with(&names), "channels[1024].name", say);
    }
}

#[test]
fn tokens_and_their_issuers() {
    let with = |rest: &str| mesh() + &channel("a", rest);
    let accepted = parse(&with("require_token = true\nissuers = [\"one\", \"us\"]")).unwrap();
    let issuers: Vec<_> = accepted.channels[0].issuers.iter().map(|i| i.key).collect();
    assert_eq!(
        issuers,
        [accepted.peers[0].entity_key, accepted.keys.entity.public]
    );
    assert!(
        parse(&with("require_token = false")).unwrap().channels[0]
            .issuers
            .is_empty()
    );
    // Lists that are left out keep nobody out, where a token is required; an empty one keeps all out.
    let issued = "require_token = true\nissuers = [\"one\"]";
    let open = with(issued).replace("publish = [\"us\"]\n", "");
    let open = &parse(&open).unwrap().channels[0];
    assert_eq!(
        (&open.publish, &open.subscribe),
        (&Listed::Anyone, &Listed::Anyone)
    );
    let closed = parse(&with(&format!("{issued}\nsubscribe = []"))).unwrap();
    assert_eq!(closed.channels[0].subscribe, Listed::Only(Vec::new()));
    let without = with("").replace("publish = [\"us\"]\n", "");
    refused(&without, "channels[0].publish", "");
    for (rest, key, say) in [
        (
            "require_token = true",
            "channels[0].require_token",
            "name who may issue them",
        ),
        (
            "require_token = true\nissuers = []",
            "channels[0].issuers",
            "nothing can pass",
        ),
        (
            "issuers = [\"one\"]",
            "channels[0].issuers",
            "add require_token = true",
        ),
        (
            "require_token = false\nissuers = [\"one\"]",
            "channels[0].issuers",
            "add require_token = true",
        ),
        (
            "require_token = true\nissuers = [\"on\"]",
            "channels[0].issuers",
            "did you mean `one`?",
        ),
        (
            "require_token = true\nissuers = [\"one\", \"one\"]",
            "channels[0].issuers",
            "name each once",
        ),
    ] {
        refused(&with(rest), key, say);
    }
}

#[test]
fn token_files_are_read_and_must_be_this_entitys() {
    use crate::{
        keys::{EntityKey, Secret},
        rights::{Chain, Grant, Operation, Operations, Reach, Scope, file},
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("one.token");
    let issuer = EntityKey::from(Secret::new([77; 32]));
    let write = |subject: [u8; 32]| {
        let grant = Grant {
            subject,
            scope: Scope::new(&ChannelName::parse("a").unwrap(), Reach::Channel),
            operations: Operations::new(&[Operation::Publish]).unwrap(),
            delegations: 0,
            not_before_s: 0,
            not_after_s: 1,
            generation: 0,
            nonce: [0; 8],
        };
        file::replace(&path, &file::token_line(&Chain::issue(grant, &issuer))).unwrap();
    };
    let text = format!("{NODE}tokens = [{path:?}]\n");
    refused(&text, "node.tokens", "one.token: cannot open");
    write(keys().entity.public);
    assert_eq!(
        parse(&text).unwrap().node.tokens.len(),
        1,
        "when it is valid is asked later"
    );
    write([5; 32]);
    refused(&text, "node.tokens", "belongs to another entity");
    std::fs::write(&path, "virga-token-v1 AQ\n").unwrap();
    refused(&text, "node.tokens", "cut short");
    refused(
        &format!("{NODE}state = \"\"\n"),
        "node.state",
        "name a folder",
    );
}
