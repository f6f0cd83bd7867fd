//! What each verdict of the XDP program costs, above a program that does nothing.
//!
//! The limit: one array look-up is inlined and costs a bounds check and a load, 1 to 2 ns; a helper call 2 to 5. A
//! forwarded packet reads neighbour, a line of the guard, flow, next hop, duplicate slot and counter (6 array look-ups; the
//! settings are a variable at a known address; 5 keyed hashes of 1 to 3 multiplications at 3 to 4 cycles each, which
//! is 15 ns at 3 GHz where nothing overlaps), writes 50 bytes and calls the redirect helper (`redirect_ns`), and no other:
//! a call costs a wrongly guessed return where the kernel guards against those of others (on AMD Zen 7 to 15 ns, so that the
//! duplicate filter goes by jiffies, which the verifier makes a load of, and the program is one function). These are some
//! 600 instructions of the program, and a processor of 4 GHz does 12 to 14 of them a nanosecond. So about 45 ns is what
//! is left when every cache line is warm. All of them are: one packet again and again, which is every verdict's best;
//! but for the walks over destinations, origins and strangers.
//!
//! A packet whose flow is not cached waits for more lines, far away where there are many destinations or pairs: its slot
//! of the flow cache, one of the guard, one of the exact set, rarely two, one of the directory, rarely two, and in the
//! largest tables the page table's entry for that. From L2 that is 5 ns each, from beyond many times as much. No BPF
//! program can fetch lines ahead, nor several packets' at once.
//!
//! Every run is a real one: a small program writes the frame anew, with a new sequence, and tail-calls the
//! measured program; the same with a program that does nothing is subtracted, round by round. Every run's
//! verdict is counted by the program itself, and must be the expected one.

mod cases;
mod sampled;

use std::thread;

use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{Array, DevMap, MapData, ProgramArray},
    programs::{TestRun as _, TestRunOptions, Xdp},
};
use virga::{
    generate::live::{NULL, OBJECT, REDIRECT as BARE_REDIRECT},
    nic::{
        FORWARD, SAMPLE,
        maps::{self, Maps},
        samples::Samples,
    },
};
use virga_ebpf::{
    image::Image,
    publish::Publisher,
    replay::{FRAME_BYTES, Replay},
    tag::TagKey,
};

use crate::{
    cpus::{allowed_cpus, pin_to},
    interrupt,
    report::{Entry, Skip, failed, skipped},
    rounds::{low, median},
    world,
};
use cases::Case;

/// Words of [`virga_ebpf::replay::Replay`].
const REPLAY_WORDS: usize = size_of::<Replay>() / 8;
/// Runs of one program in one round: some milliseconds.
const REPEAT: u32 = 50_000;
/// Destinations that a walk goes over: eight times the flow cache.
const WALK: u64 = 65_536;
/// XDP actions (linux/bpf.h).
const DROP: u32 = 1;
const PASS: u32 = 2;
const REDIRECT: u32 = 4;

const REPLAY: &str = "virga_replay";

/// The programs, loaded.
struct Bench {
    ours: Ebpf,
    maps: Maps,
    samples: Samples,
    measure: Ebpf,
    replay: Array<MapData, [u64; REPLAY_WORDS]>,
    target: ProgramArray<MapData>,
    /// Kept: the bare redirect looks its interface up in it.
    _egress: DevMap<MapData>,
    sequence: u64,
}

impl Bench {
    /// A router with such tables.
    fn load(image: &Image) -> Result<Self, Skip> {
        let (mut ours, mut maps) =
            maps::load(None, u32::try_from(2 * WALK).unwrap_or(u32::MAX)).map_err(failed)?;
        for name in [FORWARD, SAMPLE] {
            maps::program(&mut ours, name).map_err(failed)?;
        }
        let samples = Samples::take(&mut ours).map_err(failed)?;
        let mut publisher = Publisher::recover(&maps).map_err(failed)?;
        publisher
            .apply(&mut maps, image, world::entropy())
            .map_err(failed)?;
        maps.set_egress(0, world::INGRESS).map_err(failed)?;
        let mut measure = EbpfLoader::new()
            .verifier_log_level(VerifierLogLevel::STATS)
            .load(OBJECT)
            .map_err(failed)?;
        for name in [REPLAY, NULL, BARE_REDIRECT] {
            maps::program(&mut measure, name).map_err(failed)?;
        }
        let mut take = |name| {
            measure
                .take_map(name)
                .ok_or_else(|| failed(format!("the built object has no `{name}`")))
        };
        let replay = take("replay")?.try_into().map_err(failed)?;
        let target = take("replay_target")?.try_into().map_err(failed)?;
        let mut egress: DevMap<MapData> = take("egress")?.try_into().map_err(failed)?;
        egress.set(0, world::INGRESS, None, 0).map_err(failed)?;
        Ok(Self {
            ours,
            maps,
            samples,
            measure,
            replay,
            target,
            _egress: egress,
            sequence: 0,
        })
    }

    /// What the verifier read, and how large the program is in the kernel.
    fn sizes(&mut self) -> Result<Vec<Entry>, Skip> {
        let info = maps::program(&mut self.ours, FORWARD)
            .map_err(failed)?
            .info()
            .map_err(failed)?;
        let verified = info.verified_instruction_count().unwrap_or(0);
        let mut entries = vec![Entry::new(
            "xdp.verified_instructions",
            "instructions",
            f64::from(verified),
        )];
        match jited_bytes(info.id()) {
            Some(bytes) => entries.push(Entry::new("xdp.jited_bytes", "bytes", bytes)),
            None => skipped("xdp.jited_bytes", "bpftool is not installed or cannot say"),
        }
        Ok(entries)
    }

    fn aim(&mut self, program: &'static str) -> Result<(), Skip> {
        let ebpf = if [FORWARD, SAMPLE].contains(&program) {
            &self.ours
        } else {
            &self.measure
        };
        let xdp: &Xdp = ebpf
            .program(program)
            .ok_or_else(|| failed(program))?
            .try_into()
            .map_err(failed)?;
        let fd = xdp.fd().map_err(failed)?;
        self.target.set(0, fd, 0).map_err(failed)
    }

    /// Nanoseconds a run, the measurement's own included.
    fn run(&mut self, case: &Case, program: &'static str, action: u32) -> Result<f64, Skip> {
        let Replay {
            destination,
            destination_mask,
            sequence_mask,
            origin,
            origin_mask,
            mesh,
            tagged,
            tag_key,
            ..
        } = case.vary;
        self.aim(program)?;
        let mut words = [0; REPLAY_WORDS];
        let (frame_words, rest) = words.split_at_mut(FRAME_BYTES / 8);
        for (word, bytes) in frame_words.iter_mut().zip(case.frame.as_chunks().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        let TagKey([key, key_too]) = tag_key;
        rest.copy_from_slice(&[
            self.sequence,
            destination,
            destination_mask,
            sequence_mask,
            origin,
            origin_mask,
            mesh,
            tagged,
            key,
            key_too,
        ]);
        self.replay.set(0, words, 0).map_err(failed)?;
        let xdp: &Xdp = self
            .measure
            .program(REPLAY)
            .ok_or_else(|| failed(REPLAY))?
            .try_into()
            .map_err(failed)?;
        let options = TestRunOptions {
            data_in: Some(&case.frame),
            repeat: REPEAT,
            ..TestRunOptions::default()
        };
        let result = xdp.test_run(options).map_err(failed)?;
        self.sequence += u64::from(REPEAT);
        if result.return_value != action {
            let got = result.return_value;
            return Err(failed(format!(
                "{}: action {got} instead of {action}",
                case.name
            )));
        }
        Ok(result.duration.as_secs_f64() * 1e9)
    }

    /// Nanoseconds of a program of ours; every run must have ended as the case says.
    fn run_ours(&mut self, case: &Case, program: &'static str) -> Result<f64, Skip> {
        if case.uses_something_up() {
            self.run(case, program, case.action)?;
        }
        let before = self.maps.counters().map_err(failed)?;
        let nanoseconds = self.run(case, program, case.action)?;
        let after = self.maps.counters().map_err(failed)?;
        let place = case.counter as usize;
        let counted = after[place].packets - before[place].packets;
        if counted + case.others_max < u64::from(REPEAT) {
            return Err(failed(format!(
                "{}: {counted} of {REPEAT} runs ended as they should",
                case.name
            )));
        }
        Ok(nanoseconds)
    }
}

/// Measures; needs root.
pub(crate) fn measure(rounds: u32) -> Result<Vec<Entry>, Skip> {
    if !rustix::process::geteuid().is_root() {
        return Err(Skip::Missing("loading BPF programs needs root".to_owned()));
    }
    // On a thread of its own: what is measured after this, and its children, are not tied to that CPU.
    thread::scope(|scope| {
        let measured = scope.spawn(|| {
            let cpu = allowed_cpus(1).map_err(failed)?[0];
            pin_to(None, cpu).map_err(failed)?;
            on_this_cpu(rounds)
        });
        measured
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn on_this_cpu(rounds: u32) -> Result<Vec<Entry>, Skip> {
    let mut benches = Vec::new();
    for (image, cases) in cases::all() {
        let figures = vec![Vec::new(); cases.len()];
        benches.push((Bench::load(&image)?, cases, figures));
    }
    let bare = cases::not_ours();
    let mut nulls = Vec::new();
    let mut redirects = Vec::new();
    for _ in 0..rounds {
        interrupt::check()?;
        for (bench, cases, figures) in &mut benches {
            for (case, figures) in cases.iter().zip(figures) {
                // What makes a frame's link tag is no part of what is measured.
                let is_plain = case.vary.tagged == 0;
                let null = bench.run(if is_plain { &bare } else { case }, NULL, PASS)?;
                figures.push(bench.run_ours(case, FORWARD)? - null);
                if is_plain {
                    nulls.push(null);
                }
            }
        }
        let bench = &mut benches[0].0;
        redirects.push(bench.run(&bare, BARE_REDIRECT, REDIRECT)? - bench.run(&bare, NULL, PASS)?);
    }
    let mut entries = vec![
        Entry::new("xdp.null_ns", "ns", median(&nulls)).spread(&nulls),
        Entry::new("xdp.redirect_ns", "ns above null", median(&redirects)).spread(&redirects),
    ];
    let measured = benches
        .iter()
        .flat_map(|(_, cases, figures)| cases.iter().zip(figures));
    for (case, figures) in measured {
        let entry = Entry::new(case.name, "ns above null", median(figures)).spread(figures);
        entries.push(match case.limit {
            Some(limit) => entry.limit(limit),
            None => entry,
        });
        eprintln!(
            "{:<26} a tenth of the rounds below {:.1} ns",
            case.name,
            low(figures)
        );
    }
    let (bench, cases, _) = &mut benches[0];
    entries.extend(sampled::measure(bench, cases, rounds)?);
    entries.extend(benches[0].0.sizes()?);
    Ok(entries)
}

/// Bytes of machine code, as bpftool says.
fn jited_bytes(id: u32) -> Option<f64> {
    let output = std::process::Command::new("bpftool")
        .args(["--json", "prog", "show", "id", &id.to_string()])
        .output()
        .ok()?;
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    said.get("bytes_jited")?.as_f64()
}
