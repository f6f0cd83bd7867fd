//! Channels whose log is on several nodes: what is published there is submitted to the replica that leads, and
//! given to subscribers once as many replicas have it as the channel's block asks for.

use super::Dispatch;
use crate::{
    channel::{Command, PublishError},
    replicas::{
        Group, Outcome,
        wire::{Answer, EVENTS_BYTES_MAX, Kind, Part, Submission, split},
    },
};
use bytes::Bytes;
use std::{sync::PoisonError, time::Duration};
use tokio::time::{Instant, sleep_until, timeout_at};
use virga_ebpf::header::NodeId;
use virga_transport::{ChannelName, limits::MESSAGE_BYTES_MAX};

/// How long events wait for the replicas where their publisher does not say: some elections.
const WITHIN: Duration = Duration::from_secs(10);
/// How long it is waited before the next replica is asked.
const NEXT_PAUSE: Duration = Duration::from_millis(50);
/// How long it is waited while the one that leads has no room.
const FULL_PAUSE: Duration = Duration::from_millis(10);

/// Where a submission goes next.
enum Next {
    /// It is kept.
    Done,
    /// To the same replica.
    Same(Duration),
    /// To the one that leads.
    Leader(NodeId),
    /// To any other.
    Other,
}

impl Dispatch {
    /// Whether a channel's log is on several nodes; then its replicas have the events when this returns.
    ///
    /// # Errors
    /// [`PublishError::NotKept`]: they have none of them; [`PublishError::Unconfirmed`]: they may have them.
    pub(super) async fn keep(
        &self,
        (channel, within): (&ChannelName, Option<Duration>),
        events: &[Bytes],
    ) -> Result<bool, PublishError> {
        let Some(group) = self.replicas.group(channel) else {
            return Ok(false);
        };
        if events.is_empty() {
            return Ok(true);
        }
        self.may_publish(channel).await?;
        let until = Instant::now() + within.unwrap_or(WITHIN);
        let mut is_any_kept = false;
        for events in chunks(events) {
            let submission = Submission {
                group: group.hash,
                acks: group.acks,
                events,
            };
            let message = submission.encode();
            let kept = async {
                self.keep_pace(channel, message.len(), until).await?;
                self.submit(channel, group, &message, until).await
            };
            kept.await.map_err(|error| match error {
                PublishError::NotKept(name, why) if is_any_kept => {
                    let why = format!("not all of the events are kept: {why}");
                    PublishError::Unconfirmed(name, why)
                }
                error => error,
            })?;
            is_any_kept = true;
        }
        Ok(true)
    }

    /// Waits until the channel's rate lets so much go.
    async fn keep_pace(
        &self,
        channel: &ChannelName,
        bytes: usize,
        until: Instant,
    ) -> Result<(), PublishError> {
        let Some(rate) = self.presence.max_rate_pps(channel) else {
            return Ok(());
        };
        loop {
            let wait_ns = {
                let submitted = self.submitted.lock();
                let mut submitted = submitted.unwrap_or_else(PoisonError::into_inner);
                let rated = submitted.entry(channel.clone()).or_default();
                let now_ns = self.clock.now_ns();
                let wait_ns = rated.wait_ns(now_ns);
                if wait_ns == 0 {
                    rated.note(now_ns, bytes, rate);
                    return Ok(());
                }
                wait_ns
            };
            let again = Instant::now() + Duration::from_nanos(wait_ns);
            if again >= until {
                let why =
                    format!("the channel's max_rate_pps of {rate} does not let them go in time");
                return Err(PublishError::NotKept(channel.clone(), why));
            }
            sleep_until(again).await;
        }
    }

    async fn submit(
        &self,
        channel: &ChannelName,
        group: &Group,
        message: &[u8],
        until: Instant,
    ) -> Result<(), PublishError> {
        let mut place = 0;
        let mut target = self.replicas.leader(channel);
        let mut why = "there is no session with any of them".to_owned();
        loop {
            let replica = target.unwrap_or_else(|| group.nodes[place % group.nodes.len()].node);
            let outcome = self.ask((channel, group), replica, message, until).await;
            let next = outcome.and_then(|outcome| judge(outcome, group, replica, &mut why));
            let next = next.map_err(|error| {
                // Whoever leads now answers, and knows.
                self.replicas.set_leader(channel, None);
                error.of(channel)
            })?;
            let pause = match next {
                Next::Done => {
                    self.replicas.set_leader(channel, Some(replica));
                    return Ok(());
                }
                Next::Same(pause) => pause,
                Next::Leader(leader) => {
                    target = Some(leader);
                    NEXT_PAUSE
                }
                Next::Other => {
                    target = None;
                    place += 1;
                    NEXT_PAUSE
                }
            };
            let again = Instant::now() + pause;
            if again >= until {
                return Err(PublishError::NotKept(channel.clone(), why));
            }
            sleep_until(again).await;
        }
    }

    /// What a replica answers.
    async fn ask(
        &self,
        (channel, group): (&ChannelName, &Group),
        replica: NodeId,
        message: &[u8],
        until: Instant,
    ) -> Result<Outcome, Failed> {
        let mut question = self.replicas.ask(channel, replica);
        let number = question.number;
        let parts = split(Kind::Submission, channel, number, message);
        if !self.send_parts(replica, parts) {
            return Ok(Outcome::Unsent);
        }
        match timeout_at(until, &mut question.outcome).await {
            Ok(Ok(outcome)) => Ok(outcome),
            // The question is held here: somebody answers it, or nobody does.
            Ok(Err(_)) => Ok(Outcome::Lost),
            Err(_) => Err(Failed::Unknown(format!(
                "no answer came from {} in time",
                group.name(replica)
            ))),
        }
    }

    /// Says something about a log to a node; whether the worker, or this node's logs, took it.
    pub fn send_parts(&self, to: NodeId, parts: Vec<Part>) -> bool {
        if to == self.replicas.own() {
            return parts.into_iter().all(|part| self.replicas.hear_own(part));
        }
        let Some(commander) = self.commanders.get(self.worker_of(to)) else {
            return false;
        };
        commander
            .command(Command::Replicate { peer: to, parts })
            .is_ok()
    }
}

/// Why a submission is given up.
enum Failed {
    /// Nothing was appended.
    Refused(String),
    /// It may have been.
    Unknown(String),
}

impl Failed {
    fn of(self, channel: &ChannelName) -> PublishError {
        match self {
            Self::Refused(why) => PublishError::NotKept(channel.clone(), why),
            Self::Unknown(why) => PublishError::Unconfirmed(channel.clone(), why),
        }
    }
}

fn judge(
    outcome: Outcome,
    group: &Group,
    replica: NodeId,
    why: &mut String,
) -> Result<Next, Failed> {
    let name = group.name(replica);
    let answer = match outcome {
        Outcome::Answered(answer) => answer,
        Outcome::Unsent => return Ok(Next::Other),
        Outcome::Lost => {
            let what = format!("{name} had them when it ended, or another began to lead");
            return Err(Failed::Unknown(what));
        }
    };
    match answer {
        Answer::Kept => Ok(Next::Done),
        Answer::Follows(Some(leader)) if leader != replica && group.has(leader) => {
            *why = format!("{} leads and cannot be reached", group.name(leader));
            Ok(Next::Leader(leader))
        }
        Answer::Follows(_) => {
            "none of those that can be reached leads: more than half of them have to run and hear each other"
                .clone_into(why);
            Ok(Next::Other)
        }
        Answer::Full => {
            *why = format!("{name} leads and has no room");
            Ok(Next::Same(FULL_PAUSE))
        }
        Answer::Unknown => {
            let what = format!("{name} had them when it ceased to lead");
            Err(Failed::Unknown(what))
        }
        Answer::OtherGroup => Err(Failed::Refused(format!(
            "{name} has another list of replicas: give the channel the same `replicas` on all nodes"
        ))),
        Answer::Refused(words) => Err(Failed::Refused(format!("{name} refuses: {words}"))),
    }
}

/// As many events at a time as one submission has room for; those that no channel carries are left out, and
/// refused where they would be sent.
fn chunks(events: &[Bytes]) -> Vec<Vec<Bytes>> {
    let mut chunks: Vec<Vec<Bytes>> = Vec::new();
    let mut bytes = 0;
    for event in events.iter().filter(|e| e.len() <= MESSAGE_BYTES_MAX) {
        let needed = 4 + event.len();
        match chunks
            .last_mut()
            .filter(|_| bytes + needed <= EVENTS_BYTES_MAX)
        {
            Some(chunk) => chunk.push(event.clone()),
            None => {
                chunks.push(vec![event.clone()]);
                bytes = 0;
            }
        }
        bytes += needed;
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_have_all_events_in_order_and_fit() {
        let sizes = [1, 900_000, 600_000, 2_000_000, 0, 1_048_576, 500_000];
        let events: Vec<Bytes> = sizes.map(|size| Bytes::from(vec![1; size])).to_vec();
        let chunks = chunks(&events);
        let sizes = |chunk: &Vec<Bytes>| chunk.iter().map(Bytes::len).collect::<Vec<_>>();
        let all: Vec<usize> = chunks.iter().flat_map(sizes).collect();
        assert_eq!(all, [1, 900_000, 600_000, 0, 1_048_576, 500_000]);
        for chunk in &chunks {
            let bytes: usize = chunk.iter().map(|event| 4 + event.len()).sum();
            assert!(bytes <= EVENTS_BYTES_MAX);
        }
    }
}
