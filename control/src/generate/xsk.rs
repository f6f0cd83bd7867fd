//! Frames through AF_XDP sockets: out of this process's memory into the interface's send queues, past the kernel's stack. Any
//! interface sends them, also where it takes no redirected frames, and kernels without live test runs.
//!
//! One socket on one queue, and one thread on one CPU, for each lane. What is sent, and in which order, is as
//! inside the kernel ([`super::live`]). Everything here acts in the network namespace of the calling thread.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use virga_ebpf::workload::{BURST_NS, INTERVAL_SHIFT, Lane, Workload, write};
use virga_transport::io::xsk::{
    queue::{Copying, Queue, QueueConfig, Unsent},
    sender::Sender,
};

use super::{
    live::{
        Attached, LiveError, Mode, Plan, Sent, Until,
        egress::{check_sending, transmitted},
        generator::{monotonic_ns, run_on},
    },
    plan::interval,
};
use crate::{
    doctor::interface::InterfaceFacts,
    hw::{self, Kernel},
    nic::xsk::describe,
};

/// Frames queued before the kernel is told of them.
const BATCH: u32 = 64;
/// How long nothing may leave before it is an error.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a thread sleeps at once, so that it ends about in time.
const PAUSE_NS_MAX: u64 = 10_000_000;
/// A packet due sooner than that is waited for without sleeping.
const SPIN_NS: u64 = 50_000;

/// Why frames could not be sent.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum XskError {
    #[error(transparent)]
    Live(#[from] LiveError),
    #[error("interface {0}: {1}")]
    Open(String, String),
    #[error(
        "{interface} has {queues} of the {cpus} queues that so many CPUs send through, each through its own: \
         say a smaller --cores, or give it more (ethtool -L {interface})"
    )]
    Queues {
        interface: String,
        queues: u32,
        cpus: usize,
    },
    #[error("{0} does not send without a copy: {1}; leave out --zero-copy")]
    ZeroCopy(String, String),
    #[error("{0} went down, or away, while it sent")]
    Gone(String),
    #[error("{interface} has sent nothing more for {} s: {left} frames are still with it", PATIENCE.as_secs())]
    Stuck { interface: String, left: usize },
}

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub enum What<'a> {
    /// A plan's packets.
    Plan(&'a Plan),
    /// Captured frames as they are, in turn, by one CPU; at a rate where one is said.
    Captured(&'a [Vec<u8>], Option<u64>),
}

/// Sends from these CPUs at once, a queue each, from queue 0 on.
///
/// # Errors
/// When that cannot be sent, or the kernel refuses.
pub fn send(
    interface: &str,
    what: What<'_>,
    cpus: &[u32],
    copying: Copying,
    until: Until,
) -> Result<Sent, XskError> {
    let (workload, lanes) = prepare(what, cpus)?;
    let facts = check_sending(interface, workload.frame_bytes)?;
    let (_program, senders) = open(&facts, &workload, cpus, copying)?;
    let start = Instant::now();
    let before = transmitted(interface)?;
    let shares = cpus.len() as u64;
    let ended = thread::scope(|scope| {
        let mut threads = Vec::new();
        for (((share, cpu), lane), sender) in (0..).zip(cpus).zip(lanes).zip(senders) {
            let run = Run {
                interface,
                what,
                workload: &workload,
                lane: Lane {
                    limit: until.share(share, shares),
                    due: monotonic_ns() << INTERVAL_SHIFT,
                    ..lane
                },
                sender,
                progress: start,
            };
            threads.push(scope.spawn(move || {
                run_on(*cpu)?;
                run.run(until, start)
            }));
        }
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect::<Result<Vec<_>, _>>()
    })?;
    let elapsed = start.elapsed();
    let after = transmitted(interface)?;
    let mut sent = Sent {
        refused: after.dropped.wrapping_sub(before.dropped),
        counted: after.packets.wrapping_sub(before.packets),
        elapsed_ns: u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX),
        ..Sent::default()
    };
    for (cpu, (lane, calls)) in cpus.iter().zip(ended) {
        sent.add(*cpu, &Lane::default(), &lane);
        sent.calls += calls;
    }
    Ok(sent)
}

/// The workload, and a lane for each CPU.
fn prepare(what: What<'_>, cpus: &[u32]) -> Result<(Workload, Vec<Lane>), LiveError> {
    let count = u32::try_from(cpus.len()).unwrap_or(u32::MAX);
    match what {
        What::Plan(plan) => {
            let run = getrandom::u32().map_err(LiveError::Random)?.max(1);
            Ok((plan.workload(run, count)?, plan.lanes(count)?))
        }
        What::Captured(frames, rate) => {
            let largest = frames.iter().map(Vec::len).max();
            let largest = largest.ok_or(LiveError::NoFrames)?;
            let workload = Workload {
                interval: interval(rate, 1)?,
                frame_bytes: u32::try_from(largest).unwrap_or(u32::MAX),
                burst_ns: BURST_NS,
                ..Workload::default()
            };
            let lane = Lane {
                flows: u32::try_from(frames.len()).unwrap_or(u32::MAX),
                ..Lane::default()
            };
            Ok((workload, vec![lane]))
        }
    }
}

/// A socket for each CPU; and the program that a driver runs queues without a copy for, where it has none.
fn open(
    facts: &InterfaceFacts,
    workload: &Workload,
    cpus: &[u32],
    copying: Copying,
) -> Result<(Option<Attached>, Vec<Sender>), XskError> {
    let interface = &facts.name;
    let mut program = None;
    if copying == Copying::Never {
        let driver = facts
            .driver
            .as_deref()
            .unwrap_or("no driver that says its name");
        hw::may_not_copy(driver, Kernel::running())
            .map_err(|why| XskError::ZeroCopy(interface.clone(), why))?;
        if facts.programs.is_empty() {
            program = Some(Attached::null(interface, Mode::Native)?);
        }
    }
    let mut senders = Vec::new();
    for (queue, _) in (0..).zip(cpus) {
        let config = QueueConfig {
            ifindex: facts.ifindex,
            queue,
            // Frames have room for the largest, link header and all.
            mtu: workload.frame_bytes,
            copying,
        };
        let opened = open_released(&config).map_err(|e| match e.raw_os_error() {
            Some(libc::EINVAL) if queue > 0 => XskError::Queues {
                interface: interface.clone(),
                queues: queue,
                cpus: cpus.len(),
            },
            _ => XskError::Open(interface.clone(), describe(queue, &e)),
        })?;
        senders.push(Sender::from(opened));
    }
    Ok((program, senders))
}

/// A socket. The kernel takes a moment to release the queue of one that has closed.
fn open_released(config: &QueueConfig) -> io::Result<Queue> {
    let start = Instant::now();
    loop {
        match Queue::open(config) {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && start.elapsed() < PATIENCE => {
                thread::sleep(Duration::from_millis(10));
            }
            opened => return opened,
        }
    }
}

/// One thread's run.
struct Run<'a> {
    interface: &'a str,
    what: What<'a>,
    workload: &'a Workload,
    lane: Lane,
    sender: Sender,
    /// When something last left.
    progress: Instant,
}

impl Run<'_> {
    /// Sends until the lane's share is sent or the time is over; how far it came, and its system calls.
    fn run(mut self, until: Until, start: Instant) -> Result<(Lane, u64), XskError> {
        let is_over = || matches!(until, Until::Elapsed(time) if start.elapsed() >= time);
        while self.lane.sent() < self.lane.limit && !is_over() {
            let queued = self.queue();
            self.sender.kick();
            if queued > 0 {
                self.progress = Instant::now();
            } else if !self.sender.has_room() {
                self.await_room()?;
            } else {
                self.pause();
            }
        }
        self.progress = Instant::now();
        while self.sender.on_the_way() > 0 {
            self.sender.kick();
            if self.sender.on_the_way() > 0 {
                self.await_room()?;
            }
        }
        Ok((self.lane, self.sender.calls()))
    }

    /// Queues a batch, or what is due of it or has room; how many.
    fn queue(&mut self) -> u32 {
        let is_timed = self.workload.interval != 0 || self.workload.stamped == 1;
        for queued in 0..BATCH {
            let now_ns = if is_timed { monotonic_ns() } else { 0 };
            let is_next = self.lane.sent() < self.lane.limit
                && self.sender.has_room()
                && self.lane.is_due(self.workload, now_ns);
            if !is_next || self.put(now_ns).is_err() {
                return queued;
            }
        }
        BATCH
    }

    /// Queues the next packet, for which there is room.
    fn put(&mut self, now_ns: u64) -> Result<(), Unsent> {
        let (lane, workload) = (&mut self.lane, self.workload);
        match self.what {
            What::Plan(_) => {
                let step = lane.step(workload);
                let bytes = usize::from(step.frame_bytes);
                self.sender.put(|frame| {
                    write(frame.get_mut(..bytes)?, workload, &step, now_ns)?;
                    Some(u32::from(step.frame_bytes))
                })
            }
            What::Captured(frames, _) => {
                let bytes_of = |number| {
                    let frame = frames.get(usize::try_from(number).ok()?)?;
                    u32::try_from(frame.len()).ok()
                };
                let number = lane.step_captured(bytes_of).ok_or(Unsent::TooBig)?;
                let captured = frames.get(number as usize).ok_or(Unsent::TooBig)?;
                self.sender.put(|frame| {
                    frame.get_mut(..captured.len())?.copy_from_slice(captured);
                    u32::try_from(captured.len()).ok()
                })
            }
        }
    }

    /// Waits for frames to come back; not for ever.
    fn await_room(&self) -> Result<(), XskError> {
        if self.sender.is_dead() {
            return Err(XskError::Gone(self.interface.to_owned()));
        }
        if self.progress.elapsed() > PATIENCE {
            return Err(XskError::Stuck {
                interface: self.interface.to_owned(),
                left: self.sender.on_the_way(),
            });
        }
        self.sender
            .wait(PAUSE_NS_MAX)
            .map_err(|e| XskError::Open(self.interface.to_owned(), e.to_string()))
    }

    /// Until the next packet is due.
    fn pause(&self) {
        let left_ns = (self.lane.due >> INTERVAL_SHIFT).saturating_sub(monotonic_ns());
        if left_ns > SPIN_NS {
            thread::sleep(Duration::from_nanos(left_ns.min(PAUSE_NS_MAX)));
        } else {
            std::hint::spin_loop();
        }
    }
}
