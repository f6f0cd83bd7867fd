//! What becomes of the mapping that there is: renewed, checked, made again, left and given back.

use super::{Keeper, Time};
use crate::{
    Ask, Failure, Made, Protocol, Route,
    epoch::{self, Clock},
    igd::{Entry, Igd},
    judged,
    left::Left,
    limits::{
        CHECK, CHECK_UPNP, LEASE, LEASE_MAX, RENEW_AGAIN, SEARCH_AGAIN, SEARCH_AGAIN_MAX,
        SEARCH_ALL, SILENT_MAX, TAKEN_MAX,
    },
    pmp,
    shown::{Held, State},
};
use std::{
    io,
    net::SocketAddrV4,
    num::NonZeroU16,
    time::{Duration, Instant},
};
use tokio::time::timeout;

/// Why a mapping is asked for once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// It is time to.
    Due,
    /// The router has not answered for a while.
    Unseen,
    /// The router has forgotten it.
    Forgotten,
    /// The router has given the port to another host.
    Taken,
}

/// What the router says of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// It is there, as far as that can be asked.
    There,
    /// Nothing.
    Nothing,
    /// Nobody is where it was.
    Elsewhere,
    /// It is there no more, or elsewhere.
    Forgotten,
    /// The port is another host's.
    Taken,
}

#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) protocol: Protocol,
    pub(super) route: Route,
    pub(super) igd: Option<Igd>,
    pub(super) made: Made,
    pub(super) until: Option<Instant>,
    pub(super) clock: Option<Clock>,
    pub(super) renew: Instant,
    pub(super) check: Instant,
    /// When the router gave it, or said last that it has it.
    pub(super) seen: Instant,
    /// So often the router did not answer, one time after the other.
    pub(super) silent: u32,
}

impl Kept {
    /// How often the router is asked of it.
    const fn often(&self) -> Duration {
        match self.protocol {
            Protocol::Pcp | Protocol::NatPmp => CHECK,
            Protocol::Upnp => CHECK_UPNP,
        }
    }

    /// Until when it is counted upon, whatever the router says.
    fn end(&self) -> Instant {
        self.until.unwrap_or(self.seen + LEASE)
    }

    fn left(&self, is_sure: bool) -> Option<Left> {
        Some(Left {
            protocol: self.protocol,
            route: self.route.clone(),
            igd: self.igd.clone(),
            port: NonZeroU16::new(self.made.external.port())?,
            until: self.until,
            is_sure,
        })
    }
}

impl Keeper {
    pub(super) fn keep(
        &mut self,
        now: Instant,
        (protocol, route, igd): (Protocol, Route, Option<Igd>),
        made: Made,
    ) {
        let until = made.lease.map(|lease| now + lease);
        let half = made.lease.unwrap_or(LEASE_MAX) / 2;
        let mut kept = Kept {
            protocol,
            route,
            igd,
            made,
            until,
            clock: made.epoch.map(|epoch| Clock::new(epoch, now)),
            renew: now + self.about(half),
            check: now,
            seen: now,
            silent: 0,
        };
        kept.check = now + self.about(kept.often());
        self.kept = Some(kept);
        (self.failures, self.has_given) = (0, true);
        self.last = NonZeroU16::new(made.external.port());
        if let Some(held) = self.kept.as_ref().and_then(|kept| kept.left(true)) {
            self.left.forget(&held);
        }
        self.set(State::Held(Held {
            protocol,
            external: made.external,
            until,
        }));
    }

    /// Asks for the mapping that there is once more; where that fails for good, for any other.
    pub(super) async fn again(&mut self, time: Time, why: Again) {
        let Some(mut kept) = self.kept.clone() else {
            return;
        };
        let (protocol, mut ask) = (kept.protocol, self.ask_again(&kept));
        if why == Again::Taken {
            ask.external = self.port();
        }
        // What the router has answered with is there instead of what there was.
        let mut is_replaced = false;
        let done = async {
            match &mut kept.igd {
                Some(igd) => self.make_by(igd, &ask, &kept.route).await,
                None => {
                    let made = pmp::map(protocol, &kept.route, &ask).await;
                    is_replaced = made.is_ok();
                    made.and_then(judged)
                }
            }
        };
        let done = timeout(SEARCH_ALL, done).await;
        let done = done.unwrap_or(Err(Failure::Silent));
        self.note_left();
        let now = time.now();
        match done {
            Ok(made) => {
                self.count_again(why, &kept, made);
                self.keep(now, (protocol, kept.route, kept.igd), made);
            }
            Err(failure) => {
                self.shown.counts.failed[protocol as usize] += 1;
                tracing::debug!(protocol = protocol.name(), %failure, "a mapping was not renewed");
                let is_known = matches!(why, Again::Forgotten | Again::Taken) || is_replaced;
                if is_known || now >= kept.end() {
                    self.leave(false);
                    return self.search(time, &kept.route).await;
                }
                let is_silent = match failure {
                    Failure::Silent | Failure::Absent | Failure::System(_) => true,
                    Failure::Refused(_) | Failure::Malformed(_) | Failure::Panicked(_) => false,
                };
                self.unanswered(time, kept, is_silent).await;
            }
        }
    }

    fn count_again(&mut self, why: Again, kept: &Kept, made: Made) {
        let (protocol, before) = (kept.protocol, kept.made.external);
        // By PCP and NAT-PMP a router may give another port whoever has that one.
        let is_taken = kept.igd.is_some() && made.external.port() != before.port();
        let counts = &mut self.shown.counts;
        let counted = match why {
            Again::Due | Again::Unseen if !is_taken => &mut counts.renewed,
            _ => &mut counts.made,
        };
        counted[protocol as usize] += 1;
        match why {
            Again::Due | Again::Unseen if is_taken => self.note_taken(protocol, before),
            Again::Due => self.taken = 0,
            Again::Unseen | Again::Taken => {}
            Again::Forgotten => tracing::info!(
                protocol = protocol.name(), external = %made.external,
                "the router had forgotten its mapping, and has it again"
            ),
        }
    }

    /// A mapping that the router did not renew may be there, and is told of until its lease is over. One that does not answer
    /// at all may have restarted, and be elsewhere: it is searched for now and then.
    async fn unanswered(&mut self, time: Time, mut kept: Kept, is_silent: bool) {
        let now = time.now();
        kept.renew = kept.renew.max(now + RENEW_AGAIN);
        kept.check = kept.check.max(now + self.about(CHECK));
        let before = kept.silent;
        kept.silent = before.saturating_add(u32::from(is_silent));
        let (is_lost, route) = (kept.silent >= SILENT_MAX, kept.route.clone());
        if is_lost && before < SILENT_MAX {
            tracing::warn!(
                protocol = kept.protocol.name(), router = %route.gateway, external = %kept.made.external,
                "the router does not answer: others are told of its port until its lease is over, and it is searched for"
            );
        }
        self.kept = Some(kept);
        if is_lost && now >= self.next {
            self.search(time, &route).await;
        }
    }

    fn ask_again(&self, kept: &Kept) -> Ask {
        let port = NonZeroU16::new(kept.made.external.port());
        Ask {
            external: port.unwrap_or(self.setup.port),
            ..self.ask()
        }
    }

    /// Sees whether the router still has the mapping.
    pub(super) async fn check(&mut self, time: Time) {
        let Some(kept) = &self.kept else {
            return;
        };
        let (often, silent) = (kept.often(), kept.silent);
        let (seen, clock) = match &kept.igd {
            Some(igd) => (self.seen_by(igd, kept).await, kept.clock),
            None => seen_of(kept, time).await,
        };
        let silent = match seen {
            Seen::There => 0,
            Seen::Nothing if silent + 1 < SILENT_MAX => silent + 1,
            Seen::Nothing => return self.again(time, Again::Unseen).await,
            Seen::Elsewhere => {
                if let Some(kept) = &mut self.kept {
                    kept.silent = silent.max(SILENT_MAX - 1);
                }
                return self.again(time, Again::Unseen).await;
            }
            Seen::Forgotten => return self.again(time, Again::Forgotten).await,
            Seen::Taken => return self.taken(time).await,
        };
        // One that did not answer is asked again soon.
        let often = if silent > 0 { CHECK } else { often };
        let now = time.now();
        let check = now + self.about(often);
        if let Some(kept) = &mut self.kept {
            (kept.clock, kept.check, kept.silent) = (clock, check, silent);
            if silent == 0 {
                kept.seen = now;
            }
        }
    }

    async fn seen_by(&self, igd: &Igd, kept: &Kept) -> Seen {
        let ask = self.ask_again(kept);
        match igd.entry(&ask, kept.route.own).await {
            Ok(Entry::Other) if igd.is_truthful() => return Seen::Taken,
            Ok(Entry::Nothing) => return Seen::Forgotten,
            // Its service may have another port since it has restarted.
            Err(Failure::System(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                return Seen::Elsewhere;
            }
            // It may be busy, or restarting, and still have it.
            Err(Failure::Silent | Failure::Absent | Failure::System(_) | Failure::Panicked(_)) => {
                return Seen::Nothing;
            }
            // It does not answer that question: it is asked for the mapping again when that is due.
            Ok(Entry::Own | Entry::Other) | Err(Failure::Refused(_) | Failure::Malformed(_)) => {}
        }
        let ip = *kept.made.external.ip();
        match igd.external().await {
            Ok(now) if now != ip => Seen::Forgotten,
            Ok(_) | Err(_) => Seen::There,
        }
    }

    /// Another host has the port by now, and keeps it: this node asks for another one, a few times at once, and then less and
    /// less often, for that host may want each.
    async fn taken(&mut self, time: Time) {
        let Some(kept) = &self.kept else {
            return;
        };
        let (protocol, external) = (kept.protocol, kept.made.external);
        self.note_taken(protocol, external);
        self.set(State::Searching);
        if self.taken <= TAKEN_MAX {
            return self.again(time, Again::Taken).await;
        }
        self.leave(false);
        self.last = Some(self.port());
        let wait = (SEARCH_AGAIN * (1 << self.taken.min(10))).min(SEARCH_AGAIN_MAX);
        self.next = time.now() + self.about(wait);
        self.set(State::Failed(format!(
            "the router gives each port that it maps to another host that asks for it, {} in a row: see what else of this network asks for ports",
            self.taken
        )));
    }

    fn note_taken(&mut self, protocol: Protocol, external: SocketAddrV4) {
        self.shown.counts.taken += 1;
        self.taken = self.taken.saturating_add(1);
        tracing::warn!(
            protocol = protocol.name(), %external,
            "the router has given the port to another host: another one is asked for"
        );
    }

    /// There is no mapping from now on, but the router may have one.
    pub(super) fn leave(&mut self, is_sure: bool) {
        if let Some(left) = self.kept.take().and_then(|kept| kept.left(is_sure)) {
            self.left.push(left);
        }
    }

    /// Has routers delete what they have by these routes.
    pub(super) async fn give_back(&mut self, now: Instant, which: impl Fn(&Route) -> bool) {
        self.note_left();
        let ask = self.ask();
        let panics = self.left.give_back(now, &ask, which).await;
        self.shown.counts.panics += panics;
    }
}

/// What a router says by PCP or NAT-PMP, and its time.
async fn seen_of(kept: &Kept, time: Time) -> (Seen, Option<Clock>) {
    // It may be restarting, and says so by its time later.
    let Ok(told) = epoch::ask(kept.protocol, &kept.route).await else {
        return (Seen::Nothing, kept.clock);
    };
    let (now, ip) = (time.now(), *kept.made.external.ip());
    let goes_on = kept
        .clock
        .is_none_or(|before| before.goes_on(told.epoch, now));
    let is_there = goes_on && told.external.is_none_or(|now| now == ip);
    let seen = if is_there {
        Seen::There
    } else {
        Seen::Forgotten
    };
    (seen, Some(Clock::new(told.epoch, now)))
}
