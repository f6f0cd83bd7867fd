//! Memberships that peers have shown to the workers: the control plane follows.

use super::{Membership, Memberships};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

/// What was shown and not yet taken, bounded by the number of peers. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Shown(Arc<Told>);

#[derive(Debug, Default)]
struct Told {
    newest: Mutex<Memberships>,
    changed: Notify,
}

impl Shown {
    /// A peer has shown one about its own entity.
    pub fn tell(&self, membership: Membership) {
        let mut newest = self.0.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if newest.learn(membership) {
            self.0.changed.notify_one();
        }
    }

    /// Waits until something was shown.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// What was shown since the last time.
    #[must_use]
    pub fn take(&self) -> Memberships {
        std::mem::take(&mut *self.0.newest.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
