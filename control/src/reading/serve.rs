//! At the node that keeps a log: each reader of another node has a task of its own, that reads on where it was.

use super::{
    Heard, Reading, Sent,
    wire::{Ask, Given, Refusal, Want, encode_batches},
};
use crate::{
    dispatch::Dispatch,
    kept::{Kept, follow::Follower},
    replicas::wire::{Kind, split},
};
use bytes::Bytes;
use std::{collections::BTreeMap, time::Duration};
use tokio::{sync::mpsc, time::timeout};
use virga_ebpf::header::NodeId;
use virga_state::{Cursor, format::LogId, history::Place};
use virga_transport::ChannelName;

/// Readers that one peer may have here.
pub const READERS_PER_PEER_MAX: usize = 64;
/// Readers of all peers: each holds a file open, and what it reads ahead.
pub const READERS_MAX: usize = 256;
/// Readers of one peer, and of all, that only look for batches, beside those: what a log lacks is had however much programs
/// read.
const SEARCHES_PER_PEER_MAX: usize = 16;
/// See [`SEARCHES_PER_PEER_MAX`].
const SEARCHES_MAX: usize = 64;
/// Questions of one reader that wait; it asks the next when it has the answer to the last.
const ASKS_MAX: usize = 4;
/// How long a reader keeps its place without asking anything.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(60);
/// How long it is waited while there is no room on the way to a peer.
const ROOM_PAUSE: Duration = Duration::from_millis(20);

const _: () = assert!(READERS_PER_PEER_MAX <= READERS_MAX && SEARCHES_PER_PEER_MAX <= SEARCHES_MAX);

/// A reader: its node, its number there, and which channel it reads.
type Key = (NodeId, u64, ChannelName);
/// A question's number, and what is asked.
pub(super) type Numbered = (u64, Ask);

impl Reading {
    /// Answers what peers ask, as long as the node runs.
    pub async fn serve(self, kept: Kept, dispatch: Dispatch) {
        let mut seats: BTreeMap<Key, mpsc::Sender<Numbered>> = BTreeMap::new();
        loop {
            for heard in self.take() {
                match heard {
                    Heard::Closed(peer) => seats.retain(|(of, ..), _| *of != peer),
                    Heard::Ask {
                        peer,
                        channel,
                        number,
                        ask,
                    } => {
                        let key = (peer, ask.reader, channel);
                        if ask.want == Want::End {
                            seats.remove(&key);
                            continue;
                        }
                        hear(&mut seats, key, (number, ask), (&kept, &dispatch));
                    }
                }
            }
            self.changed().await;
        }
    }
}

/// Hands a question to its reader's task, which is there from then on.
fn hear(
    seats: &mut BTreeMap<Key, mpsc::Sender<Numbered>>,
    key: Key,
    numbered: Numbered,
    (kept, dispatch): (&Kept, &Dispatch),
) {
    let numbered = match seats.get(&key).map(|seat| seat.try_send(numbered)) {
        Some(Ok(())) => return,
        // A reader that asks so much at once gets the answers to what was asked before.
        Some(Err(mpsc::error::TrySendError::Full(_))) => return,
        Some(Err(mpsc::error::TrySendError::Closed(numbered))) => numbered,
        None => numbered,
    };
    seats.retain(|_, seat| !seat.is_closed());
    let (peer, _, channel) = key.clone();
    let (mut of_peer_max, mut of_all_max) = (READERS_PER_PEER_MAX, READERS_MAX);
    if matches!(numbered.1.want, Want::Batches(_) | Want::Named(_)) {
        of_peer_max += SEARCHES_PER_PEER_MAX;
        of_all_max += SEARCHES_MAX;
    }
    let of_peer = seats.keys().filter(|(of, ..)| *of == peer).count();
    let seat = Seat {
        peer,
        channel,
        kept: kept.clone(),
        dispatch: dispatch.clone(),
        open: None,
        looked: None,
    };
    let refused = match kept.id(&seat.channel) {
        None => Some((Refusal::NotKept, "it does not keep the channel")),
        _ if of_peer >= of_peer_max || seats.len() >= of_all_max => {
            Some((Refusal::Full, "too many read logs there now"))
        }
        _ => None,
    };
    if let Some((refusal, words)) = refused {
        let given = Given::Refused(refusal, words.to_owned());
        tokio::spawn(async move { seat.say(numbered.0, &given).await });
        return;
    }
    let (to, asks) = mpsc::channel(ASKS_MAX);
    // There is room for the first.
    let _taken = to.try_send(numbered);
    seats.insert(key, to);
    tokio::spawn(seat.run(asks));
}

/// What a reader asks next; none when its session has ended. One that asks nothing for `idle` is heard no more: then what
/// it asked at the last moment.
pub(super) async fn next_within(
    asks: &mut mpsc::Receiver<Numbered>,
    idle: Duration,
) -> Result<Option<Numbered>, Vec<Numbered>> {
    if let Ok(next) = timeout(idle, asks.recv()).await {
        return Ok(next);
    }
    asks.close();
    let mut late = Vec::new();
    while let Some(ask) = asks.recv().await {
        late.push(ask);
    }
    Err(late)
}

/// One reader.
struct Seat {
    peer: NodeId,
    channel: ChannelName,
    kept: Kept,
    dispatch: Dispatch,
    open: Option<Open>,
    /// Where looking for batches ended: the offset and the place.
    looked: Option<(u64, Place)>,
}

/// A log that is read.
struct Open {
    follower: Follower,
    /// What a question says that goes on with it.
    at: Cursor,
}

impl Seat {
    /// Until its session ends, or the reader does.
    async fn run(mut self, mut asks: mpsc::Receiver<Numbered>) {
        let mut next = asks.recv().await;
        while let Some((number, ask)) = next.take() {
            let given = tokio::select! {
                given = self.answer(&ask) => given,
                // Nobody waits for that answer any more.
                newer = asks.recv() => {
                    self.open = None;
                    next = newer;
                    continue;
                }
            };
            let Some(given) = given else {
                return;
            };
            next = tokio::select! {
                // An answer that went is not thrown away for the question that it led to.
                biased;
                is_said = self.say(number, &given) => {
                    if !is_said {
                        return;
                    }
                    // What it reads ahead waits only in memory that it has a place for.
                    drop(given);
                    match next_within(&mut asks, IDLE_MAX).await {
                        Ok(next) => next,
                        Err(late) => return self.leave(late).await,
                    }
                }
                // The session, or the reader, has ended, or it waits for another answer.
                newer = asks.recv() => {
                    self.open = None;
                    newer
                }
            };
        }
    }

    /// Gives up the place of a reader that asks nothing; what it asked at the last moment it asks again.
    async fn leave(self, late: Vec<Numbered>) {
        for (number, _) in late {
            let words = "it asked nothing for too long".to_owned();
            if !self
                .say(number, &Given::Refused(Refusal::Full, words))
                .await
            {
                return;
            }
        }
    }

    /// Waits for events where it is asked for some. None: the node stops.
    async fn answer(&mut self, ask: &Ask) -> Option<Given> {
        let failed = |why: &str| Some(Given::Refused(Refusal::Failed, why.to_owned()));
        if let Want::Batches(_) | Want::Named(_) = ask.want {
            return Some(self.look(ask).await);
        }
        let (log, open) = match self.open(ask).await {
            Ok(opened) => opened,
            Err(refused) => return Some(refused),
        };
        let mut frames = Bytes::new();
        if ask.want == Want::Events {
            match open.follower.next_chunk().await {
                Ok(Some(chunk)) => frames = chunk,
                Ok(None) => return None,
                Err(why) => {
                    // Its words are about this node's files.
                    tracing::warn!(channel = %self.channel, %why, "another node cannot read the log on");
                    self.open = None;
                    return failed("it cannot read its log on");
                }
            }
        }
        let Some(next) = open.follower.position() else {
            return failed("reading it was given up");
        };
        if ask.want == Want::Events || ask.cursor == Cursor::End {
            open.at = Cursor::Offset(next);
        }
        Some(Given::Events { log, next, frames })
    }

    /// Looks for batches of a feed.
    async fn look(&mut self, ask: &Ask) -> Given {
        let cursor = ask.cursor;
        let refused = |refusal, words: &str| Given::Refused(refusal, words.to_owned());
        let Some(log) = self.kept.id(&self.channel) else {
            return refused(Refusal::NotKept, "it does not keep the channel");
        };
        let last = self.looked.take();
        let last = last.filter(|(next, _)| cursor == Cursor::Offset(*next));
        let (of, from) = ((self.peer, &self.channel), (cursor, last.map(|(_, at)| at)));
        let looked = match self.kept.look(of, from, ask.want).await {
            Ok(Some(looked)) => looked,
            Ok(None) => return refused(Refusal::NotKept, "it does not keep the channel"),
            Err(error) => {
                // Its words are about this node's files.
                tracing::warn!(channel = %self.channel, %error, "another node cannot look through the log");
                return refused(Refusal::Failed, "it cannot look through its log");
            }
        };
        self.looked = looked.next.zip(looked.place);
        match looked.next {
            None if looked.messages.is_empty() => {
                refused(Refusal::NoMore, "its log has no more of them")
            }
            next => Given::Events {
                log,
                next: next.unwrap_or(u64::MAX),
                frames: encode_batches(&looked.messages).into(),
            },
        }
    }

    /// The log at the place that is asked for: as it was left, or anew.
    async fn open(&mut self, ask: &Ask) -> Result<(LogId, &mut Open), Given> {
        let refused = |refusal, words: &str| Err(Given::Refused(refusal, words.to_owned()));
        let Some(log) = self.kept.id(&self.channel) else {
            return refused(Refusal::NotKept, "it does not keep the channel");
        };
        if ask.log.is_some_and(|wanted| wanted != log) {
            let words = "its log of the channel is another one than what was read before";
            return refused(Refusal::OtherLog, words);
        }
        let is_there = self.open.as_ref().is_some_and(|open| open.at == ask.cursor);
        if !is_there {
            self.open = None;
            let (kept, channel, at) = (self.kept.clone(), self.channel.clone(), ask.cursor);
            // Looking for the place reads files.
            let opening = tokio::task::spawn_blocking(move || kept.follow(&channel, at));
            match opening.await.map(Result::transpose) {
                Ok(Some(Ok(follower))) => self.open = Some(Open { follower, at }),
                Ok(Some(Err(error))) => {
                    // Its words are about this node's files.
                    tracing::warn!(channel = %self.channel, %error, "another node cannot read the log");
                    return refused(Refusal::Failed, "it cannot open its log");
                }
                Ok(None) | Err(_) => return refused(Refusal::NotKept, "it cannot open its log"),
            }
        }
        match &mut self.open {
            Some(open) => Ok((log, open)),
            None => refused(Refusal::NotKept, "it cannot open its log"),
        }
    }

    /// Whether the session with the peer is there still.
    async fn say(&self, number: u64, given: &Given) -> bool {
        let mut parts = split(Kind::Given, &self.channel, number, &given.encode());
        loop {
            match self.dispatch.say_reading(self.peer, parts).await {
                Ok(Sent::Taken) => return true,
                Ok(Sent::NoSession) | Err(_) => return false,
                Ok(Sent::Refused(refusal, words)) => {
                    let refused = Given::Refused(refusal, words).encode();
                    parts = split(Kind::Given, &self.channel, number, &refused);
                }
                Ok(Sent::NoRoom(again)) => {
                    parts = again;
                    tokio::time::sleep(ROOM_PAUSE).await;
                }
            }
        }
    }
}
