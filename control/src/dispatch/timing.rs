//! What is timed outside the workers while somebody asks: batches before they have them, and events that programs
//! take.

use crate::channel::{BatchTimes, Delivery};
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};
use virga_transport::{
    ChannelName,
    flow::{Notes, Stage, Wanted},
};

/// Whose batches are timed.
#[derive(Debug)]
pub struct Timed {
    channel: ChannelName,
    is_own: bool,
    interval_ns: u64,
    /// Before this, batches are passed over.
    next_ns: u64,
    /// What was queued before is an earlier flow's.
    since_ns: u64,
    notes: Notes,
}

impl Timed {
    /// What is wanted, and where it is told.
    #[must_use]
    pub fn new(wanted: &Wanted, notes: Notes) -> Self {
        Self {
            channel: wanted.channel.clone(),
            is_own: wanted.is_own,
            interval_ns: wanted.interval_ns,
            next_ns: 0,
            since_ns: notes.now_ns(),
            notes,
        }
    }
}

/// The place for it. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Timing(Arc<Place>);

#[derive(Debug, Default)]
struct Place {
    /// Whether there is anything behind the lock.
    is_on: AtomicBool,
    timed: Mutex<Option<Timed>>,
}

impl Timing {
    pub(super) fn set(&self, timed: Option<Timed>) {
        let mut place = self.0.timed.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.is_on.store(timed.is_some(), Ordering::Relaxed);
        *place = timed;
    }

    fn with<T>(&self, call: impl FnOnce(&mut Timed) -> Option<T>) -> Option<T> {
        if !self.0.is_on.load(Ordering::Relaxed) {
            return None;
        }
        let mut place = self.0.timed.lock().unwrap_or_else(PoisonError::into_inner);
        place.as_mut().and_then(call)
    }

    /// A batch comes from a program: its times, where it is to be timed.
    pub(super) fn batch(&self, channel: &ChannelName) -> Option<BatchTimes> {
        self.with(|timed| {
            if !timed.is_own || timed.channel != *channel {
                return None;
            }
            let now_ns = timed.notes.now_ns();
            if now_ns < timed.next_ns {
                return None;
            }
            timed.next_ns = now_ns.saturating_add(timed.interval_ns);
            Some(BatchTimes::begin(timed.notes.clone()))
        })
    }

    /// A program has taken events.
    pub(super) fn taken(&self, now_ns: u64, deliveries: &[Delivery]) {
        for delivery in deliveries.iter().filter(|d| d.queued_ns > 0) {
            self.with(|timed| {
                if delivery.queued_ns < timed.since_ns {
                    return None;
                }
                let waited_ns = now_ns.saturating_sub(delivery.queued_ns);
                timed.notes.note(Stage::Deliver, waited_ns);
                Some(())
            });
        }
    }
}
