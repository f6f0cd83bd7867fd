//! The two paths that a frame is sent through: the library over plain memory, and the loaded program
//! by `BPF_PROG_TEST_RUN`.

use aya::{
    Ebpf,
    maps::{Array, MapData},
    programs::{TestRun as _, TestRunOptions, Xdp},
};
use virga::nic::{
    FORWARD, SAMPLE,
    maps::{self, Maps},
    pod::Plain,
    samples::Samples,
};
use virga_ebpf::{
    decide::{Verdict, decide_from, find},
    frame::{Frame, parse},
    header::Header,
    image::Image,
    limits::DESTINATIONS_MAX,
    memory::MemoryTables,
    publish::Publisher,
    reason::{Counter, Outcome, Reason},
    rewrite,
    tables::{Echo, Tables as _},
};

use super::world::{self, ECHO_PLACE, ECHO_PLACES, ECHO_SECRET, INGRESS};

/// Far beyond any test: a bucket that is empty until then refuses.
pub const NEVER_NS: u64 = 1 << 62;

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fate {
    Pass,
    Local,
    Echo,
    Redirect,
    Transmit,
    Drop(Reason),
}

impl Fate {
    /// The counter that this fate moves.
    pub fn counter(self) -> u32 {
        match self {
            Self::Pass => Outcome::Pass.counter(),
            Self::Local => Outcome::Local.counter(),
            Self::Echo => Outcome::Echo.counter(),
            Self::Redirect => Outcome::Redirect.counter(),
            Self::Transmit => Outcome::Transmit.counter(),
            Self::Drop(reason) => reason.counter(),
        }
    }

    /// Its label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pass => Outcome::Pass.name(),
            Self::Local => Outcome::Local.name(),
            Self::Echo => "echo noted",
            Self::Redirect => Outcome::Redirect.name(),
            Self::Transmit => Outcome::Transmit.name(),
            Self::Drop(reason) => reason.name(),
        }
    }

    /// Every fate there is.
    pub fn all() -> Vec<Self> {
        let drops = Reason::ALL.iter().map(|r| Self::Drop(*r));
        let passed = [Self::Pass, Self::Local, Self::Echo];
        let sent = [Self::Redirect, Self::Transmit];
        passed.into_iter().chain(sent).chain(drops).collect()
    }
}

/// The library over plain memory.
pub struct Memory {
    pub tables: MemoryTables,
}

impl Memory {
    pub fn new(image: &Image) -> Self {
        let mut tables = MemoryTables::new();
        let mut publisher = Publisher::recover(&tables).unwrap();
        publisher
            .apply(&mut tables, image, world::entropy())
            .unwrap();
        Self { tables }
    }

    /// Sets when the neighbour's handshake bucket is empty.
    pub fn set_handshake_bucket(&self, neighbour: u32, empty_at: u64) {
        self.tables
            .handshake_bucket(neighbour)
            .unwrap()
            .set(empty_at);
    }

    /// What is known of the first watched link's echoes.
    pub fn echo(&self) -> Echo {
        self.tables.echo(ECHO_PLACE).unwrap().get()
    }

    /// Has the links' echoes noted, and none of them there yet.
    pub fn watch(&self) {
        for (place, from) in ECHO_PLACES {
            self.tables.echo(place).unwrap().set(watched(from));
        }
    }

    /// The frame's fate, and the frame as it goes on.
    pub fn run(&self, frame: &[u8]) -> (Fate, Vec<u8>) {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
        let now = u64::try_from(time.tv_sec).unwrap() * 1_000_000_000
            + u64::try_from(time.tv_nsec).unwrap();
        self.tables.set_now(now);
        let settings = self.tables.current();
        let unchanged = |fate| (fate, frame.to_vec());
        let (outer, header, neighbour) = match parse(frame, &self.tables, &settings, INGRESS) {
            Frame::NotOurs => return unchanged(Fate::Pass),
            Frame::Malformed(reason) => return unchanged(Fate::Drop(reason)),
            Frame::Mesh(outer, header, neighbour) => (outer, Header::decode(header), neighbour),
        };
        let bytes = u32::from(outer.udp_payload_bytes);
        let next_hop = match decide_from(&self.tables, &settings, &header, bytes, neighbour) {
            Verdict::Local => return unchanged(Fate::Local),
            Verdict::Echo => return unchanged(Fate::Echo),
            Verdict::Drop(reason) => return unchanged(Fate::Drop(reason)),
            Verdict::Forward(next_hop) => next_hop,
        };
        let sent = rewrite::sent(&outer, &header, next_hop);
        let mut out = vec![0; rewrite::headers_bytes(next_hop)];
        let mesh = rewrite::write_outer(out.as_mut_slice(), next_hop, &sent).unwrap();
        assert_eq!(mesh, out.len());
        out.extend(&frame[outer.mesh..frame.len() - usize::from(outer.trailing)]);
        rewrite::write_mesh(out.as_mut_slice(), mesh, &sent).unwrap();
        let fate = if next_hop.ifindex == INGRESS {
            Fate::Transmit
        } else {
            Fate::Redirect
        };
        (fate, out)
    }
}

/// The loaded program. Its thread is pinned to a core, as flows and duplicates are per CPU.
pub struct Kernel {
    program: &'static str,
    ebpf: Ebpf,
    maps: Maps,
    handshake_buckets: Array<MapData, u64>,
    echoes: Array<MapData, Plain<Echo>>,
}

impl Kernel {
    /// `None` with the reason printed where BPF programs cannot be loaded.
    pub fn new(image: &Image) -> Option<Self> {
        Self::running(FORWARD, image)
    }

    /// The program that takes samples, and those.
    pub fn sampling(image: &Image) -> Option<(Self, Samples)> {
        let mut kernel = Self::running(SAMPLE, image)?;
        let samples = Samples::take(&mut kernel.ebpf).unwrap();
        Some((kernel, samples))
    }

    fn running(program: &'static str, image: &Image) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: loading a BPF program needs root");
            return None;
        }
        let mut cpus = rustix::thread::CpuSet::new();
        cpus.set(0);
        rustix::thread::sched_setaffinity(None, &cpus).unwrap();
        let (mut ebpf, mut maps) = maps::load(None, DESTINATIONS_MAX).unwrap();
        maps::program(&mut ebpf, program).unwrap();
        let mut publisher = Publisher::recover(&maps).unwrap();
        publisher.apply(&mut maps, image, world::entropy()).unwrap();
        // The device map wants an interface that exists; a test run does not send.
        maps.set_egress(0, INGRESS).unwrap();
        let handshake_buckets = ebpf.take_map("hs_buckets").unwrap().try_into().unwrap();
        let echoes = ebpf.take_map("echoes").unwrap().try_into().unwrap();
        Some(Self {
            program,
            ebpf,
            maps,
            handshake_buckets,
            echoes,
        })
    }

    /// The frame's fate by the counter that moved, and the frame as it goes on.
    pub fn run(&mut self, frame: &[u8]) -> (Fate, Vec<u8>) {
        let before = self.counters();
        let (action, out) = self.test_run(frame);
        let after = self.counters();
        let moved: Vec<Fate> = Fate::all()
            .into_iter()
            .filter(|f| after[f.counter() as usize] != before[f.counter() as usize])
            .collect();
        assert_eq!(
            moved.len(),
            1,
            "one counter moves for one frame, not {moved:?}; action {action}"
        );
        let place = moved[0].counter() as usize;
        assert_eq!(after[place].packets, before[place].packets + 1);
        assert_eq!(after[place].bytes, before[place].bytes + frame.len() as u64);
        let expected_action = match moved[0] {
            Fate::Pass | Fate::Local => 2,
            Fate::Echo | Fate::Drop(_) => 1,
            Fate::Transmit => 3,
            Fate::Redirect => 4,
        };
        assert_eq!(action, expected_action, "{moved:?}");
        (moved[0], out)
    }

    fn test_run(&mut self, frame: &[u8]) -> (u32, Vec<u8>) {
        let xdp: &Xdp = self.ebpf.program(self.program).unwrap().try_into().unwrap();
        let mut out = vec![0; frame.len() + 128];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ..TestRunOptions::default()
        };
        let result = xdp.test_run(options).unwrap();
        out.truncate(result.data_size_out as usize);
        (result.return_value, out)
    }

    /// The action for a frame, however it is counted.
    pub fn action(&mut self, frame: &[u8]) -> u32 {
        self.test_run(frame).0
    }

    pub fn maps(&mut self) -> &mut Maps {
        &mut self.maps
    }

    pub fn counters(&self) -> Vec<Counter> {
        self.maps.counters().unwrap()
    }

    /// What is known of the first watched link's echoes.
    pub fn echo(&self) -> Echo {
        self.echoes.get(&ECHO_PLACE, 0).unwrap().0
    }

    /// Has the links' echoes noted, and none of them there yet.
    pub fn watch(&mut self) {
        for (place, from) in ECHO_PLACES {
            self.echoes.set(place, Plain(watched(from)), 0).unwrap();
        }
    }

    /// When the neighbour's handshake bucket is empty.
    pub fn handshake_bucket(&self, neighbour: u32) -> u64 {
        self.handshake_buckets.get(&neighbour, 0).unwrap()
    }

    /// Sets when the neighbour's handshake bucket is empty.
    pub fn set_handshake_bucket(&mut self, neighbour: u32, empty_at: u64) {
        self.handshake_buckets.set(neighbour, empty_at, 0).unwrap();
    }
}

fn watched(from: &str) -> Echo {
    Echo {
        secret: ECHO_SECRET.0,
        from: world::address(from),
        ..Echo::default()
    }
}

/// Number of a neighbour, as both paths know it.
pub fn neighbour_index(
    memory: &Memory,
    vlan: u32,
    source: virga_ebpf::tables::Address,
) -> Option<u32> {
    find(
        &memory.tables,
        &memory.tables.current(),
        INGRESS,
        vlan,
        source,
    )
    .map(|n| n.index)
}
