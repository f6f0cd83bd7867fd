//! The traffic: what is published where, and what its receivers hold it to. Every event says its number and when it was
//! due, so that a publisher that is held up makes its events late and hides nothing.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use virga::mesh::{
    Cursor, Replayed,
    blocking::{Mesh, Subscription},
};

/// How long anything may take that takes no time when nothing is wrong.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// The number of the event that ends a flow.
const MARK: u64 = u64::MAX;
/// How often the mark is sent until it has come.
const MARK_EVERY: Duration = Duration::from_millis(200);
/// Bytes of number and time in front of an event.
const FRONT: usize = 16;
/// Failures that are kept; the rest is counted.
const FAILURES_MAX: usize = 40;
/// Events that a visitor takes before it leaves.
const VISIT_EVENTS: u32 = 10;

/// What is published, and by whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) name: &'static str,
    from: &'static str,
    per_second: u32,
    bytes: usize,
}

/// Everything that is published on its own; answers follow questions.
pub(crate) const PLANS: [Plan; 7] = [
    plan("reliable", "a", 60, 200),
    plan("unreliable", "a", 60, 200),
    plan("large", "b", 1, 256 << 10),
    plan("questions", "b", 10, 64),
    plan("kept", "a", 50, 4 << 10),
    plan("visited", "a", 10, 100),
    plan("guarded", "a", 5, 100),
];

const fn plan(name: &'static str, from: &'static str, per_second: u32, bytes: usize) -> Plan {
    Plan {
        name,
        from,
        per_second,
        bytes,
    }
}

/// Every flow, as it is counted.
pub(crate) const FLOWS: [&str; 7] = [
    "reliable",
    "unreliable",
    "large",
    "questions",
    "answers",
    "kept",
    "visited",
];

/// What became of one flow's events.
#[derive(Debug)]
pub(crate) struct Flow {
    sent: AtomicU64,
    received: AtomicU64,
    is_done: AtomicBool,
    /// Nanoseconds from when an event was due until it was there, since this was last taken.
    late_ns: Mutex<Histogram<u64>>,
}

impl Flow {
    fn new() -> Self {
        Self {
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            is_done: AtomicBool::new(false),
            late_ns: Mutex::new(Histogram::new(3).expect("three digits are few enough")),
        }
    }

    fn is_done(&self) -> bool {
        self.is_done.load(Ordering::Relaxed)
    }

    /// Events that were published, and that came.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (of(&self.sent), of(&self.received))
    }

    /// What was measured since the last call.
    pub(crate) fn take(&self) -> Histogram<u64> {
        let mut late = self.late_ns.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = late.clone();
        late.reset();
        taken
    }
}

/// What all threads share.
#[derive(Debug)]
pub(crate) struct Shared {
    began: Instant,
    /// Set when nothing more is broken.
    is_calm: AtomicBool,
    /// Set when nothing more is published.
    is_over: AtomicBool,
    /// Set when the nodes are ended.
    is_gone: AtomicBool,
    pub(crate) flows: BTreeMap<&'static str, Flow>,
    /// Each running node's process.
    pub(crate) lives: Mutex<BTreeMap<&'static str, u32>>,
    /// How often the node that keeps the log was killed.
    pub(crate) keeper_kills: AtomicU64,
    /// Times that events of the kept flow are missing.
    kept_gaps: AtomicU64,
    failures: Mutex<(Vec<String>, usize)>,
}

impl Shared {
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            is_calm: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            is_gone: AtomicBool::new(false),
            flows: FLOWS.map(|name| (name, Flow::new())).into(),
            lives: Mutex::default(),
            keeper_kills: AtomicU64::new(0),
            kept_gaps: AtomicU64::new(0),
            failures: Mutex::default(),
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    pub(crate) fn calm(&self) {
        self.is_calm.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.is_calm.load(Ordering::Relaxed)
    }

    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    pub(crate) fn go(&self) {
        self.is_gone.store(true, Ordering::Relaxed);
    }

    fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Relaxed)
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// Notes what should not have been.
    pub(crate) fn fail(&self, what: impl std::fmt::Display) {
        let text = format!("at {:.0} s: {what}", self.elapsed().as_secs_f64());
        eprintln!("soak: {text}");
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.1 += 1;
        if failures.0.len() < FAILURES_MAX {
            failures.0.push(text);
        }
    }

    /// What should not have been, and how often it was.
    pub(crate) fn failures(&self) -> (Vec<String>, usize) {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.clone()
    }

    /// Sleeps, and no longer than until it is to be calm.
    pub(crate) fn sleep(&self, time: Duration) {
        let until = Instant::now() + time;
        while !self.is_calm() && Instant::now() < until {
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    pub(crate) fn flow(&self, name: &str) -> &Flow {
        self.flows.get(name).expect("every flow is counted")
    }

    /// Waits until all receivers have had their last event.
    pub(crate) fn await_ends(&self) {
        let until = Instant::now() + PATIENCE;
        let open = || {
            let flows = self.flows.iter();
            let open = flows.filter(|(_, flow)| !flow.is_done());
            open.map(|(name, _)| *name).collect::<Vec<_>>()
        };
        while !open().is_empty() && Instant::now() < until {
            thread::sleep(Duration::from_millis(50));
        }
        for name in open() {
            self.fail(format!(
                "{name}: the last event did not come within {PATIENCE:?}"
            ));
        }
    }

    /// What only the end can tell.
    pub(crate) fn judge_flows(&self) {
        for name in ["reliable", "large", "questions", "answers"] {
            let (sent, received) = self.flow(name).counts();
            if sent != received {
                self.fail(format!("{name}: {received} of {sent} reliable events came"));
            }
        }
        for (name, flow) in &self.flows {
            if flow.counts().1 == 0 {
                self.fail(format!("{name}: nothing came at all"));
            }
        }
        let (gaps, kills) = (
            self.kept_gaps.load(Ordering::Relaxed),
            self.keeper_kills.load(Ordering::Relaxed),
        );
        if gaps > kills {
            self.fail(format!(
                "kept: events are missing {gaps} times, and the node that keeps them was killed {kills} times"
            ));
        }
    }
}

/// An event: its number, when it was due, and bytes that follow from the number.
fn event(number: u64, due_ns: u64, bytes: usize) -> Vec<u8> {
    let mut event = Vec::with_capacity(bytes);
    event.extend(number.to_be_bytes());
    event.extend(due_ns.to_be_bytes());
    event.resize(bytes, fill(number));
    event
}

const fn fill(number: u64) -> u8 {
    number.to_le_bytes()[0]
}

/// Number and time of an event; none where it is not as it was published.
fn read(event: &[u8]) -> Option<(u64, u64)> {
    let (number, rest) = event.split_first_chunk()?;
    let (due_ns, rest) = rest.split_first_chunk()?;
    let number = u64::from_be_bytes(*number);
    rest.iter()
        .all(|byte| *byte == fill(number))
        .then(|| (number, u64::from_be_bytes(*due_ns)))
}

/// What a receiver expects next.
enum Expect {
    /// Every event, each once, in order.
    All(u64),
    /// Any.
    Any,
}

/// Takes one event; true when it was the last.
fn take(shared: &Shared, name: &str, expect: &mut Expect, payload: &[u8]) -> bool {
    let flow = shared.flow(name);
    let Some((number, due_ns)) = read(payload) else {
        shared.fail(format!(
            "{name}: an event of {} bytes is not as it was published",
            payload.len()
        ));
        return false;
    };
    if number == MARK {
        flow.is_done.store(true, Ordering::Relaxed);
        return true;
    }
    if let Expect::All(next) = expect {
        if number != *next {
            shared.fail(format!(
                "{name}: event {number} came where {next} was to come"
            ));
        }
        *next = number + 1;
    }
    flow.received.fetch_add(1, Ordering::Relaxed);
    let late_ns = shared.now_ns().saturating_sub(due_ns);
    let mut late = flow.late_ns.lock().unwrap_or_else(PoisonError::into_inner);
    // It grows with what it is given; what it cannot hold is later than any run.
    let _recorded = late.record(late_ns);
    false
}

/// Starts every publisher and receiver; nodes are running.
pub(crate) fn start<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    shared: &'scope Shared,
    sockets: &'scope BTreeMap<&'static str, PathBuf>,
) -> Result<(), virga::mesh::MeshError> {
    let a = Mesh::open(&sockets["a"])?;
    let b = Mesh::open(&sockets["b"])?;
    for (name, mesh, all) in [
        ("reliable", &b, true),
        ("unreliable", &b, false),
        ("large", &a, true),
        ("answers", &b, true),
    ] {
        let events = mesh.subscribe(&channel(name))?;
        scope.spawn(move || receive(shared, name, events, all));
    }
    let (answering, asked) = (a.clone(), a.subscribe(&channel("questions"))?);
    scope.spawn(move || answer(shared, &answering, asked));
    scope.spawn(move || replay(shared, &sockets["keeper"]));
    let visiting = b.clone();
    scope.spawn(move || visit(shared, &visiting));
    for plan in PLANS {
        let mesh = if plan.from == "a" {
            a.clone()
        } else {
            b.clone()
        };
        scope.spawn(move || {
            // Once all has arrived the nodes end, and whoever still says so is told that.
            if let Err(error) = publish(shared, &mesh, plan)
                && !shared.is_gone()
            {
                shared.fail(format!("{}: publishing: {error}", plan.name));
            }
        });
    }
    Ok(())
}

pub(crate) fn channel(name: &str) -> String {
    format!("soak/{name}")
}

fn publish(shared: &Shared, mesh: &Mesh, plan: Plan) -> Result<(), virga::mesh::MeshError> {
    let name = channel(plan.name);
    if plan.name != "guarded" && mesh.wait_for_subscribers(&name, 1, PATIENCE)?.is_none() {
        shared.fail(format!("{}: no subscriber within {PATIENCE:?}", plan.name));
    }
    let publisher = mesh.publisher(&name)?;
    let (start, mut number) = (Instant::now(), 0_u32);
    while !shared.is_over() {
        let due = Duration::from_secs(1) * number / plan.per_second;
        thread::sleep((start + due).saturating_duration_since(Instant::now()));
        let due = start.duration_since(shared.began) + due;
        let due_ns = u64::try_from(due.as_nanos()).unwrap_or(u64::MAX);
        publisher.publish(&event(u64::from(number), due_ns, plan.bytes))?;
        number += 1;
        if let Some(flow) = shared.flows.get(plan.name) {
            flow.sent.store(u64::from(number), Ordering::Relaxed);
        }
    }
    // Where events may get lost, so may the mark; and a subscriber may only just be coming back.
    let is_done = || shared.flows.get(plan.name).is_none_or(Flow::is_done);
    let until = Instant::now() + PATIENCE;
    while !is_done() && Instant::now() < until {
        publisher.publish(&event(MARK, 0, FRONT))?;
        thread::sleep(MARK_EVERY);
    }
    publisher.finish().map(drop)
}

fn receive(shared: &Shared, name: &'static str, mut events: Subscription, all: bool) {
    let mut expect = if all { Expect::All(0) } else { Expect::Any };
    for delivery in &mut events {
        match delivery {
            Ok(delivery) if take(shared, name, &mut expect, &delivery.payload) => return,
            Ok(_) => {}
            Err(error) => return shared.fail(format!("{name}: the subscription ended: {error}")),
        }
    }
    shared.fail(format!("{name}: the node ended the subscription"));
}

/// Answers every question with itself.
fn answer(shared: &Shared, mesh: &Mesh, mut questions: Subscription) {
    let answers = match mesh.publisher(&channel("answers")) {
        Ok(answers) => answers,
        Err(error) => return shared.fail(format!("answers: {error}")),
    };
    let mut expect = Expect::All(0);
    for question in &mut questions {
        let question = match question {
            Ok(question) => question,
            Err(error) => {
                return shared.fail(format!("questions: the subscription ended: {error}"));
            }
        };
        let is_last = take(shared, "questions", &mut expect, &question.payload);
        if let Err(error) = answers.publish(&question.payload) {
            return shared.fail(format!("answers: {error}"));
        }
        if is_last {
            break;
        }
        shared.flow("answers").sent.fetch_add(1, Ordering::Relaxed);
    }
    if let Err(error) = answers.finish() {
        shared.fail(format!("answers: {error}"));
    }
}

/// Reads the log from where it was, over the restarts of the node that keeps it.
fn replay(shared: &Shared, socket: &std::path::Path) {
    let (mut place, mut next) = (Cursor::Start, 0);
    while !shared.flow("kept").is_done() {
        let events = Mesh::open(socket).and_then(|mesh| mesh.replay(&channel("kept"), place));
        let Ok(events) = events else {
            // It is being started again, or all is over; one that does not come up is said by who starts it.
            thread::sleep(Duration::from_millis(200));
            if shared.is_gone() {
                return;
            }
            continue;
        };
        for event in events {
            match event {
                Ok(Replayed::Event(event)) => {
                    place = Cursor::After(event.offset);
                    if let Some((number, _)) = read(&event.payload).filter(|(n, _)| *n != MARK) {
                        if number < next {
                            shared.fail(format!("kept: event {number} came again, after {next}"));
                        }
                        if number > next {
                            shared.kept_gaps.fetch_add(1, Ordering::Relaxed);
                        }
                        next = number + 1;
                    }
                    if take(shared, "kept", &mut Expect::Any, &event.payload) {
                        return;
                    }
                }
                Ok(Replayed::Gap(why)) => shared.fail(format!("kept: {why}")),
                // The node was killed.
                Err(_) => break,
            }
        }
    }
}

/// Subscribes, takes a few events, and leaves, again and again: to the channel and to what is below a prefix.
fn visit(shared: &Shared, mesh: &Mesh) {
    let name = channel("visited");
    let mut visits = 0_u32;
    while !shared.is_over() {
        let events = if visits.is_multiple_of(2) {
            mesh.subscribe(&name)
        } else {
            mesh.subscribe_prefix(&name)
        };
        let mut events = match events {
            Ok(events) => events,
            Err(error) => return shared.fail(format!("visited: {error}")),
        };
        for _ in 0..VISIT_EVENTS {
            match events.next_within(PATIENCE) {
                Some(Some(Ok(delivery))) => {
                    // The last event: nothing follows it.
                    if take(shared, "visited", &mut Expect::Any, &delivery.payload) {
                        return;
                    }
                }
                Some(Some(Err(error))) => return shared.fail(format!("visited: {error}")),
                Some(None) => return shared.fail("visited: the node ended the subscription"),
                None if shared.is_over() => break,
                None => return shared.fail(format!("visited: nothing came within {PATIENCE:?}")),
            }
        }
        visits += 1;
        thread::sleep(Duration::from_millis(50));
    }
    shared
        .flow("visited")
        .is_done
        .store(true, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_read_as_it_was_written_and_a_changed_byte_is_seen() {
        let mut written = event(0x1234, 77, 40);
        assert_eq!((written.len(), read(&written)), (40, Some((0x1234, 77))));
        written[39] ^= 1;
        assert_eq!(read(&written), None);
        assert_eq!(read(&written[..15]), None);
    }

    #[test]
    fn a_missing_event_and_one_that_comes_again_are_failures() {
        let shared = Shared::new();
        let mut expect = Expect::All(0);
        for number in [0, 1, 3] {
            take(&shared, "reliable", &mut expect, &event(number, 0, 20));
        }
        assert_eq!(shared.failures().1, 1);
        take(&shared, "reliable", &mut expect, &event(3, 0, 20));
        assert_eq!(shared.failures().1, 2);
        assert!(take(
            &shared,
            "reliable",
            &mut expect,
            &event(MARK, 0, FRONT)
        ));
    }
}
