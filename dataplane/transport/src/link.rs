//! Whether the link to a neighbour carries packets, in both directions: a light keepalive inside the session,
//! sent straight to the neighbour (the asynchronous mode of BFD, RFC 5880, with the session's AEAD for its
//! authentication).
//!
//! ```text
//!  unknown ── frames in a row, and the neighbour says that it hears this node ──► up
//!  up ── nothing heard in the time allowed, in which this worker ran ──► silent
//!  up ── the neighbour says that it does not hear this node ──► one way
//!  silent, one way ── frames in a row, the more the more often it fell, and the neighbour hears ──► up
//!  up ── the session ends, or begins anew: the neighbour stops or starts ──► unknown
//! ```
//!
//! Silence counts only while this worker ran: what it was not there to hear is nobody's fault. A neighbour
//! that is overdue is asked, more often than usual, and answers at once: a link that loses many packets is
//! told from one that loses all.
//!
//! Beside each frame goes an echo ([`virga_ebpf::tables::Echo`]), which the neighbour's NIC path sends back: a link
//! is heard by those, too. As long as they come, `misses` intervals are the time allowed; where only workers answer,
//! it is [`LINK_PATIENCE`] times as long, or twice the longest gap of late: a worker that has no processor is silent.
//! A link that is heard again soon after it was found dead, more than once, is slow and not dead: it is given twice the
//! longest of these silences for a while, up to [`LINK_PATIENCE`] times as long as usual, so that it does not come and go.

use crate::{
    event::{Answers, Heard, LinkState, LinkStatus},
    frame::LinkFrame,
    limits::{
        LINK_GAP_WINDOW_NS, LINK_GAPS, LINK_IN_ROW_MAX, LINK_IN_ROW_MIN, LINK_INTERVAL_NS_MAX,
        LINK_LAPSE_NS_MAX, LINK_LAPSES, LINK_PATIENCE, LINK_PATIENCE_NS_MAX, LINK_POSTPONED_MAX,
        LINK_SEARCH_EVERY_NS, LINK_SEARCHES, LINK_SLACK_NS, LINK_SLOW_NS, LINK_STEADY_NS,
        LINK_UNSPOKEN_NS,
    },
};
use virga_ebpf::header::NodeId;

/// How a node watches its links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) interval_ns: u64,
    pub(crate) misses: u32,
}

/// A link's state has changed.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) state: LinkState,
    /// How long nothing had been heard.
    pub(crate) gap_ns: u64,
}

/// Silences longer than a link is allowed, of one whose neighbour's NIC path answers, that were soon over.
#[derive(Clone, Copy, Debug, Default)]
struct Lapses {
    count: u32,
    longest_ns: u64,
}

/// The link to one neighbour.
#[derive(Debug)]
pub(crate) struct Link {
    terms: Terms,
    state: LinkState,
    since_ns: u64,
    /// When the session began; none without one.
    began_ns: Option<u64>,
    /// The neighbour's, where it speaks the keepalive in this session.
    their_interval_ns: Option<u64>,
    /// Frames in a row have come, and no silence since.
    is_hearing: bool,
    they_hear: bool,
    /// A packet of the session came straight from the neighbour.
    is_direct: bool,
    /// Frames heard without one missing.
    in_row: u32,
    /// How often it fell, less after it stood for a while.
    falls: u32,
    newest: u64,
    /// The first frame of this session: what was lost before it is not known.
    first: u64,
    heard_ns: u64,
    /// How much of the time since then this worker ran, as of `looked_ns`.
    quiet_ns: u64,
    looked_ns: u64,
    postponed: u32,
    /// When an echo came back last, and one through NIC paths alone.
    echoed: Heard,
    /// Echoes that were sent in this session.
    echoes: u64,
    /// The longest gaps of this time window and the last, and when this one began.
    gaps_ns: [u64; 2],
    lapses: [Lapses; 2],
    gaps_from_ns: u64,
    /// When the neighbour is told next.
    send_at_ns: u64,
    sent_ns: u64,
    sent: u64,
    received: u64,
    missed: u64,
    detections: u64,
    gap_ns: u64,
}

impl Link {
    pub(crate) fn new(terms: Terms, now_ns: u64) -> Self {
        Self {
            terms,
            state: LinkState::Unknown,
            since_ns: now_ns,
            began_ns: None,
            their_interval_ns: None,
            is_hearing: false,
            they_hear: false,
            is_direct: false,
            in_row: 0,
            falls: 0,
            newest: 0,
            first: 0,
            heard_ns: now_ns,
            quiet_ns: 0,
            looked_ns: now_ns,
            postponed: 0,
            echoed: Heard::default(),
            echoes: 0,
            gaps_ns: [0; 2],
            lapses: [Lapses::default(); 2],
            gaps_from_ns: now_ns,
            send_at_ns: now_ns,
            sent_ns: 0,
            sent: 0,
            received: 0,
            missed: 0,
            detections: 0,
            gap_ns: 0,
        }
    }

    /// Both ends go by the slower one's interval.
    fn interval_ns(&self) -> u64 {
        self.terms
            .interval_ns
            .max(self.their_interval_ns.unwrap_or(0))
    }

    /// The same as [`Answers`]: echoes through NIC paths come as long as anything does.
    fn answers(&self) -> Answers {
        let nic_ns = self.echoed.nic_ns;
        let behind_ns = self.heard_ns.saturating_sub(nic_ns);
        match nic_ns != 0 && behind_ns <= 2 * self.interval_ns() {
            true => Answers::Nic,
            false => Answers::Worker,
        }
    }

    fn least_ns(&self) -> u64 {
        self.interval_ns() * u64::from(self.terms.misses)
    }

    /// What a link that comes and goes is allowed.
    fn lapsed_ns(&self) -> u64 {
        let [now, before] = self.lapses;
        let longest_ns = now.longest_ns.max(before.longest_ns);
        match now.count.saturating_add(before.count) >= LINK_LAPSES {
            true => (longest_ns * LINK_GAPS).min(self.least_ns().saturating_mul(LINK_PATIENCE)),
            false => 0,
        }
    }

    fn detect_ns(&self) -> u64 {
        let least_ns = self.least_ns();
        match self.answers() {
            Answers::Nic => least_ns.max(self.lapsed_ns()),
            Answers::Worker => {
                let gap_ns = self.gaps_ns[0].max(self.gaps_ns[1]);
                let patience_ns = least_ns.saturating_mul(LINK_PATIENCE);
                let most_ns = LINK_PATIENCE_NS_MAX.max(patience_ns);
                patience_ns
                    .max(gap_ns.saturating_mul(LINK_GAPS))
                    .min(most_ns)
            }
        }
    }

    /// Quiet for so long, a neighbour is asked: its frames come at most an interval apart.
    fn overdue_ns(&self) -> u64 {
        self.interval_ns() * 3 / 2
    }

    fn is_overdue(&self) -> bool {
        self.is_hearing && self.quiet_ns >= self.overdue_ns()
    }

    const fn is_fallen(&self) -> bool {
        matches!(self.state, LinkState::Silent | LinkState::OneWay)
    }

    /// Frames in a row before the neighbour counts as heard.
    fn wanted(&self) -> u32 {
        LINK_IN_ROW_MIN
            .saturating_mul(1 << self.falls.min(8))
            .min(LINK_IN_ROW_MAX)
    }

    /// A session with the neighbour begins.
    pub(crate) fn begin(&mut self, now_ns: u64) -> Option<Change> {
        self.began_ns = Some(now_ns);
        self.their_interval_ns = None;
        (self.is_hearing, self.they_hear, self.is_direct) = (false, false, false);
        (self.in_row, self.newest, self.sent, self.echoes) = (0, 0, 0, 0);
        self.send_at_ns = now_ns;
        self.hear(now_ns, self.answers());
        self.forget(now_ns)
    }

    /// The session is over.
    pub(crate) fn end(&mut self, now_ns: u64) -> Option<Change> {
        self.began_ns = None;
        self.is_hearing = false;
        self.forget(now_ns)
    }

    /// Without a session there is no judging: what was up is as if it had never been watched.
    fn forget(&mut self, now_ns: u64) -> Option<Change> {
        (self.state == LinkState::Up).then(|| self.change(now_ns, LinkState::Unknown))
    }

    fn change(&mut self, now_ns: u64, state: LinkState) -> Change {
        (self.state, self.since_ns) = (state, now_ns);
        Change {
            state,
            gap_ns: now_ns.saturating_sub(self.heard_ns),
        }
    }

    fn fall(&mut self, now_ns: u64, state: LinkState) -> Change {
        let stood_ns = now_ns.saturating_sub(self.since_ns);
        self.falls = match stood_ns >= LINK_STEADY_NS {
            true => 0,
            false => self.falls.saturating_add(1),
        };
        self.detections += 1;
        // The neighbour is told at once.
        self.send_at_ns = now_ns;
        let change = self.change(now_ns, state);
        self.gap_ns = change.gap_ns;
        change
    }

    /// `answers`: what had answered until then.
    fn hear(&mut self, now_ns: u64, answers: Answers) {
        let gap_ns = self.quiet_ns + now_ns.saturating_sub(self.looked_ns);
        self.note_gap(now_ns, gap_ns, answers);
        (self.heard_ns, self.looked_ns) = (now_ns, now_ns);
        (self.quiet_ns, self.postponed) = (0, 0);
    }

    /// Remembers how long a link was quiet before it was heard again.
    fn note_gap(&mut self, now_ns: u64, gap_ns: u64, answers: Answers) {
        if now_ns.saturating_sub(self.gaps_from_ns) >= LINK_GAP_WINDOW_NS {
            (self.gaps_from_ns, self.gaps_ns) = (now_ns, [0, self.gaps_ns[0]]);
            self.lapses = [Lapses::default(), self.lapses[0]];
        }
        if self.state == LinkState::Up {
            self.gaps_ns[0] = self.gaps_ns[0].max(gap_ns);
        }
        let is_watched = self.state == LinkState::Up || self.is_fallen();
        // What this worker slept through is no lapse of the neighbour's.
        let was_judged = self.quiet_ns >= self.least_ns() || self.is_fallen();
        let is_lapse = (self.least_ns()..LINK_LAPSE_NS_MAX).contains(&gap_ns) && was_judged;
        if is_watched && is_lapse && answers == Answers::Nic {
            let lapses = &mut self.lapses[0];
            lapses.count = lapses.count.saturating_add(1);
            lapses.longest_ns = lapses.longest_ns.max(gap_ns);
        }
    }

    /// Echoes came back by then.
    pub(crate) fn on_echo(&mut self, heard: Heard) {
        let answers = self.answers();
        let last_ns = heard.nic_ns.max(heard.worker_ns);
        let is_new = last_ns > self.echoed.nic_ns.max(self.echoed.worker_ns);
        self.echoed.nic_ns = self.echoed.nic_ns.max(heard.nic_ns);
        self.echoed.worker_ns = self.echoed.worker_ns.max(heard.worker_ns);
        if is_new && last_ns > self.heard_ns {
            let looked_ns = self.looked_ns;
            self.hear(last_ns, answers);
            self.looked_ns = last_ns.max(looked_ns);
            self.quiet_ns = looked_ns.saturating_sub(last_ns);
        }
    }

    /// The number of the next echo; none to a neighbour that does not speak the keepalive.
    pub(crate) fn take_echo(&mut self) -> Option<u64> {
        self.their_interval_ns?;
        self.echoes += 1;
        Some(self.echoes)
    }

    /// Number of the newest echo.
    pub(crate) const fn echoes(&self) -> u64 {
        self.echoes
    }

    /// Of a link that is dead: how long nothing had been heard.
    pub(crate) fn fallen_gap_ns(&self) -> Option<u64> {
        self.is_fallen().then_some(self.gap_ns)
    }

    /// Whether an echo came back so lately that packets pass both ways, whatever else is said.
    fn is_echoed(&self, now_ns: u64) -> bool {
        let last_ns = self.echoed.nic_ns.max(self.echoed.worker_ns);
        last_ns != 0 && now_ns.saturating_sub(last_ns) < self.overdue_ns()
    }

    /// Any packet that the session opened came straight from the neighbour.
    pub(crate) fn on_packet(&mut self, now_ns: u64) {
        self.is_direct = true;
        self.hear(now_ns, self.answers());
    }

    /// A frame of the neighbour's came straight from it.
    pub(crate) fn on_frame(&mut self, now_ns: u64, heard: LinkFrame) -> Option<Change> {
        self.on_packet(now_ns);
        if heard.number <= self.newest {
            // Overtaken: what it says is old, and it was counted as missed. A session opens no packet twice.
            if heard.number > self.first {
                self.missed = self.missed.saturating_sub(1);
                self.received += 1;
            }
            return None;
        }
        let between = heard.number - self.newest - 1;
        let is_first = self.their_interval_ns.is_none();
        if is_first {
            self.first = heard.number;
        }
        self.missed = self
            .missed
            .saturating_add(if is_first { 0 } else { between });
        self.received += 1;
        let is_next = between == 0 && !is_first;
        self.in_row = if is_next {
            self.in_row.saturating_add(1)
        } else {
            1
        };
        self.newest = heard.number;
        let interval_ns = heard.interval_us.saturating_mul(1_000);
        self.their_interval_ns = Some(interval_ns.min(LINK_INTERVAL_NS_MAX));
        self.they_hear = heard.hears;
        if is_first {
            self.send_at_ns = now_ns;
        }
        if heard.asks {
            // Not more often than a neighbour has reason to ask.
            self.send_at_ns = now_ns.max(self.sent_ns + self.interval_ns() / 8);
        }
        self.is_hearing |= self.in_row >= self.wanted();
        match (self.state, self.is_hearing && heard.hears) {
            (LinkState::Up, false) if self.is_echoed(now_ns) => None,
            (LinkState::Up, false) => Some(self.fall(now_ns, LinkState::OneWay)),
            (LinkState::Up, true) | (_, false) => None,
            (_, true) => Some(self.change(now_ns, LinkState::Up)),
        }
    }

    /// What is known of it.
    pub(crate) const fn state(&self) -> LinkState {
        self.state
    }

    /// Whether the neighbour is to be told now.
    pub(crate) const fn is_frame_due(&self, now_ns: u64) -> bool {
        self.began_ns.is_some() && now_ns >= self.send_at_ns
    }

    /// When [`Link::on_timeout`] is due; never without a session.
    pub(crate) fn timeout(&self) -> Option<u64> {
        self.began_ns?;
        let judge_ns = self.judge_ns().unwrap_or(u64::MAX);
        Some(self.send_at_ns.min(judge_ns))
    }

    /// When the neighbour is overdue, or silent, unless it is heard.
    pub(crate) fn judge_ns(&self) -> Option<u64> {
        if self.began_ns.is_none() || !self.is_hearing {
            return None;
        }
        let threshold_ns = match self.is_overdue() {
            true => self.detect_ns(),
            false => self.overdue_ns().min(self.detect_ns()),
        };
        Some(self.looked_ns + threshold_ns.saturating_sub(self.quiet_ns))
    }

    /// Looks whether the neighbour is silent. Called at `due_ns`, or later where the worker did not run.
    pub(crate) fn on_timeout(&mut self, now_ns: u64, due_ns: u64) -> Option<Change> {
        let was_overdue = self.is_overdue();
        let is_late = now_ns > due_ns + LINK_SLACK_NS;
        let ran_until_ns = now_ns.min(due_ns + LINK_SLACK_NS);
        self.quiet_ns += ran_until_ns.saturating_sub(self.looked_ns);
        self.looked_ns = now_ns;
        if !self.is_hearing {
            return self.give_up_watching(now_ns);
        }
        if self.quiet_ns >= self.detect_ns() {
            // What came meanwhile may not all have been read.
            if !is_late || self.postponed == LINK_POSTPONED_MAX {
                (self.is_hearing, self.in_row) = (false, 0);
                let was_up = self.state == LinkState::Up;
                return was_up.then(|| self.fall(now_ns, LinkState::Silent));
            }
            self.postponed += 1;
            self.quiet_ns = self.detect_ns() - self.interval_ns() / 4;
        }
        if self.is_overdue() && !was_overdue {
            self.send_at_ns = now_ns;
        }
        None
    }

    /// A neighbour that is there and does not speak the keepalive any more is judged no more.
    fn give_up_watching(&mut self, now_ns: u64) -> Option<Change> {
        let waited_ns = now_ns.saturating_sub(self.began_ns?);
        let is_unspoken = self.their_interval_ns.is_none() && self.is_direct;
        (self.is_fallen() && is_unspoken && waited_ns >= LINK_UNSPOKEN_NS)
            .then(|| self.change(now_ns, LinkState::Unknown))
    }

    /// The frame that is due, if one is; `random` is drawn once.
    pub(crate) fn take_frame(
        &mut self,
        now_ns: u64,
        random: impl FnOnce(u64) -> u64,
    ) -> Option<LinkFrame> {
        let began_ns = self.began_ns?;
        if now_ns < self.send_at_ns {
            return None;
        }
        let asks = self.is_overdue();
        let pause_ns = if asks && self.quiet_ns <= self.least_ns() {
            self.interval_ns() / 4
        } else {
            let usual_ns = match self.their_interval_ns {
                Some(_) => self.interval_ns(),
                None if now_ns - began_ns < LINK_SEARCHES * LINK_SEARCH_EVERY_NS => {
                    LINK_SEARCH_EVERY_NS
                }
                None => LINK_SLOW_NS,
            };
            usual_ns - random(usual_ns / 4 + 1)
        };
        self.send_at_ns = now_ns + pause_ns;
        self.sent_ns = now_ns;
        self.sent += 1;
        Some(LinkFrame {
            hears: self.is_hearing,
            asks,
            interval_us: self.terms.interval_ns / 1_000,
            number: self.sent,
        })
    }

    pub(crate) fn status(&self, peer: NodeId) -> LinkStatus {
        LinkStatus {
            peer,
            state: self.state,
            since_ns: self.since_ns,
            is_spoken: self.their_interval_ns.is_some(),
            interval_ns: self.interval_ns(),
            detect_ns: self.detect_ns(),
            answers: self.answers(),
            detections: self.detections,
            gap_ns: self.gap_ns,
            received: self.received,
            missed: self.missed,
        }
    }
}
