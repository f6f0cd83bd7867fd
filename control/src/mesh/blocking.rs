//! The same without `async`: every call waits for its end.
//!
//! ```
//! use virga::mesh::blocking::Mesh;
//!
//! # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/one_node.rs"));
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let node = Mesh::start(one_node(folder.path(), 3)?)?;
//! let socket = "/run/virga/edge-a.sock";
//! # let socket = folder.path().join("node.sock");
//! let mesh = Mesh::open(socket)?;
//! let events = mesh.subscribe_prefix("metrics")?;
//! mesh.publish("metrics/here", b"load 0.42")?;
//! for delivery in events {
//!     let delivery = delivery?;
//!     println!("{}: {} bytes", delivery.channel, delivery.payload.len());
//! #   break;
//! }
//! # node.stop()?;
//! # Ok(())
//! # }
//! ```
//!
//! Not for code that runs inside an async runtime: waiting there would stop the runtime's thread, and
//! panics. [`super::Mesh`] is for that.

use super::{Cursor, Delivery, MeshError, Replayed, TryPublishError};
use crate::{
    api::{publish::Published, status::Status},
    channel::status::SubscriptionStatus,
    config::Config,
    daemon::DaemonError,
};
use bytes::Bytes;
use std::{path::Path, sync::Arc, time::Duration};
use tokio::runtime::{Builder, Runtime};

/// The thread on which connections go on between calls.
#[derive(Debug)]
struct Thread(Option<Runtime>);

impl Drop for Thread {
    fn drop(&mut self) {
        // Waits for nothing: whoever drops this may be anywhere.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Thread {
    fn start() -> std::io::Result<Self> {
        let mut runtime = Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).thread_name("virga-mesh");
        Ok(Self(Some(runtime.enable_all().build()?)))
    }

    fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        let runtime = self.0.as_ref();
        runtime.expect("there until it is dropped").block_on(future)
    }

    /// `None`: it took longer.
    fn wait_for<T>(&self, timeout: Duration, future: impl Future<Output = T>) -> Option<T> {
        self.wait(async { tokio::time::timeout(timeout, future).await.ok() })
    }
}

/// The node on this machine: see [`super::Mesh`]. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Mesh {
    mesh: super::Mesh,
    thread: Arc<Thread>,
}

impl Mesh {
    /// See [`super::Mesh::open`].
    ///
    /// # Errors
    /// The same; and where the system gives no thread.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, MeshError> {
        let path = path.as_ref();
        let unreachable = |source| MeshError::Unreachable {
            path: path.into(),
            source,
        };
        let thread = Thread::start().map_err(unreachable)?;
        let mesh = thread.wait(super::Mesh::open(path))?;
        Ok(Self {
            mesh,
            thread: Arc::new(thread),
        })
    }

    /// See [`super::Mesh::start`].
    ///
    /// # Errors
    /// The same; and where the system gives no thread.
    pub fn start(config: Config) -> Result<Self, DaemonError> {
        let thread = Thread::start().map_err(|source| DaemonError::System {
            operation: "start a thread",
            source,
        })?;
        let mesh = thread.wait(super::Mesh::start(config))?;
        Ok(Self {
            mesh,
            thread: Arc::new(thread),
        })
    }

    /// See [`super::Mesh::stop`].
    ///
    /// # Errors
    /// The same.
    pub fn stop(&self) -> Result<(), DaemonError> {
        self.thread.wait(self.mesh.stop())
    }

    /// See [`super::Mesh::publish`].
    ///
    /// # Errors
    /// The same.
    pub fn publish(&self, channel: &str, event: &[u8]) -> Result<Published, MeshError> {
        self.thread.wait(self.mesh.publish(channel, event))
    }

    /// See [`super::Mesh::publish_batch`].
    ///
    /// # Errors
    /// The same.
    pub fn publish_batch<E: AsRef<[u8]>>(
        &self,
        channel: &str,
        events: impl IntoIterator<Item = E>,
    ) -> Result<Published, MeshError> {
        self.thread.wait(self.mesh.publish_batch(channel, events))
    }

    /// See [`super::Mesh::publisher`].
    ///
    /// # Errors
    /// The same.
    pub fn publisher(&self, channel: &str) -> Result<Publisher, MeshError> {
        Ok(Publisher {
            publisher: self.thread.wait(self.mesh.publisher(channel))?,
            thread: Arc::clone(&self.thread),
        })
    }

    /// See [`super::Mesh::subscribe`].
    ///
    /// # Errors
    /// The same.
    pub fn subscribe(&self, channel: &str) -> Result<Subscription, MeshError> {
        Ok(Subscription {
            subscription: self.thread.wait(self.mesh.subscribe(channel))?,
            thread: Arc::clone(&self.thread),
        })
    }

    /// See [`super::Mesh::subscribe_prefix`].
    ///
    /// # Errors
    /// The same.
    pub fn subscribe_prefix(&self, prefix: &str) -> Result<Subscription, MeshError> {
        Ok(Subscription {
            subscription: self.thread.wait(self.mesh.subscribe_prefix(prefix))?,
            thread: Arc::clone(&self.thread),
        })
    }

    /// See [`super::Mesh::replay`].
    ///
    /// # Errors
    /// The same.
    pub fn replay(&self, channel: &str, from: Cursor) -> Result<Replay, MeshError> {
        Ok(Replay {
            replay: self.thread.wait(self.mesh.replay(channel, from))?,
            thread: Arc::clone(&self.thread),
        })
    }

    /// Waits until a channel has so many subscribers, and returns how many there are; `None` when that
    /// took longer than `timeout`.
    ///
    /// # Errors
    /// As [`Mesh::publish`].
    pub fn wait_for_subscribers(
        &self,
        channel: &str,
        count: usize,
        timeout: Duration,
    ) -> Result<Option<usize>, MeshError> {
        let waiting = self.mesh.wait_for_subscribers(channel, count);
        self.thread.wait_for(timeout, waiting).transpose()
    }

    /// See [`super::Mesh::status`].
    ///
    /// # Errors
    /// The same.
    pub fn status(&self) -> Result<Status, MeshError> {
        self.thread.wait(self.mesh.status())
    }

    /// See [`super::Mesh::subscriptions`].
    ///
    /// # Errors
    /// The same.
    pub fn subscriptions(&self) -> Result<Vec<SubscriptionStatus>, MeshError> {
        self.thread.wait(self.mesh.subscriptions())
    }
}

/// Publishes on one channel over one connection: see [`super::Publisher`].
#[derive(Debug)]
pub struct Publisher {
    publisher: super::Publisher,
    thread: Arc<Thread>,
}

impl Publisher {
    /// See [`super::Publisher::event_bytes_max`].
    #[must_use]
    pub const fn event_bytes_max(&self) -> usize {
        self.publisher.event_bytes_max()
    }

    /// See [`super::Publisher::publish`].
    ///
    /// # Errors
    /// The same.
    pub fn publish(&self, event: &[u8]) -> Result<(), MeshError> {
        self.thread.wait(self.publisher.publish(event))
    }

    /// See [`super::Publisher::try_publish`]: never waits.
    ///
    /// # Errors
    /// The same.
    pub fn try_publish(&self, event: impl Into<Bytes>) -> Result<(), TryPublishError> {
        self.publisher.try_publish(event)
    }

    /// See [`super::Publisher::finish`].
    ///
    /// # Errors
    /// The same.
    pub fn finish(self) -> Result<Published, MeshError> {
        self.thread.wait(self.publisher.finish())
    }
}

/// Kept events as they come; the iterator ends when the node stops. See [`super::Replay`].
#[derive(Debug)]
pub struct Replay {
    replay: super::Replay,
    thread: Arc<Thread>,
}

impl Iterator for Replay {
    type Item = Result<Replayed, MeshError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.thread.wait(self.replay.next_kept())
    }
}

/// Deliveries as they come; the iterator ends when the node stops. See [`super::Subscription`].
#[derive(Debug)]
pub struct Subscription {
    subscription: super::Subscription,
    thread: Arc<Thread>,
}

impl Subscription {
    /// The next delivery, if one comes within `timeout`; the inner `None` when the node stops. What
    /// comes later is not lost: the next call has it.
    pub fn next_within(
        &mut self,
        timeout: Duration,
    ) -> Option<Option<Result<Delivery, MeshError>>> {
        let next = self.subscription.next_delivery();
        self.thread.wait_for(timeout, next)
    }
}

impl Iterator for Subscription {
    type Item = Result<Delivery, MeshError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.thread.wait(self.subscription.next_delivery())
    }
}
