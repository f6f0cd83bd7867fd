//! What keeps small is kept small, and what the documents name exists.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Lines of a file; a longer one wants to be two.
const LINES_MAX: usize = 640;

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
    for folder in ["ebpf", "dataplane", "control"] {
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
        let is_said = text.starts_with("//!") || path.to_string_lossy().contains("/tests");
        assert!(is_said, "{} does not begin with //!", path.display());
    }
}

#[test]
fn every_script_says_what_it_does_and_how_long_it_takes() {
    for entry in fs::read_dir(root().join("scripts")).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let header = text
            .lines()
            .skip_while(|l| l.starts_with("#!"))
            .take_while(|l| l.starts_with('#'));
        let wanted = if text.starts_with("#!") { 2 } else { 1 };
        assert!(header.count() >= wanted, "{} has no header", path.display());
    }
}

#[test]
fn what_the_readme_links_to_exists() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let links: Vec<&str> = readme
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .collect();
    assert!(links.len() >= 12, "a packet's life names its files");
    for link in links {
        assert!(
            root().join(link).exists(),
            "README links to {link}, which is not there"
        );
    }
}
