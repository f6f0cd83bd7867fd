//! Peers that lie about the size of packets that reach them: they are sent small ones, and nobody else is concerned.

use super::sim::{MS, SECOND, Sim, Weather, spec};
use crate::{
    CloseReason, Congestion, Event, Mode, NodeLimits, SendError,
    frame::write_ack,
    limits::{BLACK_HOLE_LOSSES, DATAGRAM_BYTES_MIN},
};
use virga_ebpf::{
    header::{Flags, Header, StreamId},
    limits::HEADER_BYTES,
};

/// What the first link takes, and what gets to the others.
const FIRST_LINK: usize = 9_000;
const CARRIED: usize = 1_400;
/// Bytes a second of each node's link.
const RATE: u64 = 3_000_000;
const MESSAGE_BYTES: usize = 16 * 1024;
const LIAR: usize = 1;
const HONEST: usize = 2;

/// A node that sends as much as it can to two others, and what came.
struct Source {
    sim: Sim,
    streams: [StreamId; 2],
    /// Bytes that each of the others was told.
    told: [usize; 2],
    /// Datagrams to the liar that were too large to arrive: probes, and others.
    vanished: [u64; 2],
    /// Whether probes are acknowledged that did not arrive.
    is_lying: bool,
    /// Probes that were sent to the liar.
    probes: u64,
}

impl Source {
    fn new(congestion: Congestion) -> Self {
        let limits = NodeLimits {
            congestion,
            ..NodeLimits::default()
        };
        let first = Weather {
            latency_ns: 10 * MS,
            datagram_bytes: FIRST_LINK,
            rate: RATE,
            queue_bytes: 60_000,
            ..Weather::CALM
        };
        let mut sim = Sim::new(3, 3, &limits, first);
        sim.network.weather.datagram_bytes = CARRIED;
        sim.connect(0, LIAR);
        sim.connect(0, HONEST);
        sim.keep_wire = true;
        let bulk = spec("bulk", Mode::Ordered);
        Self {
            streams: [LIAR, HONEST].map(|to| sim.open(0, to, &bulk)),
            sim,
            told: [0; 2],
            vanished: [0; 2],
            is_lying: true,
            probes: 0,
        }
    }

    /// Looks at what was sent to the liar, who has an acknowledgement for each probe that does not get there.
    fn lie(&mut self) {
        for (from, datagram) in std::mem::take(&mut self.sim.wire) {
            let header = Header::decode(datagram[..HEADER_BYTES].try_into().unwrap());
            if from != 0 {
                continue;
            }
            assert!(datagram.len() <= FIRST_LINK, "{} bytes", datagram.len());
            if header.destination != self.sim.ids[LIAR] {
                continue;
            }
            let is_probe =
                header.flags.contains(Flags::CONTROL) && datagram.len() > DATAGRAM_BYTES_MIN;
            self.probes += u64::from(is_probe);
            if datagram.len() <= self.sim.network.weather.datagram_bytes {
                continue;
            }
            self.vanished[usize::from(!is_probe)] += 1;
            if is_probe && self.is_lying {
                let mut lie = Vec::new();
                write_ack(&mut lie, &[(header.sequence, header.sequence + 1)], 0);
                let label = (Flags::CONTROL, 0, 0, 0);
                let packet = self.sim.nodes[LIAR].seal_raw(self.sim.ids[0], label, &lie);
                self.sim.fly(LIAR, 0, packet);
            }
        }
    }

    fn pour(&mut self, for_ns: u64) {
        let end_ns = self.sim.now_ns + for_ns;
        let message = vec![7; MESSAGE_BYTES];
        while self.sim.now_ns < end_ns {
            for (to, stream) in [LIAR, HONEST].into_iter().zip(self.streams) {
                loop {
                    match self.sim.send(0, to, stream, &message) {
                        Ok(()) => {}
                        Err(SendError::Full) => break,
                        Err(error) => panic!("{error}"),
                    }
                }
            }
            self.sim.step(end_ns);
            self.lie();
            for (told, to) in self.told.iter_mut().zip([LIAR, HONEST]) {
                for event in self.sim.told[to].drain(..) {
                    if let Event::Message { event, .. } = event {
                        assert!(event == message);
                        *told += event.len();
                    }
                }
            }
        }
    }

    /// What the source sends to each.
    fn sizes(&self) -> [usize; 2] {
        [LIAR, HONEST].map(|to| {
            let mut sessions = self.sim.nodes[0].sessions();
            let session = sessions.find(|s| s.peer == self.sim.ids[to]);
            session.unwrap().path.datagram_bytes
        })
    }
}

#[test]
fn who_acknowledges_probes_that_never_came_is_sent_what_reaches_it_all_the_same() {
    for congestion in [Congestion::Cubic, Congestion::Bbr] {
        let mut source = Source::new(congestion);
        source.pour(SECOND);
        // It has what it asked for: no data gets there.
        let [lied, lost] = source.vanished;
        assert!(lied > 0 && lost > 0, "{:?}", source.vanished);
        source.pour(29 * SECOND);
        let ([small, usual], [liars, others]) = (source.sizes(), source.told);
        eprintln!(
            "{congestion:?}: {:?}, {:?}, {:?}",
            source.vanished,
            source.told,
            source.sizes()
        );
        assert!((DATAGRAM_BYTES_MIN..=CARRIED).contains(&small), "{small}");
        assert!((1_372..=CARRIED).contains(&usual), "{usual}");
        // The other one was not held up meanwhile, and now both have what the link gives.
        assert!(others > 30_000_000, "{others} bytes");
        source.pour(5 * SECOND);
        let since = source.told[0] - liars;
        assert!(since > 1_000_000, "{since} bytes");
        assert_eq!(source.sim.closed(0), [], "nobody broke the protocol");
    }
}

/// What reaches it is small and large by turns: the sender follows, and asks seldom.
#[test]
fn who_takes_large_packets_now_and_then_is_asked_few_times() {
    let mut source = Source::new(Congestion::Cubic);
    source.is_lying = false;
    for _ in 0..20 {
        for carried in [FIRST_LINK, 1_300] {
            source.sim.network.weather.datagram_bytes = carried;
            source.pour(2 * SECOND);
        }
    }
    eprintln!(
        "{} probes, {:?}, {:?}",
        source.probes, source.vanished, source.told
    );
    assert!(source.vanished[1] >= u64::from(BLACK_HOLE_LOSSES));
    assert!(source.probes < 60, "{} probes", source.probes);
    let before = source.told[0];
    source.pour(2 * SECOND);
    assert!(source.sizes()[0] <= 1_300, "{:?}", source.sizes());
    assert!(
        source.told[0] - before > 500_000,
        "{} bytes",
        source.told[0] - before
    );
    assert_eq!(source.sim.closed(0), []);
}

/// An answer to a probe that was not sent yet ends its own session, typed, and no other.
#[test]
fn who_answers_a_probe_before_it_is_sent_is_left() {
    let mut source = Source::new(Congestion::Cubic);
    source.pour(SECOND);
    let newest = 1 << 40;
    let mut lie = Vec::new();
    write_ack(&mut lie, &[(newest, newest + 1)], 0);
    let sim = &mut source.sim;
    let packet = sim.nodes[LIAR].seal_raw(sim.ids[0], (Flags::CONTROL, 0, 0, 0), &lie);
    sim.fly(LIAR, 0, packet);
    sim.run(SECOND);
    assert_eq!(sim.closed(0), [CloseReason::Violation]);
    let honest = sim.is_connected(0, HONEST) && sim.is_connected(HONEST, 0);
    assert!(honest, "the other one's session stays");
}
