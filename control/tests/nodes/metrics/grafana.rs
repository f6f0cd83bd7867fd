//! The dashboard, read by Grafana's own schema.

use serde_json::Value;
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// What scripts/setup downloads.
const SCHEMA: &str = "grafana-schema.whl";

fn dashboard() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("metrics/dashboard.json")
}

/// What is wrong with a dashboard, a line each; then how many objects were looked at.
fn read_by(schema: &Path, dashboard: &Path) -> (Vec<String>, usize) {
    let output = Command::new("python3")
        .args(["-c", include_str!("grafana.py")])
        .args([schema, dashboard])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let said = String::from_utf8(output.stdout).unwrap();
    let mut lines: Vec<String> = said.lines().map(str::to_owned).collect();
    let looked_at = lines.pop().unwrap();
    (lines, looked_at.parse().unwrap())
}

#[test]
fn the_dashboard_is_as_grafanas_schema_has_it() {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut places = env::split_paths(&path).map(|folder| folder.join(SCHEMA));
    let Some(schema) = places.find(|place| place.exists()) else {
        return println!("skipped: no schema of Grafana's here (scripts/setup --bpf brings it)");
    };
    let (wrong, looked_at) = read_by(&schema, &dashboard());
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(looked_at > 100, "{looked_at}");

    // A dashboard that is wrong is found wrong.
    let text = fs::read_to_string(dashboard()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other.json");
    let changes: [fn(&mut Value); 4] = [
        |all| all["panels"][1]["tragets"] = Value::Array(Vec::new()),
        |all| all["panels"][1]["gridPos"]["x"] = "a".into(),
        |all| all["panels"][1]["targets"][0]["legend"] = "a".into(),
        |all| all["templating"]["list"][1]["refresh"] = 9.into(),
    ];
    for change in changes {
        let mut all: Value = serde_json::from_str(&text).unwrap();
        change(&mut all);
        fs::write(&other, all.to_string()).unwrap();
        let (wrong, _) = read_by(&schema, &other);
        assert_eq!(wrong.len(), 1, "{wrong:#?}");
    }
}

#[test]
fn panels_of_the_dashboard_have_places_and_ids_of_their_own() {
    let text = fs::read_to_string(dashboard()).unwrap();
    let all: Value = serde_json::from_str(&text).unwrap();
    let panels = all["panels"].as_array().unwrap();
    let mut taken = std::collections::BTreeMap::new();
    let mut ids = std::collections::BTreeSet::new();
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its id");
        let place = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        assert!(place("x") + place("w") <= 24, "{title}: beyond the grid");
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                let before = taken.insert((x, y), title);
                assert_eq!(before, None, "{title}: its place");
            }
        }
    }
    assert!(panels.len() >= 25);
}
