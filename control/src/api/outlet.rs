//! The queue between the workers and a subscriber, bounded in bytes.
//!
//! Above the high mark the services are told, and have publishers of reliable channels pause; what
//! they have under way still fits below the hard limit. Below the low mark they are told again.

use crate::channel::{self, Delivery, Offer, Outlet};
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};
use tokio::sync::{mpsc, watch};
use virga_transport::limits::{STREAM_QUEUE_BYTES, STREAM_WINDOW_BYTES};

/// A subscriber counts as slow from here on.
const HIGH_BYTES: usize = 2 * 1024 * 1024;
/// A slow subscriber has room again from here on.
const LOW_BYTES: usize = HIGH_BYTES / 2;
/// No more than this is ever queued.
const HARD_BYTES: usize = 32 * 1024 * 1024;
/// What an event costs beside its payload.
const EVENT_BYTES: usize = 128;

const _: () = assert!(LOW_BYTES < HIGH_BYTES);
const _: () = assert!(
    (HARD_BYTES - HIGH_BYTES) as u64 > 4 * (STREAM_QUEUE_BYTES as u64 + STREAM_WINDOW_BYTES),
    "what a few streams have under way fits above the high mark"
);

#[derive(Debug)]
struct Fill {
    bytes: AtomicUsize,
    taken_events: AtomicU64,
    is_slow: AtomicBool,
    is_ended: AtomicBool,
    /// Why a service ended it.
    end: watch::Sender<Option<String>>,
}

/// A worker's end.
#[derive(Clone, Debug)]
pub struct Queue {
    sender: mpsc::UnboundedSender<Delivery>,
    fill: Arc<Fill>,
}

/// The subscriber's end.
#[derive(Debug)]
pub struct Drain {
    receiver: mpsc::UnboundedReceiver<Delivery>,
    end: watch::Receiver<Option<String>>,
    fill: Arc<Fill>,
}

/// An empty queue.
#[must_use]
pub fn queue() -> (Queue, Drain) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let (end, at_end) = watch::channel(None);
    let fill = Arc::new(Fill {
        bytes: AtomicUsize::new(0),
        taken_events: AtomicU64::new(0),
        is_slow: AtomicBool::new(false),
        is_ended: AtomicBool::new(false),
        end,
    });
    let queue = Queue {
        sender,
        fill: Arc::clone(&fill),
    };
    let drain = Drain {
        receiver,
        end: at_end,
        fill,
    };
    (queue, drain)
}

impl Outlet for Queue {
    fn offer(&mut self, delivery: &Delivery) -> Offer {
        let cost = EVENT_BYTES + delivery.payload.len();
        if self.fill.is_ended.load(Ordering::Acquire) {
            return Offer::Gone;
        }
        // Added first and taken back, so that the bound holds whoever else adds.
        let bytes = self.fill.bytes.fetch_add(cost, Ordering::AcqRel) + cost;
        if bytes > HARD_BYTES {
            self.fill.bytes.fetch_sub(cost, Ordering::AcqRel);
            return Offer::Full;
        }
        // The mark is set before the event is there: whoever takes the event sees it.
        if bytes > HIGH_BYTES {
            self.fill.is_slow.store(true, Ordering::Release);
        }
        let is_slow = self.fill.is_slow.load(Ordering::Acquire);
        match self.sender.send(delivery.clone()) {
            Err(_) => Offer::Gone,
            Ok(()) if is_slow => Offer::TakenSlow,
            Ok(()) => Offer::Taken,
        }
    }

    fn fill(&self) -> channel::Fill {
        channel::Fill {
            queued_bytes: self.fill.bytes.load(Ordering::Acquire),
            taken_events: self.fill.taken_events.load(Ordering::Acquire),
            is_ended: self.fill.is_ended.load(Ordering::Acquire),
            is_slow: self.fill.is_slow.load(Ordering::Acquire),
        }
    }

    fn end(self, why: String) {
        self.fill.is_ended.store(true, Ordering::Release);
        self.fill.end.send_if_modified(|end| {
            let is_first = end.is_none();
            end.get_or_insert(why);
            is_first
        });
    }
}

impl Drain {
    /// Waits for events and takes all there are, at most `max`. None: the services let go.
    pub async fn take(&mut self, max: usize) -> Vec<Delivery> {
        let mut taken = Vec::new();
        tokio::select! {
            biased;
            _all_that_are = self.receiver.recv_many(&mut taken, max) => {}
            // What is queued was taken first.
            _ended = self.end.wait_for(Option::is_some) => {}
        }
        let cost: usize = taken.iter().map(|d| EVENT_BYTES + d.payload.len()).sum();
        self.fill.bytes.fetch_sub(cost, Ordering::AcqRel);
        let events = u64::try_from(taken.len()).unwrap_or(u64::MAX);
        self.fill.taken_events.fetch_add(events, Ordering::AcqRel);
        taken
    }

    /// Why a service ended the subscription, once one did and all events are taken.
    #[must_use]
    pub fn end(&self) -> Option<String> {
        self.end.borrow().clone()
    }

    /// Waits until a service ends the subscription, whatever of it is still to be taken. None: it ended
    /// otherwise.
    pub fn ended(&self) -> impl Future<Output = Option<String>> + Send + 'static {
        let mut end = self.end.clone();
        async move { end.wait_for(Option::is_some).await.ok()?.clone() }
    }

    /// Whether the queue was slow and has room again: then all services must be told.
    #[must_use]
    pub fn has_drained(&self) -> bool {
        self.fill.bytes.load(Ordering::Acquire) < LOW_BYTES
            && self.fill.is_slow.swap(false, Ordering::AcqRel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use virga_transport::ChannelName;

    fn delivery(bytes: usize) -> Delivery {
        Delivery {
            signature: channel::Signature::None,
            channel: ChannelName::parse("a").unwrap(),
            entity: [0; 32],
            sequence: 0,
            received_ns: 0,
            queued_ns: 0,
            payload: Bytes::from(vec![0; bytes]),
        }
    }

    #[tokio::test]
    async fn slow_once_full_at_the_limit_and_drained_once() {
        let (mut queue, mut drain) = queue();
        let event = delivery(128 * 1024 - EVENT_BYTES);
        let offers: Vec<Offer> = (0..300).map(|_| queue.offer(&event)).collect();
        let count = |what| offers.iter().filter(|&&o| o == what).count();
        assert_eq!(count(Offer::Taken), 16);
        assert_eq!(count(Offer::TakenSlow), 256 - 16);
        assert_eq!(count(Offer::Full), 300 - 256);
        assert_eq!(queue.clone().offer(&delivery(HARD_BYTES)), Offer::Full);
        assert!(!drain.has_drained());
        assert_eq!(drain.take(248).await.len(), 248);
        assert!(!drain.has_drained());
        assert_eq!(drain.take(1).await.len(), 1);
        assert!(drain.has_drained());
        assert!(!drain.has_drained());
        assert_eq!(queue.offer(&event), Offer::Taken);
        let fill = queue.fill();
        assert_eq!((fill.taken_events, fill.is_slow), (249, false));
        assert_eq!(fill.queued_bytes, 8 * 128 * 1024);
        drop(drain);
        assert_eq!(queue.offer(&event), Offer::Gone);
    }

    #[tokio::test]
    async fn what_was_queued_comes_before_the_end() {
        let (mut queue, mut drain) = queue();
        assert_eq!(queue.offer(&delivery(1)), Offer::Taken);
        let ended = drain.ended();
        let mut other = queue.clone();
        queue.end("enough".into());
        assert!(other.fill().is_ended);
        assert_eq!(other.offer(&delivery(1)), Offer::Gone);
        other.end("too late".into());
        assert_eq!(ended.await.as_deref(), Some("enough"));
        assert_eq!(drain.take(9).await.len(), 1);
        assert_eq!(drain.take(9).await.len(), 0);
        assert_eq!(drain.end().as_deref(), Some("enough"));
    }

    /// A worker that stops at the high mark until it is told to go on, against a reader at full speed:
    /// a mark that nobody clears would stop it for good.
    #[test]
    fn no_mark_is_ever_missed() {
        const MARKS: usize = 2_000;
        let (mut queue, mut drain) = queue();
        let (tell, told) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            runtime.build().unwrap().block_on(async {
                while !drain.take(512).await.is_empty() {
                    if drain.has_drained() {
                        tell.send(()).unwrap();
                    }
                }
            });
        });
        let event = delivery(HIGH_BYTES / 4);
        let mut marks = 0;
        while marks < MARKS {
            if queue.offer(&event) == Offer::TakenSlow {
                marks += 1;
                told.recv_timeout(std::time::Duration::from_secs(90))
                    .expect("the reader has drained the queue");
            }
        }
        drop(queue);
        reader.join().unwrap();
    }
}
