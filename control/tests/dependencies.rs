//! Every crate that Cargo.lock names comes from crates.io, under a licence that `.deny.toml` allows.
#![allow(missing_docs, clippy::unwrap_used)]

use serde_json::Value;
use spdx::{Expression, ParseMode};
use std::{collections::BTreeSet, fs, path::Path, process::Command};

const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

#[test]
fn every_crate_is_from_the_registry_under_a_licence_that_is_allowed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let rules: toml::Table = fs::read_to_string(root.join(".deny.toml"))
        .unwrap()
        .parse()
        .unwrap();
    let allowed: BTreeSet<&str> = rules["licenses"]["allow"]
        .as_array()
        .unwrap()
        .iter()
        .map(|licence| licence.as_str().unwrap())
        .collect();
    // What is not built here need not be there.
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .args(["--filter-platform", &platform])
        .current_dir(root)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 100);
    let (mut refused, mut needed) = (Vec::new(), BTreeSet::new());
    for package in packages {
        let (name, source) = (&package["name"], &package["source"]);
        let is_ours = package["manifest_path"]
            .as_str()
            .is_some_and(|path| Path::new(path).starts_with(root));
        if source != REGISTRY && !is_ours {
            refused.push(format!("{name} is from {source}"));
        }
        let licence = package["license"].as_str().unwrap_or_default();
        let expression = Expression::parse_mode(licence, ParseMode::LAX);
        let is_allowed = expression.is_ok_and(|expression| {
            expression.evaluate(|wanted| {
                let id = wanted.license.id().map_or("", |id| id.name);
                let is_allowed = wanted.addition.is_none() && allowed.contains(id);
                needed.extend(is_allowed.then_some(id));
                is_allowed
            })
        });
        if !is_allowed {
            refused.push(format!("{name} is under {licence:?}"));
        }
    }
    assert!(refused.is_empty(), "{refused:#?}");
    assert_eq!(needed, allowed, "nothing is allowed that nobody needs");
}
