//! The kernel's facts: read anew when it tells of a change, over a socket that is opened again once it
//! is gone.

use crate::{
    config::Config,
    nic::kernel::{Changes, Facts, Kernel, KernelError},
};
use std::sync::Arc;
use tokio::{sync::Notify, task::JoinHandle};

/// A netlink socket, and the task that listens to it.
#[derive(Debug)]
struct Socket {
    kernel: Kernel,
    listener: JoinHandle<()>,
}

/// Knows the kernel's facts, and when they changed.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Rung when the kernel tells of a change, and when it cannot tell any more.
    changed: Arc<Notify>,
    socket: Option<Socket>,
}

impl Watch {
    /// Waits for a change.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Reads everything anew.
    ///
    /// # Errors
    /// When there is no netlink socket to be had, or the kernel refuses a request.
    pub(super) async fn facts(&mut self, config: &Config) -> Result<Facts, KernelError> {
        self.kernel()?.facts(config).await
    }

    /// The kernel, by a socket that is listened to.
    ///
    /// # Errors
    /// When there is no netlink socket to be had.
    pub(super) fn kernel(&mut self) -> Result<&Kernel, KernelError> {
        let is_open = |socket: &Socket| !socket.listener.is_finished();
        let socket = match self.socket.take().filter(is_open) {
            Some(socket) => socket,
            None => {
                let (kernel, changes) = Kernel::connect()?;
                let listener = tokio::spawn(ring(changes, Arc::clone(&self.changed)));
                Socket { kernel, listener }
            }
        };
        Ok(&self.socket.insert(socket).kernel)
    }
}

/// Rings when the kernel tells of a change, and when its socket is gone.
async fn ring(mut changes: Changes, changed: Arc<Notify>) {
    while changes.next().await {
        changed.notify_one();
    }
    changed.notify_one();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As in `Watch::default()`, with a socket.
    fn listened(watch: &mut Watch) -> &JoinHandle<()> {
        watch.kernel().unwrap();
        &watch.socket.as_ref().unwrap().listener
    }

    #[tokio::test]
    async fn a_socket_that_is_gone_is_opened_again() {
        let mut watch = Watch::default();
        assert!(!listened(&mut watch).is_finished(), "there was none");
        let first = listened(&mut watch).id();
        assert_eq!(listened(&mut watch).id(), first, "one that works is kept");
        let ended = watch.socket.as_mut().unwrap();
        ended.listener.abort();
        let _aborted = (&mut ended.listener).await;
        assert!(!listened(&mut watch).is_finished());
    }
}
