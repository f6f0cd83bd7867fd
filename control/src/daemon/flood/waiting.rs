//! Whoever presented a token waits until the neighbours have it.

use crate::admissions::{EvidenceId, Verdict};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};
use tokio::{sync::oneshot, time::Instant};
use virga_ebpf::header::NodeId;

/// How long neighbours get to answer.
pub const PRESENT_WAIT: Duration = Duration::from_secs(1);

/// What a neighbour made of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmation {
    /// The neighbour's name.
    pub peer: String,
    /// Whether it has it in its guard: packets pass it from now on.
    pub is_admitted: bool,
    /// The same in words, or why not.
    pub answer: String,
}

/// One who waits.
pub(super) struct Waiting {
    id: EvidenceId,
    reply: Option<oneshot::Sender<Vec<Confirmation>>>,
    until: Instant,
    pending: BTreeMap<NodeId, String>,
    answers: Vec<Confirmation>,
}

impl Waiting {
    /// `neighbours` with their names, and whether there is a session; where nothing is told, none answers.
    pub(super) fn new(
        id: EvidenceId,
        reply: oneshot::Sender<Vec<Confirmation>>,
        is_told: bool,
        neighbours: impl Iterator<Item = (NodeId, String, bool)>,
    ) -> Self {
        let mut waiting = Self {
            id,
            reply: Some(reply),
            until: Instant::now() + PRESENT_WAIT,
            pending: BTreeMap::new(),
            answers: Vec::new(),
        };
        for (node, peer, is_connected) in neighbours.filter(|_| is_told) {
            if is_connected {
                waiting.pending.insert(node, peer);
            } else {
                waiting.answer(peer, None, "is told when there is a session with it");
            }
        }
        waiting
    }

    fn answer(&mut self, peer: String, verdict: Option<Verdict>, words: &str) {
        self.answers.push(Confirmation {
            peer,
            is_admitted: verdict == Some(Verdict::Admitted),
            answer: words.to_owned(),
        });
    }

    /// Until when.
    pub(super) fn until(&self) -> Instant {
        self.until
    }

    /// What a neighbour said of something; nothing, where its session ended.
    pub(super) fn hear(&mut self, from: NodeId, id: Option<EvidenceId>, verdict: Option<Verdict>) {
        if id.is_some_and(|id| id != self.id) {
            return;
        }
        if let Some(peer) = self.pending.remove(&from) {
            let words = verdict.map_or("is told again: its session has ended", Verdict::meaning);
            self.answer(peer, verdict, words);
        }
    }

    /// Whether all have answered, or had their time; then whoever waits has been told.
    pub(super) fn is_over(&mut self, now: Instant) -> bool {
        if now >= self.until {
            for peer in std::mem::take(&mut self.pending).into_values() {
                self.answer(peer, None, "has not answered yet");
            }
        }
        let is_over = self.pending.is_empty();
        if let Some(reply) = self.reply.take_if(|_| is_over) {
            let mut answers = std::mem::take(&mut self.answers);
            answers.sort_by(|a, b| a.peer.cmp(&b.peer));
            // Whoever asked may have given up.
            let _given_up = reply.send(answers);
        }
        is_over
    }
}
