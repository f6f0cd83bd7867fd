//! Metrics and health of running nodes, read as Prometheus reads them; and by Prometheus itself.

use crate::stage::{RELIABLE, Stage, eventually, in_time};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};
use virga::{
    api::{server::HEAD_TIMEOUT, status::Status},
    metrics::{self, table},
};

mod grafana;
mod prometheus;

/// Longer than any answer here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is told of a status and is no figure of a series, with the reason.
const NOT_SERIES: [(&str, &str); 6] = [
    ("/node/pid", "a name"),
    ("/channels/*/salt", "configured"),
    ("/subscribers/*/id", "a name"),
    ("/subscriptions/*/granted", "counted by its channels"),
    (
        "/logs/*/replication/copies/*/end",
        "its lag is behind the log's own end",
    ),
    (
        "/transport/retransmitted_packets",
        "falls with a session's end; by class it only grows",
    ),
];
/// Labels, and what is configured, that take no number.
const SMALL: [&str; 3] = ["/number", "/core", "/priority"];
/// What is the sum of what each worker has, or told once more of a peer's session and link; the series are of one of
/// them.
const SUMS: [&str; 6] = [
    "/worker/",
    "/socket/",
    "/workers/*/transport/",
    "/workers/*/userspace/",
    "/sessions/*/age_s",
    "/peers/",
];

/// Adds the section to a node's file; where it is to answer.
pub(crate) fn with_metrics(stage: &Stage, name: &str) -> SocketAddr {
    let free = TcpListener::bind((stage.node(name).listen.ip(), 0)).unwrap();
    let address = free.local_addr().unwrap();
    let section = format!("[metrics]\nlisten = \"{address}\"\n[forwarding]\n");
    stage.edit(name, "[forwarding]\n", &section);
    address
}

/// A request by hand: the answer's code, head and body.
pub(crate) fn ask(address: SocketAddr, method: &str, path: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!("{method} {path} HTTP/1.0\r\nhost: node\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    (code, head.to_lowercase(), body.to_owned())
}

fn scrape(address: SocketAddr) -> String {
    let (code, head, body) = ask(address, "GET", "/metrics");
    assert_eq!(code, 200, "{body}");
    let media = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert!(head.contains(media), "{head}");
    body
}

/// The value of one line of a scrape, if it is there.
fn value_of(scrape: &str, series: &str) -> Option<f64> {
    let mut lines = scrape.lines().filter_map(|line| line.rsplit_once(' '));
    let (_, value) = lines.find(|(name, _)| *name == series)?;
    Some(value.parse().unwrap())
}

#[track_caller]
fn value(scrape: &str, series: &str) -> f64 {
    value_of(scrape, series).unwrap_or_else(|| panic!("{series} is not in\n{scrape}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_is_what_status_shows_and_it_moves_with_the_traffic() {
    let mut stage = Stage::new(&[RELIABLE]);
    let reads = "subscribe = [\"b\"]";
    stage.edit("b", reads, &format!("{reads}\npersist = true"));
    let [a, router, b] = ["a", "router", "b"].map(|name| with_metrics(&stage, name));
    for name in ["router", "b", "a"] {
        stage.start(name).await;
    }
    let mut events = stage.subscribed(RELIABLE.name).await;
    let publisher = stage.publisher(RELIABLE.name).await;
    for event in crate::numbered(200) {
        publisher.publish(&event).await.unwrap();
    }
    in_time("publishing", publisher.finish()).await.unwrap();
    crate::payloads(&mut events, 200).await;

    let published = "virga_channel_published_events_total{channel=\"test/reliable\"}";
    // b has the events before a hears that it does.
    let acked = "virga_class_acked_after_seconds{worker=\"0\",class=\"0\",quantile=\"1\"}";
    let a = eventually("a's figures", async || {
        let text = scrape(a);
        let is_acked = value_of(&text, acked).is_some_and(|seconds| seconds > 0.0);
        (is_acked && value(&text, published) == 200.0).then_some(text)
    })
    .await;
    let (id, version) = (stage.node("a").id, env!("CARGO_PKG_VERSION"));
    let info =
        format!("virga_node_info{{node=\"a\",id=\"{id}\",network=\"test\",version=\"{version}\"}}");
    assert_eq!(value(&a, &info), 1.0);
    assert!(value(&a, "virga_session_rtt_seconds{peer=\"b\"}") > 0.0);
    assert!(value(&a, "virga_session_sent_packets_total{peer=\"b\"}") > 0.0);
    assert!(value(&a, "virga_sessions{state=\"established\"}") >= 1.0);
    assert!(value(&a, "virga_class_sent_events_total{class=\"0\"}") >= 200.0);
    for series in [
        "virga_session_round_trip_seconds{peer=\"b\",quantile=\"0.99\"}",
        "virga_class_sent_after_seconds{worker=\"0\",class=\"0\",quantile=\"0.5\"}",
    ] {
        assert!(value(&a, series) > 0.0, "{series}");
    }

    let router = scrape(router);
    let redirected = "virga_verdict_packets_total{path=\"userspace\",verdict=\"redirect\"}";
    assert!(value(&router, redirected) > 0.0);
    assert_eq!(
        value(
            &router,
            "virga_forwarding_info{mode=\"userspace\",asked=\"userspace\"}"
        ),
        1.0
    );
    assert_eq!(
        value(&router, "virga_link_resolved{peer=\"a\"}"),
        value(&router, "virga_link_resolved{peer=\"b\"}")
    );

    let log = "virga_log_readable_offset{channel=\"test/reliable\"}";
    let b = eventually("b's log", async || {
        let text = scrape(b);
        (value(&text, log) == 200.0).then_some(text)
    })
    .await;
    assert_eq!(
        value(
            &b,
            "virga_channel_delivered_events_total{channel=\"test/reliable\"}"
        ),
        400.0,
        "the log's are among them"
    );
    assert_eq!(value(&b, "virga_subscriptions{state=\"granted\"}"), 1.0);
    assert_eq!(
        value(&b, "virga_log_degraded{channel=\"test/reliable\"}"),
        0.0
    );

    let status = in_time("status", stage.mesh("b").await.status())
        .await
        .unwrap();
    every_figure_is_in_a_scrape(&status);
}

/// Gives each number of a status a value of its own, and looks for it among those of the series.
fn every_figure_is_in_a_scrape(status: &Status) {
    let mut marked = serde_json::to_value(status).unwrap();
    // What user space leaves empty.
    marked["forwarding"]["nic"] = marked["userspace"].clone();
    marked["forwarding"]["guard"] =
        json!({"pairs": 0, "banks": 0, "fill": 0.5, "false_positive_rate": 0.5});
    let session = &mut marked["sessions"][0];
    session["state"] = "established".into();
    session["rtt_us"] = 0.into();
    session["path"]["rtt_least_us"] = 0.into();
    marked["peers"][0]["transport"] = "udp".into();
    let keepalive = &mut marked["forwarding"]["links"][0]["keepalive"];
    for key in ["lost_ppm", "lost_back_ppm"] {
        keepalive[key] = 0.into();
    }
    marked["admissions"]["filters"]["filters"] = json!([{
        "subnet": "2.0.0.0/8", "gateway": "g", "is_used": true, "is_own": false, "version": 0,
        "expires_in_s": 0, "banks": 0, "fill": 0.5, "false_positive_rate": 0.5, "withdrawn": 0,
    }]);
    // One of each, so that no series is of a sum.
    for list in [
        "sessions",
        "workers",
        "channels",
        "logs",
        "subscribers",
        "subscriptions",
    ] {
        let list = marked[list].as_array_mut().unwrap();
        assert!(!list.is_empty());
        list.truncate(1);
    }
    let times = json!({"count": 1, "p50_ns": 0, "p99_ns": 0, "p999_ns": 0, "max_ns": 0});
    marked["workers"][0]["class_times"] = json!({"3": {"sent_after": times, "acked_after": times}});
    marked["sessions"][0]["round_trips"] = times;
    marked["logs"][0]["replication"] = json!({
        "role": "leader", "epoch": 0, "leader": "b", "committed": 0, "is_whole": true,
        "copies": [{"node": "c", "end": 0, "lag": 0, "counts": true}],
        "submissions": 0, "cut_events": 0, "dropped": {"malformed": 0},
    });
    for key in ["slow_ms", "unread_ms"] {
        marked["subscribers"][0][key] = 0.into();
    }
    marked["discovery"]["nodes"] = json!([{
        "name": "c", "id": "c", "origin": "seed", "stage": "proven", "address": null, "is_twin": false,
    }]);
    marked["discovery"]["members"] =
        json!([{"name": "c", "id": "c", "state": "alive", "since_s": 0}]);
    marked["discovery"]["refused"] = json!({"malformed": 0});
    marked["discovery"]["lan"] = json!({
        "is_on": true, "places": [{"address": "10.77.1.2", "problem": null}], "nodes": 0,
        "sent": 0, "heard": 0, "refused": {"busy": 0},
    });
    (marked["nat"]["is_on"], marked["nat"]["class"]) = (true.into(), "cone".into());
    marked["nat"]["refused"] = json!({"malformed": 0});
    let counts = json!({"PCP": 0});
    let mapping = &mut marked["nat"]["port_mapping"];
    (mapping["made"], mapping["renewed"], mapping["failed"]) =
        (counts.clone(), counts.clone(), counts);
    mapping["protocol"] = "PCP".into();
    marked["channels"][0]["paused_ms"] = 0.into();
    let mut places = BTreeMap::new();
    mark(&mut marked, String::new(), &mut places);
    let status: Status = serde_json::from_value(marked).unwrap();

    let scrape = metrics::text::of(&status);
    let samples = scrape.lines().filter(|line| !line.starts_with('#'));
    let found: BTreeSet<u64> = samples
        .filter_map(|line| millionths(line.rsplit_once(' ')?.1))
        .collect();
    let named: BTreeSet<&str> = NOT_SERIES.iter().map(|(place, _)| *place).collect();
    let mut seen = BTreeSet::new();
    for (number, place) in &places {
        if let Some(name) = named.get(place.as_str()) {
            seen.insert(*name);
            continue;
        }
        if SUMS.iter().any(|sum| place.starts_with(sum)) {
            continue;
        }
        // As it is, or in seconds instead of what its name ends with.
        let (_, unit) = place.rsplit_once('_').unwrap_or_default();
        let is_reason = place.contains("/drops/");
        let scaled = match unit {
            _ if is_reason => number * 1_000_000,
            "ns" => number / 1_000,
            "us" | "ppm" => *number,
            "ms" => number * 1_000,
            _ => number * 1_000_000,
        };
        assert!(
            found.contains(&scaled),
            "{place} ({number}) is in no series of\n{scrape}"
        );
    }
    let unseen: Vec<_> = named.difference(&seen).collect();
    assert!(unseen.is_empty(), "{unseen:?}");
    // And every series that there can be has a value here.
    for series in table::all() {
        let is_empty = series.rows(&status).iter().next().is_none();
        let needs_more = [
            "virga_interface_attached",
            "virga_socket_xsk_queues",
            "virga_socket_xsk_unsent_packets",
            "virga_admission_refused_tokens_total",
            "virga_admission_verdicts_total",
            "virga_filter_refusals_total",
        ];
        assert!(
            !is_empty || needs_more.contains(&series.name),
            "{} is never told",
            series.name
        );
    }
}

/// A number in millionths, where it is a whole number of them.
fn millionths(text: &str) -> Option<u64> {
    let number: f64 = text.parse().ok()?;
    let scaled = (number * 1e6).round();
    // Whole and small enough to be exact.
    ((0.0..9e15).contains(&scaled)).then(|| format!("{scaled}").parse().unwrap())
}

/// Replaces each number below `value` by one of its own, and notes where it stood.
fn mark(value: &mut Value, place: String, places: &mut BTreeMap<u64, String>) {
    match value {
        Value::Number(_) => {
            if SMALL.iter().any(|end| place.ends_with(end)) {
                return;
            }
            let number = 1_000_000 + 1_000 * places.len() as u64;
            *value = number.into();
            places.insert(number, place);
        }
        Value::Array(all) => {
            for one in all {
                mark(one, format!("{place}/*"), places);
            }
        }
        Value::Object(all) => {
            for (key, one) in all {
                mark(one, format!("{place}/{key}"), places);
            }
        }
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_says_whether_it_lives_and_whether_it_is_ready_and_why_not() {
    let mut stage = Stage::new(&[RELIABLE]);
    let address = with_metrics(&stage, "a");
    stage.start("a").await;
    let answer = |path| {
        let (code, _, body) = ask(address, "GET", path);
        (code, body)
    };
    assert_eq!(answer("/healthz"), (200, "the workers answer\n".to_owned()));
    assert_eq!(answer("/readyz"), (200, "ready\n".to_owned()));
    let (code, words) = answer("/");
    assert_eq!(code, 404);
    assert!(words.contains("GET /metrics"), "{words}");
    assert_eq!(ask(address, "POST", "/metrics").0, 405);

    // A file in the socket's place, which the node leaves alone: programs do not reach it any more.
    let socket = stage.node("a").socket();
    fs::remove_file(&socket).unwrap();
    fs::write(&socket, "kept").unwrap();
    let why = eventually("not ready", async || {
        let (code, body) = answer("/readyz");
        (code == 503).then_some(body)
    })
    .await;
    assert!(
        why.starts_with("the API's socket ") && why.contains("Connection refused"),
        "{why}"
    );
    assert_eq!(answer("/healthz").0, 200);
    fs::remove_file(&socket).unwrap();
    eventually("ready again", async || {
        (answer("/readyz").0 == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_taken_is_said_at_the_start() {
    let stage = Stage::new(&[RELIABLE]);
    let address = with_metrics(&stage, "a");
    let _taken = TcpListener::bind(address).unwrap();
    let a = stage.node("a");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_virga"))
        .args(["node", "run", "--config"])
        .arg(a.config())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    let expected = format!("cannot listen for metrics at {address}: ");
    assert!(
        words.contains(&expected) && words.contains("another address or port"),
        "{words}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_for_metrics_are_few_and_end() {
    let mut stage = Stage::new(&[RELIABLE]);
    let address = with_metrics(&stage, "a");
    stage.start("a").await;
    // Whether one more is closed before those that are silent have had their time.
    let is_at_once = || {
        let start = Instant::now();
        let mut silent: Vec<TcpStream> = (0..16)
            .map(|_| TcpStream::connect(address).unwrap())
            .collect();
        let mut beyond = TcpStream::connect(address).unwrap();
        beyond.set_read_timeout(Some(PATIENCE)).unwrap();
        let closed = beyond.read(&mut [0; 1]);
        assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
        let took = start.elapsed();
        for stream in &mut silent {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut rest = Vec::new();
            // Closed, however; what matters is that it ends.
            let ended = stream.read_to_end(&mut rest);
            let is_open = ended.is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
            assert!(!is_open, "a silent connection stays");
        }
        took < HEAD_TIMEOUT
    };
    // The machine below this one may stand still meanwhile.
    assert!((0..3).any(|_| is_at_once()));
    scrape(address);
}
