//! How long packets wait in the kernel until the worker reads them, over real sockets.

use super::{
    refill::{free, way},
    *,
};
use crate::{
    flow::{Note, Noted, Stage, Wanted, notes},
    io::driver::Choice,
    tests::sim,
};
use std::time::Duration;
use virga_ebpf::header::StreamId;

/// Sends an event when told to; tells how long those waited that come.
struct Ear {
    peer: NodeId,
    connects: bool,
    stream: Option<StreamId>,
}

impl Service for Ear {
    type Command = ();
    fn start(&mut self, now_ns: u64, node: &mut Node) {
        if self.connects {
            node.connect(now_ns, self.peer).unwrap();
        }
    }
    fn on_event(&mut self, now_ns: u64, node: &mut Node, event: Event) {
        match event {
            Event::Connected { .. } => {
                let spec = sim::spec("fill", crate::Mode::Unreliable);
                self.stream = node.open_stream(now_ns, self.peer, &spec).ok();
            }
            Event::Message { .. } => {
                if let Some(flow) = node.flow_mut() {
                    flow.received();
                }
            }
            _ => {}
        }
    }
    fn on_command(&mut self, now_ns: u64, node: &mut Node, (): ()) {
        if let Some(stream) = self.stream {
            // Where another session took this one's place, the next event goes by that.
            let _lost = node.send(now_ns, self.peer, stream, b"event");
        }
    }
    fn poll_timeout(&self) -> Option<u64> {
        None
    }
    fn handle_timeout(&mut self, _now_ns: u64, _node: &mut Node) {}
    fn stop(&mut self, _now_ns: u64, _node: &mut Node) {}
}

/// Two workers, the receiving one on a driver; none where that one cannot run.
fn pair(choice: Choice) -> Option<[WorkerHandle<Ear>; 2]> {
    let limits = NodeLimits::default();
    let config = |number| sim::config(number, 2, 1, &limits);
    let nodes = [0, 1].map(|number| Node::new(config(number), 0).unwrap());
    let listen = [free(), free()];
    let spawn = |number: u8, choice| {
        let (own, other) = (usize::from(number), usize::from(1 - number));
        let worker = WorkerConfig {
            listen: listen[own],
            core: None,
            driver: DriverConfig {
                choice,
                ..DriverConfig::default()
            },
        };
        let way = way(&nodes[own], &nodes[other], listen[other]);
        let ear = Ear {
            peer: nodes[other].id(),
            connects: number == 0,
            stream: None,
        };
        Worker::spawn(&worker, config(number), way, ear, |_| {})
    };
    match spawn(1, choice) {
        Ok(receiver) => Some([spawn(0, Choice::Mmsg).unwrap(), receiver]),
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}

fn time(worker: &WorkerHandle<Ear>) -> Noted {
    let (notes, noted) = notes(Clock::start());
    let wanted = Wanted {
        channel: crate::ChannelName::parse("fill").unwrap(),
        entity: None,
        is_own: true,
        interval_ns: 0,
    };
    let flow = Some(Box::new(Flow::new(wanted, notes)));
    assert!(look(worker, move |parts| parts.set_flow(flow)).is_none());
    noted
}

/// How long the events waited that have come.
fn waits(noted: &Noted) -> Vec<u64> {
    let of_stage = |note: Note| (note.stage == Stage::Receive).then_some(note.ns);
    let all = std::iter::from_fn(|| noted.next()).filter_map(of_stage);
    // None where the kernel read it before it was asked.
    all.filter_map(Result::ok).collect()
}

#[test]
fn an_events_wait_for_the_worker_is_known_with_every_driver_of_the_kernels_socket() {
    const HELD_NS: u64 = 20_000_000;
    const PATIENCE_NS: u64 = 60_000_000_000;
    for choice in [Choice::Mmsg, Choice::Uring, Choice::Xsk] {
        let Some([sender, receiver]) = pair(choice) else {
            continue;
        };
        let begun = Clock::start();
        let noted = time(&receiver);
        let mut longest_ns = 0;
        while longest_ns < HELD_NS {
            assert!(begun.now_ns() < PATIENCE_NS, "{longest_ns} ns: {choice:?}");
            // The receiver stands still while an event comes.
            let (begin, is_still) = mpsc::channel();
            let (release, released) = mpsc::channel::<()>();
            let still: Task<Ear> = Box::new(move |_, _| {
                begin.send(()).unwrap();
                released.recv().unwrap();
            });
            assert!(receiver.commander().run(still).is_ok());
            is_still.recv().unwrap();
            assert!(sender.command(()).is_ok());
            look(&sender, |_| ());
            std::thread::park_timeout(Duration::from_nanos(2 * HELD_NS));
            release.send(()).unwrap();
            look(&receiver, |_| ());
            for ns in waits(&noted) {
                assert!(ns <= begun.now_ns(), "{ns} ns: {choice:?}");
                longest_ns = longest_ns.max(ns);
            }
        }
        // Nobody asks any more.
        assert!(look(&receiver, |parts| parts.set_flow(None)).is_some());
        sender.stop();
        receiver.stop();
    }
}
