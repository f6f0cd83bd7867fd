//! Neighbours whose UDP is blocked, on the loopback, and what strangers can do to the listeners.

use super::{
    numbered, payloads,
    stage::{Channel, RELIABLE, Stage, eventually, in_time},
};
use std::{
    net::{Ipv6Addr, SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
};
use virga::{api::status::PeerStatus, flow::Asked};

/// From a to its neighbour, reliable.
const NEAR: Channel = Channel {
    name: "test/near",
    subscribe: &["router"],
    ..RELIABLE
};
/// Connections of strangers.
const STRANGERS: usize = 2_000;

/// Passes packets between a, which sends to `front`, and the router, which sends to `back`, unless they are blocked.
async fn pass(
    (front, a): (UdpSocket, SocketAddr),
    (back, router): (UdpSocket, SocketAddr),
    is_blocked: Arc<AtomicBool>,
) {
    let (mut out, mut home) = (vec![0; 65_536], vec![0; 65_536]);
    loop {
        let (socket, to, bytes) = tokio::select! {
            Ok((bytes, _)) = front.recv_from(&mut out) => (&back, router, &out[..bytes]),
            Ok((bytes, _)) = back.recv_from(&mut home) => (&front, a, &home[..bytes]),
            else => return,
        };
        if !is_blocked.load(Ordering::Relaxed) {
            // What does not fit is lost, as anywhere.
            let _lost = socket.send_to(bytes, to).await;
        }
    }
}

/// Ports that are free now.
fn free_ports(ip: std::net::IpAddr) -> [SocketAddr; 2] {
    let held = [0; 2].map(|port| TcpListener::bind((ip, port)).unwrap());
    held.map(|one| one.local_addr().unwrap())
}

/// a and the router, with UDP that can be blocked between the two; the router takes TCP and WebSocket.
struct Parted {
    stage: Stage,
    is_blocked: Arc<AtomicBool>,
    tcp: SocketAddr,
    ws: SocketAddr,
}

impl Parted {
    async fn new(dial: impl Fn(SocketAddr, SocketAddr) -> String) -> Self {
        let mut stage = Stage::new(&[NEAR]);
        let front = UdpSocket::bind("127.0.0.2:0").await.unwrap();
        let back = UdpSocket::bind("127.0.0.8:0").await.unwrap();
        let (a, router) = (stage.node("a").listen, stage.node("router").listen);
        let [tcp, ws] = free_ports(router.ip());
        let (told, seen) = (front.local_addr().unwrap(), back.local_addr().unwrap());
        let targets = dial(tcp, ws);
        stage.edit(
            "a",
            &format!("address = \"{router}\""),
            &format!("address = \"{told}\"\nfallback = [{targets}]"),
        );
        let pace = "[fallback]\nafter_ms = 500\nprobe_s = 1\n[[channels]]";
        stage.edit("a", "[[channels]]", pace);
        stage.edit(
            "router",
            &format!("address = \"{a}\""),
            &format!("address = \"{seen}\""),
        );
        let takes =
            format!("[fallback]\nlisten_tcp = \"{tcp}\"\nlisten_ws = \"{ws}\"\n[[channels]]");
        stage.edit("router", "[[channels]]", &takes);
        let is_blocked = Arc::new(AtomicBool::new(true));
        tokio::spawn(pass((front, a), (back, router), Arc::clone(&is_blocked)));
        stage.start("router").await;
        stage.start("a").await;
        Self {
            stage,
            is_blocked,
            tcp,
            ws,
        }
    }

    fn block(&self, is_blocked: bool) {
        self.is_blocked.store(is_blocked, Ordering::Relaxed);
    }

    async fn peer(&self, at: &str, other: &str) -> Option<PeerStatus> {
        let status = self.stage.mesh(at).await.status().await.ok()?;
        status.peers.into_iter().find(|peer| peer.name == other)
    }

    /// Waits until both say so, of one of these.
    async fn is_carried_by(&self, transports: &[&str]) {
        for (at, other) in [("a", "router"), ("router", "a")] {
            eventually(&format!("{at} over {transports:?}"), async || {
                let peer = self.peer(at, other).await?;
                let by = peer.transport.as_deref();
                let is_so = by.is_some_and(|by| transports.contains(&by))
                    && peer.session.as_deref() == Some("established")
                    && peer.path == "direct";
                is_so.then_some(())
            })
            .await;
        }
    }

    /// So many events get from a to the router.
    async fn events_pass(&self, count: u32) {
        let mesh = self.stage.mesh("router").await;
        let mut events = mesh.subscribe(NEAR.name).await.unwrap();
        self.stage.subscribers(NEAR.name, 1).await;
        let sent = numbered(count);
        let publisher = self.stage.publisher(NEAR.name).await;
        for event in &sent {
            publisher.publish(event).await.unwrap();
        }
        in_time("publishing", publisher.finish()).await.unwrap();
        assert!(in_time("reading", payloads(&mut events, sent.len())).await == sent);
    }

    async fn dropped(&self, reason: &str) -> u64 {
        self.stage.status("router").await.fallback.dropped[reason]
    }

    /// Waits until so many were dropped.
    async fn drops(&self, reason: &str, least: u64) {
        eventually(&format!("{least} {reason}"), async || {
            (self.dropped(reason).await >= least).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fallback_carries_a_stream_and_gives_it_back_to_udp_and_nothing_is_lost() {
    // Nobody takes the first.
    let dial =
        |tcp: SocketAddr, ws: SocketAddr| format!("\"tcp://{}:1\", \"ws://{ws}/virga\"", tcp.ip());
    let parted = Parted::new(dial).await;
    parted.is_carried_by(&["ws"]).await;
    let why = parted
        .peer("a", "router")
        .await
        .unwrap()
        .transport_why
        .unwrap();
    assert!(why.contains("no answer by UDP; over ws://"), "{why}");
    let mesh = parted.stage.mesh("router").await;
    let mut events = mesh.subscribe(NEAR.name).await.unwrap();
    parted.stage.subscribers(NEAR.name, 1).await;
    let sent = numbered(8_000);
    let reader = tokio::spawn(async move { (payloads(&mut events, 8_000).await, events) });
    let publisher = parted.stage.publisher(NEAR.name).await;
    for (n, part) in sent.chunks(2_000).enumerate() {
        for event in part {
            publisher.publish(event).await.unwrap();
        }
        parted.block(n % 2 == 1);
        parted
            .is_carried_by(&[if n % 2 == 1 { "ws" } else { "udp" }])
            .await;
    }
    let published = in_time("publishing", publisher.finish()).await.unwrap();
    assert_eq!((published.published, published.refused), (8_000, 0));
    let (arrived, _events) = in_time("reading", reader).await.unwrap();
    assert!(arrived == sent, "lost, or out of order");
    let a = parted.stage.status("a").await.fallback;
    assert!(a.sent > 0 && a.received > 0);
    // The other end dies, and comes back: it is dialled again.
    let mut parted = parted;
    parted.stage.kill("router");
    parted.stage.start("router").await;
    parted.is_carried_by(&["ws"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_carried_has_no_time_in_the_kernel_and_a_traced_flow_says_so() {
    let parted = Parted::new(|tcp, _| format!("\"tcp://{tcp}\"")).await;
    parted.is_carried_by(&["tcp"]).await;
    let mesh = parted.stage.mesh("router").await;
    let mut events = mesh.subscribe(NEAR.name).await.unwrap();
    parted.stage.subscribers(NEAR.name, 1).await;
    let publisher = parted.stage.publisher(NEAR.name).await;
    let asked = Asked {
        channel: NEAR.name.to_owned(),
        ..Asked::default()
    };
    let mut flow = mesh.flow(&asked).await.unwrap();
    let receive = eventually("what was carried is counted", async || {
        publisher.publish(b"event").await.unwrap();
        let arrived = in_time("the event", events.next_delivery()).await;
        arrived.unwrap().unwrap();
        let report = in_time("a report", flow.next_report()).await;
        let receive = report.unwrap().unwrap().receiving.swap_remove(0);
        receive.why_not.contains_key("carried").then_some(receive)
    })
    .await;
    assert_eq!((&*receive.stage, receive.count), ("receive", 0));
    assert_eq!(receive.why_not.len(), 1, "{receive:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn fallback_listeners_bear_strangers_and_go_on() {
    let parted = Parted::new(|tcp, _| format!("\"tcp://{tcp}\"")).await;
    parted.is_carried_by(&["tcp"]).await;
    let ended = async || {
        let dropped = parted.stage.status("a").await.fallback.dropped;
        ["broken", "malformed", "useless"].map(|reason| dropped[reason])
    };
    let ended_before = ended().await;
    // What is no hello, at once and after a WebSocket that is one.
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 64], &[0, 56, 1]] {
        let mut stream = TcpStream::connect(parted.tcp).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut said = Vec::new();
        // A reset is an end, too.
        let _ended = in_time("the end", stream.read_to_end(&mut said)).await;
        assert!(said.is_empty());
    }
    parted.drops("garbage", 2).await;
    let mut stream = TcpStream::connect(parted.ws).await.unwrap();
    let upgrade = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(upgrade.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 101");
    // A frame of 4 GiB, as its length says.
    let before = parted.dropped("garbage").await;
    let frame = [0x82, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 1, 2, 3, 4];
    stream.write_all(&frame).await.unwrap();
    let mut rest = Vec::new();
    let _ended = in_time("the end", stream.read_to_end(&mut rest)).await;
    parted.drops("garbage", before + 1).await;
    // Those that never speak take a bounded number of places, and lose them.
    let mut silent = Vec::new();
    for n in 0..STRANGERS {
        if let Ok(stream) = TcpStream::connect([parted.tcp, parted.ws][n % 2]).await {
            silent.push(stream);
        }
        // As many at a time as this process may have.
        if silent.len() > 200 {
            silent.remove(0);
        }
    }
    parted.drops("full", STRANGERS as u64 / 2).await;
    parted.drops("slow", 1).await;
    // The neighbour is carried all the while, by one connection, and its events pass.
    parted.is_carried_by(&["tcp"]).await;
    assert_eq!(ended().await, ended_before);
    parted.events_pass(500).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fallback_follows_a_configuration_that_says_other_addresses_or_none() {
    let parted = Parted::new(|tcp, _| format!("\"tcp://{tcp}\"")).await;
    parted.is_carried_by(&["tcp"]).await;
    let [tcp, ws] = [
        format!("tcp://{}", parted.tcp),
        format!("ws://{}/", parted.ws),
    ];
    let change = |from: &str, to: &str| {
        parted.stage.edit("a", from, to);
        let output = parted.stage.node("a").run(&["reload"]);
        assert!(output.status.success(), "{output:?}");
    };
    // UDP stays blocked: nothing else would end the connection.
    change(&tcp, &ws);
    parted.is_carried_by(&["ws"]).await;
    let listed = format!("fallback = [\"{ws}\"]");
    change(&listed, "");
    for (at, other) in [("a", "router"), ("router", "a")] {
        eventually(&format!("{at} by UDP alone"), async || {
            let by = parted.peer(at, other).await?.transport;
            by.is_none_or(|by| by == "udp").then_some(())
        })
        .await;
    }
    let carried = parted.stage.status("a").await.fallback.carried;
    assert!(carried.values().all(|count| *count == 0), "{carried:?}");
    // It is at its own address again, where UDP reaches it.
    parted.block(false);
    parted.events_pass(200).await;
    let own = "\nname = \"router\"\n";
    change(own, &format!("{own}{listed}\n"));
    parted.block(true);
    parted.is_carried_by(&["ws"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fallback_carries_two_neighbours_of_a_node_whose_relays_share_one_address() {
    let mut stage = Stage::new(&[NEAR]);
    let own = stage.node("router").listen;
    let listen = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), own.port());
    let [tcp, _] = free_ports(listen.ip());
    let takes = format!("[fallback]\nlisten_tcp = \"{tcp}\"\n[[channels]]");
    for (from, to) in [
        (
            format!("listen = \"{own}\""),
            format!("listen = \"{listen}\""),
        ),
        ("[[channels]]".to_owned(), takes),
    ] {
        stage.edit("router", &from, &to);
    }
    // Nothing gets from one to the other by UDP.
    for (name, far) in [("a", "[fd00::2]:9"), ("b", "[fd00::4]:9")] {
        let near = stage.node(name).listen;
        let address = |at: &str| format!("address = \"{at}\"");
        stage.edit("router", &address(&near.to_string()), &address(far));
        let there = address(&own.to_string());
        let dialled = format!("{there}\nfallback = [\"tcp://{tcp}\"]");
        stage.edit(name, &there, &dialled);
        let pace = "[fallback]\nafter_ms = 500\n[[channels]]";
        stage.edit(name, "[[channels]]", pace);
    }
    let peer = async |name: &str, stage: &Stage| {
        let status = stage.mesh("router").await.status().await.ok()?;
        let mut peers = status.peers.into_iter();
        let peer = peers.find(|peer| peer.name == name)?;
        let is_carried = peer.transport.as_deref() == Some("tcp")
            && peer.session.as_deref() == Some("established")
            && peer.path == "direct";
        is_carried.then_some(peer.tags?.checked)
    };
    stage.start("router").await;
    stage.start("a").await;
    eventually("a's tags are checked", async || {
        peer("a", &stage).await.filter(|is_checked| *is_checked)
    })
    .await;
    stage.start("b").await;
    for name in ["a", "b"] {
        eventually(&format!("{name} shares an address"), async || {
            peer(name, &stage).await.filter(|is_checked| !is_checked)
        })
        .await;
    }
    // What the first of the two sends still passes.
    let mesh = stage.mesh("router").await;
    let mut events = mesh.subscribe(NEAR.name).await.unwrap();
    stage.subscribers(NEAR.name, 1).await;
    let publisher = stage.publisher(NEAR.name).await;
    let sent = numbered(200);
    for event in &sent {
        publisher.publish(event).await.unwrap();
    }
    in_time("publishing", publisher.finish()).await.unwrap();
    assert!(in_time("reading", payloads(&mut events, sent.len())).await == sent);
}
