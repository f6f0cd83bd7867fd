//! What `virga bundle` gathers of a node that runs, and of one that does not; and that no key is in it.

use crate::stage::{RELIABLE, Stage, eventually};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

/// An archive's parts by their names, and what the command said.
struct Made {
    parts: BTreeMap<String, Vec<u8>>,
    said: String,
    file: PathBuf,
}

impl Made {
    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&self.parts[name]).unwrap()
    }

    /// Every place where something could be: the archive, the tar within, each part.
    fn everything(&self) -> Vec<Vec<u8>> {
        let file = fs::read(&self.file).unwrap();
        let mut tar = Vec::new();
        let mut reader = flate2::read::GzDecoder::new(file.as_slice());
        reader.read_to_end(&mut tar).unwrap();
        let said = self.said.clone().into_bytes();
        let parts = self.parts.values().cloned();
        [file, tar, said].into_iter().chain(parts).collect()
    }
}

fn made(stage: &Stage, name: &str, more: &[&str]) -> Made {
    let node = stage.node(name);
    let file = node.file("bundle.tar.gz");
    // One of an earlier call.
    let _removed = fs::remove_file(&file);
    let config = node.config();
    let fixed = ["bundle", "--config", config.to_str().unwrap()];
    let out = ["--out", file.to_str().unwrap()];
    let output = node.run(&[&fixed[..], &out, more].concat());
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let reader = flate2::read::GzDecoder::new(fs::File::open(&file).unwrap());
    let mut archive = tar::Archive::new(reader);
    let parts = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        let name = path.iter().skip(1).collect::<PathBuf>();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (name.to_str().unwrap().to_owned(), content)
    });
    Made {
        parts: parts.collect(),
        said: String::from_utf8(output.stdout).unwrap(),
        file,
    }
}

fn bytes(digits: &str) -> Vec<u8> {
    let pairs = digits.as_bytes().chunks(2);
    let pairs = pairs.map(|pair| str::from_utf8(pair).unwrap());
    pairs.map(|p| u8::from_str_radix(p, 16).unwrap()).collect()
}

/// Every secret in a file: its words of 64 hex digits, and of keys of link tags the halves, too.
fn secrets(file: &Path) -> Vec<Vec<u8>> {
    let text = fs::read_to_string(file).unwrap();
    let is_key = |word: &&str| word.len() == 64 && word.bytes().all(|b| b.is_ascii_hexdigit());
    let keys: Vec<Vec<u8>> = text
        .split_whitespace()
        .filter(is_key)
        .map(bytes)
        .filter(|key| key.iter().any(|byte| *byte != 0))
        .collect();
    assert!(!keys.is_empty(), "{}", file.display());
    keys
}

/// Ways to write a secret.
fn forms(secret: &[u8]) -> Vec<Vec<u8>> {
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let apart: Vec<String> = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let numbers: Vec<String> = secret.iter().map(u8::to_string).collect();
    let mut within = [&b"k="[..], secret].concat();
    within.push(b';');
    // Of base64, the digits that say nothing of what stands beside.
    let within = STANDARD_NO_PAD.encode(within);
    let certain = 3..(2 + secret.len()) * 8 / 6;
    let mut forms = vec![
        within.as_bytes()[certain].to_vec(),
        apart.join(":").into_bytes(),
        numbers.join(", ").into_bytes(),
    ];
    forms.extend([
        secret.to_vec(),
        hex.to_uppercase().into_bytes(),
        hex.into_bytes(),
        STANDARD_NO_PAD.encode(secret).into_bytes(),
        URL_SAFE_NO_PAD.encode(secret).into_bytes(),
    ]);
    forms
}

fn holds(content: &[u8], form: &[u8]) -> bool {
    content.windows(form.len()).any(|window| window == form)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_of_a_running_node_says_what_it_does_and_has_no_key_in_it() {
    let mut stage = Stage::new(&[RELIABLE]);
    // What is commented out is nobody's to know.
    let psk = secrets(&stage.node("a").file("network.psk")).remove(0);
    let commented: String = psk.iter().map(|byte| format!("{byte:02x}")).collect();
    stage.edit("a", "[node]\n", &format!("# psk = {commented}\n[node]\n"));
    for name in ["router", "b", "a"] {
        stage.start(name).await;
    }
    stage.subscribed(RELIABLE.name).await;
    let publisher = stage.publisher(RELIABLE.name).await;
    publisher.publish(b"an event").await.unwrap();
    publisher.finish().await.unwrap();
    let a = stage.node("a");
    let links = a.socket().with_extension("links");
    eventually("keys of link tags are kept", async || {
        let saved = fs::read_to_string(&links).ok()?;
        let is_key = |word: &str| word.len() == 64 && !word.trim_matches('0').is_empty();
        saved.split_whitespace().any(is_key).then_some(())
    })
    .await;

    // A log that somebody has written keys into, each in every way.
    let files = ["node.key", "entity.key", "network.psk"].map(|name| a.file(name));
    let mut keys: Vec<Vec<u8>> = files.iter().flat_map(|file| secrets(file)).collect();
    let of_links = secrets(&links);
    keys.extend(
        of_links
            .iter()
            .flat_map(|both| [&both[..16], &both[16..]].map(<[u8]>::to_vec)),
    );
    keys.retain(|key| key.iter().any(|byte| *byte != 0));
    let forms: Vec<Vec<u8>> = keys.iter().flat_map(|key| forms(key)).collect();
    let mut log = b"before\n".to_vec();
    for form in &forms {
        log.extend(b"key=");
        log.extend(form);
        log.push(b'\n');
    }
    log.extend(b"after\n");
    assert!(forms.iter().all(|form| holds(&log, form)));
    let written = a.file("careless.log");
    fs::write(&written, &log).unwrap();

    let daemons = a.file("log");
    let logs = [&daemons, &written].map(|path| path.to_str().unwrap());
    let made = made(&stage, "a", &["--log", logs[0], "--log", logs[1]]);
    for content in made.everything() {
        for form in &forms {
            assert!(!holds(&content, form), "{}", String::from_utf8_lossy(form));
        }
    }
    let log = String::from_utf8_lossy(&made.parts["log/careless.log"]).into_owned();
    assert_eq!(log.matches("key=[left out]\n").count(), forms.len());
    assert!(log.starts_with("before\n") && log.ends_with("after\n"));

    // What is there says what the node is told, does and runs on.
    let status = made.json("status.json");
    assert_eq!(status["node"]["name"], "a");
    assert_eq!(status["channels"][0]["published"], 1);
    let config = made.json("config.json");
    assert_eq!(
        config["peers"][0]["node_key"],
        stage.node("router").node_key.as_str()
    );
    assert_eq!(config["channels"][0]["name"], RELIABLE.name);
    let versions = made.json("versions.json");
    assert_eq!(versions["running"], versions["virga"]);
    let checks = made.json("doctor.json");
    let names: Vec<&str> = checks
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["name"].as_str().unwrap())
        .collect();
    assert!(
        names.contains(&"node") && names.contains(&"sockets"),
        "{names:?}"
    );
    let text = |name: &str| String::from_utf8_lossy(&made.parts[name]).into_owned();
    assert!(text("metrics.txt").contains("virga_"));
    assert!(text("log/log").contains("INFO"), "{}", text("log/log"));
    assert!(text("kernel/proc/version").starts_with("Linux version"));
    let process = format!("kernel/proc/{}/status", stage.process("a"));
    assert!(text(&process).contains("VmRSS"));
    // In user space there are no maps.
    assert!(
        made.said.contains("not there: maps.json: "),
        "{}",
        made.said
    );
    let contents = text("README.txt");
    assert!(contents.contains("not there: maps.json: ") && contents.contains("\nstatus.json: "));
}

/// A log of which the end alone is taken, and that end begins anywhere within a key.
#[tokio::test(flavor = "multi_thread")]
async fn no_cut_goes_through_a_key() {
    let stage = Stage::new(&[RELIABLE]);
    let a = stage.node("a");
    let psk = secrets(&a.file("network.psk")).remove(0);
    let hex: String = psk.iter().map(|byte| format!("{byte:02x}")).collect();
    let log = a.file("long.log");
    let taken = (4 << 20) + (4 << 10);
    for end in [taken - 9, taken - 40, (4 << 20) - 20] {
        let mut text = hex.clone().into_bytes();
        text.resize(64 + end, b'.');
        fs::write(&log, &text).unwrap();
        let made = made(&stage, "a", &["--log", log.to_str().unwrap()]);
        let part = &made.parts["log/long.log"];
        let others: Vec<u8> = part.iter().copied().filter(|byte| *byte != b'.').collect();
        let said = String::from_utf8_lossy(&others);
        assert!(others.is_empty() || said == "[left out]", "{end}: {said}");
        assert!(part.ends_with(b"....") && part.len() <= 4 << 20);
        assert!(part.len() > (4 << 20) - (8 << 10), "{}", part.len());
    }
}

/// A key that cannot be read cannot be looked for.
#[tokio::test(flavor = "multi_thread")]
async fn logs_stay_out_where_a_key_is_not_known() {
    let stage = Stage::new(&[RELIABLE]);
    let a = stage.node("a");
    let psk = secrets(&a.file("network.psk")).remove(0);
    let hex: String = psk.iter().map(|byte| format!("{byte:02x}")).collect();
    let log = a.file("careless.log");
    fs::write(&log, format!("it is {hex}")).unwrap();
    let given = ["--log", log.to_str().unwrap()];
    let file = fs::read_to_string(a.config()).unwrap();
    let line = file.lines().find(|line| line.starts_with("psk_file"));
    stage.edit("a", line.unwrap(), "psk_file = \"credential:psk\"");
    let made = made(&stage, "a", &given);
    for content in made.everything() {
        assert!(!holds(&content, hex.as_bytes()));
    }
    let said = "not there: log/careless.log: left out, as a key";
    assert!(made.said.contains(said), "{}", made.said);
    assert!(made.said.contains("CREDENTIALS_DIRECTORY"), "{}", made.said);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_down_has_a_bundle_which_says_what_is_missing() {
    let stage = Stage::new(&[RELIABLE]);
    let down = made(&stage, "a", &[]);
    let missing = "not there: status.json, drops.json, metrics.txt: ";
    assert!(down.said.contains(missing), "{}", down.said);
    assert_eq!(down.json("config.json")["node"]["name"], "a");
    assert!(down.parts.contains_key("doctor.json") && !down.parts.contains_key("status.json"));

    // Nothing is written over.
    let config = stage.node("a").config();
    let (config, out) = (config.to_str().unwrap(), down.file.to_str().unwrap());
    let before = fs::read(&down.file).unwrap();
    let again = stage
        .node("a")
        .run(&["bundle", "--config", config, "--out", out]);
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains(out));
    assert_eq!(fs::read(&down.file).unwrap(), before);

    // A configuration with a key in a wrong place, and one that is none.
    let key = "5c".repeat(32);
    stage.edit(
        "a",
        "network = \"test\"",
        &format!("network = \"{key}\"\nnetwrok = \"{key}\""),
    );
    let wrong = made(&stage, "a", &[]);
    let problems = String::from_utf8_lossy(&wrong.parts["config-problems.txt"]).into_owned();
    assert!(problems.contains("netwrok"), "{problems}");
    for content in wrong.everything() {
        assert!(
            !holds(&content, key.as_bytes()),
            "{}",
            String::from_utf8_lossy(&content)
        );
    }
    fs::write(stage.node("a").config(), [0xff, 0xfe, b'=']).unwrap();
    let none = made(&stage, "a", &["--log", "/nowhere"]);
    assert!(none.said.contains("is not TOML"), "{}", none.said);
    assert!(
        none.said.contains("not there: log/nowhere: "),
        "{}",
        none.said
    );
    assert!(none.parts.contains_key("kernel/proc/version"));
}
