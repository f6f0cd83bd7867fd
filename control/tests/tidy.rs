//! What keeps small is kept small, and what the documents name exists.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Lines of a file; a longer one wants to be two.
const LINES_MAX: usize = 600;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in ["ebpf", "dataplane", "control", "bench"] {
        files(&root().join(folder), &mut found);
    }
    assert!(found.len() > 50);
    found
}

#[test]
fn no_file_outgrows_one_sitting() {
    for path in sources() {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(
            lines <= LINES_MAX,
            "{}: {lines} lines, at most {LINES_MAX}",
            path.display()
        );
    }
}

#[test]
fn every_source_file_says_what_it_is() {
    for path in sources() {
        let text = fs::read_to_string(&path).unwrap();
        let inside = path.strip_prefix(root()).unwrap();
        let is_test = inside
            .iter()
            .any(|part| part == "tests" || part == "tests.rs");
        let is_said = text.starts_with("//!") || is_test;
        assert!(is_said, "{} does not begin with //!", path.display());
    }
}

#[test]
fn every_script_says_what_it_does_and_how_long_it_takes() {
    let entries = |folder| fs::read_dir(root().join(folder)).unwrap();
    let all = ["scripts", "scripts/pktgen", "hw"].map(entries);
    for entry in all.into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() || path.extension().is_some_and(|e| e == "md") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let header = text
            .lines()
            .skip_while(|l| l.starts_with("#!"))
            .take_while(|l| l.starts_with('#'));
        let wanted = if text.starts_with("#!") { 2 } else { 1 };
        assert!(header.count() >= wanted, "{} has no header", path.display());
    }
}

/// Everything that a document links to exists; returns how much that is.
fn assert_links(document: &str) -> usize {
    let path = root().join(document);
    let text = fs::read_to_string(&path).unwrap();
    let links: Vec<&str> = text
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .collect();
    for link in &links {
        assert!(
            path.parent().unwrap().join(link).exists(),
            "{document} links to {link}, which is not there"
        );
    }
    links.len()
}

#[test]
fn what_the_documents_link_to_exists() {
    assert!(
        assert_links("README.md") >= 12,
        "a packet's life names its files"
    );
    assert!(assert_links("hw/README.md") >= 3);
    assert!(assert_links("control/metrics/README.md") >= 4);
    let guides = fs::read_dir(root().join("docs")).unwrap();
    let guides = guides.map(|guide| guide.unwrap().file_name().into_string().unwrap());
    let guides: Vec<String> = guides.map(|name| format!("docs/{name}")).collect();
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    for guide in &guides {
        assert!(assert_links(guide) >= 1, "{guide} names what it is about");
        assert!(
            readme.contains(&format!("]({guide})")),
            "README names {guide}"
        );
    }
    assert!(guides.len() >= 6);
}

#[test]
fn every_place_where_things_wait_has_its_bound_and_its_test() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let (_, rest) = readme.split_once("## Where things wait").unwrap();
    let (table, _) = rest.split_once("\n\nA node that").unwrap();
    let read = |path: &PathBuf| fs::read_to_string(path).unwrap();
    let code: String = sources().iter().map(read).collect();
    let mut rows = 0;
    for row in table.lines().filter(|l| l.starts_with("| ")).skip(1) {
        let cells: Vec<&str> = row
            .split('|')
            .map(|cell| cell.trim().trim_matches('`'))
            .collect();
        let (bound, test) = (cells[2], cells[4]);
        let is_there = bound.is_empty() || code.contains(&format!("const {bound}: "));
        assert!(is_there, "{bound}");
        assert!(code.contains(&format!("fn {test}(")), "{test}");
        rows += 1;
    }
    assert!(rows >= 12);
}

#[test]
fn the_sizing_tables_are_what_the_script_prints() {
    let readme = fs::read_to_string(root().join("hw/README.md")).unwrap();
    let (_, rest) = readme.split_once("<!-- hw/sizing ").unwrap();
    let (ns, rest) = rest.split_once(" -->\n").unwrap();
    let (tables, _) = rest.split_once("<!-- end -->").unwrap();
    let sizing = |ns: &str| {
        let script = root().join("hw/sizing");
        let output = Command::new(script).arg(ns).output().unwrap();
        (
            output.status.success(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    assert_eq!(sizing(ns), (true, tables.to_owned()));
    // 10 Gbit/s of 122 + 24 bytes are 8.56 million packets a second: 116.8 ns each on one core.
    let row = |ns| {
        let (_, cores) = sizing(ns);
        let (_, cores) = cores.split_once("Cores that").unwrap();
        let row = cores.lines().find(|line| line.starts_with("| 122 |"));
        row.unwrap().to_owned()
    };
    assert!(row("116").starts_with("| 122 | 1 | 1 |"));
    assert!(row("117").starts_with("| 122 | 1 | 2 |"));
    for wrong in ["", "0", "-1", "ten", "1e3"] {
        assert!(!sizing(wrong).0, "{wrong}");
    }
}
