//! At the node that reads a log: who keeps it is found among those that may, and what they give is checked and passed on.

use super::{
    Outcome, Reading, Sent,
    wire::{Ask, Given, Refusal, Want},
};
use crate::{
    api::frames::{Frames, LogOpened, ReplayFrame},
    config::Config,
    dispatch::{Dispatch, Ended, NoSubscription, Reached},
    replicas::wire::{Kind, split},
};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use thiserror::Error;
use tokio::sync::OwnedSemaphorePermit;
use virga_ebpf::header::NodeId;
use virga_state::{Cursor, format::LogId};
use virga_transport::ChannelName;

/// How long it is waited before a node is asked again that there is no session with, or that has no room.
const AGAIN: Duration = Duration::from_millis(100);
/// The longest such pause: each one doubles it.
const AGAIN_MAX: Duration = Duration::from_secs(5);
/// How often a node that has no room is asked before the reader is told so, unless it was let in before.
const FULL_MAX: usize = 5;

/// Why no log is read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NoLog {
    /// This node may not have the channel, or is shutting down.
    #[error(transparent)]
    Subscription(#[from] NoSubscription),
    /// Nobody that could be asked keeps it.
    #[error(
        "no log of channel {0} is kept here, and no peer is known that may keep it: add persist = true to the channel, here or at a peer whose entity may subscribe"
    )]
    Nowhere(ChannelName),
    /// All that were asked give none.
    #[error(
        "no log of channel {0} is kept here, and none is to be had: {1}; add persist = true to the channel, here or there"
    )]
    Refused(ChannelName, String),
    /// This node reads as many as it may.
    #[error(
        "this node reads {} logs of other nodes already: end one first",
        super::READERS_MAX
    )]
    TooMany,
}

/// A log of another node, from a place on, and on with what comes.
pub struct Remote {
    dispatch: Dispatch,
    reading: Reading,
    config: Arc<Config>,
    channel: ChannelName,
    /// Only this node's log is meant.
    at: Option<NodeId>,
    /// Once one was found, no other is read.
    log: Option<LogId>,
    cursor: Cursor,
    keeper: Option<Keeper>,
    /// Whose log the reader was told of last.
    told: Option<NodeId>,
    /// From when it is found.
    place: Option<OwnedSemaphorePermit>,
}

/// A node that is asked.
pub(crate) struct Keeper {
    dispatch: Dispatch,
    reading: Reading,
    node: NodeId,
    channel: ChannelName,
    reader: u64,
    /// Parts of its answers that have come.
    arrived: Arc<AtomicU64>,
    /// There is a session with it for as long.
    _reached: Reached,
}

impl Keeper {
    /// Has a session with a node, to ask it about a channel's log.
    ///
    /// # Errors
    /// [`Ended`].
    pub(crate) async fn reach(
        (dispatch, reading): (&Dispatch, &Reading),
        node: NodeId,
        channel: &ChannelName,
    ) -> Result<Self, Ended> {
        Ok(Self {
            dispatch: dispatch.clone(),
            reading: reading.clone(),
            node,
            channel: channel.clone(),
            reader: reading.next_number(),
            arrived: Arc::default(),
            _reached: dispatch.reach(node).await?,
        })
    }

    /// Waits for what it answers.
    pub(crate) async fn ask(&self, want: Want, log: Option<LogId>, cursor: Cursor) -> Outcome {
        let (reading, arrived) = (&self.reading, &self.arrived);
        let mut question = reading.ask(self.node, &self.channel, arrived);
        let ask = Ask {
            want,
            reader: self.reader,
            log,
            cursor,
        };
        let parts = split(Kind::Read, &self.channel, question.number, &ask.encode());
        match self.dispatch.say_reading(self.node, parts).await {
            // Somebody answers it, or the session ends.
            Ok(Sent::Taken) => (&mut question.outcome).await.unwrap_or(Outcome::Lost),
            Ok(Sent::NoRoom(_) | Sent::NoSession | Sent::Refused(..)) | Err(_) => Outcome::Lost,
        }
    }

    /// How many parts of its answers have come.
    pub(crate) fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }
}

impl Drop for Keeper {
    /// It reads nothing ahead for nobody.
    fn drop(&mut self) {
        let ask = Ask {
            want: Want::End,
            reader: self.reader,
            log: None,
            cursor: Cursor::Start,
        };
        let parts = split(Kind::Read, &self.channel, 0, &ask.encode());
        self.dispatch.tell_reading(self.node, parts);
    }
}

/// What a node said that was looked at.
enum Looked {
    Opened(Box<Keeper>, LogId, u64),
    Refused(String),
}

impl Remote {
    /// Nothing is asked yet. `at` and `log` say which one is meant, where there may be several.
    #[must_use]
    pub fn new(
        (dispatch, reading): (&Dispatch, &Reading),
        config: &Arc<Config>,
        (channel, cursor): (ChannelName, Cursor),
        (at, log): (Option<NodeId>, Option<LogId>),
    ) -> Self {
        Self {
            place: None,
            dispatch: dispatch.clone(),
            reading: reading.clone(),
            config: Arc::clone(config),
            channel,
            at,
            log,
            cursor,
            keeper: None,
            told: None,
        }
    }

    /// Asks all that may keep the log until one opens it, or all have refused.
    ///
    /// # Errors
    /// See [`NoLog`].
    pub async fn find(&mut self) -> Result<(), NoLog> {
        if self.keeper.is_some() {
            return Ok(());
        }
        let nodes = self.dispatch.keepers(&self.channel).await?;
        let nodes = nodes.into_iter();
        let nodes = nodes.filter(|node| self.at.is_none_or(|at| at == *node));
        let mut looks: FuturesUnordered<_> = nodes.map(|node| self.look(node)).collect();
        if looks.is_empty() {
            return Err(NoLog::Nowhere(self.channel.clone()));
        }
        let mut refused = Vec::new();
        while let Some(looked) = looks.next().await {
            match looked? {
                Looked::Refused(words) => refused.push(words),
                Looked::Opened(keeper, log, next) => {
                    drop(looks);
                    if self.place.is_none() {
                        self.place = Some(self.reading.place().ok_or(NoLog::TooMany)?);
                    }
                    // Whatever it is asked again, the end is where it was.
                    if self.cursor == Cursor::End {
                        self.cursor = Cursor::Offset(next);
                    }
                    self.log = Some(log);
                    self.keeper = Some(*keeper);
                    return Ok(());
                }
            }
        }
        refused.sort();
        Err(NoLog::Refused(self.channel.clone(), refused.join("; ")))
    }

    /// Asks a node to open its log until it answers.
    async fn look(&self, node: NodeId) -> Result<Looked, NoLog> {
        let around = (&self.dispatch, &self.reading);
        let keeper = Keeper::reach(around, node, &self.channel).await;
        let keeper = keeper.map_err(NoSubscription::from)?;
        let (mut pause, mut full) = (AGAIN, 0);
        loop {
            match keeper.ask(Want::Open, self.log, self.cursor).await {
                Outcome::Given(Given::Events { log, next, .. }) => {
                    return Ok(Looked::Opened(Box::new(keeper), log, next));
                }
                Outcome::Lost => {}
                Outcome::Given(Given::Refused(Refusal::Full, _))
                    if self.told.is_some() || full < FULL_MAX =>
                {
                    full += 1;
                }
                Outcome::Given(Given::Refused(_, words)) => {
                    let words = format!("{}: {words}", self.name(node));
                    return Ok(Looked::Refused(words));
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(AGAIN_MAX);
            // The right to it may have ended meanwhile, or the node be about to.
            self.dispatch.keepers(&self.channel).await?;
        }
    }

    /// Waits until a node says where the log ends now.
    ///
    /// # Errors
    /// Why the log cannot be read.
    pub async fn end(&mut self) -> Result<u64, String> {
        let mut pause = AGAIN;
        loop {
            self.find().await.map_err(|error| error.to_string())?;
            let (Some(keeper), Some(log)) = (&self.keeper, self.log) else {
                continue;
            };
            match keeper.ask(Want::Open, Some(log), Cursor::End).await {
                Outcome::Given(Given::Events { next, .. }) => return Ok(next),
                Outcome::Given(Given::Refused(Refusal::NotKept | Refusal::OtherLog, _))
                | Outcome::Lost => self.keeper = None,
                Outcome::Given(Given::Refused(Refusal::Full, _)) => {}
                Outcome::Given(Given::Refused(_, words)) => {
                    return Err(format!("{}: {words}", self.name(keeper.node)));
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(AGAIN_MAX);
        }
    }

    /// Whose log it is.
    #[must_use]
    pub const fn channel(&self) -> &ChannelName {
        &self.channel
    }

    /// Where the next event is, as far as that is known: 0 before the first where no offset was asked for.
    #[must_use]
    pub const fn position(&self) -> u64 {
        match self.cursor {
            Cursor::Offset(offset) => offset,
            Cursor::After(offset) => offset.saturating_add(1),
            Cursor::Start | Cursor::End | Cursor::Time(_) => 0,
        }
    }

    /// Waits for events, and gives some as frames of a replay; which log they are of first. Goes on over restarts of
    /// the node that keeps the log, and with another one that keeps the same.
    ///
    /// # Errors
    /// Why the log cannot be read on.
    pub async fn next_chunk(&mut self) -> Result<Bytes, String> {
        loop {
            self.find().await.map_err(|error| error.to_string())?;
            let (Some(keeper), Some(log)) = (&self.keeper, self.log) else {
                continue;
            };
            let node = keeper.node;
            if self.told != Some(node) {
                self.told = Some(node);
                let channel = self.channel.clone();
                let mut chunk = BytesMut::new();
                LogOpened { channel, log, node }.write(&mut chunk);
                return Ok(chunk.freeze());
            }
            match keeper.ask(Want::Events, self.log, self.cursor).await {
                Outcome::Given(Given::Events {
                    log: of,
                    next,
                    frames,
                }) => {
                    if of != log || !is_in_order(&frames, &self.channel, self.position(), next) {
                        let name = self.name(node);
                        return Err(format!("what {name} gave is no part of the log"));
                    }
                    self.cursor = Cursor::Offset(next);
                    return Ok(frames);
                }
                Outcome::Given(Given::Refused(Refusal::NotKept | Refusal::OtherLog, _))
                | Outcome::Lost => self.keeper = None,
                Outcome::Given(Given::Refused(Refusal::Full, _)) => {
                    tokio::time::sleep(AGAIN).await;
                }
                Outcome::Given(Given::Refused(_, words)) => {
                    return Err(format!("{}: {words}", self.name(node)));
                }
            }
        }
    }

    fn name(&self, node: NodeId) -> String {
        let peer = self.config.peers.iter().find(|peer| peer.id == node);
        peer.map_or_else(|| node.to_string(), |peer| peer.name.clone())
    }
}

impl NoLog {
    /// Whether nobody keeps it who could be asked.
    #[must_use]
    pub const fn is_kept_nowhere(&self) -> bool {
        matches!(self, Self::Nowhere(_) | Self::Refused(..))
    }
}

/// Whether frames are events of a channel, or gaps, in order, from a place on and up to where to go on, and at least one.
fn is_in_order(frames: &Bytes, channel: &ChannelName, from: u64, next: u64) -> bool {
    let mut all = Frames::default();
    all.extend(frames);
    let (mut from, mut count) = (from, 0);
    while let Ok(Some(frame)) = all.next_frame() {
        count += 1;
        match ReplayFrame::parse(frame) {
            Ok(ReplayFrame::Kept(event)) => {
                if event.channel != *channel || event.offset < from || event.offset >= next {
                    return false;
                }
                from = event.offset + 1;
            }
            Ok(ReplayFrame::Gap(words)) if !words.chars().any(char::is_control) => {}
            _ => return false,
        }
    }
    count > 0 && next >= from && all.end().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::frames::{KeptEvent, write_end, write_gap};
    use virga_ebpf::header::OriginHash;
    use virga_state::{Event, Link};

    #[test]
    fn what_a_node_gives_has_the_form_that_it_must_have() {
        let (alarms, others) = ["alarms", "others"]
            .map(|name| ChannelName::parse(name).unwrap())
            .into();
        let event = |out: &mut BytesMut, channel: &ChannelName, offset| {
            let link = Link {
                entity: OriginHash(1),
                observed: 0,
                parent: 0,
            };
            let event = Event {
                offset,
                time_unix_ns: 1,
                link,
                payload: b"x",
            };
            KeptEvent::write(out, channel, &event);
        };
        let of = |channel: &ChannelName, offsets: &[u64]| {
            let mut out = BytesMut::new();
            for &offset in offsets {
                event(&mut out, channel, offset);
            }
            out
        };
        let good =
            |frames: BytesMut, from, next| is_in_order(&frames.freeze(), &alarms, from, next);
        assert!(good(of(&alarms, &[5, 6, 9]), 5, 10));
        for (offsets, from, next) in [
            (&[5, 6][..], 6, 7),
            (&[6, 5][..], 5, 7),
            (&[5, 5][..], 5, 6),
            (&[5, 6][..], 5, 6),
            (&[][..], 5, 5),
            (&[u64::MAX][..], 5, u64::MAX),
        ] {
            assert!(!good(of(&alarms, offsets), from, next), "{offsets:?}");
        }
        assert!(!good(of(&others, &[5]), 5, 6));
        let mut gap = of(&alarms, &[5]);
        write_gap(&mut gap, "events 6 to 9 are gone");
        event(&mut gap, &alarms, 10);
        assert!(good(gap.clone(), 5, 11));
        assert!(!good(gap.split_to(20), 5, 11));
        for write in [write_end, write_gap] {
            let mut words = of(&alarms, &[5]);
            write(&mut words, "\u{1b}[2J");
            assert!(!good(words, 5, 6));
        }
    }
}
