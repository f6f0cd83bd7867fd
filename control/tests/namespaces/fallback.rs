//! A network that blocks UDP: neighbours go on over TCP, WebSocket, and WebSocket over TLS, and are back on UDP when it
//! passes again. Nothing reliable is lost on the way, nor changes its order.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::StreamExt as _;
use tokio::task::JoinHandle;
use virga::mesh::Mesh;

use crate::{
    hosts::{Hosts, eventually},
    stage::{V4, at, forwarding, peer, virga},
};

/// From a to b, and back.
const THERE: &str = "test/there";
const BACK: &str = "test/back";
/// Events that pass at least, each way, while UDP is blocked at first.
const EVENTS: u64 = 2_000;

/// a -- router -- b, where the router is the kernel alone. b takes `kind`, and a dials it.
fn stage(kind: &str) -> Hosts {
    let mut hosts = Hosts::new("virga-test", virga()).unwrap();
    for host in ["a", "router", "b"] {
        hosts.add(host).unwrap();
    }
    for (edge, own, interface, router) in [
        ("a", V4.a, "ma", V4.router_a),
        ("b", V4.b, "mb", V4.router_b),
    ] {
        let [own, next] = [own, router].map(|address| format!("{address}/{}", V4.prefix));
        hosts
            .join((edge, "m0", &own), ("router", interface, &next))
            .unwrap();
        let default = ["route", "add", "default", "via", router];
        hosts.ip(edge, &default).unwrap();
    }
    let forward = "echo 1 >/proc/sys/net/ipv4/ip_forward";
    hosts.run("router", "sh", &["-c", forward]).unwrap();
    let far = format!("{kind}://{}:4790", V4.b);
    let (mut takes, mut trusts) = (format!("listen_ws = \"{}:4790\"\n", V4.b), String::new());
    match kind {
        "tcp" => takes = format!("listen_tcp = \"{}:4790\"\n", V4.b),
        "wss" => {
            let (certificate, key) = certificate(&hosts);
            takes += &format!("certificate = \"{certificate}\"\ncertificate_key = \"{key}\"\n");
            trusts = format!("trust = \"{certificate}\"\n");
        }
        _ => {}
    }
    let channels: String = [(THERE, "a", "b"), (BACK, "b", "a")]
        .map(|(name, from, to)| {
            format!(
                "[[channels]]\nname = \"{name}\"\nreliable = true\n\
                 publish = [\"{{{from}.entity}}\"]\nsubscribe = [\"{{{to}.entity}}\"]\n"
            )
        })
        .concat();
    for (end, own, other, there, fallback, dial) in [
        (
            "a",
            V4.a,
            "b",
            V4.b,
            format!("[fallback]\nafter_ms = 1000\nprobe_s = 1\n{trusts}"),
            format!("\nfallback = [\"{far}\"]"),
        ),
        (
            "b",
            V4.b,
            "a",
            V4.a,
            format!("[fallback]\n{takes}"),
            String::new(),
        ),
    ] {
        let how = format!("address = \"{}\"{dial}", at(there));
        let rest = forwarding("userspace", "") + &fallback + &peer(other, &how) + &channels;
        hosts.configure(end, &at(own), &rest).unwrap();
    }
    hosts
}

/// One that nobody vouches for, and its key.
fn certificate(hosts: &Hosts) -> (String, String) {
    let made = rcgen::generate_simple_self_signed([V4.b.to_owned()]).unwrap();
    let write = |name: &str, label: &str, der: &[u8]| {
        let path = hosts.folder.join(name);
        let text = STANDARD.encode(der);
        let pem = format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n");
        fs::write(&path, pem).unwrap();
        path.display().to_string()
    };
    let key = made.signing_key.serialize_der();
    (
        write("cert.pem", "CERTIFICATE", made.cert.der()),
        write("cert.key", "PRIVATE KEY", &key),
    )
}

/// Drops all UDP on its way through the router, or lets it pass.
fn block(hosts: &Hosts, how: &str) {
    let rule = ["rule", how, "ipproto", "udp", "blackhole"];
    hosts.ip("router", &rule).unwrap();
}

/// Waits until both ends say that this carries the other's packets.
fn assert_carried_by(hosts: &Hosts, transport: &str) {
    for (host, other) in [("a", "b"), ("b", "a")] {
        let is_so = || {
            let status = hosts.status(host).unwrap();
            let mut peers = status["peers"].as_array().unwrap().iter();
            let peer = peers.find(|peer| peer["name"] == other).unwrap();
            peer["transport"] == transport
                && peer["session"] == "established"
                && peer["path"] == "direct"
        };
        assert!(
            eventually(is_so),
            "{host} over {transport}\na:\n{}\nb:\n{}",
            hosts.log("a"),
            hosts.log("b")
        );
    }
}

/// One direction under way: numbers that are published until it is said to end, and what arrives.
pub struct Flow {
    channel: &'static str,
    ends: Arc<AtomicBool>,
    publishing: JoinHandle<u64>,
    arrived: Arc<std::sync::Mutex<Vec<u64>>>,
    reading: JoinHandle<()>,
}

impl Flow {
    pub async fn start(hosts: &Hosts, channel: &'static str, from: &str, to: &str) -> Self {
        let mesh = Mesh::open(hosts.socket(to)).await.unwrap();
        let mut events = mesh.subscribe(channel).await.unwrap();
        let is_subscribed = || {
            let status = hosts.status(from).unwrap();
            let mut channels = status["channels"].as_array().unwrap().iter();
            let found = channels.find(|one| one["name"] == channel).unwrap();
            found["remote_subscribers"].as_u64() > Some(0)
        };
        assert!(eventually(is_subscribed), "{channel}");
        let arrived = Arc::new(std::sync::Mutex::new(Vec::new()));
        let kept = Arc::clone(&arrived);
        let reading = tokio::spawn(async move {
            while let Some(Ok(delivery)) = events.next().await {
                let number = u64::from_be_bytes(delivery.payload[..8].try_into().unwrap());
                kept.lock().unwrap().push(number);
            }
        });
        let ends = Arc::new(AtomicBool::new(false));
        let (ended, socket) = (Arc::clone(&ends), hosts.socket(from));
        let publishing = tokio::spawn(async move {
            let mesh = Mesh::open(socket).await.unwrap();
            let publisher = mesh.publisher(channel).await.unwrap();
            let mut tick = tokio::time::interval(Duration::from_millis(2));
            let mut count = 0_u64;
            while !ended.load(Ordering::Relaxed) {
                tick.tick().await;
                publisher.publish(&count.to_be_bytes()).await.unwrap();
                count += 1;
            }
            publisher.finish().await.unwrap();
            count
        });
        Self {
            channel,
            ends,
            publishing,
            arrived,
            reading,
        }
    }

    fn count(&self) -> u64 {
        self.arrived.lock().unwrap().len() as u64
    }

    /// The longest run of events that did not arrive, of those before the last that did.
    pub fn longest_loss(&self) -> u64 {
        let mut numbers = self.arrived.lock().unwrap().clone();
        numbers.sort_unstable();
        let gaps = numbers.windows(2).map(|pair| pair[1] - pair[0] - 1);
        gaps.max().unwrap_or(0)
    }

    /// So many more arrive.
    pub fn assert_flows(&self, events: u64) {
        let before = self.count();
        let has_flown = || self.count() >= before + events;
        assert!(eventually(has_flown), "{}: {before}", self.channel);
    }

    /// All that was published arrived, each once, in order.
    pub async fn assert_complete(self) {
        self.ends.store(true, Ordering::Relaxed);
        let count = self.publishing.await.unwrap();
        let arrived = &self.arrived;
        let is_all = || arrived.lock().unwrap().len() as u64 >= count;
        assert!(eventually(is_all), "{}", self.channel);
        self.reading.abort();
        let numbers = arrived.lock().unwrap().clone();
        assert!(numbers.iter().copied().eq(0..count), "{}", self.channel);
    }
}

async fn a_network_without_udp(kind: &str) {
    let mut hosts = stage(kind);
    block(&hosts, "add");
    for host in ["b", "a"] {
        hosts.start(host).unwrap();
    }
    assert_carried_by(&hosts, kind);
    let there = Flow::start(&hosts, THERE, "a", "b").await;
    let back = Flow::start(&hosts, BACK, "b", "a").await;
    there.assert_flows(EVENTS);
    back.assert_flows(EVENTS);
    block(&hosts, "del");
    assert_carried_by(&hosts, "udp");
    there.assert_flows(200);
    block(&hosts, "add");
    assert_carried_by(&hosts, kind);
    there.assert_flows(200);
    back.assert_flows(200);
    block(&hosts, "del");
    assert_carried_by(&hosts, "udp");
    there.assert_complete().await;
    back.assert_complete().await;
    let sessions = hosts.status("a").unwrap()["transport"]["sessions_established"].as_u64();
    assert_eq!(sessions, Some(1), "one session all the time");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn fallback_to_tcp_and_back_to_udp_loses_nothing() {
    a_network_without_udp("tcp").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn fallback_to_websocket_and_back_to_udp_loses_nothing() {
    a_network_without_udp("ws").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn fallback_to_websocket_over_tls_and_back_to_udp_loses_nothing() {
    a_network_without_udp("wss").await;
}
