//! The alert rules and the dashboard, read by a real Prometheus that scrapes running nodes.

use super::{ask, with_metrics};
use crate::stage::{RELIABLE, Stage, eventually};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};
use virga::metrics::table;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("metrics")
}

fn read(name: &str) -> String {
    fs::read_to_string(folder().join(name)).unwrap()
}

/// Words that look like series of ours.
fn names(text: &str) -> BTreeSet<&str> {
    let is_no_name = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    text.split(is_no_name)
        .filter(|word| word.starts_with("virga_"))
        .collect()
}

/// Every query of the dashboard, its variables filled in.
fn queries() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&read("dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let filled = targets.map(|target| {
        let query = target["expr"].as_str().unwrap();
        query
            .replace("$__rate_interval", "1m")
            .replace("$instance", ".*")
    });
    filled.collect()
}

#[test]
fn rules_and_dashboard_name_only_series_that_there_are() {
    let known: BTreeSet<&str> = table::all().map(|series| series.name).collect();
    for file in ["alerts.yml", "alerts.test.yml", "dashboard.json"] {
        let text = read(file);
        let used = names(&text);
        assert!(used.len() >= 10, "{file}");
        let unknown: Vec<_> = used.difference(&known).collect();
        assert!(unknown.is_empty(), "{file}: {unknown:?}");
    }
    assert!(queries().len() >= 25);
}

#[test]
fn every_alert_has_a_case_in_which_it_fires() {
    let rules = read("alerts.yml");
    let tests = read("alerts.test.yml");
    let alerts: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(alerts.len() >= 15);
    for alert in alerts {
        let fires = format!("{{labels: '{{alertname=\"{alert}\", ");
        assert!(tests.contains(&fires), "{alert}");
    }
}

/// A Prometheus of this test's own; whatever happens, it does not outlive it.
struct Prometheus {
    process: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.process.kill();
        let _reaped = self.process.wait();
    }
}

/// Whether a program can be run.
fn is_there(program: &str) -> bool {
    let run = Command::new(program).arg("--version").output();
    run.is_ok_and(|output| output.status.success())
}

impl Prometheus {
    fn start(targets: &[SocketAddr]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let free = TcpListener::bind(("127.0.0.5", 0)).unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let targets: Vec<String> = targets.iter().map(ToString::to_string).collect();
        let rules = self::folder().join("alerts.yml");
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{:?}]\n\
             scrape_configs: [{{job_name: virga, static_configs: [{{targets: {targets:?}}}]}}]\n",
            rules.display().to_string()
        );
        let path = folder.path().join("prometheus.yml");
        fs::write(&path, config).unwrap();
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", path.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self {
            process,
            address,
            _folder: folder,
        }
    }

    /// A query's answer: how many series it gives.
    fn query(&self, query: &str) -> Result<usize, String> {
        let answer = self.get(&format!("/api/v1/query?query={}", encoded(query)))?;
        match answer["status"].as_str() {
            Some("success") => Ok(answer["data"]["result"].as_array().unwrap().len()),
            _ => Err(format!("{query}: {answer}")),
        }
    }

    /// The JSON object that it answers with; its words, while it starts.
    fn get(&self, path: &str) -> Result<Value, String> {
        let (_, _, body) = ask(self.address, "GET", path);
        serde_json::from_str(&body).map_err(|error| format!("{path}: {error}: {body}"))
    }
}

/// As a part of a URI.
fn encoded(text: &str) -> String {
    let each = text.bytes().map(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    });
    each.collect()
}

#[test]
fn the_alerts_fire_when_they_should() {
    if !is_there("promtool") {
        return println!("skipped: no promtool here (scripts/setup --bpf brings it)");
    }
    for arguments in [
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts.test.yml"],
    ] {
        let mut command = Command::new("promtool");
        let output = command
            .args(arguments)
            .current_dir(folder())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_reads_running_nodes_and_every_query_of_rules_and_dashboard() {
    if !is_there("prometheus") {
        return println!("skipped: no Prometheus here (scripts/setup --bpf brings it)");
    }
    let mut stage = Stage::new(&[RELIABLE]);
    let reads = "subscribe = [\"b\"]";
    stage.edit("b", reads, &format!("{reads}\npersist = true"));
    let addresses = ["a", "router", "b"].map(|name| with_metrics(&stage, name));
    for name in ["router", "b", "a"] {
        stage.start(name).await;
    }
    let prometheus = Prometheus::start(&addresses);
    eventually("Prometheus answers", async || {
        std::net::TcpStream::connect(prometheus.address).ok()
    })
    .await;
    eventually("Prometheus has read all three twice", async || {
        let query = "sum(count_over_time(up{job=\"virga\"}[1m]) >= 2)";
        let up = prometheus.query("sum(up{job=\"virga\"}) == 3").ok()?;
        (up == 1 && prometheus.query(query).ok()? == 1).then_some(())
    })
    .await;
    // What is not there without drops, or without a NIC.
    let without = ["virga_guard_false_positive_ratio", "> 0"];
    for query in queries() {
        let may_be_empty = without.iter().any(|word| query.contains(word));
        // A node that answers late is not there for a moment.
        eventually(&query, async || {
            let series = prometheus.query(&query).unwrap();
            (series > 0 || may_be_empty).then_some(())
        })
        .await;
    }
    // Units and types came along.
    let metadata = prometheus
        .get("/api/v1/metadata?metric=virga_uptime_seconds")
        .unwrap();
    let one = &metadata["data"]["virga_uptime_seconds"][0];
    assert_eq!(
        (&one["type"], &one["unit"]),
        (&"gauge".into(), &"seconds".into()),
        "{metadata}"
    );

    let rules = prometheus.get("/api/v1/rules").unwrap();
    let rules = rules["data"]["groups"][0]["rules"]
        .as_array()
        .unwrap()
        .clone();
    assert!(rules.len() >= 15);
    eventually("all rules are evaluated", async || {
        let rules = prometheus.get("/api/v1/rules").unwrap();
        let rules = rules["data"]["groups"][0]["rules"].as_array()?.clone();
        rules
            .iter()
            .all(|rule| rule["health"] == "ok")
            .then_some(())
    })
    .await;
}
