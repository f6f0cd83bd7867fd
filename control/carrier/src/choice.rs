//! When a neighbour is dialled, and when UDP is tried and taken again. No I/O: `now` is an argument.
//!
//! ```text
//!  UDP ── no session, or a dead link, for a while ──► dialling ──► carried
//!   ▲                                                    │            │
//!   ├──────────────── no connection: back-off ───────────┘            │
//!   ├──────────────── it was lost, or no session came ────────────────┤
//!   └──────────────── UDP has answered a probe ───────────────────────┘
//! ```
//!
//! A stay on UDP that was short doubles the time to the next probe, up to a minute: a path that is good for a moment at
//! a time is not taken over and over.

use crate::limits::{BACKOFF_MAX, BACKOFF_MIN, SESSION_TIME};
use std::time::{Duration, Instant};

/// A stay on UDP is a short one below this.
const STAY_SHORT: Duration = Duration::from_secs(30);
/// Longest time between two probes.
const PROBE_MAX: Duration = Duration::from_secs(60);

/// What an operator chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// UDP that has not worked for this long gives way.
    pub after: Duration,
    /// UDP is probed this often at first.
    pub probe_every: Duration,
}

/// What is known of the neighbour now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// There is an established session with it.
    pub has_session: bool,
    /// The link to it was found dead.
    pub is_dead: bool,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Act {
    /// Nothing.
    Nothing,
    /// Dial the target with this number.
    Dial(usize),
    /// Ask whether UDP works.
    Probe,
    /// End the connection: no session comes up over it.
    GiveUp,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Since when it does not work, if it does not; and before which nothing is dialled.
    Udp {
        bad_since: Option<Instant>,
        not_before: Option<Instant>,
        /// A connection that carried was cut: UDP did not work, whatever is seen of the session so soon.
        redial: bool,
    },
    Dialling,
    Carried {
        since: Instant,
        probe_at: Instant,
        had_session: bool,
        /// The link was seen alive over this connection: only then does its death tell something.
        has_lived: bool,
        /// Since when there is no session, or a dead link.
        bare_since: Instant,
    },
    /// UDP works; the other end is told.
    Leaving,
}

impl State {
    /// Nothing is wrong with UDP.
    const UDP: Self = Self::Udp {
        bad_since: None,
        not_before: None,
        redial: false,
    };
}

/// The way to one neighbour.
#[derive(Clone, Debug)]
pub struct Choice {
    pace: Pace,
    targets: usize,
    next: usize,
    state: State,
    failures: u32,
    probe_wait: Duration,
    /// When UDP was taken again last.
    left_at: Option<Instant>,
}

impl Choice {
    /// Begins with UDP; there are so many targets to dial.
    #[must_use]
    pub const fn new(pace: Pace, targets: usize) -> Self {
        Self {
            pace,
            targets,
            next: 0,
            state: State::UDP,
            failures: 0,
            probe_wait: pace.probe_every,
            left_at: None,
        }
    }

    /// What to do now. `jitter` is a random number of a thousand.
    pub fn step(&mut self, now: Instant, seen: Seen, jitter: u32) -> Act {
        let is_bad = !seen.has_session || seen.is_dead;
        match &mut self.state {
            State::Udp {
                bad_since,
                not_before,
                redial,
            } => {
                if !is_bad && !*redial {
                    *bad_since = None;
                    self.failures = 0;
                    return Act::Nothing;
                }
                let since = *bad_since.get_or_insert(now);
                let is_due = now.duration_since(since) >= self.pace.after
                    && not_before.is_none_or(|at| at <= now);
                if !is_due || self.targets == 0 {
                    return Act::Nothing;
                }
                if let Some(left_at) = self.left_at.take() {
                    let doubled = self.probe_wait.saturating_mul(2);
                    self.probe_wait = match since.duration_since(left_at) < STAY_SHORT {
                        true => doubled.min(PROBE_MAX.max(self.pace.probe_every)),
                        false => self.pace.probe_every,
                    };
                }
                self.state = State::Dialling;
                let target = self.next % self.targets;
                self.next = target + 1;
                Act::Dial(target)
            }
            State::Carried {
                probe_at,
                had_session,
                has_lived,
                bare_since,
                ..
            } => {
                *has_lived |= !is_bad;
                *had_session |= seen.has_session;
                let is_bare = !seen.has_session || (seen.is_dead && *has_lived);
                if !is_bare {
                    *bare_since = now;
                }
                if now.duration_since(*bare_since) >= SESSION_TIME {
                    return Act::GiveUp;
                }
                if !seen.has_session || now < *probe_at {
                    return Act::Nothing;
                }
                *probe_at = now + jittered(self.probe_wait, jitter);
                Act::Probe
            }
            State::Dialling | State::Leaving => Act::Nothing,
        }
    }

    /// The neighbour is connected.
    pub fn on_connected(&mut self, now: Instant, jitter: u32) {
        self.state = State::Carried {
            since: now,
            probe_at: now + jittered(self.probe_wait, jitter),
            had_session: false,
            has_lived: false,
            bare_since: now,
        };
    }

    /// There is no connection, or it was lost or given up. One that had a session is dialled again at once, if it did
    /// not end at once; else the next target is, after a while that doubles.
    pub fn on_lost(&mut self, now: Instant, jitter: u32) {
        let (wait, redial) = match self.state {
            State::Carried {
                had_session: true,
                since,
                ..
            } => {
                self.next = self.next.saturating_sub(1);
                (BACKOFF_MIN.saturating_sub(now.duration_since(since)), true)
            }
            _ => {
                let doubled = BACKOFF_MIN.saturating_mul(1 << self.failures.min(6));
                self.failures = self.failures.saturating_add(1);
                (jittered(doubled.min(BACKOFF_MAX), jitter), false)
            }
        };
        self.state = State::Udp {
            bad_since: Some(now.checked_sub(self.pace.after).unwrap_or(now)),
            not_before: Some(now + wait),
            redial,
        };
    }

    /// UDP has answered; whether the connection is to be left now.
    pub const fn on_reached(&mut self) -> bool {
        let is_carried = matches!(self.state, State::Carried { .. });
        if is_carried {
            self.state = State::Leaving;
        }
        is_carried
    }

    /// Packets go by UDP again. The target that worked is the first to be dialled when they do no more.
    pub const fn on_left(&mut self, now: Instant) {
        self.failures = 0;
        self.next = self.next.saturating_sub(1);
        self.left_at = Some(now);
        self.state = State::UDP;
    }

    /// The neighbour has dialled this node: nothing is to be dialled meanwhile.
    pub const fn on_other(&mut self) {
        self.state = State::UDP;
    }
}

/// Between three quarters and five quarters of it.
fn jittered(wait: Duration, jitter: u32) -> Duration {
    wait * 3 / 4 + wait * jitter.min(1_000) / 2_000
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace {
        after: Duration::from_secs(2),
        probe_every: Duration::from_secs(5),
    };
    const GOOD: Seen = Seen {
        has_session: true,
        is_dead: false,
    };
    const DEAD: Seen = Seen {
        has_session: true,
        is_dead: true,
    };
    const NONE: Seen = Seen {
        has_session: false,
        is_dead: false,
    };
    const MS: Duration = Duration::from_millis(1);

    /// Steps each 100 ms until there is something to do, a minute at most; how long that took.
    fn until(choice: &mut Choice, now: &mut Instant, seen: Seen) -> (Act, Duration) {
        let from = *now;
        for _ in 0..900 {
            let act = choice.step(*now, seen, 500);
            if act != Act::Nothing {
                return (act, now.duration_since(from));
            }
            *now += 100 * MS;
        }
        (Act::Nothing, now.duration_since(from))
    }

    #[test]
    fn udp_that_works_is_kept_and_a_short_failure_changes_nothing() {
        let (mut choice, mut now) = (Choice::new(PACE, 1), Instant::now());
        for seen in [GOOD, DEAD, GOOD, NONE, GOOD] {
            for _ in 0..19 {
                assert_eq!(choice.step(now, seen, 0), Act::Nothing);
                now += 100 * MS;
            }
        }
        assert_eq!(until(&mut choice, &mut now, GOOD).0, Act::Nothing);
        let mut alone = Choice::new(PACE, 0);
        assert_eq!(
            until(&mut alone, &mut now, NONE).0,
            Act::Nothing,
            "nothing to dial"
        );
    }

    #[test]
    fn targets_are_dialled_in_turn_slower_each_time() {
        let (mut choice, mut now) = (Choice::new(PACE, 2), Instant::now());
        assert_eq!(
            until(&mut choice, &mut now, NONE),
            (Act::Dial(0), PACE.after)
        );
        let mut waits = Vec::new();
        for n in 0..8 {
            choice.on_lost(now, 500);
            let (act, wait) = until(&mut choice, &mut now, NONE);
            assert_eq!(act, Act::Dial((n + 1) % 2));
            waits.push(wait.as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn a_connection_is_left_for_udp_that_answers_and_taken_again_at_once_when_it_is_cut() {
        let (mut choice, mut now) = (Choice::new(PACE, 2), Instant::now());
        assert_eq!(until(&mut choice, &mut now, DEAD).0, Act::Dial(0));
        assert!(!choice.on_reached(), "nothing is left yet");
        choice.on_connected(now, 500);
        assert_eq!(
            until(&mut choice, &mut now, DEAD),
            (Act::Probe, 5 * 1_000 * MS)
        );
        choice.on_lost(now, 500);
        assert_eq!(
            until(&mut choice, &mut now, DEAD),
            (Act::Dial(0), Duration::ZERO)
        );
        choice.on_connected(now, 500);
        assert!(choice.on_reached());
        assert!(!choice.on_reached(), "once");
        assert_eq!(choice.step(now, GOOD, 0), Act::Nothing);
        choice.on_left(now);
        assert_eq!(until(&mut choice, &mut now, GOOD).0, Act::Nothing);
        let again = until(&mut choice, &mut now, DEAD);
        assert_eq!(again, (Act::Dial(0), PACE.after), "the one that worked");
    }

    #[test]
    fn a_connection_without_a_session_is_given_up_and_the_next_target_dialled() {
        let (mut choice, mut now) = (Choice::new(PACE, 2), Instant::now());
        assert_eq!(until(&mut choice, &mut now, NONE).0, Act::Dial(0));
        choice.on_connected(now, 500);
        assert_eq!(
            until(&mut choice, &mut now, NONE),
            (Act::GiveUp, SESSION_TIME)
        );
        choice.on_lost(now, 500);
        let (act, wait) = until(&mut choice, &mut now, NONE);
        assert_eq!((act, wait), (Act::Dial(1), BACKOFF_MIN));
    }

    #[test]
    fn a_connection_that_is_cut_is_dialled_again_before_anybody_has_found_the_link_dead() {
        let (mut choice, mut now) = (Choice::new(PACE, 2), Instant::now());
        assert_eq!(until(&mut choice, &mut now, DEAD).0, Act::Dial(0));
        choice.on_connected(now, 500);
        assert_eq!(until(&mut choice, &mut now, GOOD).0, Act::Probe);
        choice.on_lost(now, 500);
        let again = until(&mut choice, &mut now, GOOD);
        assert_eq!(again, (Act::Dial(0), Duration::ZERO));
        // One that ends at once is dialled again no more often than the other end takes it.
        choice.on_connected(now, 500);
        assert_eq!(choice.step(now, GOOD, 500), Act::Nothing);
        choice.on_lost(now, 500);
        let again = until(&mut choice, &mut now, GOOD);
        assert_eq!(again, (Act::Dial(0), BACKOFF_MIN));
        // Where it cannot be had any more, what is seen counts again.
        choice.on_lost(now, 500);
        assert_eq!(until(&mut choice, &mut now, GOOD).0, Act::Nothing);
    }

    #[test]
    fn a_connection_over_which_the_link_dies_is_given_up() {
        let (mut choice, mut now) = (Choice::new(PACE, 1), Instant::now());
        assert_eq!(until(&mut choice, &mut now, DEAD).0, Act::Dial(0));
        choice.on_connected(now, 500);
        // A link that was not heard over this connection yet is judged by its session alone.
        for _ in 0..100 {
            let act = choice.step(now, DEAD, 500);
            assert!(matches!(act, Act::Nothing | Act::Probe), "{act:?}");
            now += 1_000 * MS;
        }
        assert_ne!(choice.step(now, GOOD, 500), Act::GiveUp);
        let lived = now;
        while choice.step(now, DEAD, 500) != Act::GiveUp {
            now += 100 * MS;
        }
        assert_eq!(now.duration_since(lived), SESSION_TIME);
    }

    #[test]
    fn short_stays_on_udp_make_probes_rare_and_long_ones_frequent_again() {
        let (mut choice, mut now) = (Choice::new(PACE, 1), Instant::now());
        let mut waits = Vec::new();
        for stay in [0, 0, 0, 0, 0, 40] {
            assert_eq!(until(&mut choice, &mut now, DEAD).0, Act::Dial(0));
            choice.on_connected(now, 500);
            waits.push(until(&mut choice, &mut now, GOOD).1.as_secs());
            assert!(choice.on_reached());
            choice.on_left(now);
            for _ in 0..stay {
                assert_eq!(choice.step(now, GOOD, 0), Act::Nothing);
                now += 1_000 * MS;
            }
        }
        assert_eq!(waits, [5, 10, 20, 40, 60, 60]);
        assert_eq!(until(&mut choice, &mut now, DEAD).0, Act::Dial(0));
        choice.on_connected(now, 500);
        assert_eq!(until(&mut choice, &mut now, GOOD).1, PACE.probe_every);
    }
}
