use super::*;
use crate::{
    config::{NodeConfig, NodeLimits},
    forward::Forwarding,
    io::{driver::Sent, socket::Socket, wake::Wake},
};
use std::sync::{Arc, mpsc};
use virga_ebpf::{
    header::{ChannelHash, Header, NodeId, OriginHash, Subnet},
    image::{Image, Link, Place, Via},
    reason::{Outcome, Reason},
    tables::{NextHop, Pair},
};

mod arrivals;
mod refill;
mod several;
mod storms;
mod world;

/// Counts what it is told; a command panics, blocks until told otherwise, or does nothing.
#[derive(Default)]
struct Probe {
    commands: u64,
}

enum Ask {
    Nothing,
    Panic,
    /// Says that it has begun, then waits.
    Wait(mpsc::Sender<()>, mpsc::Receiver<()>),
}

impl Service for Probe {
    type Command = Ask;
    fn start(&mut self, _now_ns: u64, _node: &mut Node) {}
    fn on_event(&mut self, _now_ns: u64, _node: &mut Node, _event: Event) {}
    fn on_command(&mut self, _now_ns: u64, _node: &mut Node, ask: Ask) {
        self.commands += 1;
        match ask {
            Ask::Nothing => {}
            Ask::Panic => panic!("asked to"),
            Ask::Wait(begun, release) => {
                begun.send(()).unwrap();
                release.recv().unwrap();
            }
        }
    }
    fn poll_timeout(&self) -> Option<u64> {
        None
    }
    fn handle_timeout(&mut self, _now_ns: u64, _node: &mut Node) {}
    fn stop(&mut self, _now_ns: u64, _node: &mut Node) {}
}

fn node_config() -> NodeConfig {
    NodeConfig {
        network_id: "test".into(),
        psk: [1; 32],
        psk_generation: 0,
        node_key: [2; 32],
        entity_key: [3; 32],
        subnet: Subnet(0),
        peers: Vec::new(),
        share: Share::WHOLE,
        handshake: crate::HandshakePolicy::default(),
        limits: NodeLimits::default(),
        started_unix_ns: 0,
        seed: [4; 32],
    }
}

fn spawn(forwarder: Forwarder) -> (WorkerHandle<Probe>, mpsc::Receiver<Exit>) {
    let (exit, exited) = mpsc::channel();
    let config = WorkerConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        core: None,
        driver: DriverConfig::default(),
    };
    let tell = move |how| exit.send(how).unwrap();
    let probe = Probe::default();
    let handle = Worker::spawn(&config, node_config(), forwarder, probe, tell).unwrap();
    (handle, exited)
}

/// Runs `look` on the worker and gives what it saw.
fn look<S: Service, T: Send + 'static>(
    handle: &WorkerHandle<S>,
    look: impl FnOnce(&mut Parts<S>) -> T + Send + 'static,
) -> T {
    let (reply, answer) = mpsc::channel();
    let task: Task<S> = Box::new(move |_, parts| reply.send(look(parts)).unwrap());
    assert!(handle.commander().run(task).is_ok());
    answer.recv().unwrap()
}

#[test]
fn commands_and_tasks_run_and_a_stop_ends_it() {
    let (handle, exited) = spawn(Forwarder::new());
    assert!(handle.command(Ask::Nothing).is_ok());
    assert_eq!(look(&handle, |parts| parts.service.commands), 1);
    let commander = handle.commander().clone();
    handle.stop();
    assert!(matches!(exited.recv().unwrap(), Exit::Stopped));
    assert!(matches!(
        commander.command(Ask::Nothing),
        Err(Refused::Ended(Ask::Nothing))
    ));
}

#[test]
fn a_full_queue_gives_the_command_back_and_takes_more_later() {
    let (handle, _exited) = spawn(Forwarder::new());
    let (begin, begun) = mpsc::channel();
    let (release, waiting) = mpsc::channel();
    assert!(handle.command(Ask::Wait(begin, waiting)).is_ok());
    begun.recv().unwrap();
    let taken = (0..=COMMANDS_MAX)
        .take_while(|_| handle.command(Ask::Nothing).is_ok())
        .count();
    assert_eq!(taken, COMMANDS_MAX);
    assert!(matches!(
        handle.command(Ask::Nothing),
        Err(Refused::Full(Ask::Nothing))
    ));
    release.send(()).unwrap();
    // Tasks queue behind all commands, so this may find the queue full too.
    let mut task: Task<Probe> = Box::new(|_, _| ());
    while let Err(Refused::Full(again)) = handle.commander().run(task) {
        task = again;
        std::thread::yield_now();
    }
    assert!(look(&handle, |parts| parts.service.commands) > 1);
    handle.stop();
}

#[test]
fn how_many_commands_wait_is_known_at_each_turn() {
    let (handle, _exited) = spawn(Forwarder::new());
    let (begin, begun) = mpsc::channel();
    let (release, waiting) = mpsc::channel();
    assert!(handle.command(Ask::Wait(begin, waiting)).is_ok());
    begun.recv().unwrap();
    // The others of this turn; then those of the next.
    for _ in 1..COMMANDS_PER_TURN {
        assert!(handle.command(Ask::Nothing).is_ok());
    }
    let (reply, answer) = mpsc::channel();
    let task: Task<Probe> = Box::new(move |_, parts| reply.send(parts.waiting()).unwrap());
    assert!(handle.commander().run(task).is_ok());
    for _ in 0..36 {
        assert!(handle.command(Ask::Nothing).is_ok());
    }
    release.send(()).unwrap();
    let expected = Waiting {
        commands: 37,
        handed_over: 0,
    };
    assert_eq!(answer.recv().unwrap(), expected);
    handle.stop();
}

#[test]
fn a_timer_that_is_due_makes_a_full_socket_no_busy_one() {
    assert_eq!(pause_ns(10, 4, true), BLOCKED_NS_MIN);
    assert_eq!(pause_ns(10, 4, false), 0);
    let later_ns = 2 * BLOCKED_NS_MIN;
    assert_eq!(pause_ns(10, 10 + later_ns, true), later_ns);
}

#[test]
fn a_panic_is_reported_with_its_message() {
    let (handle, exited) = spawn(Forwarder::new());
    assert!(handle.command(Ask::Panic).is_ok());
    match exited.recv().unwrap() {
        Exit::Panicked(message) => assert_eq!(message, "asked to"),
        other => panic!("{other:?}"),
    }
    handle.stop();
}

const HERE: NodeId = NodeId(1);
const THERE: NodeId = NodeId(2);

/// Routes `THERE` to `sink`, lets in what comes from 127.0.0.1.
fn forwarder(sink: SocketAddr) -> Forwarder {
    let mut image = Image {
        node_id: HERE,
        port: 4783,
        ..Image::default()
    };
    let from = "127.0.0.1".parse::<std::net::IpAddr>().unwrap().into();
    image
        .neighbours
        .insert(Place::new(0, from), Link::default());
    let control = Pair::new(OriginHash(0), ChannelHash(0));
    image.pairs.insert(control);
    let primary = image.add_next_hop(NextHop {
        target: sink.ip().into(),
        port: sink.port(),
        mtu: 65_535,
        flags: NextHop::ALIVE,
        ..NextHop::default()
    });
    let via = Via {
        primary,
        backup: None,
    };
    image.routes.insert(THERE, via);
    let mut forwarder = Forwarder::new();
    let mut n = 0;
    let entropy = || {
        n += 1;
        n
    };
    forwarder.apply(&image, entropy).unwrap();
    forwarder
}

/// A control packet to `destination`.
fn datagram(destination: NodeId, sequence: u64) -> Vec<u8> {
    let header = Header {
        destination,
        payload_len: 16,
        sequence,
        ..Header::default()
    };
    let mut bytes = header.encode().to_vec();
    bytes.extend([0; 16]);
    bytes
}

#[test]
fn runs_are_sent_on_whole_and_strangers_and_garbage_are_counted() {
    let any = "127.0.0.1:0".parse().unwrap();
    let open = || {
        let wake = Arc::new(Wake::new().unwrap());
        Driver::open(Socket::bind(any).unwrap(), wake, &DriverConfig::default()).unwrap()
    };
    let (mut source, mut sink) = (open(), open());
    let sink_address = sink.socket().unwrap().address();
    let mut f = forwarder(sink_address);
    let mut probe = datagram(THERE, 0);
    let verdict = f.handle(1, 0, sink_address, &mut probe);
    assert!(matches!(verdict, Forwarding::Forward { .. }), "{verdict:?}");
    let (handle, _exited) = spawn(f);
    let run: Vec<u8> = (1..=20).flat_map(|n| datagram(THERE, n)).collect();
    let mut outlet = source.outlet();
    assert_eq!(outlet.send(handle.address(), &run, 80), Sent::Done);
    assert_eq!(outlet.send(handle.address(), &[0; 70], 70), Sent::Done);
    assert!(source.flush());
    let mut arrived = Vec::new();
    while arrived.len() < 20 {
        let ready = sink.wait(Some(10_000_000_000)).unwrap();
        assert!(ready.readable, "{} of 20", arrived.len());
        while sink.receive(|_, run| {
            arrived.extend(run.bytes.chunks(run.segment_bytes).map(|bytes| {
                let header = Header::decode(bytes.first_chunk().unwrap());
                (header.sequence, header.hop_count)
            }));
        }) {}
    }
    let sent: Vec<(u64, u8)> = (1..=20).map(|n| (n, 1)).collect();
    assert_eq!(arrived, sent);
    let seen = look(&handle, |parts| {
        let counters = parts.forwarder.counters();
        let redirected = counters[Outcome::Redirect.counter() as usize].packets;
        (
            parts.counters().forwarded,
            redirected,
            parts.driver().sent().datagrams,
        )
    });
    assert_eq!(seen, (20, 21, 20));
    while look(&handle, |parts| {
        parts.forwarder.counters()[Reason::Magic.counter() as usize].packets
    }) < 1
    {}
    handle.stop();
}

#[test]
fn a_worker_runs_on_its_core_or_not_at_all() {
    let spawn_on = |core| {
        let config = WorkerConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            core: Some(core),
            driver: DriverConfig::default(),
        };
        let (forwarder, probe) = (Forwarder::new(), Probe::default());
        Worker::spawn(&config, node_config(), forwarder, probe, |_| {})
    };
    let usable = core_affinity::get_core_ids().unwrap();
    let core = usable.last().unwrap().id;
    let handle = spawn_on(core).unwrap();
    let cores = look(&handle, |_| core_affinity::get_core_ids().unwrap());
    assert_eq!(cores.iter().map(|c| c.id).collect::<Vec<_>>(), [core]);
    handle.stop();
    // As many cores as the kernel can name: no machine that tests run on has them all.
    let refused = spawn_on(1_023).err();
    assert!(
        matches!(refused, Some(WorkerError::Core { core: 1_023 })),
        "{refused:?}"
    );
}
