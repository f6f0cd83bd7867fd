//! A node inside a program's own process, on threads of its own.

use super::{DaemonError, serve_on, system};
use crate::config::Config;
use std::{
    os::unix::net::UnixStream,
    sync::{Mutex, PoisonError},
    thread::JoinHandle,
};
use tokio::sync::{mpsc, oneshot};

/// Connections that wait to be served.
const CONNECTIONS_WAITING: usize = 16;

/// See the module. Once it is dropped, the node ends by itself.
#[derive(Debug)]
pub(crate) struct Embedded {
    connections: mpsc::Sender<UnixStream>,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<Result<(), DaemonError>>,
}

impl Embedded {
    /// Starts it, and waits until its API answers.
    pub(crate) async fn start(config: Config) -> Result<Self, DaemonError> {
        let (ready, is_ready) = oneshot::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let (connections, local) = mpsc::channel(CONNECTIONS_WAITING);
        // No signal of the program's is the node's.
        let (_, reloads) = mpsc::channel(1);
        let until = async {
            // Told, or nobody can any more.
            let _either = stopped.await;
        };
        let thread = std::thread::Builder::new()
            .name("virga-node".into())
            .spawn(move || serve_on((config, None), async { Ok(until) }, (local, reloads), ready))
            .map_err(system("start the node's thread"))?;
        let running = Running { stop, thread };
        if is_ready.await.is_err() {
            running.end().await?;
            return Err(DaemonError::Ended("right after its start".into()));
        }
        Ok(Self {
            connections,
            running: Mutex::new(Some(running)),
        })
    }

    /// A connection to its API; none once it has ended.
    pub(crate) async fn connect(&self) -> std::io::Result<Option<tokio::net::UnixStream>> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        if self.connections.send(theirs).await.is_err() {
            return Ok(None);
        }
        tokio::net::UnixStream::from_std(ours).map(Some)
    }

    /// Stops it, and waits for its end; whoever asks again waits for nothing.
    pub(crate) async fn stop(&self) -> Result<(), DaemonError> {
        let running = self.running.lock();
        let running = running.unwrap_or_else(PoisonError::into_inner).take();
        match running {
            Some(running) => running.end().await,
            None => Ok(()),
        }
    }
}

impl Running {
    async fn end(self) -> Result<(), DaemonError> {
        drop(self.stop);
        let joined = tokio::task::spawn_blocking(move || self.thread.join()).await;
        match joined {
            Ok(Ok(ended)) => ended,
            _ => Err(DaemonError::Ended("its thread panicked".into())),
        }
    }
}
