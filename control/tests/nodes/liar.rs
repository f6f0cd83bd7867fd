//! A member with all keys and a program that lies: real daemons keep what others have with them, and little else, and say why
//! they do without it.

use std::{
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant, SystemTime},
};

use virga::{
    api::status::Status,
    channel::message::{Message, Pattern},
    config::Config,
    mesh::TryPublishError,
};
use virga_ebpf::{
    hash,
    header::{Flags, Header, NodeId, StreamId},
};
use virga_transport::{
    ChannelName, CloseReason, Event, Mode, Node, NodeConfig, NodeLimits, PeerConfig, Share,
    StreamSpec, Toward,
};

use crate::{
    hostile::without_tags,
    payloads,
    stage::{Channel, Stage, eventually, in_time},
};

/// From a to the router, both honest.
pub(crate) const HONEST: Channel = Channel {
    name: "test/honest",
    reliable: true,
    hold_max_s: 30,
    publish: &["a"],
    subscribe: &["router"],
};
/// From the liar to the router.
pub(crate) const LIES: Channel = Channel {
    name: "test/lies",
    reliable: false,
    hold_max_s: 0,
    publish: &["b"],
    subscribe: &["router"],
};
/// From the router to the liar.
pub(crate) const TAKEN: Channel = Channel {
    name: "test/taken",
    publish: &["router"],
    subscribe: &["b"],
    ..HONEST
};
/// Modes as an open frame has them.
const UNRELIABLE: u8 = 0;
const ORDERED: u8 = 1;
/// Far above what anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the liar listens before it looks after its timers.
const TURN: Duration = Duration::from_millis(2);
/// What the router may take for a member that lies, whatever that sends: more than all windows of a session, far less than
/// what is sent here.
const GROWTH_KIB_MAX: u64 = 32 * 1024;

/// Node b, run by this test: b's keys, at b's address, and any bytes in its packets.
pub(crate) struct Liar {
    pub(crate) node: Node,
    socket: UdpSocket,
    begun: Instant,
    pub(crate) router: NodeId,
    target: SocketAddr,
    /// Its owner reads nothing.
    is_deaf: bool,
    closed: Vec<CloseReason>,
    /// Messages that came on streams.
    heard: usize,
    sizes: Sizes,
}

/// How it lies about the size of what reaches it.
struct Sizes {
    /// Larger datagrams do not: probes of the packet size are acknowledged all the same.
    taken_max: usize,
    /// How often it did that,
    lied: u32,
    /// and how often what it missed was no probe.
    missed: u32,
}

impl Liar {
    pub(crate) fn new(stage: &Stage) -> Self {
        let config = Config::load(&stage.node("b").config()).unwrap();
        let routers = config.peers.iter().filter(|peer| peer.name == "router");
        let peers = routers.map(|peer| PeerConfig {
            node_key: peer.node_key,
            entity_key: peer.entity_key,
            handshake: peer.handshake,
        });
        let since = SystemTime::UNIX_EPOCH.elapsed().unwrap();
        let node = NodeConfig {
            network_id: config.node.network.clone(),
            psk: *config.keys.psk.expose(),
            psk_generation: config.node.psk_generation,
            node_key: *config.keys.node.secret.expose(),
            entity_key: *config.keys.entity.seed.expose(),
            subnet: config.node.subnet,
            peers: peers.collect(),
            share: Share::WHOLE,
            handshake: config.handshake,
            limits: NodeLimits {
                link_interval_ns: 0,
                ..NodeLimits::default()
            },
            started_unix_ns: u64::try_from(since.as_nanos()).unwrap(),
            seed: hash::keyed(b"liar", &[&since.as_nanos().to_be_bytes()]),
        };
        let socket = UdpSocket::bind(stage.node("b").listen).unwrap();
        socket.set_read_timeout(Some(TURN)).unwrap();
        Self {
            node: Node::new(node, 0).unwrap(),
            socket,
            begun: Instant::now(),
            router: stage.node("router").id,
            target: stage.node("router").listen,
            is_deaf: false,
            closed: Vec::new(),
            heard: 0,
            sizes: Sizes {
                taken_max: usize::MAX,
                lied: 0,
                missed: 0,
            },
        }
    }

    pub(crate) fn now_ns(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap()
    }

    /// Listens for a moment, and says what its node has to say.
    pub(crate) fn turn(&mut self) {
        let mut buffer = [0; 65_536];
        while let Ok((bytes, source)) = self.socket.recv_from(&mut buffer) {
            if bytes > self.sizes.taken_max {
                self.miss(&buffer[..bytes]);
                continue;
            }
            let now_ns = self.now_ns();
            let _judged = self.node.handle(now_ns, source, &mut buffer[..bytes]);
        }
        let now_ns = self.now_ns();
        if self.node.poll_timeout().is_some_and(|due| due <= now_ns) {
            self.node.handle_timeout(now_ns);
        }
        while !self.is_deaf
            && let Some(event) = self.node.poll()
        {
            match event {
                Event::Closed { reason, .. } => self.closed.push(reason),
                Event::Message { .. } => self.heard += 1,
                _ => {}
            }
        }
        let mut run = Vec::new();
        while let Some(transmit) = self.node.poll_transmit(now_ns, &mut run) {
            let to = match transmit.toward {
                Toward::Address(address) => address,
                Toward::Route | Toward::Link => self.target,
            };
            for datagram in run.chunks(transmit.segment_bytes) {
                self.socket.send_to(datagram, to).unwrap();
            }
            run.clear();
        }
    }

    /// Does as if a datagram had not come; and as if it had, where it is a probe of the packet size.
    fn miss(&mut self, datagram: &[u8]) {
        let header = Header::decode(datagram.first_chunk().unwrap());
        if header.flags.contains(Flags::CONTROL) {
            self.say_control(&ack(header.sequence));
            self.sizes.lied += 1;
        } else {
            self.sizes.missed += 1;
        }
    }

    /// Asks for what the router publishes, and waits until that knows.
    async fn subscribe(&mut self, stage: &Stage) {
        let pattern = Pattern::Channel(ChannelName::parse(TAKEN.name).unwrap());
        let asked = Message::Subscribe {
            request: 1,
            pattern,
        };
        let (now_ns, router) = (self.now_ns(), self.router);
        let sent = self.node.send_control(now_ns, router, &asked.encode());
        sent.unwrap();
        eventually("the liar is a subscriber", async || {
            self.turn();
            let status = stage.status("router").await;
            let mut channels = status.channels.iter();
            let channel = channels.find(|c| c.name == TAKEN.name)?;
            (channel.remote_subscribers == 1).then_some(())
        })
        .await;
    }

    fn turn_until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let give_up = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < give_up, "{what}: not within {PATIENCE:?}");
            self.turn();
        }
    }

    /// The session that it has, by name.
    fn session(&self) -> Option<String> {
        let all: Vec<_> = self.node.sessions().collect();
        let session = all.iter().find(|s| s.state.name() == "established")?;
        Some(session.session.to_string())
    }

    pub(crate) fn connect(&mut self) {
        let now_ns = self.now_ns();
        self.node.connect(now_ns, self.router).unwrap();
        self.turn_until("a session", |liar| liar.session().is_some());
        // Both ends may have begun one, of which one stays; one that has ended is remembered for a while.
        let settled = Instant::now() + Duration::from_millis(500);
        self.turn_until("both ends agree", |liar| {
            Instant::now() > settled && liar.node.sessions().count() == 1
        });
        self.closed.clear();
    }

    /// A stream of its own that nothing was sent on yet.
    pub(crate) fn stream(&mut self) -> StreamId {
        let spec = StreamSpec {
            name: ChannelName::parse(LIES.name).unwrap(),
            salt: 0,
            priority: 3,
            mode: Mode::Unreliable,
        };
        let now_ns = self.now_ns();
        self.node.open_stream(now_ns, self.router, &spec).unwrap()
    }

    /// Sends frames that no honest node would.
    fn say_control(&mut self, frames: &[u8]) {
        self.say((Flags::CONTROL, 0, 0, 0), frames);
    }

    fn say_data(&mut self, stream: StreamId, frames: &[u8]) {
        let channel = hash::channel_hash(0, LIES.name).0;
        self.say((Flags(0), stream.0, channel, 0), frames);
    }

    pub(crate) fn say(&mut self, label: (Flags, u32, u16, usize), frames: &[u8]) {
        let packet = self.node.seal_raw(self.router, label, frames);
        self.socket.send_to(&packet, self.target).unwrap();
    }
}

// Frames, as the table in `dataplane/transport/src/frame.rs` has them.

/// A number below 2^62 (RFC 9000, section 16), in eight bytes.
fn number(value: u64) -> [u8; 8] {
    (value | 0b11 << 62).to_be_bytes()
}

fn ack(largest: u64) -> Vec<u8> {
    [
        &[2][..],
        &number(largest),
        &number(0),
        &number(0),
        &number(0),
    ]
    .concat()
}

fn open(mode: u8) -> Vec<u8> {
    let length = u8::try_from(LIES.name.len()).unwrap();
    [&[16, 0, 0, 0, 0, mode, length], LIES.name.as_bytes()].concat()
}

fn with_length(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap();
    [&length.to_be_bytes(), bytes].concat()
}

fn stream_bytes(offset: u64, bytes: &[u8]) -> Vec<u8> {
    [&[17][..], &number(offset), &with_length(bytes)].concat()
}

fn reset(stream: StreamId, end: u64) -> Vec<u8> {
    [&[11][..], &number(stream.0.into()), &number(end)].concat()
}

fn fragment(message: u64, total: u64, offset: u64, bytes: &[u8]) -> Vec<u8> {
    let numbers = [message, total, offset].map(number).concat();
    [&[22][..], &numbers, &with_length(bytes)].concat()
}

const PING: [u8; 1] = [1];

/// Resident memory of the router, in KiB.
fn resident_kib(stage: &Stage) -> u64 {
    let path = format!("/proc/{}/status", stage.process("router"));
    let text = std::fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.unwrap().split_whitespace().next().unwrap();
    kib.parse().unwrap()
}

/// The router's session with a node.
fn session_with(status: &Status, name: &str) -> Option<String> {
    let mut sessions = status.sessions.iter();
    let session = sessions.find(|s| s.name == name && s.state == "established")?;
    Some(session.session.clone())
}

fn violations(status: &Status) -> u64 {
    let closed = &status.transport.closed_by_reason;
    closed.get("violation").copied().unwrap_or(0)
}

async fn stage() -> Stage {
    let mut stage = Stage::new(&[HONEST, LIES, TAKEN]);
    without_tags(&mut stage);
    for name in ["router", "a"] {
        stage.start(name).await;
    }
    stage
}

/// Who is honest has the same session as before, and it carries events.
struct Honest {
    events: virga::mesh::Subscription,
    session: String,
    sent: u32,
}

impl Honest {
    async fn new(stage: &Stage) -> Self {
        let router = stage.mesh("router").await;
        let events = router.subscribe(HONEST.name).await.unwrap();
        stage.subscribers(HONEST.name, 1).await;
        let session = session_with(&stage.status("router").await, "a").unwrap();
        Self {
            events,
            session,
            sent: 0,
        }
    }

    async fn assert_unharmed(&mut self, stage: &Stage) {
        let numbers: Vec<Vec<u8>> = (0..100)
            .map(|n| (self.sent + n).to_be_bytes().repeat(200))
            .collect();
        self.sent += 100;
        let a = stage.mesh("a").await;
        let published = a.publish_batch(HONEST.name, &numbers);
        in_time("publishing", published).await.unwrap();
        assert!(payloads(&mut self.events, 100).await == numbers);
        let session = session_with(&stage.status("router").await, "a");
        assert_eq!(session.as_ref(), Some(&self.session));
    }
}

/// Lies that a session does not outlive: what it is, the reason that counts it, and how it is told.
type Lie = (&'static str, &'static str, fn(&mut Liar));

const LIES_TOLD: [Lie; 5] = [
    (
        "an acknowledgement of packets that nobody sent",
        "never_sent",
        |liar| {
            liar.say_control(&ack(1 << 40));
        },
    ),
    ("bytes beyond all credit", "credit", |liar| {
        let stream = liar.stream();
        let frames = [open(ORDERED), stream_bytes(1 << 40, b"far")].concat();
        liar.say_data(stream, &frames);
    }),
    ("an end beyond all credit", "credit", |liar| {
        let stream = liar.stream();
        liar.say_control(&reset(stream, 1 << 50));
    }),
    ("fragments that overlap", "overlap", |liar| {
        let stream = liar.stream();
        let first = [open(UNRELIABLE), fragment(1, 1_000, 0, &[1; 500])].concat();
        let second = [open(UNRELIABLE), fragment(1, 1_000, 400, &[2; 500])].concat();
        liar.say_data(stream, &first);
        liar.say_data(stream, &second);
    }),
    ("a message of two sizes", "overlap", |liar| {
        let stream = liar.stream();
        let first = [open(UNRELIABLE), fragment(1, 1_000, 0, &[1; 100])].concat();
        let second = [open(UNRELIABLE), fragment(1, 2_000, 500, &[2; 100])].concat();
        liar.say_data(stream, &first);
        liar.say_data(stream, &second);
    }),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_breaks_the_protocol_loses_its_session_and_nobody_else_does() {
    let stage = stage().await;
    let mut honest = Honest::new(&stage).await;
    let mut liar = Liar::new(&stage);
    for (what, reason, tell) in LIES_TOLD {
        liar.connect();
        let before = stage.status("router").await;
        let session = liar.session();
        tell(&mut liar);
        let told = liar.closed.len();
        liar.turn_until(what, |liar| liar.closed.len() > told);
        assert_eq!(liar.closed[told], CloseReason::Peer, "{what}");
        assert_ne!(liar.session(), session, "{what}");
        let now = stage.status("router").await;
        assert_eq!(violations(&now), violations(&before) + 1, "{what}");
        let drops = |status: &Status| status.transport.drops[reason];
        assert!(drops(&now) > drops(&before), "{what}: {reason}");
        honest.assert_unharmed(&stage).await;
    }
}

/// Nothing of this is against the protocol: the session stays, and what it costs has an end.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_never_finishes_and_jumps_ahead_costs_a_bounded_part_of_memory() {
    const MESSAGES: u64 = 60_000;
    let stage = stage().await;
    let mut honest = Honest::new(&stage).await;
    let mut liar = Liar::new(&stage);
    liar.connect();
    let session = liar.session();
    let before = resident_kib(&stage);
    let stream = liar.stream();
    for message in 0..MESSAGES {
        let frames = [open(UNRELIABLE), fragment(message, 1 << 20, 7, &[3; 1_000])].concat();
        liar.say_data(stream, &frames);
        if message % 40 == 0 {
            // No faster than a busy node reads.
            liar.turn();
        }
    }
    // Each sequence but one of two never comes: as many gaps as there are packets.
    let router = liar.router;
    for n in 0..5_000 {
        liar.node
            .skip(router, if n % 1_000 == 0 { 1 << 40 } else { 1 });
        liar.say_control(&PING);
        if n % 40 == 0 {
            liar.turn();
        }
    }
    let status = eventually("most of them are given up", async || {
        liar.turn();
        let status = stage.status("router").await;
        (status.transport.drops["unfinished"] > MESSAGES / 4).then_some(status)
    })
    .await;
    assert_eq!(violations(&status), 0);
    let grown = resident_kib(&stage).saturating_sub(before);
    assert!(
        grown < GROWTH_KIB_MAX,
        "{grown} KiB for {MESSAGES} fragments"
    );
    honest.assert_unharmed(&stage).await;
    // The same session still serves who tells the truth.
    let mut events = stage
        .mesh("router")
        .await
        .subscribe(LIES.name)
        .await
        .unwrap();
    let stream = liar.stream();
    let arrived = async {
        let mut said = tokio::time::interval(Duration::from_millis(50));
        loop {
            said.tick().await;
            let now_ns = liar.now_ns();
            // It may get lost.
            liar.node.send(now_ns, router, stream, b"true").unwrap();
            liar.turn();
        }
    };
    tokio::select! {
        () = arrived => {}
        came = payloads(&mut events, 1) => assert_eq!(came, [&b"true"[..]]),
    }
    assert_eq!(liar.session(), session);
}

/// It asks for a channel and never reads: its publisher is told that there is no room, and keeps little.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_never_reads_holds_up_its_own_channel_alone() {
    const EVENT_BYTES: usize = 16 * 1024;
    const EVENTS_MAX: usize = 8_192;
    let stage = stage().await;
    let mut honest = Honest::new(&stage).await;
    let mut liar = Liar::new(&stage);
    liar.connect();
    liar.is_deaf = true;
    liar.subscribe(&stage).await;
    let before = resident_kib(&stage);
    let publisher = stage.mesh("router").await.publisher(TAKEN.name).await;
    let publisher = publisher.unwrap();
    let event = vec![9; EVENT_BYTES];
    let (mut taken, mut refused_since) = (0, Instant::now());
    // Refused for as long as it takes to send all that there is credit for.
    while refused_since.elapsed() < Duration::from_secs(3) {
        assert!(taken < EVENTS_MAX, "a queue without end");
        match publisher.try_publish(event.clone()) {
            Ok(()) => {
                taken += 1;
                refused_since = Instant::now();
            }
            Err(TryPublishError::Full(_)) => tokio::time::sleep(TURN).await,
            Err(error) => panic!("{error}"),
        }
        liar.turn();
    }
    assert!(taken > 8, "{taken} events");
    let grown = resident_kib(&stage).saturating_sub(before);
    assert!(grown < GROWTH_KIB_MAX, "{grown} KiB for {taken} events");
    let refused = stage.status("router").await.transport.sends_refused;
    assert!(refused > 0, "counted");
    honest.assert_unharmed(&stage).await;
    // Without it, the channel goes on.
    let (now_ns, router) = (liar.now_ns(), liar.router);
    liar.node.close(now_ns, router);
    liar.turn();
    eventually("the publisher has room again", async || {
        publisher.try_publish(event.clone()).ok()
    })
    .await;
    let closed = stage.status("router").await.transport.closed_by_reason;
    assert_eq!(closed["peer"], 1, "{closed:?}");
}

/// It acknowledges probes of packet sizes that never reached it, and then takes smaller packets than before: it is sent
/// small ones again, over and over, and all that it asked for arrives in the same session.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_lies_about_packet_sizes_is_sent_small_packets_and_all_that_it_asked_for() {
    const EVENTS: usize = 64;
    let stage = stage().await;
    let mut honest = Honest::new(&stage).await;
    let mut liar = Liar::new(&stage);
    liar.connect();
    let session = liar.session();
    liar.subscribe(&stage).await;
    let publisher = stage.mesh("router").await.publisher(TAKEN.name).await;
    let publisher = publisher.unwrap();
    let event = vec![9; 16 * 1024];
    let give_up = Instant::now() + PATIENCE;
    for taken_max in [1_420, 1_300] {
        liar.sizes = Sizes {
            taken_max,
            lied: 0,
            missed: 0,
        };
        let mut published = 0;
        let before = liar.heard;
        while liar.heard < before + EVENTS || liar.sizes.lied == 0 || liar.sizes.missed == 0 {
            let Sizes { lied, missed, .. } = liar.sizes;
            assert!(
                Instant::now() < give_up,
                "{taken_max} bytes: {published} events published, {} came, {lied} lies, {missed} missed",
                liar.heard - before
            );
            match publisher.try_publish(event.clone()) {
                Ok(()) => published += 1,
                Err(TryPublishError::Full(_)) => tokio::time::sleep(TURN).await,
                Err(error) => panic!("{error}"),
            }
            liar.turn();
        }
        // While a search goes on, a size that it lied about holds until data is lost.
        let status = eventually("it is sent small packets", async || {
            published += usize::from(publisher.try_publish(event.clone()).is_ok());
            liar.turn();
            let status = stage.status("router").await;
            let mut sessions = status.sessions.iter();
            let bytes = sessions.find(|s| s.name == "b")?.path.datagram_bytes;
            (bytes <= taken_max).then_some(status)
        })
        .await;
        liar.turn_until("all that was published comes", |liar| {
            liar.heard == before + published
        });
        assert_eq!(violations(&status), 0);
        honest.assert_unharmed(&stage).await;
    }
    assert_eq!(liar.session(), session);
}
