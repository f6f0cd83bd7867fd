//! What the workers heard of neighbours' link tags: the control plane follows.

use super::Said;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::Notify;
use virga_ebpf::header::NodeId;

/// What was heard of one neighbour since it was last looked at: the latest of each kind, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// A session began (and with it all else anew), or ended.
    pub session: Option<bool>,
    /// What it checks.
    pub of_receiver: Option<Said>,
    /// What it sends.
    pub of_sender: Option<Said>,
}

/// News that wait to be followed, bounded by the number of neighbours. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Heard(Arc<Told>);

#[derive(Debug, Default)]
struct Told {
    news: Mutex<BTreeMap<NodeId, News>>,
    changed: Notify,
}

impl Heard {
    /// A session with a neighbour is there.
    pub fn session_began(&self, peer: NodeId) {
        self.tell(peer, |news| {
            *news = News {
                session: Some(true),
                ..News::default()
            };
        });
    }

    /// The session with a neighbour is over.
    pub fn session_ended(&self, peer: NodeId) {
        self.tell(peer, |news| {
            *news = News {
                session: Some(false),
                ..News::default()
            };
        });
    }

    /// A neighbour said something.
    pub fn said(&self, peer: NodeId, said: Said) {
        self.tell(peer, |news| match said {
            Said::Check { .. } | Said::Unchecked => news.of_receiver = Some(said),
            Said::Tagged { .. } | Said::Untagged => news.of_sender = Some(said),
        });
    }

    fn tell(&self, peer: NodeId, change: impl FnOnce(&mut News)) {
        let mut news = self.0.news.lock().unwrap_or_else(PoisonError::into_inner);
        change(news.entry(peer).or_default());
        self.0.changed.notify_one();
    }

    /// Waits until something was heard.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// What was heard since the last time.
    #[must_use]
    pub fn take(&self) -> BTreeMap<NodeId, News> {
        std::mem::take(&mut *self.0.news.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
