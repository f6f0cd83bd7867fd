//! Whether and how a node keeps a channel.

use super::*;
use virga_state::{Durability, Options, Retention, compact::Rules};
use virga_transport::Mode;

/// A channel that this node may subscribe to.
fn kept(lines: &str) -> String {
    let lines = format!("subscribe = [\"us\"]\n{lines}");
    format!("{NODE}{}", channel("a", &lines))
}

fn keep(lines: &str) -> Option<Options> {
    let config = parse(&kept(lines)).unwrap();
    let keep = config.channels[0].keep.as_ref();
    keep.map(|keeping| keeping.options)
}

#[test]
fn a_channel_is_kept_where_that_is_asked_for() {
    assert_eq!(keep(""), None);
    assert_eq!(keep("persist = false"), None);
    assert_eq!(keep("persist = true"), Some(Options::default()));
    let all = "persist = true\ndurability = \"flushed\"\nkeep_events = 7\nkeep_bytes = 8\nkeep_for = \"2h\"";
    let options = Options {
        durability: Durability::Flushed,
        retention: Retention {
            events_max: Some(7),
            bytes_max: Some(8),
            age_ns_max: Some(2 * 3_600 * 1_000_000_000),
        },
        ..Options::default()
    };
    assert_eq!(keep(all), Some(options));
    let state = parse(&kept("")).unwrap().node;
    assert_eq!(state.logs, state.state.join("logs"));
}

#[test]
fn a_log_is_compacted_where_that_is_asked_for() {
    let rules = |lines: &str| {
        let config = parse(&kept(&format!("persist = true\n{lines}"))).unwrap();
        config.channels[0].keep.clone().unwrap().compaction
    };
    assert_eq!(rules(""), None);
    let day = 24 * 3_600 * 1_000_000_000;
    let some = Rules {
        key: "id".to_owned(),
        after_ns: day,
        removals_after_ns: None,
    };
    assert_eq!(rules("compact_by = \"id\""), Some(some.clone()));
    let lines = "compact_by = \"id\"\ncompact_after = \"2h\"\ncompact_removals_after = \"7days\"";
    let all = Rules {
        after_ns: day / 12,
        removals_after_ns: Some(7 * day),
        ..some
    };
    assert_eq!(rules(lines), Some(all));
    let replicated = "persist = true\ncompact_by = \"id\"\nreplicas = [\"us\"]";
    refused(&kept(replicated), "channels[0].replicas", "compact_by");
}

#[test]
fn a_channel_is_signed_where_that_is_asked_for() {
    let mode = |lines: &str| parse(&kept(lines)).unwrap().channels[0].mode;
    assert_eq!(mode("signed = true"), Mode::Signed);
    assert_eq!(mode("signed = false"), Mode::Ordered);
    for lines in ["reliable = false", "ordered = false"] {
        let lines = format!("signed = true\n{lines}");
        refused(&kept(&lines), "channels[0].signed", "remove it");
    }
    let dots = format!("{NODE}{}", channel("a/..", "signed = true"));
    refused(&dots, "channels[0].signed", "another name");
}

#[test]
fn what_cannot_be_kept_is_refused() {
    let key = |key: &str| format!("channels[0].{key}");
    for (lines, about, say) in [
        (
            "durability = \"synced\"",
            "durability",
            "add persist = true",
        ),
        (
            "persist = false\nkeep_for = \"1h\"",
            "keep_for",
            "add persist = true",
        ),
        (
            "persist = true\ndurability = \"safe\"",
            "durability",
            "\"flushed\"",
        ),
        ("persist = true\nkeep_for = \"soon\"", "keep_for", "30days"),
        ("persist = true\nkeep_for = \"0s\"", "keep_for", "30days"),
        ("persist = true\nkeep_events = 0", "keep_events", "1 to"),
        ("compact_by = \"id\"", "compact_by", "add persist = true"),
        ("persist = true\ncompact_by = \"\"", "compact_by", "JSON"),
        (
            "persist = true\ncompact_after = \"1h\"",
            "compact_after",
            "add compact_by",
        ),
    ] {
        refused(&kept(lines), &key(about), say);
    }
    let stranger = format!("{NODE}{}", channel("a", "persist = true"));
    refused(&stranger, &key("persist"), "may not subscribe");
}
