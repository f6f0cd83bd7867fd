//! A node that is asked for what is missing: the question that it has not answered, and where it is asked next.

use super::{AGAIN, AGAIN_MAX, Asking, EARLIER_NS, FURTHER, How};
use crate::reading::{
    Outcome,
    wire::{Given, Refusal, Want, parse_batches},
};
use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, timeout_at};
use virga_state::{Cursor, history::Wanted};

/// Why a node is asked no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Out {
    /// It keeps no log of the channel.
    HasNone,
    /// What it gave is not what was asked for.
    Wrong,
}

/// Batches that a node gave.
pub(super) struct Batches {
    pub(super) messages: Vec<Bytes>,
    /// Where to go on.
    pub(super) next: u64,
    /// They are behind that many events: what was missing when it was asked.
    pub(super) after: u64,
}

/// What a node was asked, until it answers: over a thin link that takes its time, and asked anew it would begin anew.
struct Question {
    since: Instant,
    after: u64,
    outcome: BoxFuture<'static, Outcome>,
}

/// See the module.
pub(super) struct Asked<N> {
    node: Arc<N>,
    how: How,
    question: Option<Question>,
    pub(super) cursor: Cursor,
    /// How many of [`EARLIER_NS`] were in vain.
    earlier: usize,
    pub(super) pause: Duration,
    /// Whether it gave any batch: it has the next behind that, or nowhere.
    pub(super) has_given: bool,
    /// Whether it answered nothing the last time that it was asked: it is not waited for.
    was_silent: bool,
    /// Whether a question got no answer in time, and whether one did at any time.
    is_late: bool,
    pub(super) has_answered: bool,
    /// It looked through its log and has none, or gives none to this node now.
    pub(super) has_none: bool,
    /// When it last said that there may be some further on.
    pub(super) went_on: Option<Instant>,
    /// Parts of its answers that have come, and when there was last one more of an answer that is not whole.
    parts: u64,
    pub(super) arrived: Option<Instant>,
    pub(super) out: Option<Out>,
}

impl<N: Asking> Asked<N> {
    pub(super) fn new(node: N, (how, since_unix_ns): (How, u64), was_silent: bool) -> Self {
        Self {
            node: Arc::new(node),
            how,
            question: None,
            cursor: match how {
                How::Followed => Cursor::Time(since_unix_ns.saturating_sub(EARLIER_NS[0])),
                How::Named => Cursor::Start,
            },
            earlier: 0,
            pause: AGAIN,
            has_given: false,
            was_silent,
            is_late: false,
            has_answered: false,
            has_none: false,
            went_on: None,
            parts: 0,
            arrived: None,
            out: None,
        }
    }

    /// Whether it answers nothing, as far as is known.
    pub(super) const fn is_silent(&self) -> bool {
        (self.is_late || self.was_silent) && !self.has_answered && self.arrived.is_none()
    }

    /// Whether nobody waits for it: it has nothing to give, or answered nothing the last time either.
    pub(super) const fn is_passed_over(&self) -> bool {
        self.out.is_some() || self.was_silent && self.is_silent()
    }

    /// Looks whether something of its answer has come.
    pub(super) fn look(&mut self) {
        let parts = self.node.arrived();
        if parts != self.parts {
            (self.parts, self.arrived) = (parts, Some(Instant::now()));
        }
    }

    /// Asks until it gives batches; none when it is asked no more.
    pub(super) async fn ask(
        &mut self,
        wanted: Wanted,
        (since_unix_ns, within): (u64, Duration),
    ) -> Option<Batches> {
        while self.out.is_none() {
            let (after, outcome) = self.answer(wanted, within).await;
            self.has_answered |= matches!(outcome, Outcome::Given(_));
            match outcome {
                Outcome::Given(Given::Events { next, frames, .. }) => {
                    match self.given(next, &frames) {
                        Some(messages) if messages.is_empty() => {}
                        Some(messages) => {
                            return Some(Batches {
                                messages,
                                next,
                                after,
                            });
                        }
                        None => self.out = Some(Out::Wrong),
                    }
                }
                Outcome::Given(Given::Refused(Refusal::NoMore, _)) => {
                    if self.goes_back(since_unix_ns) {
                        continue;
                    }
                }
                // Rights that were shown to it a moment ago may not have come there yet.
                Outcome::Given(Given::Refused(Refusal::NoRight, _)) => self.has_none = true,
                Outcome::Lost
                | Outcome::Given(Given::Refused(Refusal::Full | Refusal::Failed, _)) => {}
                Outcome::Given(Given::Refused(Refusal::NotKept | Refusal::OtherLog, _)) => {
                    self.out = Some(Out::HasNone);
                }
            }
            sleep(self.pause).await;
            self.pause = (self.pause * 2).min(AGAIN_MAX);
        }
        None
    }

    /// Waits for what it answers, now or the next time, to what it was asked when that many events were there.
    async fn answer(&mut self, wanted: Wanted, within: Duration) -> (u64, Outcome) {
        let (node, cursor) = (&self.node, self.cursor);
        let want = match self.how {
            How::Followed => Want::Batches(wanted),
            How::Named => Want::Named(wanted),
        };
        let question = self.question.get_or_insert_with(|| {
            let node = Arc::clone(node);
            Question {
                since: Instant::now(),
                after: wanted.after,
                outcome: async move { node.ask(want, cursor).await }.boxed(),
            }
        });
        let late = question.since + within;
        let outcome = match timeout_at(late, &mut question.outcome).await {
            Ok(outcome) => outcome,
            Err(_) => {
                self.is_late = true;
                (&mut question.outcome).await
            }
        };
        let after = question.after;
        self.question = None;
        // What has come belongs to that answer.
        (self.parts, self.arrived) = (self.node.arrived(), None);
        (after, outcome)
    }

    /// What it gave; without batches it is asked further on, or there again. None where that has not its form.
    fn given(&mut self, next: u64, frames: &Bytes) -> Option<Vec<Bytes>> {
        let messages = parse_batches(frames)?;
        let further = match self.cursor {
            Cursor::Offset(from) if next < from => return None,
            Cursor::Offset(from) => next > from,
            _ => true,
        };
        if messages.is_empty() {
            (self.cursor, self.went_on) = (Cursor::Offset(next), Some(Instant::now()));
            self.has_none = false;
        }
        if further {
            self.pause = FURTHER;
        }
        Some(messages)
    }

    /// It has no more from there on: whether it is asked from an earlier place on now.
    fn goes_back(&mut self, since_unix_ns: u64) -> bool {
        if self.how == How::Named {
            // It knows where to look, and may get them yet.
            (self.has_none, self.cursor) = (true, Cursor::Start);
            self.pause = self.pause.max(AGAIN);
            return false;
        }
        if !self.has_given && self.earlier < EARLIER_NS.len() {
            self.earlier += 1;
            self.cursor = match EARLIER_NS.get(self.earlier) {
                Some(ns) => Cursor::Time(since_unix_ns.saturating_sub(*ns)),
                None => Cursor::Start,
            };
            return true;
        }
        // It may get them yet, as this node may: at its log's end.
        self.has_none = true;
        if !self.has_given {
            let now_unix_ns = virga_state::io::clock::now_unix_ns();
            self.cursor = Cursor::Time(now_unix_ns.saturating_sub(EARLIER_NS[0]));
        }
        self.pause = self.pause.max(AGAIN);
        false
    }
}
