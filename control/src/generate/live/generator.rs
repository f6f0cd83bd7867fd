//! The generator's run: one thread a CPU, each in a system call that sends.

use std::{
    fmt, io, thread,
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::{Array, MapData, PerCpuArray, PerCpuValues},
    programs::{ProgramError, TestRun as _, TestRunAttrs, TestRunOptions, Xdp},
};
use virga_ebpf::workload::{
    BURST_NS, CAPTURED_BYTES_MAX, CAPTURED_MAX, Captured, INTERVAL_SHIFT, Lane, Workload,
};

use super::{LiveError, egress::transmitted, load, map, set_egress};
use crate::{
    generate::plan::{Plan, interval},
    nic::pod::Plain,
};

const GENERATE: &str = "virga_generate";
const RESEND: &str = "virga_resend";

/// Frames that the kernel runs the program over before it sends what came of it.
const BATCH: u32 = 64;
/// Iterations of a call whose speed is not known yet.
const FIRST_CALL: u32 = 1 << 17;
/// A call takes about as long at most, so that a run ends about when it should.
const CALL_MAX: Duration = Duration::from_secs(2);
/// Smallest Ethernet frame that a test run takes.
const FRAME_BYTES_MIN: usize = 14;

/// What was sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Sent {
    /// Packets with the plan's origin (all of them, of a capture).
    pub authorised: u64,
    /// Packets of strangers.
    pub hostile: u64,
    /// Bytes of all frames.
    pub bytes: u64,
    /// Of all, those that the interface says it dropped instead of sending; not every driver says.
    pub refused: u64,
    /// Packets that the interface says it sent meanwhile; not every driver counts these.
    pub counted: u64,
    /// Nanoseconds that it took.
    pub elapsed_ns: u64,
    /// System calls that it took, all CPUs together: each has a fixed cost.
    pub calls: u64,
    /// What each CPU had a part in.
    pub cores: Vec<Core>,
}

/// One CPU's part in what was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Core {
    /// Which one.
    pub cpu: u32,
    /// First of its flows; no other CPU has any of them.
    pub first_flow: u32,
    /// How many it has; of a capture, its frames.
    pub flows: u32,
    /// Packets with the plan's origin.
    pub authorised: u64,
    /// Packets of strangers.
    pub hostile: u64,
    /// Bytes of all its frames.
    pub bytes: u64,
}

impl Sent {
    /// Packets that left, as far as the interface says.
    #[must_use]
    pub const fn packets(&self) -> u64 {
        (self.authorised + self.hostile).saturating_sub(self.refused)
    }

    /// Adds what one CPU has sent, by how far its lane had come before.
    pub(in crate::generate) fn add(&mut self, cpu: u32, before: &Lane, after: &Lane) {
        let bytes = |lane: &Lane| lane.authorised.bytes + lane.hostile.bytes;
        let core = Core {
            cpu,
            first_flow: after.first_flow,
            flows: after.flows,
            authorised: after.authorised.packets - before.authorised.packets,
            hostile: after.hostile.packets - before.hostile.packets,
            bytes: bytes(after) - bytes(before),
        };
        self.authorised += core.authorised;
        self.hostile += core.hostile;
        self.bytes += core.bytes;
        self.cores.push(core);
    }
}

/// When a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// After so many packets, exactly.
    Count(u64),
    /// After that time, about.
    Elapsed(Duration),
}

impl Until {
    /// How many packets one of several CPUs sends.
    pub(in crate::generate) const fn share(self, share: u64, shares: u64) -> u64 {
        match self {
            Self::Count(count) => count / shares + (share < count % shares) as u64,
            Self::Elapsed(_) => u64::MAX,
        }
    }
}

/// Sends frames through one interface.
pub struct Generator {
    ebpf: Ebpf,
    interface: String,
    workload: Array<MapData, Plain<Workload>>,
    lanes: PerCpuArray<MapData, Plain<Lane>>,
    program: &'static str,
    /// What each live frame is cut from.
    frame: Vec<u8>,
    cpus: Vec<u32>,
    is_paced: bool,
}

impl fmt::Debug for Generator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generator")
            .field("interface", &self.interface)
            .field("cpus", &self.cpus)
            .finish_non_exhaustive()
    }
}

impl Generator {
    /// A generator of a plan's packets, run on these CPUs at once, each with its share of the flows.
    ///
    /// # Errors
    /// When the plan cannot be sent, or the kernel refuses.
    pub fn new(interface: &str, plan: &Plan, cpus: &[u32]) -> Result<Self, LiveError> {
        let mut generator = Self::load(interface, GENERATE, 1)?;
        generator.set_plan(plan, cpus)?;
        Ok(generator)
    }

    /// A generator that sends captured frames as they are, in their order, again and again; at `rate`
    /// packets a second where one is said.
    ///
    /// # Errors
    /// When there is no frame or one is too large, or the kernel refuses.
    pub fn of_capture(
        interface: &str,
        frames: &[Vec<u8>],
        rate: Option<u64>,
        cpu: u32,
    ) -> Result<Self, LiveError> {
        let count = u32::try_from(frames.len()).unwrap_or(u32::MAX);
        if count == 0 {
            return Err(LiveError::NoFrames);
        }
        if count > CAPTURED_MAX {
            return Err(LiveError::Captured(frames.len()));
        }
        let mut generator = Self::load(interface, RESEND, count)?;
        let mut captured: Array<MapData, Plain<Captured>> = map(&mut generator.ebpf, "captured")?;
        for (number, frame) in (0..).zip(frames) {
            captured
                .set(number, Plain(captured_value(number, frame)?), 0)
                .map_err(|e| LiveError::Map("captured", e))?;
        }
        let lane = Lane {
            flows: count,
            ..Lane::default()
        };
        let workload = Workload {
            interval: interval(rate, 1)?,
            frame_bytes: u32::try_from(CAPTURED_BYTES_MAX).unwrap_or(0),
            burst_ns: BURST_NS,
            ..Workload::default()
        };
        generator.set(workload, &[lane], &[cpu])?;
        Ok(generator)
    }

    fn load(interface: &str, name: &'static str, captured: u32) -> Result<Self, LiveError> {
        let mut ebpf = load(name, &[("captured", captured)])?;
        set_egress(&mut ebpf, interface)?;
        let workload = map(&mut ebpf, "workload")?;
        let lanes = map(&mut ebpf, "lanes")?;
        Ok(Self {
            ebpf,
            interface: interface.to_owned(),
            workload,
            lanes,
            program: name,
            frame: Vec::new(),
            cpus: Vec::new(),
            is_paced: false,
        })
    }

    /// Another plan from the next run on. Its sequences are of a run of their own.
    ///
    /// # Errors
    /// When the plan cannot be sent, or the kernel refuses.
    pub fn set_plan(&mut self, plan: &Plan, cpus: &[u32]) -> Result<(), LiveError> {
        let count = u32::try_from(cpus.len()).unwrap_or(u32::MAX);
        // Never 0: a flow's next sequence is 0 where none has come yet.
        let run = getrandom::u32().map_err(LiveError::Random)?.max(1);
        let workload = plan.workload(run, count)?;
        self.set(workload, &plan.lanes(count)?, cpus)
    }

    fn set(&mut self, workload: Workload, lanes: &[Lane], cpus: &[u32]) -> Result<(), LiveError> {
        let mut all = vec![Lane::default(); self.lanes()?.len()];
        for (cpu, lane) in cpus.iter().zip(lanes) {
            let place = all.get_mut(*cpu as usize);
            *place.ok_or_else(|| no_cpu(*cpu, io::ErrorKind::NotFound.into()))? = *lane;
        }
        self.set_lanes(&all)?;
        self.workload
            .set(0, Plain(workload), 0)
            .map_err(|e| LiveError::Map("workload", e))?;
        self.frame = vec![0; workload.frame_bytes as usize];
        self.is_paced = workload.interval != 0;
        self.cpus = cpus.to_vec();
        Ok(())
    }

    /// Each CPU's lane.
    fn lanes(&self) -> Result<Vec<Lane>, LiveError> {
        let values = self.lanes.get(&0, 0);
        let values = values.map_err(|e| LiveError::Map("lanes", e))?;
        Ok(values.iter().map(|lane| lane.0).collect())
    }

    fn set_lanes(&mut self, lanes: &[Lane]) -> Result<(), LiveError> {
        let lanes: Vec<Plain<Lane>> = lanes.iter().map(|lane| Plain(*lane)).collect();
        let values = PerCpuValues::try_from(lanes).map_err(|e| no_cpu(0, e))?;
        self.lanes
            .set(0, values, 0)
            .map_err(|e| LiveError::Map("lanes", e))
    }

    /// Sends on all of the plan's CPUs at once, and returns what this run has sent. Sequences go on
    /// where the last run of the plan ended. The order of frames is a lane's: between CPUs there is none.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn run(&mut self, until: Until) -> Result<Sent, LiveError> {
        let before = self.lanes()?;
        let mut limited = before.clone();
        let shares = self.cpus.len() as u64;
        let now = monotonic_ns() << INTERVAL_SHIFT;
        for (share, cpu) in (0..).zip(&self.cpus) {
            let lane = &mut limited[*cpu as usize];
            lane.due = now;
            lane.limit = lane.sent().saturating_add(until.share(share, shares));
        }
        self.set_lanes(&limited)?;
        let before_it = transmitted(&self.interface)?;
        let start = Instant::now();
        let this = &*self;
        let calls = thread::scope(|scope| {
            let threads: Vec<_> = self
                .cpus
                .iter()
                .map(|&cpu| scope.spawn(move || this.run_on(cpu, until, start)))
                .collect();
            threads.into_iter().try_fold(0, |calls, thread| {
                let joined = thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                Ok::<_, LiveError>(calls + joined?)
            })
        })?;
        let elapsed = start.elapsed();
        let after_it = transmitted(&self.interface)?;
        let mut sent = Sent {
            refused: after_it.dropped.wrapping_sub(before_it.dropped),
            counted: after_it.packets.wrapping_sub(before_it.packets),
            elapsed_ns: u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX),
            calls,
            ..Sent::default()
        };
        let after = self.lanes()?;
        for &cpu in &self.cpus {
            sent.add(cpu, &before[cpu as usize], &after[cpu as usize]);
        }
        Ok(sent)
    }

    /// One CPU's calls, until its share is sent or the time is over; how many they were.
    fn run_on(&self, cpu: u32, until: Until, start: Instant) -> Result<u64, LiveError> {
        run_on(cpu)?;
        let mut next = FIRST_CALL;
        for calls in 0.. {
            let lane = self.lanes()?[cpu as usize];
            let left = lane.limit.saturating_sub(lane.sent());
            let time_left = match until {
                Until::Count(_) => CALL_MAX,
                Until::Elapsed(duration) => duration.saturating_sub(start.elapsed()).min(CALL_MAX),
            };
            if left == 0 || time_left.is_zero() {
                return Ok(calls);
            }
            let repeat = match until {
                // Every iteration sends a packet.
                Until::Count(_) if !self.is_paced => u32::try_from(left).unwrap_or(u32::MAX),
                _ => next,
            };
            let began = Instant::now();
            self.call(cpu, repeat)?;
            let took = began.elapsed();
            let sent = self.lanes()?[cpu as usize].sent() - lane.sent();
            if sent == 0 && !self.is_paced {
                return Err(LiveError::Stuck(lane.sent()));
            }
            let speed = f64::from(repeat) / took.as_secs_f64().max(1e-6);
            let time_left = time_left.saturating_sub(took).as_secs_f64();
            next = iterations(speed * time_left);
        }
        Ok(u64::MAX)
    }

    /// One system call.
    fn call(&self, cpu: u32, repeat: u32) -> Result<(), LiveError> {
        let program = self.ebpf.program(self.program);
        let program = program.ok_or(LiveError::Object(self.program))?;
        let xdp: &Xdp = program
            .try_into()
            .map_err(|_| LiveError::Object(self.program))?;
        let options = TestRunOptions {
            data_in: Some(&self.frame),
            repeat,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::new()
        };
        match xdp.test_run(options) {
            Ok(_) => Ok(()),
            Err(ProgramError::SyscallError(e))
                if e.io_error.kind() == io::ErrorKind::Interrupted =>
            {
                Ok(())
            }
            Err(source) => Err(LiveError::Run {
                cpu,
                source: Box::new(source),
            }),
        }
    }
}

/// Puts the calling thread on a CPU.
pub(in crate::generate) fn run_on(cpu: u32) -> Result<(), LiveError> {
    let mut cpus = rustix::thread::CpuSet::new();
    cpus.set(cpu as usize);
    rustix::thread::sched_setaffinity(None, &cpus).map_err(|e| no_cpu(cpu, e.into()))
}

/// The clock that the generator's program goes by.
pub(in crate::generate) fn monotonic_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

fn no_cpu(cpu: u32, error: io::Error) -> LiveError {
    LiveError::Cpu(cpu, error)
}

/// As many iterations, at least one batch.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the number is brought into range first"
)]
fn iterations(count: f64) -> u32 {
    count.clamp(f64::from(BATCH), f64::from(u32::MAX)) as u32
}

fn captured_value(number: u32, frame: &[u8]) -> Result<Captured, LiveError> {
    let bytes = frame.len();
    if !(FRAME_BYTES_MIN..=CAPTURED_BYTES_MAX).contains(&bytes) {
        return Err(LiveError::CapturedBytes { number, bytes });
    }
    let mut value = Captured {
        bytes: u32::try_from(bytes).unwrap_or(0),
        frame: [0; CAPTURED_BYTES_MAX],
    };
    value.frame[..bytes].copy_from_slice(frame);
    Ok(value)
}
