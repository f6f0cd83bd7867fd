//! One mapping: made by the first protocol that works, checked, renewed at half its lease, made again at once where the
//! router has forgotten it, and given back.
//!
//! ```text
//! Off ── wanted ──► Searching ── made ──► Held ── checked, renewed ──┐
//!  ▲                 │      ▲               │ ▲                      │
//!  │            in vain     │ later    lost │ └──────────────────────┘
//!  │                 ▼      │               ▼
//!  └── not wanted ── Failed ┘          Searching, with the same port first
//! ```
//! Another router by the default route, or another own address: given back, and searched for anew.

use crate::{
    Ask, Failure, Made, Protocol, Route,
    epoch::{self, Clock},
    igd::{self, Igd},
    is_private, judged,
    left::{Left, Leftovers},
    limits::{
        CHECK, CHECK_UPNP, LEASE, LEASE_MAX, LOOK, PORTS_MAX, RENEW_AGAIN, SEARCH_AGAIN,
        SEARCH_AGAIN_MAX, SEARCH_ALL, SILENT_MAX,
    },
    not_public, pmp,
};
use std::{
    net::{Ipv4Addr, SocketAddrV4},
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

/// What the node wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    /// No mapping.
    #[default]
    Off,
    /// One.
    On,
    /// None any more: the node stops.
    End,
}

/// A mapping, as it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Whom it was asked of.
    pub protocol: Protocol,
    /// Where others send to.
    pub external: SocketAddrV4,
    /// Until when; none: until it is deleted.
    pub until: Option<Instant>,
}

impl Held {
    /// What that address is where nobody outside can send to it: there is a second NAT behind the router, or no network.
    #[must_use]
    pub fn useless(&self) -> Option<&'static str> {
        not_public(*self.external.ip())
    }
}

/// What there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Nothing, and nothing is wanted.
    #[default]
    Off,
    /// Nothing yet.
    Searching,
    /// A mapping.
    Held(Held),
    /// Nothing, for this reason.
    Failed(String),
}

/// How often, by protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Mappings made, the same again included where the router had forgotten it.
    pub made: [u64; 3],
    /// And renewed.
    pub renewed: [u64; 3],
    /// Requests in vain.
    pub failed: [u64; 3],
}

/// What others see of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// What there is.
    pub state: State,
    /// What there was.
    pub counts: Counts,
}

impl Shown {
    /// The address that others may be told.
    #[must_use]
    pub fn announced(&self) -> Option<SocketAddrV4> {
        match &self.state {
            State::Held(held) if held.useless().is_none() => Some(held.external),
            _ => None,
        }
    }
}

/// Why a mapping is asked for once more.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Again {
    Due,
    Forgotten,
}

#[derive(Clone, Debug)]
struct Kept {
    protocol: Protocol,
    route: Route,
    igd: Option<Igd>,
    made: Made,
    until: Option<Instant>,
    clock: Option<Clock>,
    renew: Instant,
    check: Instant,
    /// So often the router did not answer, one time after the other.
    silent: u32,
}

impl Kept {
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
    next: Instant,
    shown: Shown,
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
            next: now,
            shown: Shown::default(),
        }
    }

    /// What there is.
    #[must_use]
    pub const fn shown(&self) -> &Shown {
        &self.shown
    }

    /// Does what is wanted until the end is, and tells what there is.
    pub async fn run(mut self, mut wish: watch::Receiver<Wish>, shown: watch::Sender<Shown>) {
        let mut is_alone = false;
        loop {
            let wanted = match is_alone {
                true => Wish::End,
                false => *wish.borrow_and_update(),
            };
            let route = match wanted {
                Wish::On => Route::read(),
                Wish::Off | Wish::End => Err(String::new()),
            };
            // A new wish is not kept waiting by a router; what was asked of it by then is known, and taken back.
            tokio::select! {
                () = self.turn(Instant::now(), wanted == Wish::On, route) => {}
                changed = wish.changed(), if wanted == Wish::On => {
                    is_alone = changed.is_err();
                    continue;
                }
            }
            shown.send_if_modified(|before| {
                let is_new = *before != self.shown;
                before.clone_from(&self.shown);
                is_new
            });
            if wanted == Wish::End {
                return;
            }
            let look = async {
                match wanted {
                    Wish::On => tokio::time::sleep(LOOK).await,
                    Wish::Off | Wish::End => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = wish.changed() => is_alone = changed.is_err(),
                () = look => {}
            }
        }
    }

    /// Does what is due.
    pub async fn turn(&mut self, now: Instant, is_wanted: bool, route: Result<Route, String>) {
        let began = Instant::now();
        let time = Time { now, began };
        if !is_wanted {
            self.give_back(now).await;
            (self.route, self.failures) = (None, 0);
            return self.set(State::Off);
        }
        let route = match route.and_then(|route| self.is_possible(route)) {
            Ok(route) => route,
            Err(why) => {
                self.give_back(now).await;
                self.route = None;
                return self.set(State::Failed(why));
            }
        };
        if self.route.as_ref() != Some(&route) {
            self.give_back(now).await;
            let pause = self.searched.filter(|_| self.route.is_some());
            self.next = pause.map_or(now, |at| now.max(at + SEARCH_AGAIN));
            (self.route, self.failures) = (Some(route.clone()), 0);
            self.set(State::Searching);
        }
        match &self.kept {
            Some(kept) if now >= kept.renew => self.again(time, Again::Due).await,
            Some(kept) if now >= kept.check => self.check(time).await,
            None if now >= self.next => self.search(time, &route).await,
            _ => {}
        }
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

    /// Tells what is new, once.
    fn set(&mut self, state: State) {
        let is_same = match (&self.shown.state, &state) {
            (State::Held(old), State::Held(new)) => {
                (old.protocol, old.external) == (new.protocol, new.external)
            }
            (old, new) => old == new,
        };
        match &state {
            _ if is_same => {}
            State::Off => tracing::info!("no port of the router's is mapped any more"),
            State::Searching => {}
            State::Held(held) => match held.useless() {
                Some(why) => tracing::warn!(
                    protocol = held.protocol.name(), external = %held.external,
                    "the router maps a port, but its own address is {why}: others are not told of the port"
                ),
                None => tracing::info!(
                    protocol = held.protocol.name(), external = %held.external,
                    "the router passes on what comes to a port of its own"
                ),
            },
            State::Failed(why) => tracing::warn!(%why, "no port of a router's is mapped"),
        }
        self.shown.state = state;
    }

    /// Tries all protocols.
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
                    self.failures = 0;
                    return self.keep(time.now(), (protocol, route.clone(), igd), made);
                }
                Err(failure) => {
                    self.shown.counts.failed[protocol as usize] += 1;
                    why.push(format!("{}: {failure}", protocol.name()));
                }
            }
        }
        let wait = (SEARCH_AGAIN * (1 << self.failures.min(10))).min(SEARCH_AGAIN_MAX);
        self.failures = self.failures.saturating_add(1);
        self.next = time.now() + self.about(wait);
        self.set(State::Failed(why.join("; ")));
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
            self.attempted = None;
            return Ok((judged(made?)?, None));
        }
        let mut last = Failure::Absent;
        for igd in igd::find(route).await? {
            match self.make_by(&igd, &ask, route).await {
                Ok(made) => return Ok((made, Some(igd))),
                Err(failure) => last = failure,
            }
        }
        Err(last)
    }

    async fn make_by(&mut self, igd: &Igd, ask: &Ask, route: &Route) -> Result<Made, Failure> {
        let others: [u64; PORTS_MAX] = std::array::from_fn(|_| self.number());
        let others = others.into_iter().filter_map(|number| {
            let offset = u16::try_from(number % 16_384).unwrap_or(0);
            NonZeroU16::new(49_152 + offset)
        });
        let noted = &mut self.attempted;
        let note = |port: Option<NonZeroU16>| {
            *noted = port.map(|port| Left {
                protocol: Protocol::Upnp,
                route: route.clone(),
                igd: Some(igd.clone()),
                port,
                until: None,
                is_sure: false,
            });
        };
        let made = judged(igd.map(ask, route.own, others, note).await?)?;
        self.attempted = None;
        Ok(made)
    }

    /// What a router was asked for, and did not deny, it may have.
    fn note_left(&mut self) {
        if let Some(attempted) = self.attempted.take() {
            self.left.push(attempted);
        }
    }

    fn keep(
        &mut self,
        now: Instant,
        (protocol, route, igd): (Protocol, Route, Option<Igd>),
        made: Made,
    ) {
        let until = made.lease.map(|lease| now + lease);
        let half = made.lease.unwrap_or(LEASE_MAX) / 2;
        let often = match protocol {
            Protocol::Pcp | Protocol::NatPmp => CHECK,
            Protocol::Upnp => CHECK_UPNP,
        };
        self.kept = Some(Kept {
            protocol,
            route,
            igd,
            made,
            until,
            clock: made.epoch.map(|epoch| Clock::new(epoch, now)),
            renew: now + self.about(half),
            check: now + self.about(often),
            silent: 0,
        });
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
    async fn again(&mut self, time: Time, why: Again) {
        let Some(kept) = self.kept.clone() else {
            return;
        };
        let (protocol, ask) = (kept.protocol, self.ask_again(&kept));
        let done = async {
            match &kept.igd {
                Some(igd) => self.make_by(igd, &ask, &kept.route).await,
                None => pmp::map(protocol, &kept.route, &ask).await.and_then(judged),
            }
        };
        let done = timeout(SEARCH_ALL, done).await;
        let done = done.unwrap_or(Err(Failure::Silent));
        self.note_left();
        let now = time.now();
        match done {
            Ok(made) => {
                let counts = &mut self.shown.counts;
                let counted = match why {
                    Again::Due => &mut counts.renewed,
                    Again::Forgotten => &mut counts.made,
                };
                counted[protocol as usize] += 1;
                if why == Again::Forgotten {
                    tracing::info!(
                        protocol = protocol.name(), external = %made.external,
                        "the router had forgotten its mapping, and has it again"
                    );
                }
                self.keep(now, (protocol, kept.route, kept.igd), made);
            }
            Err(failure) => {
                self.shown.counts.failed[protocol as usize] += 1;
                tracing::debug!(protocol = protocol.name(), %failure, "a mapping was not renewed");
                // It may have restarted, and be elsewhere; or it has lost what it had, or has it still.
                let is_lost =
                    why == Again::Forgotten || kept.until.is_some_and(|until| now >= until);
                if is_lost {
                    self.kept = None;
                    kept.left(false)
                        .into_iter()
                        .for_each(|left| self.left.push(left));
                    return self.search(time, &kept.route).await;
                }
                self.kept = Some(Kept {
                    renew: now + RENEW_AGAIN,
                    ..kept
                });
            }
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
    async fn check(&mut self, time: Time) {
        let Some(kept) = &self.kept else {
            return;
        };
        let ip = *kept.made.external.ip();
        let (mut clock, mut often, mut silent) = (kept.clock, CHECK, 0);
        let has_it = match &kept.igd {
            Some(igd) => {
                often = CHECK_UPNP;
                let ask = self.ask_again(kept);
                let has = match igd.has(&ask, kept.route.own).await {
                    Ok(has) => has,
                    // It does not answer that question: it is asked for the mapping again when that is due.
                    Err(Failure::Refused(_) | Failure::Malformed(_)) => true,
                    // It may be busy, or restarting, and still have it.
                    Err(Failure::Silent | Failure::Absent | Failure::System(_)) => {
                        (often, silent) = (CHECK, kept.silent + 1);
                        silent < SILENT_MAX
                    }
                };
                has && (silent > 0 || !igd.external().await.is_ok_and(|now| now != ip))
            }
            None => match epoch::ask(kept.protocol, &kept.route).await {
                Ok(told) => {
                    let now = time.now();
                    let before = clock.replace(Clock::new(told.epoch, now));
                    before.is_none_or(|before| before.goes_on(told.epoch, now))
                        && told.external.is_none_or(|now| now == ip)
                }
                // It may be restarting, and says so by its time later; or it does not know the question.
                Err(_) => true,
            },
        };
        if !has_it {
            return self.again(time, Again::Forgotten).await;
        }
        let check = time.now() + self.about(often);
        if let Some(kept) = &mut self.kept {
            (kept.clock, kept.check, kept.silent) = (clock, check, silent);
        }
    }

    /// Has routers delete what they have.
    async fn give_back(&mut self, now: Instant) {
        self.note_left();
        let ask = self.ask();
        if let Some(left) = self.kept.take().and_then(|kept| kept.left(true)) {
            self.left.push(left);
        }
        self.left.give_back(now, &ask).await;
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
