//! Follows the way of packets from neighbour to neighbour: asks the next one, and answers the ones before.

use super::path;
use crate::{
    channel::Measured,
    dispatch::{Dispatch, Service},
    trace::{End, HOPS_MAX, Hop, Inbox, Said, Way},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Semaphore, oneshot},
    time::Instant,
};
use virga_ebpf::header::NodeId;
use virga_transport::worker::Parts;

/// Ways that are followed at the same time, for all neighbours and programs together.
pub const FOLLOWED_MAX: usize = 64;
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
    followed: Arc<Semaphore>,
}

impl Tracer {
    /// Follows what neighbours ask, until the workers have ended.
    pub fn run(own: NodeId, dispatch: &Dispatch, path: &path::Asker, inbox: Inbox) -> Self {
        let tracer = Self(Arc::new(Inner {
            own,
            dispatch: dispatch.clone(),
            path: path.clone(),
            asked: Mutex::default(),
            followed: Arc::new(Semaphore::new(FOLLOWED_MAX)),
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
                let mut asked = self.asked();
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
                    let way = self.follow(destination, hops).await;
                    let _gone = self.say(peer, Said::Answer { number, way }).await;
                });
            }
        }
    }

    fn asked(&self) -> std::sync::MutexGuard<'_, Asked> {
        let asked = self.0.asked.lock();
        asked.unwrap_or_else(PoisonError::into_inner)
    }

    /// The way from here.
    pub async fn trace(&self, destination: NodeId) -> Way {
        self.follow(destination, HOPS_MAX).await
    }

    async fn follow(&self, destination: NodeId, hops: u8) -> Way {
        if destination == self.0.own {
            return Way::ends(End::Arrived);
        }
        let Some(hops) = hops.checked_sub(1) else {
            return Way::ends(End::TooLong);
        };
        let Ok(_one_of_few) = Arc::clone(&self.0.followed).try_acquire_owned() else {
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
        self.asked().insert(number, (next, reply));
        let ask = Said::Ask {
            number,
            destination,
            hops,
        };
        let answer = match self.say(next, ask).await {
            true => {
                let patience = PATIENCE_A_HOP * (u32::from(hops) + 2);
                let answer = tokio::time::timeout(patience, answer).await;
                answer.ok().and_then(Result::ok).ok_or(End::Silent)
            }
            false => Err(End::NoSession),
        };
        self.asked().remove(&number);
        answer
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
