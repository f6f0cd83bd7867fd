//! Logs on several nodes.

use super::*;
use virga_state::replica::Acks;

fn replicated(lines: &str) -> String {
    let lines = format!("subscribe = [\"us\", \"one\", \"two\"]\n{lines}");
    format!("{}{}", mesh(), channel("a", &lines))
}

#[test]
fn the_replicas_are_named_or_numbered() {
    let config = parse(&replicated("persist = true")).unwrap();
    assert_eq!(config.replicated, []);
    let one = config.peers[0].id;
    let lines = format!("persist = true\nreplicas = [\"us\", \"{one}\", \"far\"]");
    let config = parse(&replicated(&lines)).unwrap();
    let [replicated_one] = &config.replicated[..] else {
        panic!("{:?}", config.replicated);
    };
    let names = replicated_one.replicas.iter().map(|r| r.name.as_str());
    assert_eq!(names.collect::<Vec<_>>(), ["us", "one", "far"]);
    assert_eq!(replicated_one.replicas[0].node, config.node.id);
    assert_eq!(replicated_one.acks, Acks::Quorum);
    // A node that only publishes.
    let lines = "replicas = [\"one\", \"two\", \"far\"]\nacks = \"all\"";
    let config = parse(&replicated(lines)).unwrap();
    assert_eq!(config.replicated[0].acks, Acks::All);
}

#[test]
fn what_cannot_be_a_group_is_refused() {
    for (lines, key, say) in [
        ("acks = \"all\"", "acks", "add replicas"),
        (
            "replicas = [\"one\", \"two\"]\nacks = \"some\"",
            "acks",
            "\"quorum\"",
        ),
        ("replicas = []", "replicas", "name three"),
        ("replicas = [\"one\", \"one\"]", "replicas", "once"),
        ("replicas = [\"onee\"]", "replicas", "one"),
        ("replicas = [\"us\", \"one\"]", "replicas", "persist = true"),
        (
            "persist = true\nreplicas = [\"one\", \"two\"]",
            "replicas",
            "this node",
        ),
        (
            "persist = true\ndurability = \"memory\"\nreplicas = [\"us\", \"one\"]",
            "durability",
            "remove",
        ),
        (
            "reliable = false\nreplicas = [\"one\"]",
            "replicas",
            "remove",
        ),
    ] {
        refused(&replicated(lines), &format!("channels[0].{key}"), say);
    }
}
