//! Several workers of one node over real sockets.

use super::*;
use crate::io::{
    driver::{Driver, DriverConfig},
    steer::{Steer, Steering},
};
use virga_ebpf::header::SessionId;

/// What workers that run at all have done by then.
const PATIENCE_NS: u64 = 60_000_000_000;

struct Group {
    workers: Workers<Probe>,
    exited: mpsc::Receiver<(u8, Exit)>,
}

/// What one worker has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counted {
    /// Datagrams that its node got.
    opened: u64,
    handed_over: u64,
    hand_over_full: u64,
    taken_over: u64,
}

impl Group {
    fn new(workers: usize, steer: Steer) -> Self {
        let (exit, exited) = mpsc::channel();
        let config = WorkersConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            cores: vec![None; workers],
            steer,
            driver: DriverConfig::default(),
        };
        let beginning = |share| Beginning {
            node: node_config_of(share),
            forwarder: forwarder("127.0.0.3:9".parse().unwrap()),
            service: Probe::default(),
        };
        let tell = move |share: Share, how| exit.send((share.worker(), how)).unwrap();
        Self {
            workers: spawn_all(&config, beginning, tell).unwrap(),
            exited,
        }
    }

    fn commander(&self, worker: usize) -> &Commander<Probe> {
        self.workers.commanders().nth(worker).unwrap()
    }

    fn counted(&self) -> Vec<Counted> {
        let look = |commander: &Commander<Probe>| {
            let (reply, answer) = mpsc::channel();
            let task: Task<Probe> = Box::new(move |_, parts| {
                let counters = parts.counters();
                let counted = Counted {
                    opened: parts.node.counters().received_datagrams,
                    handed_over: counters.handed_over,
                    hand_over_full: counters.hand_over_full,
                    taken_over: counters.taken_over,
                };
                reply.send(counted).unwrap();
            });
            assert!(commander.run(task).is_ok());
            answer.recv().unwrap()
        };
        self.workers.commanders().map(look).collect()
    }

    /// Waits until as many datagrams are accounted for.
    fn settled(&self, datagrams: u64) -> Vec<Counted> {
        let clock = Clock::start();
        while clock.now_ns() < PATIENCE_NS {
            let counted = self.counted();
            let done = counted.iter().map(|c| c.opened + c.hand_over_full);
            if done.sum::<u64>() >= datagrams {
                return counted;
            }
            std::thread::park_timeout(std::time::Duration::from_millis(2));
        }
        panic!("{:?} of {datagrams}", self.counted());
    }
}

fn node_config_of(share: Share) -> NodeConfig {
    let mut config = node_config();
    config.share = share;
    config
}

/// A packet for this node of a session that the worker would have.
fn of_worker(worker: u64, sequence: u64) -> Vec<u8> {
    let header = Header {
        destination: HERE,
        payload_len: 16,
        session_id: SessionId(sequence << 8 | worker),
        sequence,
        ..Header::default()
    };
    let mut bytes = header.encode().to_vec();
    bytes.extend([0; 16]);
    bytes
}

fn sender() -> Driver {
    let socket = Socket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    Driver::open(
        socket,
        Arc::new(Wake::new().unwrap()),
        &DriverConfig::default(),
    )
    .unwrap()
}

/// Sends a run; with a receiver that takes its time, it goes on when there is room.
fn send(driver: &mut Driver, to: SocketAddr, run: &[u8]) {
    driver.room().unwrap().extend_from_slice(run);
    driver.commit(to, 80);
    while !driver.flush() {
        let _ready = driver.wait(Some(1_000_000)).unwrap();
    }
}

#[test]
fn the_kernel_brings_each_datagram_to_its_worker() {
    let group = Group::new(3, Steer::Kernel);
    assert_eq!(group.workers.steering(), &Steering::Kernel);
    let mut source = sender();
    for n in 0..90 {
        send(&mut source, group.workers.address(), &of_worker(n % 3, n));
    }
    let expected = Counted {
        opened: 30,
        ..Counted::default()
    };
    assert_eq!(group.settled(90), [expected; 3]);
    group.workers.stop();
    let mut ended: Vec<u8> = (0..3)
        .map(|_| match group.exited.recv().unwrap() {
            (worker, Exit::Stopped) => worker,
            other => panic!("{other:?}"),
        })
        .collect();
    ended.sort_unstable();
    assert_eq!(ended, [0, 1, 2]);
}

#[test]
fn a_run_that_holds_several_workers_datagrams_is_handed_over() {
    let group = Group::new(2, Steer::Kernel);
    let mut source = sender();
    let run: Vec<u8> = (0..60).flat_map(|n| of_worker(n % 2, n)).collect();
    send(&mut source, group.workers.address(), &run);
    let counted = group.settled(60);
    assert_eq!((counted[0].opened, counted[1].opened), (30, 30));
    assert_eq!(counted[0].handed_over, counted[1].taken_over);
    // Where the kernel cuts and joins runs, the first one's worker gets all of this one.
    if source.socket().unwrap().segments_max() > 1 && source.socket().unwrap().coalesces() {
        assert_eq!(counted[0].handed_over, 30);
    }
    group.workers.stop();
}

#[test]
fn without_steering_workers_hand_over_what_is_anothers() {
    let group = Group::new(3, Steer::HandOver);
    assert_eq!(group.workers.steering(), &Steering::Unasked);
    let mut n = 0;
    // Sources are spread by their ports.
    for mut source in (0..16).map(|_| sender()) {
        for _ in 0..12 {
            send(&mut source, group.workers.address(), &of_worker(n % 3, n));
            n += 1;
        }
    }
    let counted = group.settled(192);
    assert!(counted.iter().all(|c| c.opened == 64), "{counted:?}");
    let over: u64 = counted.iter().map(|c| c.handed_over).sum();
    let taken: u64 = counted.iter().map(|c| c.taken_over).sum();
    // Wherever a source lands, two thirds of its datagrams are another's.
    assert_eq!((over, taken), (128, 128));
    group.workers.stop();
}

#[test]
fn a_full_ring_counts_what_it_has_no_room_for() {
    let group = Group::new(2, Steer::Kernel);
    let (begin, begun) = mpsc::channel();
    let (release, waiting) = mpsc::channel();
    let busy = group.commander(1).command(Ask::Wait(begin, waiting));
    assert!(busy.is_ok());
    begun.recv().unwrap();
    let more = 40;
    let datagrams = u64::try_from(HANDED_OVER_MAX).unwrap() + more;
    let mut source = sender();
    if source.socket().unwrap().segments_max() <= 1 || !source.socket().unwrap().coalesces() {
        // Each datagram would be steered by itself.
        release.send(()).unwrap();
        return group.workers.stop();
    }
    // The first of each run is the first worker's, and so it gets the run.
    for at in (0..datagrams).step_by(24) {
        let rest = (at..datagrams.min(at + 24)).flat_map(|n| of_worker(1, n));
        let run: Vec<u8> = of_worker(0, at).into_iter().chain(rest).collect();
        send(&mut source, group.workers.address(), &run);
    }
    let is_full = || {
        let (reply, answer) = mpsc::channel();
        let task: Task<Probe> = Box::new(move |_, parts| {
            let counters = parts.counters();
            reply
                .send((counters.handed_over, counters.hand_over_full))
                .unwrap();
        });
        assert!(group.commander(0).run(task).is_ok());
        answer.recv().unwrap()
    };
    let ring = u64::try_from(HANDED_OVER_MAX).unwrap();
    while is_full() != (ring, more) {
        std::thread::park_timeout(std::time::Duration::from_millis(1));
    }
    release.send(()).unwrap();
    let own = datagrams.div_ceil(24);
    let counted = group.settled(datagrams + own);
    assert_eq!((counted[0].opened, counted[0].hand_over_full), (own, more));
    assert_eq!((counted[1].opened, counted[1].taken_over), (ring, ring));
    group.workers.stop();
}

/// What an outsider can send as a handshake from the peer with this id.
fn forged_handshake(sender: u64) -> Vec<u8> {
    let body = [7; 120];
    let header = Header {
        flags: virga_ebpf::header::Flags::HANDSHAKE,
        priority: 7,
        destination: HERE,
        payload_len: 120,
        ..Header::default()
    };
    let mut bytes = header.encode().to_vec();
    bytes.extend(body);
    bytes[crate::handshake::SENDER_AT..][..8].copy_from_slice(&sender.to_be_bytes());
    bytes
}

#[test]
fn a_flood_of_forged_handshakes_takes_no_session_packet_its_place() {
    let group = Group::new(2, Steer::HandOver);
    let (begin, begun) = mpsc::channel();
    let (release, waiting) = mpsc::channel();
    let busy = group.commander(1).command(Ask::Wait(begin, waiting));
    assert!(busy.is_ok());
    begun.recv().unwrap();
    let mut sources: Vec<_> = (0..16).map(|_| sender()).collect();
    // Some of the sources land at the other worker, which hands over.
    let (junk, packets) = (3_000, 320);
    let forged = forged_handshake(1);
    for n in 0..junk {
        let source = &mut sources[n % 16];
        source.room().unwrap().extend_from_slice(&forged);
        source.commit(group.workers.address(), forged.len());
        assert!(source.flush());
    }
    for n in 0..packets {
        let source = &mut sources[n % 16];
        send(source, group.workers.address(), &of_worker(1, n as u64));
    }
    std::thread::park_timeout(std::time::Duration::from_millis(50));
    release.send(()).unwrap();
    let counted = group.settled((junk + packets) as u64);
    let over: u64 = counted.iter().map(|c| c.handed_over).sum();
    assert!(over > 0 && over <= packets as u64, "{counted:?}");
    assert!(counted.iter().all(|c| c.hand_over_full == 0), "{counted:?}");
    group.workers.stop();
}

#[test]
fn workers_stay_on_their_cores_or_none_runs() {
    let config = |cores| WorkersConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        cores,
        steer: Steer::Kernel,
        driver: DriverConfig::default(),
    };
    let beginning = |share| Beginning {
        node: node_config_of(share),
        forwarder: Forwarder::new(),
        service: Probe::default(),
    };
    let core = core_affinity::get_core_ids().unwrap()[0].id;
    let workers = spawn_all(&config(vec![Some(core); 2]), beginning, |_, _| {}).unwrap();
    for commander in workers.commanders() {
        let (reply, answer) = mpsc::channel();
        let task: Task<Probe> = Box::new(move |_, parts| {
            let cores = core_affinity::get_core_ids().unwrap();
            reply
                .send((cores.len(), cores[0].id, parts.core()))
                .unwrap();
        });
        assert!(commander.run(task).is_ok());
        assert_eq!(answer.recv().unwrap(), (1, core, Some(core)));
    }
    workers.stop();
    let (exit, exited) = mpsc::channel();
    let tell = move |_, how| exit.send(how).unwrap();
    let refused = spawn_all(&config(vec![None, Some(1_023)]), beginning, tell).err();
    assert!(matches!(refused, Some(WorkerError::Core { core: 1_023 })));
    // The first had begun, and is no more.
    assert!(matches!(exited.recv().unwrap(), Exit::Stopped));
    assert!(exited.recv().is_err());
}
