//! The table's own rules, and the text of a status.

use super::*;
use std::collections::BTreeSet;

/// Of a node that has done nothing.
pub(super) fn status() -> Status {
    Status::default()
}

#[test]
fn names_follow_the_conventions_and_are_of_one_series_each() {
    let mut names = BTreeSet::new();
    for series in table::all() {
        let name = series.name;
        assert!(names.insert(name), "{name} is there twice");
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        assert!(
            name.starts_with("virga_") && name.chars().all(is_plain),
            "{name}"
        );
        let is_total = name.ends_with("_total");
        assert_eq!(is_total, series.kind == Kind::Counter, "{name}");
        let base = name.trim_end_matches("_total");
        // What Prometheus calls base units is in the name.
        for unit in ["seconds", "bytes", "ratio", "packets"] {
            assert_eq!(
                base.ends_with(unit),
                series.unit == unit,
                "{name} {}",
                series.unit
            );
        }
        assert!(!base.ends_with("_info") || series.kind == Kind::Gauge);
        assert!(
            series.help.ends_with('.') && !series.help.contains('\n'),
            "{name}"
        );
        assert!(!series.unit.is_empty(), "{name}");
    }
    assert!(names.len() > 100);
}

#[test]
fn the_page_of_series_is_of_this_table() {
    let page = include_str!("../../metrics/series.md");
    let fix = "make it anew: virga metrics > control/metrics/series.md";
    assert!(page == page::page(), "{fix}");
}

#[test]
fn a_label_may_hold_anything() {
    let mut status = status();
    status.node.name = "a\"b\\c\nd".into();
    let text = text::of(&status);
    let line = r#"virga_node_info{node="a\"b\\c\nd","#;
    assert!(text.contains(line), "{text}");
}

#[test]
fn numbers_of_all_sizes_are_written() {
    let mut status = status();
    status.admissions.pairs_refused = u64::MAX;
    status.node.uptime_s = u64::MAX;
    let text = text::of(&status);
    assert!(
        text.contains("\nvirga_admission_refused_pairs_total 18446744073709551615\n"),
        "{text}"
    );
    assert!(
        text.contains("\nvirga_uptime_seconds 18446744073709553000.0\n"),
        "{text}"
    );
    assert!(text.ends_with("# EOF\n"));
    assert!(text.contains("# UNIT virga_uptime_seconds seconds\n"));
}
