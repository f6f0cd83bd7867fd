//! How long messages of one channel stay in each stage of their way through this node, while somebody asks.
//!
//! Each worker's node has a [`Flow`] while that is so, and an empty place for it otherwise. What is timed is told
//! over one bounded queue to whoever asked ([`Noted`]): nothing is allocated, no lock is taken, and what finds no
//! room there is not timed. Of each stage a worker notes one time an interval at most.

use crate::{
    io::{clock::Clock, driver::Stamp},
    name::ChannelName,
};
use crossbeam_channel::{Receiver, Sender, bounded};
use virga_ebpf::header::{SessionId, StreamId};

/// Times that wait to be read.
const NOTES_MAX: usize = 4_096;
/// Packets that wait for others before them, and are timed.
const EARLY_MAX: usize = 32;
/// Longer than packets wait for a worker that runs: where the kernel's stamp is older, the clock was set meanwhile.
const WAITED_NS_MAX: u64 = 10_000_000_000;

/// A part of a message's way through a node; first those of what is published, then those of what arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Read from the program that publishes, until the batch is handed to the worker.
    Accept,
    /// The batch waits for the worker.
    HandOver,
    /// The worker has it, until every subscriber's stream has all of it.
    Admit,
    /// The message is in a stream's queue, until its last packet is made.
    Queue,
    /// That packet is made and sealed, with others of its run, until the kernel or the NIC's queue has them.
    Send,
    /// From that packet's making until the peer has acknowledged all of the message.
    Acknowledge,
    /// The kernel got a packet, until the worker reads the run of packets that it came with.
    Receive,
    /// A packet was opened, until no byte before its last is missing and the message that this ends in is whole.
    Order,
    /// The run of packets is read from the driver, until the message is opened and told to the channels' service.
    Open,
    /// A signed batch is taken apart; its signature is not verified here.
    Check,
    /// It waits for the connection of the program that subscribed, until that takes it.
    Deliver,
}

impl Stage {
    /// All of them, in the order in which messages pass them.
    pub const ALL: [Self; 11] = [
        Self::Accept,
        Self::HandOver,
        Self::Admit,
        Self::Queue,
        Self::Send,
        Self::Acknowledge,
        Self::Receive,
        Self::Order,
        Self::Open,
        Self::Check,
        Self::Deliver,
    ];
}

/// Why it is not known how long a packet waited until the worker read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Untimed {
    /// It came by AF_XDP, past the kernel's network stack, and its ring says no time.
    Xsk,
    /// It was carried over TCP or WebSocket: the kernel knows when the carrier passed it on.
    Carried,
    /// It was read before, by this worker or another one, and has waited since.
    Earlier,
    /// The kernel did not say when it got it.
    Untold,
    /// The kernel got it in the future, or too long ago: the host's clock was set meanwhile.
    ClockSet,
}

impl Untimed {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Xsk,
        Self::Carried,
        Self::Earlier,
        Self::Untold,
        Self::ClockSet,
    ];
}

/// One time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    /// Of which stage.
    pub stage: Stage,
    /// How long it took, or why that is not known.
    pub ns: Result<u64, Untimed>,
}

/// Where times are told. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Notes {
    to: Sender<Note>,
    clock: Clock,
}

/// What was told.
#[derive(Debug)]
pub struct Noted(Receiver<Note>);

/// A place to tell times at, and where they are read. `clock` is the workers'.
#[must_use]
pub fn notes(clock: Clock) -> (Notes, Noted) {
    let (to, noted) = bounded(NOTES_MAX);
    (Notes { to, clock }, Noted(noted))
}

impl Notes {
    /// Tells a time.
    pub fn note(&self, stage: Stage, ns: u64) {
        self.tell(stage, Ok(ns));
    }

    fn tell(&self, stage: Stage, ns: Result<u64, Untimed>) {
        // What finds no room is not timed, and nobody needs what nobody reads.
        let _not_timed = self.to.try_send(Note { stage, ns });
    }

    /// The time now: that of a turn stands still while the turn goes on.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }
}

impl Noted {
    /// The next one that waits.
    #[must_use]
    pub fn next(&self) -> Option<Note> {
        self.0.try_recv().ok()
    }
}

/// Which messages are timed, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Those of this channel.
    pub channel: ChannelName,
    /// Of what arrives, only this entity's.
    pub entity: Option<[u8; 32]>,
    /// Whether what is published here is meant.
    pub is_own: bool,
    /// Between two times of one stage.
    pub interval_ns: u64,
}

/// A packet that came before others which were sent before it, or without the rest of its last message.
#[derive(Clone, Copy, Debug)]
struct Early {
    session: SessionId,
    stream: StreamId,
    /// Where its bytes end in the stream.
    end: u64,
    since_ns: u64,
}

/// One worker's part, to be given to its node.
#[derive(Debug)]
pub struct Flow {
    wanted: Wanted,
    notes: Notes,
    /// Before this, a stage's times are passed over.
    next_ns: [u64; Stage::ALL.len()],
    /// When the first packet was made that the driver has not taken.
    made_ns: Option<u64>,
    early: [Option<Early>; EARLY_MAX],
    /// How long the run of packets that is taken in now has waited to be read.
    waited: Result<u64, Untimed>,
}

/// How long a run of packets has waited that is read at `unix_ns`, by the clock that stamps are of.
pub(crate) fn waited(stamp: Stamp, unix_ns: u64) -> Result<u64, Untimed> {
    match stamp {
        Stamp::At(stamp_ns) => {
            let waited_ns = unix_ns.checked_sub(stamp_ns);
            let sane = waited_ns.filter(|ns| *ns <= WAITED_NS_MAX);
            sane.ok_or(Untimed::ClockSet)
        }
        Stamp::Untold => Err(Untimed::Untold),
        Stamp::Bypassed => Err(Untimed::Xsk),
    }
}

impl Flow {
    /// Nothing is on its way yet.
    #[must_use]
    pub fn new(wanted: Wanted, notes: Notes) -> Self {
        Self {
            wanted,
            notes,
            next_ns: [0; Stage::ALL.len()],
            made_ns: None,
            early: [None; EARLY_MAX],
            waited: Err(Untimed::Earlier),
        }
    }

    /// Where its times are told.
    #[must_use]
    pub const fn notes(&self) -> &Notes {
        &self.notes
    }

    /// Whether what this node publishes on a channel is meant.
    #[must_use]
    pub fn is_sent(&self, channel: &ChannelName) -> bool {
        self.wanted.is_own && self.wanted.channel == *channel
    }

    /// Whether what an entity has published on a channel is meant.
    #[must_use]
    pub fn is_heard(&self, channel: &ChannelName, entity: &[u8; 32]) -> bool {
        self.wanted.channel == *channel && self.wanted.entity.is_none_or(|only| only == *entity)
    }

    /// Whether one more time of a stage may be taken now.
    pub fn admits(&mut self, stage: Stage, now_ns: u64) -> bool {
        let next_ns = &mut self.next_ns[stage as usize];
        let is_due = now_ns >= *next_ns;
        if is_due {
            *next_ns = now_ns.saturating_add(self.wanted.interval_ns);
        }
        is_due
    }

    fn note(&mut self, stage: Stage, now_ns: u64, since_ns: u64) {
        if self.admits(stage, now_ns) {
            self.notes.note(stage, now_ns.saturating_sub(since_ns));
        }
    }

    /// All of a message is in packets now, which was queued at `since_ns`.
    pub(crate) fn sent(&mut self, channel: &ChannelName, now_ns: u64, since_ns: u64) {
        if self.is_sent(channel) {
            self.note(Stage::Queue, now_ns, since_ns);
            self.made_ns.get_or_insert(now_ns);
        }
    }

    /// The driver has given all that it had to whatever sends it.
    pub(crate) fn flushed(&mut self) {
        if let Some(made_ns) = self.made_ns.take() {
            let now_ns = self.notes.now_ns();
            self.note(Stage::Send, now_ns, made_ns);
        }
    }

    /// What comes from now on is of a run of packets that has waited so long to be read.
    pub(crate) fn set_waited(&mut self, waited: Result<u64, Untimed>) {
        self.waited = waited;
    }

    /// A message is told of that is whole with the packets that are taken in now.
    pub fn received(&self) {
        self.notes.tell(Stage::Receive, self.waited);
    }

    /// The peer has all of a message, whose last packet was made at `sent_ns`.
    pub(crate) fn acknowledged(&mut self, channel: &ChannelName, now_ns: u64, sent_ns: u64) {
        if self.is_sent(channel) {
            self.note(Stage::Acknowledge, now_ns, sent_ns);
        }
    }

    /// A packet's bytes up to `end` of a stream were taken in; up to `base` its messages are whole by now.
    pub(crate) fn came(
        &mut self,
        now_ns: u64,
        (session, stream): (SessionId, StreamId),
        (end, base): (u64, u64),
    ) {
        let mut waited_ns = None;
        for place in &mut self.early {
            let is_over =
                |e: &mut Early| e.session == session && e.stream == stream && e.end <= base;
            if let Some(early) = place.take_if(is_over) {
                let oldest_ns = waited_ns.get_or_insert(early.since_ns);
                *oldest_ns = early.since_ns.min(*oldest_ns);
            }
        }
        if end > base {
            self.wait(Early {
                session,
                stream,
                end,
                since_ns: now_ns,
            });
        } else {
            waited_ns.get_or_insert(now_ns);
        }
        if let Some(since_ns) = waited_ns {
            self.note(Stage::Order, now_ns, since_ns);
        }
    }

    /// Where there is no room, the one that waits for longest is not timed: its stream may be over.
    fn wait(&mut self, early: Early) {
        let since = |place: &&mut Option<Early>| place.map_or(0, |early| early.since_ns);
        if let Some(place) = self.early.iter_mut().min_by_key(since) {
            *place = Some(early);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(interval_ns: u64) -> (Flow, Noted) {
        let (notes, noted) = notes(Clock::start());
        let wanted = Wanted {
            channel: ChannelName::parse("a/b").unwrap(),
            entity: Some([7; 32]),
            is_own: true,
            interval_ns,
        };
        (Flow::new(wanted, notes), noted)
    }

    fn told(noted: &Noted) -> Vec<(Stage, u64)> {
        std::iter::from_fn(|| noted.next())
            .map(|note| (note.stage, note.ns.unwrap()))
            .collect()
    }

    const STREAM: (SessionId, StreamId) = (SessionId(1), StreamId(2));
    const OTHER: (SessionId, StreamId) = (SessionId(1), StreamId(4));

    #[test]
    fn only_the_flow_that_is_asked_for_is_meant() {
        let (mut flow, noted) = flow(0);
        let (own, other) = (
            ChannelName::parse("a/b").unwrap(),
            ChannelName::parse("a/c").unwrap(),
        );
        assert!(flow.is_heard(&own, &[7; 32]));
        assert!(!flow.is_heard(&own, &[8; 32]) && !flow.is_heard(&other, &[7; 32]));
        flow.sent(&other, 9, 2);
        flow.acknowledged(&other, 9, 2);
        flow.flushed();
        assert_eq!(told(&noted), []);
        flow.sent(&own, 9, 2);
        flow.acknowledged(&own, 19, 9);
        assert_eq!(told(&noted), [(Stage::Queue, 7), (Stage::Acknowledge, 10)]);
        // The run that it went out with is timed once.
        flow.flushed();
        flow.flushed();
        let sent = told(&noted);
        assert_eq!(sent.len(), 1);
        assert_eq!(sent[0].0, Stage::Send);
        flow.wanted.is_own = false;
        flow.sent(&own, 30, 20);
        assert_eq!(told(&noted), []);
    }

    #[test]
    fn a_packet_waits_until_all_before_it_is_there() {
        let (mut flow, noted) = flow(0);
        flow.came(100, STREAM, (10, 10));
        assert_eq!(told(&noted), [(Stage::Order, 0)]);
        // What is behind a hole waits, whatever comes of another stream.
        flow.came(110, STREAM, (30, 10));
        flow.came(120, STREAM, (40, 10));
        flow.came(130, OTHER, (50, 50));
        assert_eq!(told(&noted), [(Stage::Order, 0)]);
        flow.came(150, STREAM, (20, 40));
        assert_eq!(told(&noted), [(Stage::Order, 40)]);
        flow.came(160, STREAM, (45, 45));
        assert_eq!(told(&noted), [(Stage::Order, 0)]);
        assert!(flow.early.iter().all(Option::is_none));
    }

    #[test]
    fn what_waits_is_bounded_and_the_oldest_gives_way() {
        let (mut flow, noted) = flow(0);
        let bound = EARLY_MAX as u64;
        for n in 1..=bound + 1 {
            flow.came(n, STREAM, (100 + n, 0));
        }
        assert_eq!(flow.early.iter().flatten().count(), EARLY_MAX);
        flow.came(1_000, STREAM, (50, 101));
        assert_eq!(told(&noted), [(Stage::Order, 0)], "the first was forgotten");
        flow.came(1_000, STREAM, (50, 102));
        assert_eq!(told(&noted), [(Stage::Order, 998)]);
    }

    #[test]
    fn a_stage_is_timed_once_an_interval_and_what_nobody_reads_is_bounded() {
        let (mut bounded_rate, noted) = flow(100);
        let due = [0, 99, 100, 150, 200].map(|now| bounded_rate.admits(Stage::Open, now));
        assert_eq!(due, [true, false, true, false, true]);
        assert!(bounded_rate.admits(Stage::Check, 150), "each for itself");
        for _ in 0..2 * NOTES_MAX {
            bounded_rate.notes().note(Stage::Open, 1);
        }
        assert_eq!(told(&noted).len(), NOTES_MAX);
        drop(noted);
        bounded_rate.notes().note(Stage::Open, 1);
    }

    #[test]
    fn a_packets_wait_is_known_while_its_run_is_taken_in_and_never_made_up() {
        let stamp_ns = 1_700_000_000_000_000_000;
        let (stamp, max_ns) = (Stamp::At(stamp_ns), WAITED_NS_MAX);
        assert_eq!(waited(stamp, stamp_ns), Ok(0));
        assert_eq!(waited(stamp, stamp_ns + max_ns), Ok(max_ns));
        for clock_ns in [0, stamp_ns - 1, stamp_ns + max_ns + 1, u64::MAX] {
            assert_eq!(waited(stamp, clock_ns), Err(Untimed::ClockSet));
        }
        assert_eq!(waited(Stamp::Untold, stamp_ns), Err(Untimed::Untold));
        assert_eq!(waited(Stamp::Bypassed, stamp_ns), Err(Untimed::Xsk));
        let (mut flow, noted) = flow(0);
        flow.received();
        flow.set_waited(Ok(7));
        flow.received();
        flow.set_waited(Err(Untimed::Xsk));
        flow.received();
        for ns in [Err(Untimed::Earlier), Ok(7), Err(Untimed::Xsk)] {
            let stage = Stage::Receive;
            assert_eq!(noted.next(), Some(Note { stage, ns }));
        }
    }

    #[test]
    fn each_stage_has_its_place() {
        for (place, stage) in Stage::ALL.into_iter().enumerate() {
            assert_eq!(stage as usize, place);
        }
    }
}
