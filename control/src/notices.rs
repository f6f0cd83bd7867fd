//! Revocation lists that a worker learned of from a peer: the control plane tells the other workers,
//! and keeps the lists over a restart.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::Notify;

/// What has been told and not yet taken: the newest signed list of each issuer.
#[derive(Clone, Debug, Default)]
pub struct Notices(Arc<Told>);

#[derive(Debug, Default)]
struct Told {
    lists: Mutex<BTreeMap<[u8; 32], Vec<u8>>>,
    changed: Notify,
}

impl Notices {
    /// There is a new list of an issuer that some channel trusts.
    pub fn tell(&self, issuer: [u8; 32], signed: Vec<u8>) {
        let mut lists = self.0.lists.lock().unwrap_or_else(PoisonError::into_inner);
        lists.insert(issuer, signed);
        self.0.changed.notify_one();
    }

    /// Waits until something was told.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// What was told since the last time, by issuer.
    #[must_use]
    pub fn take(&self) -> BTreeMap<[u8; 32], Vec<u8>> {
        std::mem::take(&mut *self.0.lists.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
