//! How long events of one channel stay in each stage of their way through this node: while somebody asks, on the
//! publishing and on the receiving side.
//!
//! - [`Asked`]: which channel, and for how long.
//! - [`Report`]: what is told of it, stage by stage.
//! - [`run`]: the daemon's side: it has the workers and the API take times, and turns that off when the asker is gone.
//!
//! What takes the times: [`virga_transport::flow`]. All are differences of this host's one monotonic clock, but for
//! those of [`Stage::Receive`], which the kernel's stamps begin, by the clock of the day: what is no time that a packet
//! can have waited is none. Clocks of different hosts are never compared.

pub mod run;

use crate::config::Config;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use virga_transport::{
    flow::{Stage, Untimed},
    times::{Times, TimesSummary},
};

/// Times of each stage that a worker takes a second, where nobody says how many.
pub const RATE: u32 = 200;
/// More cannot be asked for.
pub const RATE_MAX: u32 = 2_000;

/// A request; what is not said is not asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// Events of this channel.
    pub channel: String,
    /// Only what this entity has published: a name, its key, or what headers call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// Each worker times a stage at most so often a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u32>,
    /// End once a stage has so many times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// End after so long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
}

/// What is known so far; told again and again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Since it began.
    pub elapsed_ms: u64,
    /// Events that programs on this node have published meanwhile.
    pub published: u64,
    /// Times that one of them was queued for another node.
    pub sent: u64,
    /// Events that have come from other nodes.
    pub received: u64,
    /// Stages of what is published here, in order.
    pub publishing: Vec<StageTimes>,
    /// Stages of what arrives.
    pub receiving: Vec<StageTimes>,
    /// What is outside this node: the paths to the nodes that subscribe or publish, as the sessions know them.
    pub paths: Vec<Path>,
    /// Why it is over, once it is.
    pub ended: Option<String>,
}

/// How long one stage takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageTimes {
    /// Its name.
    pub stage: String,
    /// Times that were taken.
    pub count: u64,
    /// Events that passed it and were not timed; none where what passes is not events one by one.
    pub not_timed: Option<u64>,
    /// Why no time was taken of those of them that were looked at, and of how many.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub why_not: BTreeMap<String, u64>,
    /// Half of them were at most this.
    pub p50_ns: u64,
    /// 99 of 100.
    pub p99_ns: u64,
    /// All of them.
    pub max_ns: u64,
}

/// The way to another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Path {
    /// The node's id.
    pub node: String,
    /// Its name, where the configuration here has one.
    pub name: Option<String>,
    /// Smoothed round trip of the session's path.
    pub rtt_us: Option<u64>,
}

/// A stage's name.
#[must_use]
pub const fn name(stage: Stage) -> &'static str {
    match stage {
        Stage::Accept => "accept",
        Stage::HandOver => "hand_over",
        Stage::Admit => "admit",
        Stage::Queue => "queue",
        Stage::Send => "send",
        Stage::Acknowledge => "acknowledge",
        Stage::Receive => "receive",
        Stage::Order => "order",
        Stage::Open => "open",
        Stage::Check => "check",
        Stage::Deliver => "deliver",
    }
}

/// What a stage is, for people.
#[must_use]
pub const fn meaning(stage: Stage) -> &'static str {
    match stage {
        Stage::Accept => "batch read from the program, signed and kept where it is to be, its turn",
        Stage::HandOver => "batch in the worker's queue",
        Stage::Admit => "batch waits until every subscriber's stream has room for it",
        Stage::Queue => "event in the stream's queue, until its packet is made",
        Stage::Send => "packets sealed and given to the kernel or the NIC's queue",
        Stage::Acknowledge => "from that packet's making to the peer's acknowledgement",
        Stage::Receive => "from the kernel's receive timestamp to the worker's read",
        Stage::Order => "packet waits for what was sent before it, or the rest of its event",
        Stage::Open => "batch of packets read from the driver, opened, event told",
        Stage::Check => {
            "a signed batch taken apart; rights were checked as the stream began, signatures are by who reads"
        }
        Stage::Deliver => "event in the program's queue, until its connection takes it",
    }
}

/// What a reason is called for which [`Stage::Receive`] has no time.
#[must_use]
pub const fn reason(why: Untimed) -> &'static str {
    match why {
        Untimed::Xsk => "xsk",
        Untimed::Carried => "carried",
        Untimed::Earlier => "earlier",
        Untimed::Untold => "untold",
        Untimed::ClockSet => "clock_set",
    }
}

/// What it is, for people; after "not timed".
#[must_use]
pub const fn explanation(why: Untimed) -> &'static str {
    match why {
        Untimed::Xsk => "on xsk: its rings say no time of arrival",
        Untimed::Carried => "over TCP or WebSocket: its bytes came to the kernel as a stream",
        Untimed::Earlier => "after an earlier read, or another worker's: it has waited since",
        Untimed::Untold => "where the kernel does not say when it came",
        Untimed::ClockSet => "as the host's clock was set meanwhile",
    }
}

/// The stages of what is published; the others are of what arrives.
const fn is_publishing(stage: Stage) -> bool {
    (stage as usize) <= Stage::Acknowledge as usize
}

impl Asked {
    /// Between two times of a stage at one worker.
    fn interval_ns(&self) -> Result<u64, String> {
        let rate = self.rate.unwrap_or(RATE);
        match (1..=RATE_MAX).contains(&rate) {
            true => Ok(1_000_000_000 / u64::from(rate)),
            false => Err(format!(
                "a rate of {rate} times a second: from 1 to {RATE_MAX} can be had"
            )),
        }
    }

    /// The key of the entity that is meant.
    fn entity(&self, config: &Config) -> Result<Option<[u8; 32]>, String> {
        let Some(text) = &self.origin else {
            return Ok(None);
        };
        let origin = crate::capture::asked::origin(text, config)?;
        let peers = config.peers.iter().flat_map(|peer| &peer.entities);
        let mut known = config
            .entities
            .iter()
            .map(|named| &named.entity.key)
            .chain(peers);
        let found = known.find(|key| virga_ebpf::hash::origin_hash(key) == origin);
        found.copied().map(Some).ok_or_else(|| {
            format!("{text:?} is no entity of this node or of a peer: nothing of it arrives")
        })
    }
}

/// Times of all stages so far.
#[derive(Debug, Default)]
struct Histograms {
    times: [Times; Stage::ALL.len()],
    /// Packets that were received when nobody knows.
    untimed: BTreeMap<Untimed, u64>,
}

impl Histograms {
    fn record(&mut self, stage: Stage, ns: u64) {
        self.times[stage as usize].record(ns);
    }

    /// When a packet was received is not known.
    fn pass_over(&mut self, why: Untimed) {
        *self.untimed.entry(why).or_default() += 1;
    }

    fn summary(&self, stage: Stage) -> TimesSummary {
        self.times[stage as usize].summary()
    }

    fn why_not(&self, stage: Stage) -> BTreeMap<String, u64> {
        if stage != Stage::Receive {
            return BTreeMap::new();
        }
        let untimed = self.untimed.iter();
        let named = untimed.map(|(why, count)| (reason(*why).to_owned(), *count));
        named.collect()
    }

    /// Times of the stage that has most.
    fn most(&self) -> u64 {
        let counts = Stage::ALL.into_iter().map(|s| self.summary(s).count);
        counts.max().unwrap_or(0)
    }

    /// Brings a report's stages up to date with the times, and with its own totals.
    fn tell(&self, report: &mut Report) {
        let (sent, received) = (report.sent, report.received);
        let row = |stage: &Stage| {
            let summary = self.summary(*stage);
            let passed = match stage {
                Stage::Queue => Some(sent),
                Stage::Receive | Stage::Open | Stage::Check => Some(received),
                _ => None,
            };
            StageTimes {
                stage: name(*stage).to_owned(),
                count: summary.count,
                not_timed: passed.map(|passed| passed.saturating_sub(summary.count)),
                why_not: self.why_not(*stage),
                p50_ns: summary.p50_ns,
                p99_ns: summary.p99_ns,
                max_ns: summary.max_ns,
            }
        };
        let of = |publishing| {
            let stages = Stage::ALL.iter();
            let wanted = stages.filter(|stage| is_publishing(**stage) == publishing);
            wanted.map(row).collect()
        };
        (report.publishing, report.receiving) = (of(true), of(false));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_each_stage_once_in_order_and_counts_what_was_not_timed() {
        let mut times = Histograms::default();
        for _ in 0..3 {
            times.record(Stage::Queue, 5_000);
            times.record(Stage::Deliver, 7_000);
        }
        times.record(Stage::Open, 1_000);
        assert_eq!(times.most(), 3);
        let mut report = Report {
            sent: 10,
            received: 5,
            ..Report::default()
        };
        times.tell(&mut report);
        let names = |stages: &[StageTimes]| -> Vec<String> {
            stages.iter().map(|one| one.stage.clone()).collect()
        };
        let all = [names(&report.publishing), names(&report.receiving)].concat();
        assert_eq!(all, Stage::ALL.map(name));
        assert_eq!(report.publishing.len(), 6);
        let queue = &report.publishing[3];
        assert_eq!((queue.count, queue.not_timed), (3, Some(7)));
        assert!(queue.p50_ns.abs_diff(5_000) < 100 && queue.max_ns >= queue.p99_ns);
        let open = &report.receiving[2];
        assert_eq!((open.count, open.not_timed), (1, Some(4)));
        assert_eq!(report.receiving[4].not_timed, None);
    }

    #[test]
    fn what_was_received_when_nobody_knows_is_counted_by_reason_and_has_no_time() {
        let mut times = Histograms::default();
        times.record(Stage::Receive, 3_000);
        for why in Untimed::ALL {
            times.pass_over(why);
        }
        times.pass_over(Untimed::Xsk);
        let mut report = Report {
            received: 9,
            ..Report::default()
        };
        times.tell(&mut report);
        let receive = &report.receiving[0];
        assert_eq!((&*receive.stage, receive.count), ("receive", 1));
        assert_eq!(receive.not_timed, Some(8));
        let expected =
            Untimed::ALL.map(|why| (reason(why).to_owned(), 1 + u64::from(why == Untimed::Xsk)));
        assert_eq!(receive.why_not, BTreeMap::from(expected));
        assert!(receive.max_ns < 3_100, "{receive:?}");
        let others = report.publishing.iter().chain(&report.receiving[1..]);
        assert!(others.map(|one| &one.why_not).all(BTreeMap::is_empty));
    }

    #[test]
    fn a_rate_has_its_bounds() {
        let asked = |rate| Asked {
            rate,
            ..Asked::default()
        };
        assert_eq!(asked(None).interval_ns(), Ok(5_000_000));
        assert_eq!(asked(Some(RATE_MAX)).interval_ns(), Ok(500_000));
        assert!(asked(Some(0)).interval_ns().is_err());
        assert!(asked(Some(RATE_MAX + 1)).interval_ns().is_err());
    }
}
