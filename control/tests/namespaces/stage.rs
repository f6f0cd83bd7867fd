//! The stages that these tests play on, and what they ask of them.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;
use serde_json::Value;
use tokio::task::JoinHandle;
use virga::mesh::Mesh;

use crate::hosts::{Hosts, eventually};

/// The channel of most tests: unreliable, so that no retransmission hides a loss.
pub const LOSSY: &str = "test/lossy";
/// A reliable one.
pub const RELIABLE: &str = "test/reliable";

/// Addresses of one family.
pub struct Addresses {
    pub a: &'static str,
    pub router_a: &'static str,
    pub router_b: &'static str,
    pub b: &'static str,
    pub prefix: u8,
}

pub const V4: Addresses = Addresses {
    a: "10.78.1.2",
    router_a: "10.78.1.1",
    router_b: "10.78.2.1",
    b: "10.78.2.2",
    prefix: 24,
};
pub const V6: Addresses = Addresses {
    a: "fd78:1::2",
    router_a: "fd78:1::1",
    router_b: "fd78:2::1",
    b: "fd78:2::2",
    prefix: 64,
};

/// An address with the mesh's port.
pub fn at(address: &str) -> String {
    if address.contains(':') {
        format!("[{address}]:4783")
    } else {
        format!("{address}:4783")
    }
}

/// A `[[peers]]` block.
pub fn peer(name: &str, how: &str) -> String {
    format!(
        "[[peers]]\nname = \"{name}\"\nnode_key = \"{{{name}.node}}\"\n\
         entity_key = \"{{{name}.entity}}\"\n{how}\n"
    )
}

/// `[forwarding]` in a mode, on interfaces.
pub fn forwarding(mode: &str, interfaces: &str) -> String {
    if mode == "userspace" {
        "[forwarding]\nmode = \"userspace\"\n".to_owned()
    } else {
        format!("[forwarding]\nmode = \"{mode}\"\ninterfaces = [{interfaces}]\n")
    }
}

/// Both channels: a publishes, b subscribes.
pub fn channels() -> String {
    let channel = |name, reliable| {
        format!(
            "[[channels]]\nname = \"{name}\"\nreliable = {reliable}\n\
             publish = [\"{{a.entity}}\"]\nsubscribe = [\"{{b.entity}}\"]\n"
        )
    };
    channel(LOSSY, false) + &channel(RELIABLE, true)
}

pub fn virga() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_virga"))
}

/// Host, interface, and address with its prefix length.
pub type End<'a> = (&'a str, &'a str, &'a str);

/// a -- router -- b, all running; the router forwards in `mode`.
pub fn line(mode: &str, addresses: &Addresses) -> Hosts {
    line_with(mode, addresses, &channels())
}

/// The same with other channels in every file.
pub fn line_with(mode: &str, addresses: &Addresses, channels: &str) -> Hosts {
    let link = |hosts: &Hosts, edge: End, router: End| hosts.join(edge, router).unwrap();
    line_of(mode, addresses, link, channels, "")
}

/// The same with more keys in everybody's `[forwarding]`.
pub fn line_keyed(mode: &str, addresses: &Addresses, keys: &str) -> Hosts {
    let link = |hosts: &Hosts, edge: End, router: End| hosts.join(edge, router).unwrap();
    line_of(mode, addresses, link, &channels(), keys)
}

/// The same over links that `link` makes.
pub fn line_over(
    mode: &str,
    addresses: &Addresses,
    keys: &str,
    link: impl Fn(&Hosts, End, End),
) -> Hosts {
    line_of(mode, addresses, link, &channels(), keys)
}

fn line_of(
    mode: &str,
    addresses: &Addresses,
    link: impl Fn(&Hosts, End, End),
    channels: &str,
    keys: &str,
) -> Hosts {
    let mut hosts = Hosts::new("virga-test", virga()).unwrap();
    for host in ["a", "router", "b"] {
        hosts.add(host).unwrap();
    }
    let with_prefix = |address: &str| format!("{address}/{}", addresses.prefix);
    let join = |edge: &str, edge_address: &str, interface: &str, address: &str| {
        link(
            &hosts,
            (edge, "m0", &with_prefix(edge_address)),
            ("router", interface, &with_prefix(address)),
        );
    };
    join("a", addresses.a, "ma", addresses.router_a);
    join("b", addresses.b, "mb", addresses.router_b);
    let edge_mode = if mode == "userspace" {
        "userspace"
    } else {
        "native"
    };
    let edge = |router: &str, other: &str| {
        forwarding(edge_mode, "\"m0\"")
            + keys
            + &peer("router", &format!("address = \"{}\"", at(router)))
            + &peer(other, "via = [\"router\"]")
            + channels
    };
    hosts
        .configure("a", &at(addresses.a), &edge(addresses.router_a, "b"))
        .unwrap();
    hosts
        .configure("b", &at(addresses.b), &edge(addresses.router_b, "a"))
        .unwrap();
    let router = forwarding(mode, "\"ma\", \"mb\"")
        + keys
        + &peer("a", &format!("address = \"{}\"", at(addresses.a)))
        + &peer("b", &format!("address = \"{}\"", at(addresses.b)))
        + channels;
    let any = if addresses.prefix == 24 {
        "0.0.0.0:4783"
    } else {
        "[::]:4783"
    };
    hosts.configure("router", any, &router).unwrap();
    for host in ["router", "b", "a"] {
        hosts.start(host).unwrap();
    }
    hosts
}

/// A number in a host's status, by JSON pointer; 0 where it is not.
pub fn number(hosts: &Hosts, host: &str, pointer: &str) -> u64 {
    let status = hosts.status(host).unwrap();
    status.pointer(pointer).and_then(Value::as_u64).unwrap_or(0)
}

/// Packets that the host's NIC path sent on.
pub fn forwarded(hosts: &Hosts, host: &str) -> u64 {
    number(hosts, host, "/forwarding/nic/outcomes/redirect/packets")
        + number(hosts, host, "/forwarding/nic/outcomes/transmit/packets")
}

/// Packets that the host's NIC path dropped for a reason.
pub fn dropped(hosts: &Hosts, host: &str, reason: &str) -> u64 {
    number(
        hosts,
        host,
        &format!("/forwarding/nic/drops/{reason}/packets"),
    )
}

/// Whether b is on a's roster of a channel.
pub fn is_subscribed(hosts: &Hosts, channel: &str) -> bool {
    let status = hosts.status("a").unwrap();
    let channels = status["channels"].as_array().unwrap();
    channels
        .iter()
        .find(|c| c["name"] == channel)
        .is_some_and(|c| c["remote_subscribers"].as_u64() > Some(0))
}

/// A subscriber at b that notes which events arrived.
pub struct Sink {
    channel: &'static str,
    task: JoinHandle<Vec<u64>>,
}

impl Sink {
    /// Subscribes and waits until a knows.
    pub async fn subscribe(hosts: &Hosts, channel: &'static str) -> Self {
        let mesh = Mesh::open(hosts.socket("b")).await.unwrap();
        let mut deliveries = mesh.subscribe(channel).await.unwrap();
        let task = tokio::spawn(async move {
            let mut numbers = Vec::new();
            while let Some(Ok(delivery)) = deliveries.next().await {
                let number = u64::from_be_bytes(delivery.payload[..8].try_into().unwrap());
                if number == u64::MAX {
                    break;
                }
                numbers.push(number);
            }
            numbers
        });
        let there = eventually(|| is_subscribed(hosts, channel));
        assert!(
            there,
            "b's subscription reaches a.\na:\n{}\nrouter:\n{}\nb:\n{}",
            hosts.log("a"),
            hosts.log("router"),
            hosts.log("b")
        );
        Self { channel, task }
    }

    /// What arrived until the mark that ends it: in the order of arrival where the channel promises
    /// one, and sorted where it does not, as a sender's queues may overtake each other.
    pub async fn numbers(self) -> Vec<u64> {
        let mut numbers = tokio::time::timeout(Duration::from_secs(90), self.task)
            .await
            .expect("the mark that ends the events arrives")
            .unwrap();
        if self.channel == LOSSY {
            numbers.sort_unstable();
        }
        numbers
    }
}

/// Publishes numbers at a for that long; then, a few times, the mark that ends it. Returns how many.
pub async fn publish(hosts: &Hosts, channel: &str, rate: u32, duration: Duration) -> u64 {
    publish_at(&hosts.socket("a"), channel, rate, duration).await
}

/// The same on a task of its own, that goes on while a test blocks.
pub fn publishing(
    hosts: &Hosts,
    channel: &'static str,
    rate: u32,
    duration: Duration,
) -> JoinHandle<u64> {
    let socket = hosts.socket("a");
    tokio::spawn(async move { publish_at(&socket, channel, rate, duration).await })
}

/// Events on their way from a until they are ended, however long that takes.
pub struct Stream {
    goes_on: Arc<AtomicBool>,
    published: Arc<AtomicU64>,
    task: JoinHandle<u64>,
}

impl Stream {
    pub fn begin(hosts: &Hosts, channel: &'static str, rate: u32) -> Self {
        let goes_on = Arc::new(AtomicBool::new(true));
        let published = Arc::<AtomicU64>::default();
        let (socket, is_on) = (hosts.socket("a"), Arc::clone(&goes_on));
        let asked = Arc::clone(&published);
        let task = tokio::spawn(async move {
            let goes_on = || {
                // Asked before each.
                asked.fetch_add(1, Ordering::Relaxed);
                is_on.load(Ordering::Relaxed)
            };
            publish_while(&socket, channel, rate, goes_on).await
        });
        Self {
            goes_on,
            published,
            task,
        }
    }

    /// A number from which on all are published later than now.
    pub fn next(&self) -> u64 {
        self.published.load(Ordering::Relaxed)
    }

    /// How many they were.
    pub async fn end(self) -> u64 {
        self.goes_on.store(false, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

/// Whether the first of two routers carries what goes on from a, by the next thousand packets of both: it has more than a
/// third of them. Echoes of links are far fewer, and the other may have all that comes back.
pub fn is_by(hosts: &Hosts, one: &str, other: &str) -> bool {
    let carried = || [one, other].map(|router| forwarded(hosts, router));
    let before = carried();
    let mut moved = [0; 2];
    let are_enough = eventually(|| {
        let now = carried();
        moved = [now[0] - before[0], now[1] - before[1]];
        moved[0] + moved[1] >= 1_000
    });
    assert!(are_enough, "{one} and {other} carry too little: {moved:?}");
    println!("{one} and {other} carry {moved:?}");
    3 * moved[0] > moved[0] + moved[1]
}

/// The same at a socket.
pub async fn publish_at(socket: &Path, channel: &str, rate: u32, duration: Duration) -> u64 {
    let start = std::time::Instant::now();
    publish_while(socket, channel, rate, || start.elapsed() < duration).await
}

/// The same for as long as it goes on.
pub async fn publish_while(
    socket: &Path,
    channel: &str,
    rate: u32,
    goes_on: impl Fn() -> bool,
) -> u64 {
    let mesh = Mesh::open(socket).await.unwrap();
    let publisher = mesh.publisher(channel).await.unwrap();
    let mut tick = tokio::time::interval(Duration::from_secs(1) / rate);
    let mut count: u64 = 0;
    while goes_on() {
        tick.tick().await;
        publisher.publish(&event(count)).await.unwrap();
        count += 1;
    }
    // A mark may get lost on a channel where events may; each repetition is ignored once one arrived.
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        publisher.publish(&event(u64::MAX)).await.unwrap();
    }
    publisher.finish().await.unwrap();
    count
}

fn event(number: u64) -> Vec<u8> {
    let mut event = number.to_be_bytes().to_vec();
    event.extend([0x56; 40]);
    event
}

/// Every number, each once, in order.
pub fn assert_complete(numbers: &[u64], count: u64) {
    let missing: Vec<u64> = (0..count)
        .filter(|n| numbers.binary_search(n).is_err())
        .take(10)
        .collect();
    assert!(
        numbers.iter().copied().eq(0..count),
        "{} of {count} events arrived; missing, first ten: {missing:?}",
        numbers.len()
    );
}
