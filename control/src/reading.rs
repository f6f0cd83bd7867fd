//! Reading logs that other nodes keep: a node that does not keep a channel asks one that does for the log's events from
//! a place on, and for more once it has dealt with those.
//!
//! Nothing is sent that was not asked for, so that a slow reader holds up nobody and loses nothing; who keeps the log
//! answers as soon as there is something to give, so that nobody asks in vain. Each question says the place that it
//! means: whatever was lost with a session is asked for again, and is there once.
//!
//! - [`wire`]: what is asked and given.
//! - [`serve`]: at the node that keeps the log.
//! - [`remote`]: at the node that reads it.

pub mod remote;
pub mod serve;
pub mod wire;

use crate::replicas::wire::{Assembly, Kind, Part};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use virga_ebpf::header::NodeId;
use virga_transport::ChannelName;
use wire::{Ask, Given, Refusal};

/// Questions of peers that wait for the task that answers them.
const HEARD_MAX: usize = 1_024;
/// Logs of other nodes that programs on this one read at a time: each has one answer on its way at most.
pub const READERS_MAX: usize = 256;

/// A question of a peer, or its session's end.
#[derive(Debug)]
pub(crate) enum Heard {
    Ask {
        peer: NodeId,
        channel: ChannelName,
        number: u64,
        ask: Ask,
    },
    Closed(NodeId),
}

/// What came of a question.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The peer's answer.
    Given(Given),
    /// There is no session with the peer, or it ended before the answer came.
    Lost,
}

/// What a worker made of a message about reading.
#[derive(Debug)]
pub enum Sent {
    /// It is on its way.
    Taken,
    /// Too much else waits: what was to be said.
    NoRoom(Vec<Part>),
    /// There is no session with the peer.
    NoSession,
    /// The peer may not have the events.
    Refused(Refusal, String),
}

/// What is said about reading, and to whom it is told whether it was sent.
pub struct Said {
    pub(crate) peer: NodeId,
    /// Of one message.
    pub(crate) parts: Vec<Part>,
    /// Called once.
    pub(crate) done: Box<dyn FnOnce(Sent) + Send>,
}

/// See the module. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Reading(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    heard: Mutex<Waiting>,
    changed: Notify,
    asked: Mutex<BTreeMap<u64, Asked>>,
    last_number: AtomicU64,
    places: Arc<Semaphore>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            heard: Mutex::default(),
            changed: Notify::new(),
            asked: Mutex::default(),
            last_number: AtomicU64::new(0),
            places: Arc::new(Semaphore::new(READERS_MAX)),
        }
    }
}

#[derive(Debug, Default)]
struct Waiting {
    heard: VecDeque<Heard>,
    /// Those that have asked in their session.
    peers: BTreeSet<NodeId>,
}

#[derive(Debug)]
struct Asked {
    peer: NodeId,
    channel: ChannelName,
    /// What is there of the answer.
    begun: Assembly,
    /// Counts its parts.
    arrived: Arc<AtomicU64>,
    reply: oneshot::Sender<Outcome>,
}

/// A question that waits for its answer; dropping it is to wait no more.
#[derive(Debug)]
pub(crate) struct Question {
    reading: Reading,
    pub(crate) number: u64,
    pub(crate) outcome: oneshot::Receiver<Outcome>,
}

impl Drop for Question {
    fn drop(&mut self) {
        lock(&self.reading.0.asked).remove(&self.number);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reading {
    /// Passes on what a peer that may read asks; whether there was room.
    #[must_use]
    pub(crate) fn hear(
        &self,
        peer: NodeId,
        channel: ChannelName,
        (number, ask): (u64, Ask),
    ) -> bool {
        let mut waiting = lock(&self.0.heard);
        if waiting.heard.len() >= HEARD_MAX {
            return false;
        }
        waiting.peers.insert(peer);
        waiting.heard.push_back(Heard::Ask {
            peer,
            channel,
            number,
            ask,
        });
        self.0.changed.notify_one();
        true
    }

    /// A peer's session has ended: nothing more comes, and nothing more is given.
    pub(crate) fn closed(&self, peer: NodeId) {
        let mut waiting = lock(&self.0.heard);
        if waiting.peers.remove(&peer) {
            // What it asked for in that session nobody waits for any more.
            waiting.heard.retain(|heard| !heard.is_of(peer));
            waiting.heard.push_back(Heard::Closed(peer));
            self.0.changed.notify_one();
        }
        drop(waiting);
        let mut asked = lock(&self.0.asked);
        let lost = asked.iter().filter(|(_, asked)| asked.peer == peer);
        let lost: Vec<u64> = lost.map(|(&number, _)| number).collect();
        for number in lost {
            if let Some(asked) = asked.remove(&number) {
                // Whoever asked may have given up meanwhile.
                let _given_up = asked.reply.send(Outcome::Lost);
            }
        }
    }

    /// Waits until something was heard.
    async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// What was heard since the last time.
    pub(crate) fn take(&self) -> VecDeque<Heard> {
        std::mem::take(&mut lock(&self.0.heard).heard)
    }

    /// A number that no other message or reader of this node has.
    fn next_number(&self) -> u64 {
        self.0.last_number.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// A place for one more reader of another node's log.
    fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0.places).try_acquire_owned().ok()
    }

    /// Begins to wait for what a peer will give; `arrived` counts the parts of it that have come.
    pub(crate) fn ask(
        &self,
        peer: NodeId,
        channel: &ChannelName,
        arrived: &Arc<AtomicU64>,
    ) -> Question {
        let number = self.next_number();
        let (reply, outcome) = oneshot::channel();
        let asked = Asked {
            peer,
            channel: channel.clone(),
            begun: Assembly::default(),
            arrived: Arc::clone(arrived),
            reply,
        };
        lock(&self.0.asked).insert(number, asked);
        Question {
            reading: self.clone(),
            number,
            outcome,
        }
    }

    /// A part of what a peer gives; whether it has the form that it must have. What nobody waits for any more is
    /// passed over.
    #[must_use]
    pub(crate) fn given(&self, peer: NodeId, part: Part) -> bool {
        let number = part.number;
        let mut all = lock(&self.0.asked);
        let Some(asked) = all.get_mut(&number) else {
            return true;
        };
        if asked.peer != peer || asked.channel != part.channel || part.kind != Kind::Given {
            return false;
        }
        asked.arrived.fetch_add(1, Ordering::Relaxed);
        let given = match asked.begun.take(part) {
            Ok(None) => return true,
            Ok(Some(whole)) => Given::parse(Bytes::from(whole.bytes)),
            Err(_) => None,
        };
        let Some(asked) = all.remove(&number) else {
            return true;
        };
        let (is_good, outcome) = match given {
            Some(given) => (true, Outcome::Given(given)),
            None => {
                let words = "its answer cannot be read".to_owned();
                let given = Given::Refused(Refusal::Failed, words);
                (false, Outcome::Given(given))
            }
        };
        // Whoever asked may have given up meanwhile.
        let _given_up = asked.reply.send(outcome);
        is_good
    }
}

impl Heard {
    fn is_of(&self, peer: NodeId) -> bool {
        match self {
            Self::Ask { peer: of, .. } | Self::Closed(of) => *of == peer,
        }
    }
}

#[cfg(test)]
mod tests;
