//! Compaction of the logs that are kept: on a thread of its own, a log after the other; the thread that owns the
//! logs puts what it made in place.

use super::writer::Input;
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    thread::JoinHandle,
};
use tokio::sync::mpsc::WeakSender;
use virga_state::{
    compact::{self, CompactError, Outcome, Rewritten, Rules, Subject},
    io::{folder::Folder, open::OpenLog},
    log::Closed,
};

/// How often it is looked whether a log is due.
const ASK_EVERY_NS: u64 = 1_000_000_000;
/// A log whose removals go is gone through again after so long, whatever is new: they become old.
const AGAIN_NS: u64 = 3_600 * 1_000_000_000;

/// A pass reads all that is old enough, twice: it begins once what is new to it is one part in so many of what is not.
const NEW_PART: u64 = 4;

/// Whether a segment was put in place, or need not be.
pub(super) type Answer = SyncSender<bool>;

/// When a log was last gone through, and its newest segment that was old enough.
#[derive(Clone, Copy, Debug, Default)]
struct Looked {
    at_ns: u64,
    newest: u32,
}

impl Looked {
    /// Whether enough has become old enough since, or removals may have.
    fn is_due(self, old_enough: &[Closed], rules: &Rules, now_unix_ns: u64) -> bool {
        let count = old_enough.partition_point(|closed| closed.number <= self.newest);
        let (known, new) = old_enough.split_at(count);
        let bytes = |part: &[Closed]| part.iter().map(|closed| closed.bytes).sum::<u64>();
        let is_enough = !new.is_empty() && bytes(new).saturating_mul(NEW_PART) >= bytes(known);
        let is_long_ago = now_unix_ns.saturating_sub(self.at_ns) > AGAIN_NS;
        is_enough || is_long_ago && rules.removals_after_ns.is_some()
    }
}

#[derive(Debug)]
struct Job {
    log: usize,
    thread: JoinHandle<Result<Outcome, CompactError>>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Compaction {
    /// Of each log; none where it is not compacted, or not any more.
    rules: Vec<Option<Rules>>,
    looked: Vec<Looked>,
    /// When it was last looked whether a log is due.
    asked_ns: u64,
    job: Option<Job>,
    to: WeakSender<Input>,
    is_stopped: Arc<AtomicBool>,
}

impl Compaction {
    pub(super) fn new(rules: Vec<Option<Rules>>, to: WeakSender<Input>) -> Self {
        Self {
            looked: vec![Looked::default(); rules.len()],
            rules,
            asked_ns: 0,
            job: None,
            to,
            is_stopped: Arc::new(AtomicBool::new(false)),
        }
    }

    /// One more log.
    pub(super) fn add(&mut self, rules: Option<Rules>) {
        self.rules.push(rules);
        self.looked.push(Looked::default());
    }

    /// Whether a log is compacted.
    pub(super) fn has_rules(&self, log: usize) -> bool {
        self.rules.get(log).is_some_and(Option::is_some)
    }

    /// What a pass came to that has ended.
    pub(super) fn ended(&mut self) -> Option<(usize, Result<Outcome, CompactError>)> {
        let job = self.job.take_if(|job| job.thread.is_finished())?;
        let Ok(outcome) = job.thread.join() else {
            // It panicked, and has said so.
            return Some((job.log, Err(CompactError::Stopped)));
        };
        if matches!(outcome, Err(CompactError::Stopped)) {
            // It was refused a segment: it is gone through again.
            self.looked[job.log] = Looked::default();
        }
        Some((job.log, outcome))
    }

    /// Begins a pass over the first log that is due, where none is under way.
    pub(super) fn begin(&mut self, logs: &[OpenLog], now_unix_ns: u64) -> io::Result<()> {
        if self.job.is_some() || now_unix_ns.abs_diff(self.asked_ns) < ASK_EVERY_NS {
            return Ok(());
        }
        self.asked_ns = now_unix_ns;
        for (at, (open, rules)) in logs.iter().zip(&self.rules).enumerate() {
            let Some(rules) = rules else {
                continue;
            };
            let (closed, looked) = (open.log.closed(), self.looked[at]);
            let due = rules.due(&closed, now_unix_ns);
            let Some(newest) = due.checked_sub(1).and_then(|last| closed.get(last)) else {
                continue;
            };
            if !looked.is_due(&closed[..due], rules, now_unix_ns) {
                continue;
            }
            self.looked[at] = Looked {
                at_ns: now_unix_ns,
                newest: newest.number,
            };
            let disk = open.files.disk().share()?;
            let subject = Subject {
                id: *open.log.id(),
                closed,
            };
            let work = Work {
                log: at,
                rules: rules.clone(),
                now_unix_ns,
                to: self.to.clone(),
                is_stopped: Arc::clone(&self.is_stopped),
            };
            let thread = std::thread::Builder::new().name("virga-compact".into());
            let thread = thread.spawn(move || work.run(&disk, &subject))?;
            self.job = Some(Job { log: at, thread });
            return Ok(());
        }
        Ok(())
    }

    /// Goes through a log no more.
    pub(super) fn give_up(&mut self, log: usize) {
        self.rules[log] = None;
    }

    /// Ends the pass that is under way. What it says to the owner of the logs has to be refused by then.
    pub(super) fn stop(&mut self) {
        self.is_stopped.store(true, Ordering::Release);
        if let Some(job) = self.job.take() {
            let _outcome = job.thread.join();
        }
    }
}

struct Work {
    log: usize,
    rules: Rules,
    now_unix_ns: u64,
    to: WeakSender<Input>,
    is_stopped: Arc<AtomicBool>,
}

impl Work {
    fn run(&self, disk: &Folder, subject: &Subject) -> Result<Outcome, CompactError> {
        let goes_on = || !self.is_stopped.load(Ordering::Acquire);
        // An owner that is gone has put nothing in its place.
        let mut put = |rewritten| Ok(self.ask(rewritten).unwrap_or(false));
        let rules = (&self.rules, self.now_unix_ns);
        compact::pass(disk, subject, rules, &goes_on, &mut put)
    }

    /// Has a segment put in its place; none where the logs are being closed.
    fn ask(&self, rewritten: Rewritten) -> Option<bool> {
        let (answer, answered) = sync_channel(1);
        let input = Input::Compacted {
            log: self.log,
            rewritten,
            answer,
        };
        self.to.upgrade()?.blocking_send(input).ok()?;
        answered.recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_gone_through_once_a_quarter_of_it_is_new() {
        let closed = |number| Closed {
            number,
            first_offset: u64::from(number),
            end: u64::from(number) + 1,
            newest_time: 1,
            bytes: 100,
        };
        let closed: Vec<Closed> = (1..=10).map(closed).collect();
        let mut rules = Rules {
            key: "id".into(),
            after_ns: 0,
            removals_after_ns: None,
        };
        let never = Looked::default();
        assert!(never.is_due(&closed[..1], &rules, 5));
        assert!(!never.is_due(&[], &rules, 5));
        let looked = Looked {
            at_ns: 5,
            newest: 8,
        };
        assert!(!looked.is_due(&closed[..8], &rules, 6));
        assert!(!looked.is_due(&closed[..9], &rules, 6));
        assert!(looked.is_due(&closed, &rules, 6));
        // Retention took most of what was there.
        assert!(looked.is_due(&closed[6..9], &rules, 6));
        let later = 6 + AGAIN_NS;
        assert!(!looked.is_due(&closed[..9], &rules, later));
        rules.removals_after_ns = Some(1);
        assert!(looked.is_due(&closed[..8], &rules, later));
    }
}
