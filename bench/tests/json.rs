//! What other programs read of a measurement is JSON and nothing else; what people read is there all the same.

use std::process::Command;

use serde_json::Value;

/// What each entry has, whatever else it has.
const KEYS: [&str; 6] = ["name", "ours", "reference", "unit", "ratio", "limit"];

#[test]
fn standard_output_is_the_json_alone_and_the_table_stands_beside_it() {
    let bench = || Command::new(env!("CARGO_BIN_EXE_virga-bench"));
    let output = bench().args(["guard", "--rounds", "1", "--json"]).output();
    let output = output.expect("virga-bench runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let entries: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON alone");
    let names: Vec<&str> = entries.iter().filter_map(|e| e["name"].as_str()).collect();
    for name in ["guard.hit_ns", "guard.miss_ns"] {
        assert!(names.contains(&name), "{names:?}");
        let row = told.lines().find(|line| line.starts_with(name));
        assert!(row.is_some_and(|row| row.ends_with(" ns")), "{told}");
    }
    for entry in &entries {
        for key in KEYS {
            assert!(entry.get(key).is_some(), "{entry} has no {key}");
        }
        assert!(entry["ours"].is_number(), "{entry}");
    }
}
