//! Follows the way of packets from neighbour to neighbour: asks the next one, and answers the ones before.

use super::path;
use crate::{
    channel::Measured,
    dispatch::{Dispatch, Service},
    trace::{End, HOPS_MAX, Hop, Inbox, Said, Way},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::oneshot, time::Instant};
use virga_ebpf::header::NodeId;
use virga_transport::worker::Parts;

/// Ways that are followed at the same time for one neighbour that asks: it may leave all of them unanswered.
pub const FOLLOWED_FOR_ONE_MAX: usize = 8;
/// Ways that are followed at the same time for all neighbours together.
pub const FOLLOWED_MAX: usize = 64;
/// Ways that are followed at the same time for this machine's programs.
pub const FOLLOWED_HERE_MAX: usize = 8;
/// How long an answer is waited for, a neighbour that it may yet come from: whoever is nearer to the asker waits
/// for longer, and so hears from the last one who it is that does not answer.
const PATIENCE_A_HOP: Duration = Duration::from_millis(150);

/// Who is asked, and whom the answer is for.
type Asked = BTreeMap<u64, (NodeId, oneshot::Sender<Way>)>;

/// See the [module](self). Cheap to clone.
#[derive(Clone)]
pub struct Tracer(Arc<Inner>);

struct Inner {
    own: NodeId,
    dispatch: Dispatch,
    path: path::Asker,
    asked: Mutex<Asked>,
    followed: Mutex<Followed>,
}

/// For whom ways are followed: neighbours, or nobody else (none); and how many.
type Followed = BTreeMap<Option<NodeId>, usize>;

/// A way that is followed for somebody, as long as this is there.
struct Following<'a> {
    followed: &'a Mutex<Followed>,
    asker: Option<NodeId>,
}

impl<'a> Following<'a> {
    /// None where as many are followed as may be.
    fn begin(followed: &'a Mutex<Followed>, asker: Option<NodeId>) -> Option<Self> {
        let mut all = locked(followed);
        let own = all.get(&asker).copied().unwrap_or(0);
        let others: usize = all.iter().filter_map(|(a, n)| a.map(|_| n)).sum();
        let is_free = match asker {
            None => own < FOLLOWED_HERE_MAX,
            Some(_) => own < FOLLOWED_FOR_ONE_MAX && others < FOLLOWED_MAX,
        };
        is_free.then(|| {
            all.insert(asker, own + 1);
            Self { followed, asker }
        })
    }
}

impl Drop for Following<'_> {
    fn drop(&mut self) {
        let mut all = locked(self.followed);
        match all.get_mut(&self.asker) {
            Some(many) if *many > 1 => *many -= 1,
            _ => {
                all.remove(&self.asker);
            }
        }
    }
}

/// A neighbour that is asked, as long as this is there: whoever wanted to know may go away.
struct Asking<'a> {
    asked: &'a Mutex<Asked>,
    number: u64,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        locked(self.asked).remove(&self.number);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tracer {
    /// Follows what neighbours ask, until the workers have ended.
    pub fn run(own: NodeId, dispatch: &Dispatch, path: &path::Asker, inbox: Inbox) -> Self {
        let tracer = Self(Arc::new(Inner {
            own,
            dispatch: dispatch.clone(),
            path: path.clone(),
            asked: Mutex::default(),
            followed: Mutex::default(),
        }));
        let weak = Arc::downgrade(&tracer.0);
        tokio::spawn(async move {
            loop {
                inbox.changed().await;
                let Some(inner) = weak.upgrade() else {
                    return;
                };
                for (peer, said) in inbox.take() {
                    Self(Arc::clone(&inner)).hear(peer, said);
                }
            }
        });
        tracer
    }

    fn hear(self, peer: NodeId, said: Said) {
        match said {
            Said::Answer { number, way } => {
                let mut asked = locked(&self.0.asked);
                // Who was not asked has nothing to answer.
                if asked.get(&number).is_some_and(|(from, _)| *from == peer)
                    && let Some((_, reply)) = asked.remove(&number)
                {
                    let _given_up = reply.send(way);
                }
            }
            Said::Ask {
                number,
                destination,
                hops,
            } => {
                tokio::spawn(async move {
                    let way = self.follow(Some(peer), destination, hops).await;
                    let _gone = self.say(peer, Said::Answer { number, way }).await;
                });
            }
        }
    }

    /// The way from here.
    pub async fn trace(&self, destination: NodeId) -> Way {
        self.follow(None, destination, HOPS_MAX).await
    }

    async fn follow(&self, asker: Option<NodeId>, destination: NodeId, hops: u8) -> Way {
        if destination == self.0.own {
            return Way::ends(End::Arrived);
        }
        let Some(hops) = hops.checked_sub(1) else {
            return Way::ends(End::TooLong);
        };
        let Some(_one_of_few) = Following::begin(&self.0.followed, asker) else {
            return Way::ends(End::Busy);
        };
        let Some(next) = self.0.path.next_hop(destination).await else {
            return Way::ends(End::NoRoute);
        };
        let asked_at = Instant::now();
        let answer = self.ask(next, destination, hops).await;
        let answered = u64::try_from(asked_at.elapsed().as_micros()).unwrap_or(u64::MAX);
        let answered = answer.is_ok().then_some(answered);
        let behind = answer.unwrap_or_else(Way::ends);
        let mut all = vec![Hop::new(next, self.measured(next).await, answered)];
        all.extend(behind.hops.into_iter().take(usize::from(hops)));
        Way {
            end: behind.end,
            hops: all,
        }
    }

    async fn ask(&self, next: NodeId, destination: NodeId, hops: u8) -> Result<Way, End> {
        let mut number = [0; 8];
        getrandom::fill(&mut number).map_err(|_| End::Busy)?;
        let number = u64::from_ne_bytes(number);
        let (reply, answer) = oneshot::channel();
        locked(&self.0.asked).insert(number, (next, reply));
        let _until_answered = Asking {
            asked: &self.0.asked,
            number,
        };
        let ask = Said::Ask {
            number,
            destination,
            hops,
        };
        if !self.say(next, ask).await {
            return Err(End::NoSession);
        }
        let patience = PATIENCE_A_HOP * (u32::from(hops) + 2);
        let answer = tokio::time::timeout(patience, answer).await;
        answer.ok().and_then(Result::ok).ok_or(End::Silent)
    }

    /// Whether there is a session with the neighbour.
    async fn say(&self, peer: NodeId, said: Said) -> bool {
        let say = move |now_ns: u64, parts: &mut Parts<Service>| {
            let said = said.clone();
            parts.service.say_trace(now_ns, &mut parts.node, peer, said)
        };
        let told = self.0.dispatch.with_all(say).await;
        told.is_ok_and(|told| told.contains(&true))
    }

    async fn measured(&self, peer: NodeId) -> Option<Measured> {
        let measure = |_: u64, parts: &mut Parts<Service>| parts.service.measured(&parts.node);
        let measured = self.0.dispatch.with_all(measure).await.ok()?;
        let mut all = measured.into_iter().flatten();
        all.find(|(of, _)| *of == peer)
            .map(|(_, measured)| measured)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_neighbour_that_never_answers_takes_no_place_of_others() {
        let followed = Mutex::default();
        let begin = |asker| Following::begin(&followed, asker);
        let many = |asker, most: usize| -> Vec<_> {
            let held: Vec<_> = std::iter::from_fn(|| begin(asker)).collect();
            assert_eq!(held.len(), most);
            held
        };
        let first = many(Some(NodeId(1)), FOLLOWED_FOR_ONE_MAX);
        let here = many(None, FOLLOWED_HERE_MAX);
        assert!(begin(Some(NodeId(2))).is_some());
        drop(first);
        assert!(begin(Some(NodeId(1))).is_some());
        // All neighbours together leave this machine's programs theirs, too.
        drop(here);
        let all: Vec<_> = (0..1_000)
            .filter_map(|id| begin(Some(NodeId(id))))
            .collect();
        assert_eq!(all.len(), FOLLOWED_MAX);
        drop(many(None, FOLLOWED_HERE_MAX));
        drop(all);
        assert!(locked(&followed).is_empty());
    }
}
