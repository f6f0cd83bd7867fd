//! Who asks for what is missing: all nodes at once that may have it, then the one that gave some of it, and all again.

use super::Unfound;
use crate::{
    dispatch::Dispatch,
    kept::writer::Input,
    reading::{
        Outcome, Reading,
        remote::Keeper,
        wire::{Given, Refusal, Want, parse_batches},
    },
};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use std::{
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{mpsc::WeakSender, oneshot},
    time::{Instant, sleep, timeout},
};
use virga_ebpf::header::NodeId;
use virga_state::{Cursor, bundle, format::Hash, history::Wanted};
use virga_transport::ChannelName;

/// So long nothing of what is missing comes before a log goes on without it.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same while nodes look through their logs for it.
const PATIENCE_MAX: Duration = Duration::from_secs(20);
/// How long it is asked for, whatever comes.
const WHOLE: Duration = Duration::from_secs(120);
/// How long one node may take for an answer before it is asked again.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// How long one that gives batches may take for the next before the others are asked too.
const NEXT_WITHIN: Duration = Duration::from_secs(1);
/// How long it is waited before a node is asked again; each pause doubles it.
const AGAIN: Duration = Duration::from_millis(100);
/// The longest such pause.
const AGAIN_MAX: Duration = Duration::from_secs(1);
/// How long all are asked before it is looked who may keep the channel now.
const ROUND: Duration = Duration::from_secs(4);
/// How long a node that answered nothing is not asked: one of an earlier version never does.
const SILENT: Duration = Duration::from_secs(60);
/// How much earlier than here another node may have got an event, by its own clock: looked from the first on, then
/// from the next, and then through the whole log.
const EARLIER_NS: [u64; 3] = [60_000_000_000, 3_600_000_000_000, 24 * 3_600_000_000_000];

/// Nodes that answered nothing, and until when they are not asked.
#[derive(Debug, Default)]
pub(super) struct Silent(Mutex<BTreeMap<NodeId, Instant>>);

impl Silent {
    fn add(&self, node: NodeId) {
        let mut silent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        silent.insert(node, Instant::now() + SILENT);
    }

    fn has(&self, node: NodeId) -> bool {
        let mut silent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        silent.retain(|_, until| Instant::now() < *until);
        silent.contains_key(&node)
    }
}

/// See the module.
pub(super) struct Search {
    pub(super) dispatch: Dispatch,
    pub(super) reading: Reading,
    pub(super) channel: ChannelName,
    /// Behind what is there.
    pub(super) wanted: Wanted,
    /// After what is there.
    pub(super) head: Hash,
    /// When that came.
    pub(super) since_unix_ns: u64,
    /// Who signed it.
    pub(super) entity: [u8; 32],
    /// No more is taken.
    pub(super) bytes_left: usize,
    pub(super) silent: std::sync::Arc<Silent>,
    pub(super) log: usize,
    pub(super) number: u64,
    pub(super) to: WeakSender<Input>,
}

/// A node that is asked.
struct Asked {
    keeper: Keeper,
    cursor: Cursor,
    /// How many of [`EARLIER_NS`] were in vain.
    earlier: usize,
    pause: Duration,
    /// Whether it gave any batch: it has the next behind that, or nowhere.
    has_given: bool,
    /// Whether a question got no answer, and whether one did.
    is_late: bool,
    has_answered: bool,
    /// It looked through its log and has none.
    has_none: bool,
    /// When it last got further in its log.
    went_on: Option<Instant>,
    /// It is asked no more.
    is_out: bool,
}

impl Asked {
    fn new(keeper: Keeper, since_unix_ns: u64) -> Self {
        Self {
            keeper,
            cursor: Cursor::Time(since_unix_ns.saturating_sub(EARLIER_NS[0])),
            earlier: 0,
            pause: AGAIN,
            has_given: false,
            is_late: false,
            has_answered: false,
            has_none: false,
            went_on: None,
            is_out: false,
        }
    }

    /// Asks until it gives batches; none when it is asked no more.
    async fn ask(&mut self, wanted: Wanted, since_unix_ns: u64) -> Option<(Vec<Bytes>, u64)> {
        while !self.is_out {
            let asked = self.keeper.ask(Want::Batches(wanted), None, self.cursor);
            let Ok(outcome) = timeout(ANSWER_WITHIN, asked).await else {
                self.is_late = true;
                continue;
            };
            self.has_answered |= matches!(outcome, Outcome::Given(_));
            match outcome {
                Outcome::Given(Given::Events { next, frames, .. }) => {
                    let is_back = matches!(self.cursor, Cursor::Offset(from) if next <= from);
                    let messages = parse_batches(&frames).filter(|_| !is_back);
                    let Some(messages) = messages else {
                        self.is_out = true;
                        break;
                    };
                    if messages.is_empty() {
                        self.cursor = Cursor::Offset(next);
                        self.went_on = Some(Instant::now());
                        continue;
                    }
                    return Some((messages, next));
                }
                Outcome::Given(Given::Refused(Refusal::NoMore, _)) => {
                    if !self.has_given && self.earlier < EARLIER_NS.len() {
                        self.earlier += 1;
                        self.cursor = match EARLIER_NS.get(self.earlier) {
                            Some(ns) => Cursor::Time(since_unix_ns.saturating_sub(*ns)),
                            None => Cursor::Start,
                        };
                        continue;
                    }
                    // It may get them yet, as this node may: at its log's end.
                    self.has_none = true;
                    if !self.has_given {
                        let now_unix_ns = virga_state::io::clock::now_unix_ns();
                        self.cursor = Cursor::Time(now_unix_ns.saturating_sub(EARLIER_NS[0]));
                    }
                }
                Outcome::Lost
                | Outcome::Given(Given::Refused(Refusal::Full | Refusal::Failed, _)) => {}
                Outcome::Given(Given::Refused(..)) => {
                    (self.is_out, self.has_none) = (true, true);
                    break;
                }
            }
            sleep(self.pause).await;
            self.pause = (self.pause * 2).min(AGAIN_MAX);
        }
        None
    }
}

impl Search {
    /// Until all is there, or the log goes on without it; whatever happens, it hears of that.
    pub(super) async fn run(mut self) {
        let (log, feed, number) = (self.log, self.wanted.feed, self.number);
        let to = self.to.clone();
        let mut asked = BTreeMap::new();
        let found = AssertUnwindSafe(self.find(&mut asked)).catch_unwind().await;
        let found = found.unwrap_or(Err(Unfound::Failed));
        for (node, asked) in &asked {
            if asked.is_late && !asked.has_answered {
                self.silent.add(*node);
            }
        }
        if let Some(to) = to.upgrade() {
            // Where the logs are closed nobody waits for it.
            let _closed = to
                .send(Input::Searched {
                    log,
                    feed,
                    number,
                    found,
                })
                .await;
        }
    }

    async fn find(&mut self, all: &mut BTreeMap<NodeId, Asked>) -> Result<(), Unfound> {
        let begun = Instant::now();
        let (mut since, mut is_wrong) = (begun, false);
        let mut from: Option<NodeId> = None;
        while self.wanted.after < self.wanted.to {
            let is_any = self.look_for_keepers(all).await?;
            let looking = all.values().filter(|asked| !asked.is_out);
            let went_on = looking.clone().filter_map(|asked| asked.went_on).max();
            let until = (since + PATIENCE)
                .max(went_on.map_or(since, |at| at + PATIENCE))
                .min(since + PATIENCE_MAX)
                .min(begun + WHOLE);
            let is_over = is_any && looking.clone().next().is_none();
            if is_over || Instant::now() >= until {
                return Err(match looking.clone().all(|asked| asked.has_none) {
                    _ if is_wrong => Unfound::Wrong,
                    true => Unfound::Nobody,
                    false => Unfound::Late,
                });
            }
            let given = match from {
                Some(node) => timeout(NEXT_WITHIN, self.ask(all, Some(node))).await,
                None => {
                    let left = until.saturating_duration_since(Instant::now());
                    timeout(ROUND.min(left), self.ask(all, None)).await
                }
            };
            from = None;
            let (node, messages, next) = match given {
                Ok(Some(given)) => given,
                Err(_) => continue,
                // Nobody is left to be asked, or known yet.
                Ok(None) => {
                    sleep(AGAIN).await;
                    continue;
                }
            };
            let Some(asked) = all.get_mut(&node) else {
                continue;
            };
            match self.take(messages).await? {
                Some(()) => {
                    (asked.cursor, asked.pause) = (Cursor::Offset(next), AGAIN);
                    (asked.has_given, asked.has_none) = (true, false);
                    (since, from) = (Instant::now(), Some(node));
                }
                None => (asked.is_out, is_wrong) = (true, true),
            }
        }
        Ok(())
    }

    /// Has all that may keep the channel among those that are asked, and no others; whether there are any.
    async fn look_for_keepers(&self, all: &mut BTreeMap<NodeId, Asked>) -> Result<bool, Unfound> {
        let nodes = self.dispatch.keepers(&self.channel).await;
        let nodes = nodes.map_err(|_| Unfound::Nobody)?;
        // With those that are asked there is a session, or one is tried for.
        all.retain(|node, _| nodes.contains(node));
        for &node in &nodes {
            if all.contains_key(&node) || self.silent.has(node) {
                continue;
            }
            let around = (&self.dispatch, &self.reading);
            let keeper = Keeper::reach(around, node, &self.channel).await;
            let keeper = keeper.map_err(|_| Unfound::Failed)?;
            all.insert(node, Asked::new(keeper, self.since_unix_ns));
        }
        Ok(!nodes.is_empty())
    }

    /// Asks one node or all; the first batches that one gives.
    async fn ask(
        &self,
        all: &mut BTreeMap<NodeId, Asked>,
        only: Option<NodeId>,
    ) -> Option<(NodeId, Vec<Bytes>, u64)> {
        let (wanted, since_unix_ns) = (self.wanted, self.since_unix_ns);
        let some = all.iter_mut();
        let some = some.filter(|(node, _)| only.is_none_or(|only| only == **node));
        let mut asking: FuturesUnordered<_> = some
            .map(async |(node, asked)| {
                let (messages, next) = asked.ask(wanted, since_unix_ns).await?;
                Some((*node, messages, next))
            })
            .collect();
        while let Some(given) = asking.next().await {
            if given.is_some() {
                return given;
            }
        }
        None
    }

    /// Goes on behind batches, and has the log take them, if they are what is missing; none if they are something else.
    async fn take(&mut self, messages: Vec<Bytes>) -> Result<Option<()>, Unfound> {
        let bytes: usize = messages.iter().map(Bytes::len).sum();
        if bytes > self.bytes_left {
            return Err(Unfound::Full);
        }
        let at = (self.wanted, self.head);
        // Many signatures take their time.
        let checking = tokio::task::spawn_blocking(move || {
            let behind = messages.iter().try_fold(at, |at, one| follow(at, one));
            (behind, messages)
        });
        let (behind, messages) = checking.await.map_err(|_| Unfound::Failed)?;
        let Some((wanted, head)) = behind else {
            return Ok(None);
        };
        let channel = &self.channel;
        if !self
            .dispatch
            .may_say(channel, self.entity)
            .await
            .unwrap_or(false)
        {
            return Err(Unfound::NoRight);
        }
        if !self.give(messages).await {
            return Err(Unfound::Failed);
        }
        self.bytes_left -= bytes;
        (self.wanted, self.head) = (wanted, head);
        Ok(Some(()))
    }

    /// Hands batches to the log, and waits until it took them; whether it did.
    async fn give(&self, messages: Vec<Bytes>) -> bool {
        let Some(to) = self.to.upgrade() else {
            return false;
        };
        let (done, taken) = oneshot::channel();
        let input = Input::Fetched {
            log: self.log,
            feed: self.wanted.feed,
            messages,
            done,
        };
        to.send(input).await.is_ok() && taken.await.unwrap_or(false)
    }
}

/// What is missing after a batch, and the head after it; none where the batch is not the first that is missing, or not as
/// it was signed.
fn follow((wanted, head): (Wanted, Hash), message: &[u8]) -> Option<(Wanted, Hash)> {
    let (batch, payloads) = bundle::parse(message).ok()?;
    let statement = &batch.signed.statement;
    let (last, after_it) = (statement.last(), statement.head);
    let is_next = statement.feed() == wanted.feed
        && statement.first.checked_sub(1) == Some(wanted.after)
        && statement.parent == head
        && last <= wanted.to;
    let payloads = payloads.into_iter().map(|range| &message[range]);
    batch.verify(payloads).ok().filter(|_| is_next)?;
    let wanted = Wanted {
        after: last,
        ..wanted
    };
    Some((wanted, after_it))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::SigningKey;
    use virga_state::{LogName, batch::FeedId, feed::FeedEnd};

    fn sign(feed: &mut FeedEnd, key: &SigningKey, payload: &[u8]) -> Vec<u8> {
        let batch = feed.sign(key, Vec::new(), [payload].into_iter()).unwrap();
        bundle::encode(&batch, &[payload])
    }

    #[test]
    fn only_the_next_batch_of_that_entity_is_taken() {
        let channel = LogName::parse("alarms").unwrap();
        let keys = [1, 2].map(|seed| SigningKey::from_bytes(&[seed; 32]));
        let entity = |key: &SigningKey| key.verifying_key().to_bytes();
        let mut feed = FeedEnd::new(channel.clone(), entity(&keys[0]));
        let mut other = FeedEnd::new(channel.clone(), entity(&keys[1]));
        let first = sign(&mut feed, &keys[0], b"one");
        let (_, head) = feed.end();
        let mut twin = feed.clone();
        let second = sign(&mut feed, &keys[0], b"two");
        let third = sign(&mut feed, &keys[0], b"three");
        let wanted = Wanted {
            feed: FeedId::of(&channel, &entity(&keys[0])),
            after: 1,
            to: 3,
        };
        let at = (wanted, head);
        let behind = follow(at, &second).unwrap();
        assert_eq!(behind.0.after, 2);
        assert_eq!(
            follow(behind, &third).unwrap(),
            (Wanted { after: 3, ..wanted }, feed.end().1)
        );
        // What is there, what is further on, and another's.
        for wrong in [&first, &third, &sign(&mut other, &keys[1], b"two")] {
            assert_eq!(follow(at, wrong), None);
        }
        // A second one that follows something else than what is there.
        let twin_second = sign(&mut twin, &keys[0], b"other");
        assert!(follow(at, &twin_second).is_some());
        let twin_third = sign(&mut twin, &keys[0], b"three");
        assert_eq!(follow(behind, &twin_third), None);
        // More than was asked for.
        let short = (Wanted { to: 1, ..wanted }, head);
        assert_eq!(follow(short, &second), None);
        for place in 0..second.len() {
            let mut changed = second.clone();
            changed[place] ^= 1;
            assert_eq!(follow(at, &changed), None, "byte {place}");
        }
    }
}
