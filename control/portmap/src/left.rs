//! Mappings that a router has, or may have: what is known of each, and how it is taken back.

use crate::{
    Ask, Failure, Protocol, Route,
    caught::caught,
    igd::{Entry, Igd},
    limits::{GIVE_BACK, LEFT_MAX},
    pmp,
};
use std::{io, num::NonZeroU16, time::Instant};
use tokio::{task::JoinSet, time::timeout};

/// One of them.
#[derive(Clone, Debug)]
pub(crate) struct Left {
    pub(crate) protocol: Protocol,
    pub(crate) route: Route,
    pub(crate) igd: Option<Igd>,
    /// The router's port.
    pub(crate) port: NonZeroU16,
    /// Until when it has it; none: until it is deleted.
    pub(crate) until: Option<Instant>,
    /// Whether the router gave it, and was not seen to lose it.
    pub(crate) is_sure: bool,
}

impl Left {
    /// Whether a router has only one of the two: by PCP and NAT-PMP it knows them by the inner port.
    fn is_same(&self, other: &Self) -> bool {
        let of = |one: &Self| (one.protocol, one.route.clone());
        of(self) == of(other) && (self.igd.is_none() || self.port == other.port)
    }

    async fn take_back(&self, ask: &Ask) -> Result<(), Failure> {
        let ask = Ask {
            external: self.port,
            ..*ask
        };
        // Where this machine has another address by now the router takes what it says for that one's.
        let is_own = self.route.is_own();
        let Some(igd) = &self.igd else {
            return match is_own {
                true => pmp::delete(self.protocol, &self.route, &ask).await,
                false => Err(Failure::System(io::ErrorKind::AddrNotAvailable.into())),
            };
        };
        // The port may be another host's by now.
        let is_sure = self.is_sure && is_own;
        let entry = match is_sure {
            true => Ok(Entry::Own),
            false => igd.entry(&ask, self.route.own).await,
        };
        match entry {
            Ok(Entry::Nothing | Entry::Other) => Ok(()),
            Ok(Entry::Own) => igd.delete(&ask).await,
            Err(_) if is_own => igd.delete(&ask).await,
            Err(failure) => Err(failure),
        }
    }
}

/// What comes of asking a router, which has a while for it. A panic is this node's fault, and nobody else's answer.
async fn ended(asking: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let done = caught(timeout(GIVE_BACK, asking)).await;
    let done = done.map_err(Failure::Panicked)?;
    done.unwrap_or(Err(Failure::Silent))
}

/// A few of them.
#[derive(Debug, Default)]
pub(crate) struct Leftovers(Vec<Left>);

impl Leftovers {
    /// One more; where there are too many, the oldest is forgotten, and that is said.
    pub(crate) fn push(&mut self, one: Left) {
        self.forget(&one);
        if self.0.len() >= LEFT_MAX {
            warn(&self.0.remove(0), &Failure::Silent);
        }
        self.0.push(one);
    }

    /// It is held, or was taken back.
    pub(crate) fn forget(&mut self, one: &Left) {
        self.0.retain(|other| !one.is_same(other));
    }

    /// Has routers take back what they have by these routes, at the same time. What is not done when this is dropped is
    /// still there. How many panicked.
    pub(crate) async fn give_back(
        &mut self,
        now: Instant,
        ask: &Ask,
        which: impl Fn(&Route) -> bool,
    ) -> u64 {
        self.0
            .retain(|one| one.until.is_none_or(|until| now < until));
        let (mut tasks, mut panics) = (JoinSet::new(), 0);
        let due = self.0.iter().filter(|one| which(&one.route));
        for one in due.cloned() {
            let ask = *ask;
            tasks.spawn(async move {
                let done = ended(one.take_back(&ask)).await;
                (one, done)
            });
        }
        while let Some(done) = tasks.join_next().await {
            let Ok((one, done)) = done else {
                continue;
            };
            if let Err(failure) = done {
                panics += u64::from(matches!(failure, Failure::Panicked(_)));
                warn(&one, &failure);
            }
            self.forget(&one);
        }
        self.0.retain(|one| !which(&one.route));
        panics
    }
}

fn warn(one: &Left, failure: &Failure) {
    let until = match one.until {
        Some(_) => "until its lease is over",
        None => "until it is deleted by hand",
    };
    tracing::warn!(
        protocol = one.protocol.name(), router = %one.route.gateway, port = one.port, %failure,
        "the router was not told that its mapping is not needed, and may have it {until}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_of_what_asks_a_router_is_a_failure_that_is_said() {
        let failure = ended(async { panic!("a defect") }).await.unwrap_err();
        assert!(failure.to_string().contains("a defect"), "{failure}");
        assert!(ended(async { Ok(()) }).await.is_ok());
    }
}
