//! One mapping: made by the first protocol that works, checked, renewed at half its lease, made again at once where the
//! router has forgotten it, at another port where it has given this one to another host, and given back.
//!
//! ```text
//! Off ── wanted ──► Searching ── made ──► Held ── checked, renewed ──┐
//!  ▲                 │      ▲               │ ▲                      │
//!  │            in vain     │ later    lost │ └──────────────────────┘
//!  │                 ▼      │               ▼
//!  └── not wanted ── Failed ┘          Searching, with the same port first
//! ```
//! A router that does not answer may have it still: it is held until its lease is over, and searched for beside that.
//! Another router by the default route, or another own address: searched for anew, and given back where that is in reach.
//! A panic ends what is being done, and no more: it is counted and shown, and done again after a pause.

mod kept;

use crate::{
    Ask, Failure, Made, Protocol, Route,
    caught::caught,
    igd::{self, Igd},
    is_private, judged,
    left::{Left, Leftovers},
    limits::{
        GIVE_BACK, LEASE, LOOK, PANIC_AGAIN, PANIC_AGAIN_MAX, PANIC_FORGOTTEN, PANICS_MAX,
        PORTS_MAX, SEARCH_AGAIN, SEARCH_AGAIN_HELD, SEARCH_AGAIN_MAX, SEARCH_ALL,
    },
    pmp,
    shown::{Shown, State, Wish},
};
use kept::{Again, Kept};
use std::{
    net::Ipv4Addr,
    num::NonZeroU16,
    time::{Duration, Instant},
};
use tokio::{
    sync::watch,
    time::{timeout, timeout_at},
};

/// What a node is.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Where it listens.
    pub listen: Ipv4Addr,
    /// The port of it.
    pub port: NonZeroU16,
    /// See [`Ask::nonce`].
    pub nonce: [u32; 3],
    /// For jitter and other ports; nothing secret.
    pub seed: u64,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Keeper {
    setup: Setup,
    random: u64,
    route: Option<Route>,
    kept: Option<Kept>,
    /// What a router was asked for and may have mapped, while it is not known.
    attempted: Option<Left>,
    /// What routers may still have.
    left: Leftovers,
    /// The router's port, last.
    last: Option<NonZeroU16>,
    searched: Option<Instant>,
    failures: u32,
    /// The router of this route has given a mapping, and is the sooner asked again.
    has_given: bool,
    /// There was no way out since the router was asked last.
    was_away: bool,
    next: Instant,
    /// Ports that another host got, since the last one that was this node's for half a lease.
    taken: u32,
    /// Panics, one soon after the other, and when the last one was.
    panics: (u32, Option<Instant>),
    shown: Shown,
    show: watch::Sender<Shown>,
}

/// A time that goes on while a router is waited for.
#[derive(Clone, Copy)]
struct Time {
    now: Instant,
    began: Instant,
}

impl Time {
    fn now(self) -> Instant {
        self.now + self.began.elapsed()
    }
}

impl Keeper {
    /// Nothing is wanted yet.
    #[must_use]
    pub fn new(setup: Setup, now: Instant) -> Self {
        Self {
            random: setup.seed,
            setup,
            route: None,
            kept: None,
            attempted: None,
            left: Leftovers::default(),
            last: None,
            searched: None,
            failures: 0,
            has_given: false,
            was_away: false,
            next: now,
            taken: 0,
            panics: (0, None),
            shown: Shown::default(),
            show: watch::Sender::default(),
        }
    }

    /// What there is.
    #[must_use]
    pub const fn shown(&self) -> &Shown {
        &self.shown
    }

    /// The same, for others, as it changes.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Shown> {
        self.show.subscribe()
    }

    fn show(&self) {
        self.show.send_if_modified(|before| {
            let is_new = *before != self.shown;
            before.clone_from(&self.shown);
            is_new
        });
    }

    /// Does what is wanted until the end is; `read` gives the default route.
    pub async fn run(
        mut self,
        mut wish: watch::Receiver<Wish>,
        read: impl Fn() -> Result<Route, String> + Send + Sync,
    ) {
        let mut is_alone = false;
        loop {
            let wanted = match is_alone {
                true => Wish::End,
                false => *wish.borrow_and_update(),
            };
            let is_wanted = wanted == Wish::On;
            let turn = caught(async {
                let route = match is_wanted {
                    true => read(),
                    false => Err(String::new()),
                };
                // Another router is not kept waiting by one that does not answer.
                let is_other = async {
                    loop {
                        tokio::time::sleep(LOOK).await;
                        if read() != route {
                            return;
                        }
                    }
                };
                tokio::select! {
                    () = self.turn(Instant::now(), is_wanted, route.clone()) => {}
                    () = is_other, if is_wanted => {}
                }
            });
            // A new wish is not kept waiting by a router; what was asked of it by then is known, and taken back.
            let done = tokio::select! {
                done = turn => done,
                changed = wish.changed(), if is_wanted => {
                    is_alone = changed.is_err();
                    continue;
                }
            };
            let pause = match done {
                Ok(()) => {
                    self.shown.broken = None;
                    is_wanted.then_some(LOOK)
                }
                Err(words) => Some(self.panicked(Instant::now(), &words)),
            };
            self.show();
            if wanted == Wish::End {
                return;
            }
            let look = async {
                match pause {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = wish.changed() => is_alone = changed.is_err(),
                () = look => {}
            }
        }
    }

    /// What was being done is not done: it is said, and how long to wait before it is begun again. A mapping that it fails
    /// over again and again is left, and made anew.
    pub(crate) fn panicked(&mut self, now: Instant, words: &str) -> Duration {
        self.note_left();
        self.shown.counts.panics += 1;
        let (row, last) = self.panics;
        let is_soon =
            last.is_some_and(|last| now.saturating_duration_since(last) < PANIC_FORGOTTEN);
        let row = if is_soon { row.saturating_add(1) } else { 1 };
        self.panics = (row, Some(now));
        let pause = (PANIC_AGAIN * (1 << (row - 1).min(16))).min(PANIC_AGAIN_MAX);
        let again_s = pause.as_secs();
        tracing::error!(
            %words, again_s, count = self.shown.counts.panics,
            "what keeps the port that the router maps panicked, and is begun again: please report this"
        );
        self.shown.broken = Some(format!(
            "what keeps it panicked ({words}) and is begun again after {again_s} s"
        ));
        let kept = self.kept.as_ref();
        let is_over = kept.is_some_and(|kept| kept.until.is_some_and(|until| now >= until));
        if is_over || row >= PANICS_MAX {
            self.leave(false);
        }
        if self.kept.is_none() && self.shown.state != State::Off {
            self.set(State::Failed("none could be asked for".to_owned()));
        }
        pause
    }

    /// Does what is due.
    pub async fn turn(&mut self, now: Instant, is_wanted: bool, route: Result<Route, String>) {
        let began = Instant::now();
        let time = Time { now, began };
        // What was under way when the last turn was broken off.
        self.note_left();
        if !is_wanted {
            // Nobody is told of it any more from now on.
            self.leave(true);
            self.set(State::Off);
            self.give_back(now, |_| true).await;
            self.set_route(None);
            return;
        }
        let possible = match route {
            Ok(route) => self.is_possible(route),
            Err(why) => {
                // No router is in reach; the same one may be in a moment.
                self.leave(true);
                self.was_away = true;
                return self.set(State::Failed(why));
            }
        };
        let route = match possible {
            Ok(route) => route,
            Err(why) => {
                self.leave(true);
                self.set(State::Failed(why));
                self.set_route(None);
                return self.give_back(now, |_| true).await;
            }
        };
        if self.route.as_ref() != Some(&route) {
            self.leave(true);
            self.set(State::Searching);
            // What this router has for another address of this machine's is in the way of what it is to have.
            let is_in_the_way =
                |left: &Route| left.gateway == route.gateway && left.own != route.own;
            self.give_back(now, is_in_the_way).await;
            let pause = self.searched.filter(|_| self.route.is_some());
            self.next = pause.map_or(now, |at| now.max(at + SEARCH_AGAIN));
            self.set_route(Some(route.clone()));
        } else if self.was_away {
            // However long its pause was, and no sooner where the way out comes and goes.
            let soon = self.next.min(now + SEARCH_AGAIN_HELD);
            let pause = self.searched.map(|at| at + SEARCH_AGAIN);
            self.next = pause.map_or(soon, |pause| soon.max(pause));
        }
        self.was_away = false;
        let is_done = self.do_due(time, &route).await;
        // Other routers may be out of reach, and are waited for last.
        self.give_back(time.now(), |left| *left != route).await;
        if is_done {
            // Whatever panicked before does not do so each time.
            self.panics = (0, None);
        }
    }

    /// Does what it is time for, if there is anything.
    async fn do_due(&mut self, time: Time, route: &Route) -> bool {
        let now = time.now;
        match &self.kept {
            Some(kept) if now >= kept.renew => self.again(time, Again::Due).await,
            Some(kept) if now >= kept.check => self.check(time).await,
            None if now >= self.next => self.search(time, route).await,
            _ => return false,
        }
        true
    }

    /// What is known of the router of another route says nothing of this one's.
    fn set_route(&mut self, route: Option<Route>) {
        self.route = route;
        (self.failures, self.taken) = (0, 0);
        (self.has_given, self.was_away) = (false, false);
    }

    /// Whether what a router passes on to this machine comes to the node.
    fn is_possible(&self, route: Route) -> Result<Route, String> {
        let (listen, own) = (self.setup.listen, route.own);
        if !listen.is_unspecified() && listen != own {
            return Err(format!(
                "the node listens at {listen}, and the router {} knows this machine as {own}; listen there, or at 0.0.0.0",
                route.gateway
            ));
        }
        match is_private(own) {
            true => Ok(route),
            false => Err(format!(
                "this machine's own address, {own}, is a public one: there is nothing to be mapped"
            )),
        }
    }

    fn number(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Any of those that nobody is known by.
    fn port(&mut self) -> NonZeroU16 {
        let offset = u16::try_from(self.number() % 16_384).unwrap_or(0);
        NonZeroU16::MIN.saturating_add(49_151 + offset)
    }

    /// So long, or up to a fifth less.
    fn about(&mut self, time: Duration) -> Duration {
        let percent = 80 + u32::try_from(self.number() % 21).unwrap_or(0);
        time * percent / 100
    }

    fn ask(&self) -> Ask {
        let kept = self.kept.as_ref();
        let port = kept.and_then(|kept| NonZeroU16::new(kept.made.external.port()));
        Ask {
            port: self.setup.port,
            external: port.or(self.last).unwrap_or(self.setup.port),
            nonce: self.setup.nonce,
        }
    }

    /// Tells what there is.
    fn set(&mut self, state: State) {
        state.log(&self.shown.state);
        self.shown.state = state;
        self.show();
    }

    /// Tries all protocols. What there is stays so until there is another one.
    async fn search(&mut self, time: Time, route: &Route) {
        self.searched = Some(time.now());
        let until = tokio::time::Instant::now() + SEARCH_ALL;
        let mut why = Vec::new();
        for protocol in Protocol::ALL {
            let done = timeout_at(until, self.make(time, protocol, route)).await;
            let done = done.unwrap_or(Err(Failure::Silent));
            self.note_left();
            match done {
                Ok((made, igd)) => {
                    self.shown.counts.made[protocol as usize] += 1;
                    self.leave(false);
                    return self.keep(time.now(), (protocol, route.clone(), igd), made);
                }
                Err(failure) => {
                    self.shown.counts.failed[protocol as usize] += 1;
                    why.push(format!("{}: {failure}", protocol.name()));
                }
            }
        }
        let longest = match self.has_given {
            true => SEARCH_AGAIN_HELD,
            false => SEARCH_AGAIN_MAX,
        };
        let wait = (SEARCH_AGAIN * (1 << self.failures.min(10))).min(longest);
        self.failures = self.failures.saturating_add(1);
        self.next = time.now() + self.about(wait);
        if self.kept.is_none() {
            self.set(State::Failed(why.join("; ")));
        }
    }

    async fn make(
        &mut self,
        time: Time,
        protocol: Protocol,
        route: &Route,
    ) -> Result<(Made, Option<Igd>), Failure> {
        let ask = self.ask();
        if protocol != Protocol::Upnp {
            self.attempted = Some(Left {
                protocol,
                route: route.clone(),
                igd: None,
                port: ask.external,
                until: Some(time.now() + SEARCH_ALL + LEASE),
                is_sure: true,
            });
            let made = pmp::map(protocol, route, &ask).await;
            let is_made = made.is_ok();
            let good = made.and_then(judged);
            if is_made && good.is_err() {
                // What is no use is not left there, and has taken the place of what was.
                let _gone = self.kept.take_if(|kept| kept.igd.is_none());
                let _lease = timeout(GIVE_BACK, pmp::delete(protocol, route, &ask)).await;
            }
            self.attempted = None;
            return Ok((good?, None));
        }
        let mut last = Failure::Absent;
        for mut igd in igd::find(route).await? {
            match self.make_by(&mut igd, &ask, route).await {
                Ok(made) => return Ok((made, Some(igd))),
                Err(failure) => last = failure,
            }
        }
        Err(last)
    }

    pub(crate) async fn make_by(
        &mut self,
        igd: &mut Igd,
        ask: &Ask,
        route: &Route,
    ) -> Result<Made, Failure> {
        let mut ask = *ask;
        // What the node had before it was killed, it has still, and may have for ever.
        if self.last.is_none()
            && let Some(port) = igd.left(ask.port, route.own).await
        {
            ask.external = port;
        }
        let others: [NonZeroU16; PORTS_MAX] = std::array::from_fn(|_| self.port());
        let others = others.into_iter();
        let (noted, of) = (&mut self.attempted, igd.clone());
        let note = |port: Option<NonZeroU16>| {
            *noted = port.map(|port| Left {
                protocol: Protocol::Upnp,
                route: route.clone(),
                igd: Some(of.clone()),
                port,
                until: None,
                is_sure: false,
            });
        };
        let made = judged(igd.map(&ask, route.own, others, note).await?)?;
        self.attempted = None;
        Ok(made)
    }

    /// What a router was asked for, and did not deny, it may have.
    fn note_left(&mut self) {
        if let Some(attempted) = self.attempted.take() {
            self.left.push(attempted);
        }
    }
}

#[cfg(test)]
impl Keeper {
    /// One that holds a mapping without an end by a router's UPnP.
    pub(crate) fn holding(setup: Setup, now: Instant, route: Route, igd: Igd, made: Made) -> Self {
        let mut keeper = Self::new(setup, now);
        keeper.route = Some(route.clone());
        keeper.keep(now, (Protocol::Upnp, route, Some(igd)), made);
        keeper
    }
}
