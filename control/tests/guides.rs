//! What the guides state is so: their commands exist, their tables are the code's and the profiles'. Those in `sh` and
//! `sh elsewhere` blocks are typed as they are written by the test of the same name in `namespaces/`, those in `sh service`
//! blocks by `scripts/package --test`.
#![allow(missing_docs, clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use virga_ebpf::limits::{
    DESTINATIONS_MAX, FILTERS_MAX, NEIGHBOURS_MAX, NEXT_HOPS_MAX, PAIRS_MAX, PORTS_MAX, ROUTES_MAX,
};

/// What is behind `sh`, which says where the commands are typed: nothing for the router of the guide, `elsewhere` for a second
/// machine beside it, `service` for a machine with a service manager. Nobody types `build`: it takes many minutes, and
/// `scripts/test` and `scripts/package` build by the same lines.
const CLASSES: [&str; 4] = ["", "build", "service", "elsewhere"];
/// Lines of `build` blocks that run no script of ours, and where a script has them: the file, and its words.
const BUILDS: [(&str, &str, &str); 2] = [
    (
        "cargo build --release -p virga",
        "environment",
        "cargo build --quiet --locked --release",
    ),
    (
        "sudo install target/release/virga /usr/local/bin/",
        "package",
        "put \"$binary\" /usr/bin/virga 755",
    ),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Every guide by its path.
fn guides() -> BTreeMap<PathBuf, String> {
    let entries = fs::read_dir(root().join("docs/guides")).unwrap();
    let guides = entries.map(|entry| {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        (path, text)
    });
    guides.collect()
}

/// Lines of all blocks of commands, and the rest of their first line.
fn blocks(text: &str) -> Vec<(String, Vec<String>)> {
    let mut lines = text.lines();
    let mut found = Vec::new();
    while let Some(line) = lines.next() {
        if let Some(class) = line.strip_prefix("```sh") {
            let inside = lines.by_ref().take_while(|line| *line != "```");
            found.push((class.trim().to_owned(), inside.map(str::to_owned).collect()));
        }
    }
    found
}

/// What a command's help says.
fn help(words: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_virga"))
        .args(words)
        .arg("--help")
        .output();
    let output = output.unwrap();
    assert!(output.status.success(), "virga {words:?} is no command");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_block_says_where_it_is_run_and_every_option_in_it_exists() {
    let mut commands = 0;
    for (path, text) in guides() {
        for (class, lines) in blocks(&text) {
            assert!(
                CLASSES.contains(&class.as_str()),
                "{}: {class}",
                path.display()
            );
            for line in lines {
                let line = line.trim_start_matches("sudo ");
                let Some(rest) = line.strip_prefix("virga ") else {
                    continue;
                };
                let words: Vec<&str> = rest
                    .split(['#', '>', '&'])
                    .next()
                    .unwrap()
                    .split_whitespace()
                    .collect();
                let two = matches!(words[0], "node" | "token" | "log" | "entity");
                let command = &words[..1 + usize::from(two)];
                let help = match words[0].starts_with("--") {
                    true => help(&[]),
                    false => help(command),
                };
                let options = words.iter().filter(|word| word.starts_with("--"));
                for option in options {
                    assert!(
                        help.contains(option),
                        "{}: {line}: {option}",
                        path.display()
                    );
                }
                commands += 1;
            }
        }
    }
    assert!(commands >= 20, "{commands}");
}

#[test]
fn builds_of_the_guides_are_those_of_the_scripts() {
    let (mut scripts, mut others) = (0, 0);
    let of_builds = |text: &String| {
        let blocks = blocks(text).into_iter();
        let builds = blocks.filter(|(class, _)| class == "build");
        builds.flat_map(|(_, lines)| lines).collect::<Vec<_>>()
    };
    for line in guides().values().flat_map(of_builds) {
        for step in line.split(" && ") {
            let named = step.trim_start_matches(". ").strip_prefix("scripts/");
            let Some(script) = named else {
                let (_, script, words) = BUILDS.iter().find(|one| one.0 == step).expect(step);
                let script = fs::read_to_string(root().join("scripts").join(script)).unwrap();
                assert!(script.contains(words), "{step}: {words}");
                others += 1;
                continue;
            };
            let path = root().join("scripts").join(script);
            let checked = Command::new("bash").arg("-n").arg(&path).status().unwrap();
            assert!(checked.success(), "{}", path.display());
            scripts += 1;
        }
    }
    assert!(scripts >= 3 && others >= 2, "{scripts} {others}");
}

/// The cells of a guide's rows that begin so.
fn rows(guide: &str, begins: &str) -> Vec<Vec<String>> {
    let text = &guides()[&root().join("docs/guides").join(guide)];
    let rows = text.lines().filter(|line| line.starts_with(begins));
    let cells = |row: &str| {
        row.split('|')
            .map(|cell| cell.trim().trim_matches('`').to_owned())
            .collect()
    };
    rows.map(cells).collect()
}

#[test]
fn the_room_that_the_sizing_guide_names_is_the_codes() {
    let limits = [
        ("NEIGHBOURS_MAX", NEIGHBOURS_MAX),
        ("NEXT_HOPS_MAX", NEXT_HOPS_MAX),
        ("ROUTES_MAX", ROUTES_MAX),
        ("DESTINATIONS_MAX", DESTINATIONS_MAX),
        ("PAIRS_MAX", PAIRS_MAX),
        ("FILTERS_MAX", FILTERS_MAX),
        ("PORTS_MAX", PORTS_MAX),
    ];
    let rows = rows("sizing.md", "| ");
    for (name, value) in limits {
        let row = rows.iter().find(|row| row[3] == name).unwrap();
        assert_eq!(row[2].replace(',', ""), value.to_string(), "{name}");
    }
    assert_eq!(rows.len(), limits.len() + 1, "and the table's head");
}

#[test]
fn the_cards_of_the_tuning_guide_are_as_their_profiles_say() {
    let rows = rows("tuning.md", "| `");
    for row in &rows {
        let profile = root().join(format!("hw/nics/{}.toml", row[1]));
        let profile: toml::Table = fs::read_to_string(profile).unwrap().parse().unwrap();
        for (cell, key) in row[2..]
            .iter()
            .zip(["queues", "mtu_max", "lro", "vlan_strip"])
        {
            let value = match &profile[key]["value"] {
                toml::Value::String(text) => text.clone(),
                number => number.as_integer().unwrap().to_string(),
            };
            assert_eq!(*cell, value, "{}: {key}", row[1]);
        }
    }
    assert!(rows.len() >= 8);
}
