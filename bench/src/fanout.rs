//! Fan-out: what one event costs the publisher's core for each node that has subscribed.
//!
//! Nothing on the wire carries one packet to many: each subscriber has keys of its own, so an event of 1,024 bytes is
//! sealed and sent once for each. With AVX2 at 3 GHz that is some 0.6 µs to seal 1,124 bytes (`transport.rs`) and
//! 0.8 to 1.5 µs for the kernel to carry a datagram over loopback that shares its send with no other: two datagrams for
//! different nodes never share one (GSO takes one destination). So about 2 µs; the reference seals the same bytes with
//! `ring` and sends them, one `sendto` each, to the same sockets. On top come:
//!
//! - encoding: the event is encoded once, and its bytes are shared until they are copied into each subscriber's stream,
//!   which keeps them until they are acknowledged: 1,024 bytes, 30 to 50 ns.
//! - acknowledgements: a subscriber sends one for every 8 packets, or after 0.5 ms: at few events a second each event
//!   brings one back, which is received, opened (0.3 µs) and looked at: 1 to 2 µs more for each subscriber.
//! - waking up: with one subscriber the worker sleeps between events; with 1,000 it never does.
//!
//! The publisher is a worker with the channel service, as in a daemon, on a core of its own. The subscribers are real
//! nodes without threads, whose sockets one other thread serves; `fanout.1` has 64 events under way, `fanout.10` 6, the
//! others one. What is counted is processor time of the publisher's thread until every subscriber has every event.

use std::{
    collections::BTreeSet,
    io,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use virga::{
    api::outlet::Queue,
    capability::Statements,
    channel::{Batch, ChannelService, Command, Presence, Setup},
    config::{CapabilityRules, ChannelConfig, Entity, Listed},
};
use virga_bench::{load::thread_cpu_ns, session, world};
use virga_ebpf::{
    hash,
    header::{ChannelHash, NodeId},
    image::{Image, Link, Place, Via},
    limits::{HEADER_BYTES, TAG_BYTES},
    subnet::Visibility,
    tables::{NextHop, Pair},
};
use virga_transport::{
    ChannelName, Mode, NodeLimits, PeerConfig, Share,
    forward::Forwarder,
    io::driver::DriverConfig,
    worker::{Worker, WorkerConfig, WorkerHandle},
};

use crate::{
    interrupt,
    report::{Entry, Skip, failed},
    rounds::median,
    transport::bare::Ring,
};

mod subscribers;
use subscribers::Subscribers;

/// Rounds of what takes a second each.
const ROUNDS_MAX: u32 = 7;
const CORES: [usize; 2] = [0, 1];
const EVENT_BYTES: usize = 1_024;
/// The publisher's number; subscribers are counted from 1.
const PUBLISHER: u32 = 0;
/// How long anything that is waited for may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// The channel, which all publish and subscribe on.
pub(crate) const CHANNEL: &str = "bench/fanout";

/// How many subscribe, how many events of one round there are, and how many of those are under way at a time.
struct Case {
    name: &'static str,
    subscribers: u32,
    events: u64,
    under_way: u64,
}

const CASES: [Case; 4] = [
    Case {
        name: "fanout.1",
        subscribers: 1,
        events: 40_000,
        under_way: 64,
    },
    Case {
        name: "fanout.10",
        subscribers: 10,
        events: 8_000,
        under_way: 6,
    },
    Case {
        name: "fanout.100",
        subscribers: 100,
        events: 1_000,
        under_way: 1,
    },
    Case {
        name: "fanout.1000",
        subscribers: 1_000,
        events: 100,
        under_way: 1,
    },
];

/// Measures.
pub(crate) fn measure(rounds: u32) -> Result<Vec<Entry>, Skip> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    if cores < CORES.len() {
        return Err(Skip::Missing(format!(
            "publisher and subscribers want a core each, and there is {cores}"
        )));
    }
    let rounds = rounds.min(ROUNDS_MAX);
    CASES.iter().map(|case| one(case, rounds)).collect()
}

fn one(case: &Case, rounds: u32) -> Result<Entry, Skip> {
    let publisher = UdpSocket::bind("127.0.0.1:0")
        .and_then(|free| free.local_addr())
        .map_err(failed)?;
    let subscribers = Subscribers::start(case.subscribers, publisher, CORES[1]).map_err(failed)?;
    let publisher = Publisher::start(case, publisher, &subscribers).map_err(failed)?;
    subscribers
        .await_all(u64::from(case.subscribers), PATIENCE, Subscribers::granted)
        .map_err(failed)?;
    let (mut ours, mut reference, mut ratios, mut datagrams) = (vec![], vec![], vec![], vec![]);
    // The first round fills caches and finds the paths' sizes.
    for round in 0..=rounds {
        interrupt::check()?;
        let (cost_ns, sent) = publisher.round(case, &subscribers).map_err(failed)?;
        let bare_ns = bare(case).map_err(failed)?;
        if round > 0 {
            ours.push(cost_ns);
            reference.push(bare_ns);
            ratios.push(cost_ns / bare_ns);
            datagrams.push(sent);
        }
    }
    publisher.worker.stop();
    subscribers.stop();
    eprintln!(
        "{}: {:.2} datagrams an event and subscriber",
        case.name,
        median(&datagrams)
    );
    Ok(Entry::new(case.name, "ns", median(&ours))
        .beside(median(&reference))
        .ratio(median(&ratios)))
}

/// The publishing node's worker.
struct Publisher {
    worker: WorkerHandle<ChannelService<Queue>>,
}

impl Publisher {
    fn start(case: &Case, listen: SocketAddr, subscribers: &Subscribers) -> io::Result<Self> {
        let peers: Vec<PeerConfig> = (1..=case.subscribers).map(session::public).collect();
        let limits = NodeLimits {
            handshakes_per_second: 1_000_000,
            handshakes_per_second_per_source: 1_000_000,
            ..NodeLimits::default()
        };
        let mut forwarder = Forwarder::new();
        let image = image(listen, subscribers);
        forwarder
            .apply(&image, world::entropy())
            .map_err(|error| io::Error::other(format!("{error:?}")))?;
        let worker = WorkerConfig {
            listen,
            core: Some(CORES[0]),
            driver: DriverConfig::default(),
        };
        let service = ChannelService::new(&setup(&peers));
        let config = session::config(PUBLISHER, peers, limits);
        let worker = Worker::spawn(&worker, config, forwarder, service, |_| {});
        Ok(Self {
            worker: worker.map_err(io::Error::other)?,
        })
    }

    /// Nanoseconds of its processor an event and subscriber, and datagrams.
    fn round(&self, case: &Case, subscribers: &Subscribers) -> io::Result<(f64, f64)> {
        let event = bytes::Bytes::from(vec![0x5a; EVENT_BYTES]);
        let (before_ns, sent_before) = self.spent()?;
        let start = subscribers.came();
        let each = u64::from(case.subscribers);
        for number in 1..=case.events {
            let batch = Batch::new(vec![event.clone()], Box::new(|_report| {}));
            let channel = name();
            let published = self.worker.command(Command::Publish { channel, batch });
            published.map_err(|_| io::Error::other("the worker takes no commands"))?;
            let wanted = start + number.saturating_sub(case.under_way - 1) * each;
            subscribers.await_all(wanted, PATIENCE, Subscribers::came)?;
        }
        let wanted = start + case.events * each;
        subscribers.await_all(wanted, PATIENCE, Subscribers::came)?;
        let (after_ns, sent_after) = self.spent()?;
        let events = figure(case.events * each);
        Ok((
            figure(after_ns - before_ns) / events,
            figure(sent_after - sent_before) / events,
        ))
    }

    /// Processor time of its thread, and datagrams sent.
    fn spent(&self) -> io::Result<(u64, u64)> {
        let (reply, answer) = mpsc::channel();
        let look = self.worker.commander().run(Box::new(move |_, parts| {
            // Whoever asked may have lost patience.
            let _told = reply.send((thread_cpu_ns(), parts.driver().sent().datagrams));
        }));
        look.map_err(|_| io::Error::other("the worker has ended"))?;
        answer.recv_timeout(PATIENCE).map_err(io::Error::other)
    }
}

fn figure(count: u64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

pub(crate) fn name() -> ChannelName {
    ChannelName::parse(CHANNEL).expect("a channel's name")
}

fn setup(peers: &[PeerConfig]) -> Setup {
    let own = session::public(PUBLISHER).entity_key;
    let subscribers = peers.iter().map(|peer| Entity::from_key(peer.entity_key));
    let channels = vec![ChannelConfig {
        name: name(),
        salt: 0,
        hash: name().hash(0),
        priority: 4,
        mode: Mode::Ordered,
        hold_max_s: 30,
        fan_out: 0,
        max_rate_pps: None,
        visibility: Visibility::Global,
        export_to: BTreeSet::new(),
        publish: Listed::Only(vec![Entity::from_key(own)]),
        subscribe: Listed::Only(subscribers.collect()),
        issuers: Vec::new(),
        capabilities: CapabilityRules::default(),
        keep: None,
        scopes: Vec::new(),
    }];
    let id = |peer: &PeerConfig| (peer.node_key.id(), peer.entity_key);
    Setup {
        entity: own,
        peers: peers.iter().map(id).collect(),
        presence: Arc::new(Presence::new(&channels, 1)),
        channels,
        share: Share::WHOLE,
        tokens: Vec::new(),
        statements: Statements::default(),
        revocations: Vec::new(),
        unix_zero_ns: 0,
        neighbours: BTreeSet::new(),
        kept_up: BTreeSet::new(),
    }
}

/// The ways to all subscribers, and who may send to the publisher.
fn image(listen: SocketAddr, subscribers: &Subscribers) -> Image {
    let mut image = Image {
        node_id: node_id(PUBLISHER),
        port: listen.port(),
        ..Image::default()
    };
    let mut sockets = BTreeSet::new();
    for (number, at) in subscribers.places() {
        let entity = session::public(number).entity_key;
        let pair = Pair::new(hash::origin_hash(&entity), ChannelHash(0));
        image.pairs.insert(pair);
        let next_hop = NextHop {
            target: at.ip().into(),
            port: at.port(),
            mtu: 65_535,
            flags: NextHop::ALIVE,
            ..NextHop::default()
        };
        let primary = image.add_next_hop(next_hop);
        let backup = None;
        image
            .routes
            .insert(node_id(number), Via { primary, backup });
        sockets.insert(at.ip());
    }
    for ip in sockets {
        let place = Place::new(0, ip.into());
        image.neighbours.insert(place, Link::default());
    }
    image
}

pub(crate) fn node_id(number: u32) -> NodeId {
    session::public(number).node_key.id()
}

/// Nanoseconds of a thread's processor to seal an event and to send it, once for each subscriber, with nothing else.
fn bare(case: &Case) -> io::Result<f64> {
    let sockets: Vec<UdpSocket> = (0..subscribers::sockets(case.subscribers))
        .map(|_| UdpSocket::bind("127.0.0.1:0"))
        .collect::<Result<_, _>>()?;
    let places: Vec<SocketAddr> = sockets
        .iter()
        .map(UdpSocket::local_addr)
        .collect::<Result<_, _>>()?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let drain = scope.spawn(|| drain(&sockets, &stop));
        let sender = scope.spawn(|| send(case, &places));
        let sent = sender
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        stop.store(true, Ordering::Relaxed);
        drain
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        sent
    })
}

fn send(case: &Case, places: &[SocketAddr]) -> io::Result<f64> {
    let _pinned = core_affinity::set_for_current(core_affinity::CoreId { id: CORES[0] });
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let ring = Ring::new();
    let mut packet = vec![0; HEADER_BYTES + EVENT_BYTES + TAG_BYTES];
    let sends = case.events.min(20_000) * u64::from(case.subscribers);
    let before_ns = thread_cpu_ns();
    for (number, place) in (0..sends).zip(places.iter().cycle()) {
        packet[HEADER_BYTES..HEADER_BYTES + EVENT_BYTES].fill(0x5a);
        ring.seal(number, &mut packet);
        socket.send_to(&packet, place)?;
    }
    Ok(figure(thread_cpu_ns() - before_ns) / figure(sends))
}

/// Takes what comes, and throws it away.
fn drain(sockets: &[UdpSocket], stop: &AtomicBool) -> io::Result<()> {
    let _pinned = core_affinity::set_for_current(core_affinity::CoreId { id: CORES[1] });
    let mut buffer = [0; 2_048];
    for socket in sockets {
        socket.set_nonblocking(true)?;
    }
    while !stop.load(Ordering::Relaxed) {
        for socket in sockets {
            while socket.recv(&mut buffer).is_ok() {}
        }
    }
    Ok(())
}

/// Waits until a count is reached.
pub(crate) fn until(patience: Duration, is_reached: impl Fn() -> bool) -> io::Result<()> {
    let start = Instant::now();
    while !is_reached() {
        if start.elapsed() > patience {
            return Err(io::Error::other(format!(
                "not every subscriber has what was published after {} s",
                patience.as_secs()
            )));
        }
        thread::yield_now();
    }
    Ok(())
}
