//! What keeps small is kept small, and what the documents name exists.
#![allow(clippy::unwrap_used)]

use std::{
    collections::HashSet,
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

/// The documents in a folder and those below it, as paths from the root.
fn documents(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(root().join(folder)).unwrap();
    let paths = entries.map(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        format!("{folder}/{name}")
    });
    paths
        .flat_map(|path| match root().join(&path).is_dir() {
            true => documents(&path),
            false => vec![path],
        })
        .collect()
}

#[test]
fn what_the_documents_link_to_exists() {
    assert!(
        assert_links("README.md") >= 12,
        "a packet's life names its files"
    );
    assert!(assert_links("hw/README.md") >= 3);
    assert!(assert_links("control/metrics/README.md") >= 4);
    let guides = documents("docs");
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    for guide in &guides {
        let is_text = guide.ends_with(".md");
        assert!(
            !is_text || assert_links(guide) >= 1,
            "{guide} names what it is about"
        );
        assert!(
            readme.contains(&format!("]({guide})")),
            "README names {guide}"
        );
    }
    assert!(guides.len() >= 6);
}

/// Names of the functions that are tests.
fn tests() -> HashSet<String> {
    let mut names = HashSet::new();
    for path in sources() {
        let text = fs::read_to_string(path).unwrap();
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            let declared = line.trim_start_matches("async ").strip_prefix("fn ");
            if line == "#[test]" || line.starts_with("#[tokio::test") {
                is_test = true;
            } else if let Some(rest) = declared {
                let name = rest.split(['(', '<']).next().unwrap();
                if is_test {
                    names.insert(name.to_owned());
                }
                is_test = false;
            }
        }
    }
    assert!(names.len() > 500);
    names
}

#[test]
fn every_promise_of_the_security_statement_has_its_tests() {
    let statement = fs::read_to_string(root().join("docs/security.md")).unwrap();
    let tests = tests();
    let mut promises = 0;
    for row in statement.lines().filter(|line| line.starts_with("| S")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        promises += 1;
        assert_eq!(cells[1], format!("S{promises}"), "in order, without a gap");
        let named: Vec<&str> = cells[3].split_whitespace().collect();
        assert!(!named.is_empty(), "{}", cells[1]);
        for name in named {
            let name = name.trim_matches('`');
            assert!(tests.contains(name), "{}: {name} is no test", cells[1]);
        }
    }
    assert!(promises >= 30);
    // Whoever is sent to a promise finds it.
    for rest in statement.split(['(', ' ']) {
        let number = rest.strip_prefix('S').and_then(|rest| {
            let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
            digits.parse::<usize>().ok()
        });
        assert!(number.is_none_or(|number| number <= promises), "{rest}");
    }
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

/// What `hw/sizing` prints, and complains of; whether it succeeded.
fn sizing(arguments: &[&str]) -> (bool, String, String) {
    let script = root().join("hw/sizing");
    let output = Command::new(script).args(arguments).output().unwrap();
    let [said, complained] =
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    (output.status.success(), said, complained)
}

#[test]
fn the_sizing_tables_are_what_the_script_prints() {
    let readme = fs::read_to_string(root().join("hw/README.md")).unwrap();
    let (_, rest) = readme.split_once("<!-- hw/sizing ").unwrap();
    let (arguments, rest) = rest.split_once(" -->\n").unwrap();
    let (tables, _) = rest.split_once("<!-- end -->").unwrap();
    let arguments: Vec<&str> = arguments.split(' ').collect();
    let (is_ok, said, complained) = sizing(&arguments);
    assert!(is_ok, "{complained}");
    assert_eq!(said, tables);
    // 10 Gbit/s of 122 + 24 bytes are 8.56 million packets a second: 116.8 ns each on one core.
    let row = |ns| {
        let (_, said, _) = sizing(&["--ns", ns]);
        let (_, cores) = said.split_once("Cores that").unwrap();
        let row = cores.lines().find(|line| line.starts_with("| 122 |"));
        row.unwrap().to_owned()
    };
    assert!(row("116").starts_with("| 122 | 116 | 1 | 1 |"));
    assert!(row("117").starts_with("| 122 | 117 | 1 | 2 |"));
    for wrong in [&[""][..], &["0"], &["-1"], &["ten"], &["1e3"], &["1", "2"]] {
        let arguments = [&["--ns"], wrong].concat();
        assert!(!sizing(&arguments).0, "{wrong:?}");
    }
}

#[test]
fn sizing_takes_what_a_packet_costs_from_results_pages() {
    // Those of this repository, without being told.
    let (is_ok, said, complained) = sizing(&[]);
    assert!(is_ok, "{complained}");
    let mut pages = 0;
    for folder in fs::read_dir(root().join("bench/results")).unwrap() {
        let page = fs::read_to_string(folder.unwrap().path().join("results.md")).unwrap();
        let figure = |name: &str, column: usize| -> f64 {
            let start = format!("| {name} |");
            let row = page.lines().find(|line| line.starts_with(&start)).unwrap();
            row.split('|').nth(column).unwrap().trim().parse().unwrap()
        };
        let about = |what: &str| {
            page.lines()
                .find_map(|line| line.strip_prefix(what))
                .unwrap()
        };
        let title = format!(
            "measured to take on {} ({}, ",
            about("- date: "),
            about("- machine: ")
        );
        let (_, tables) = said.split_once(&title).unwrap();
        for (bytes, name, column) in [
            (122, "forward.vs_minimal_redirect", 2),
            (1_500, "forward.bytes_1500", 2),
            (122, "forward.vs_userspace", 3),
        ] {
            let row = format!("| {bytes} | {:.2} | ", 1e3 / figure(name, column));
            assert!(tables.contains(&row), "{row}: {tables}");
        }
        pages += 1;
    }
    assert!(pages > 0);

    // A page without the figures says what would have them.
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("results.md");
    let page = fs::read_to_string(root().join("bench/results/xeon/results.md")).unwrap();
    fs::write(&other, page.replace("forward.bytes_512", "another")).unwrap();
    let (is_ok, _, complained) = sizing(&[&other.display().to_string()]);
    let wanted = "has no forward.bytes_512: write one with";
    assert!(!is_ok && complained.contains(wanted), "{complained}");
}

/// Numbers that documents state, and the constants that they are: the document, its words, the file, and what the code
/// there says.
const NUMBERS: [[&str; 4]; 18] = [
    [
        "README.md",
        "reads a 64-byte header",
        "ebpf/src/limits.rs",
        "HEADER_BYTES: usize = 64;",
    ],
    [
        "README.md",
        "192.0.2.1:4783",
        "ebpf/src/limits.rs",
        "UDP_PORT: u16 = 4783;",
    ],
    [
        "README.md",
        "gives its peers two seconds",
        "dataplane/transport/src/worker.rs",
        "DRAIN_NS_MAX: u64 = 2_000_000_000;",
    ],
    [
        "docs/channels.md",
        "A message has at most 1 MiB",
        "dataplane/transport/src/limits.rs",
        "MESSAGE_BYTES_MAX: usize = 1024 * 1024;",
    ],
    [
        "docs/channels.md",
        "the same share of the 4096 that are\n  kept",
        "control/src/rights/catalogue.rs",
        "DECLARATIONS_MAX: usize = 4_096;",
    ],
    [
        "docs/channels.md",
        "list 262144 publishers at most",
        "control/src/rights/catalogue.rs",
        "PUBLISHERS_MAX: usize = PAIRS_MAX as usize / 2;",
    ],
    [
        "docs/channels.md",
        "list 262144 publishers at most",
        "ebpf/src/limits.rs",
        "PAIRS_MAX: u32 = 524_288;",
    ],
    [
        "docs/logs.md",
        "each batch of events, at most 512 of them",
        "dataplane/state/src/limits.rs",
        "BATCH_EVENTS_MAX: usize = 512;",
    ],
    [
        "docs/logs.md",
        "\n896 KiB: a hash chain",
        "dataplane/state/src/limits.rs",
        "SIGNED_PAYLOADS_MAX: usize = 896 << 10;",
    ],
    [
        "docs/mesh.md",
        "A record counts for half an hour",
        "control/discovery/src/limits.rs",
        "LIFETIME_S: u32 = 1_800;",
    ],
    [
        "docs/mesh.md",
        "Clocks may differ by five minutes",
        "control/discovery/src/limits.rs",
        "CLOCK_SKEW_S: u64 = 300;",
    ],
    [
        "docs/mesh.md",
        "or for 3 s",
        "control/src/daemon/path/routing.rs",
        "QUIET: Duration = Duration::from_secs(3);",
    ],
    [
        "docs/mesh.md",
        "`keepalive_ms` (10 ms",
        "control/src/config.rs",
        "KEEPALIVE_MS: u32 = 10;",
    ],
    [
        "docs/mesh.md",
        "`detect_multiplier` (4)",
        "control/src/config.rs",
        "DETECT_MULTIPLIER: u32 = 4;",
    ],
    [
        "docs/subnets.md",
        "up\n  to 32 KiB",
        "ebpf/src/limits.rs",
        "FILTER_BANKS_MAX: u32 = 8;",
    ],
    [
        "docs/subnets.md",
        "50 ms after another change",
        "control/src/filters/signer.rs",
        "GAP_NS: u64 = 50_000_000;",
    ],
    [
        "docs/subnets.md",
        "and every 10 s",
        "control/src/daemon/flood.rs",
        "COMPARE_EVERY: Duration = Duration::from_secs(10);",
    ],
    [
        "docs/subnets.md",
        "below 0.1 % of strangers",
        "ebpf/src/limits.rs",
        "GUARD_FALSE_POSITIVE_RATE_MAX: f64 = 0.001;",
    ],
];

#[test]
fn numbers_in_the_documents_are_the_codes() {
    for [document, words, file, constant] in NUMBERS {
        let [text, code] =
            [document, file].map(|path| fs::read_to_string(root().join(path)).unwrap());
        assert!(
            text.contains(words),
            "{document} does not say {words:?}; {constant}"
        );
        let line = format!("const {constant}");
        assert!(
            code.contains(&line),
            "{file} does not say {line}: {document} says {words:?}"
        );
    }
}
