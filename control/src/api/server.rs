//! Serves the socket: so many connections and no more, none that stays silent, and a new socket when
//! its file is gone.
//!
//! A request's head must come within [`HEAD_TIMEOUT`], also on a connection that is kept for another.
//! Bodies take the time they take: events are published as they happen, subscriptions have no end.

use super::{
    error::ApiError,
    socket::{self, Socket, SocketError},
};
use crate::{cause, channel::subscribe::SUBSCRIBERS_MAX};
use axum::{Router, response::IntoResponse as _};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use serde::{Deserialize, Serialize};
use std::{
    convert::Infallible,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::MissedTickBehavior,
};

/// Connections at a time, subscriptions and publishers among them; half of what a process may open
/// where nobody raised that.
pub const CONNECTIONS_MAX: usize = 512;
/// Connections beyond those that are told so; still more are closed without a word.
const REFUSALS_MAX: usize = 32;
/// How long a request's head may take, from the connection's begin or the last request's end.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection that is refused may take.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes that one connection may buffer each way.
const BUFFER_BYTES_MAX: usize = 64 * 1024;
/// How often the socket's file is looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// The log tells of connections that the system does not give this often.
const FAILURES_LOGGED_EVERY: Duration = Duration::from_secs(60);
/// A pause when the system gives no further connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const _: () = assert!(CONNECTIONS_MAX <= SUBSCRIBERS_MAX);

/// The API's connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiStatus {
    /// Open now, the one that asks included.
    pub connections: usize,
    /// As many as there may be.
    pub connections_max: usize,
    /// Refused because there were as many.
    pub refused: u64,
}

/// Places for connections, and how many found none.
#[derive(Debug)]
pub struct Connections {
    places: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    refused: AtomicU64,
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            refusals: Arc::new(Semaphore::new(REFUSALS_MAX)),
            refused: AtomicU64::new(0),
        }
    }
}

impl Connections {
    pub(super) fn status(&self) -> ApiStatus {
        ApiStatus {
            connections: CONNECTIONS_MAX - self.places.available_permits(),
            connections_max: CONNECTIONS_MAX,
            refused: self.refused.load(Ordering::Relaxed),
        }
    }
}

/// Connections that the system did not give, most of them counted and not logged one by one.
#[derive(Debug, Default)]
struct Failures {
    unlogged: u64,
    logged: Option<Instant>,
}

impl Failures {
    fn note(&mut self, error: &io::Error) {
        self.unlogged += 1;
        if let Some(failures) = self.due(Instant::now()) {
            let fix = cause::is_out_of_files(error).then_some(cause::FILES_LIMIT);
            tracing::warn!(%error, failures, fix, "the API's socket gives no further connection; trying again");
        }
    }

    /// How many failed since the last line, when it is time for one.
    fn due(&mut self, now: Instant) -> Option<u64> {
        let is_due = |logged| now.duration_since(logged) >= FAILURES_LOGGED_EVERY;
        if !self.logged.is_none_or(is_due) {
            return None;
        }
        self.logged = Some(now);
        Some(std::mem::take(&mut self.unlogged))
    }
}

/// The listening socket and what it serves.
pub struct Server {
    socket: Socket,
    listener: UnixListener,
    router: Router,
    connections: Arc<Connections>,
    open: GracefulShutdown,
    failures: Failures,
    /// Whether the lack of places has been logged.
    is_full: bool,
    /// What was logged about the socket's file.
    problem: Option<String>,
}

impl Server {
    /// Serves `router` on the socket.
    ///
    /// # Errors
    /// When the runtime does not take the listener.
    pub fn new(
        (socket, listener): (Socket, std::os::unix::net::UnixListener),
        router: Router,
        connections: Arc<Connections>,
    ) -> io::Result<Self> {
        Ok(Self {
            socket,
            listener: UnixListener::from_std(listener)?,
            router,
            connections,
            open: GracefulShutdown::new(),
            failures: Failures::default(),
            is_full: false,
            problem: None,
        })
    }

    /// Serves the socket, and connections that `local` brings, until the sender of `stop` says something or
    /// is dropped; then removes the socket and waits for the answers that are under way.
    pub async fn run(
        mut self,
        mut local: mpsc::Receiver<std::os::unix::net::UnixStream>,
        mut stop: watch::Receiver<()>,
    ) {
        let mut look = tokio::time::interval(LOOK_AGAIN);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = stop.changed() => break,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => self.take(stream),
                    Err(error) => {
                        self.failures.note(&error);
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(stream) = local.recv() => match UnixStream::from_std(stream) {
                    Ok(stream) => self.take(stream),
                    Err(error) => self.failures.note(&error),
                },
                _ = look.tick() => self.keep_in_place().await,
            }
        }
        drop((self.socket, self.listener));
        self.open.shutdown().await;
    }

    /// Serves a connection, or refuses it.
    fn take(&mut self, stream: UnixStream) {
        let stream = TokioIo::new(stream);
        let Ok(place) = Arc::clone(&self.connections.places).try_acquire_owned() else {
            return self.refuse(stream);
        };
        if self.connections.places.available_permits() > CONNECTIONS_MAX / 2 {
            self.is_full = false;
        }
        let service = TowerToHyperService::new(self.router.clone());
        let connection = builder().serve_connection(stream, service);
        let connection = self.open.watch(connection);
        tokio::spawn(async move {
            // Whoever it was knows as much: it went away, was too slow, or spoke no HTTP.
            let _ended = connection.await;
            drop(place);
        });
    }

    fn refuse(&mut self, stream: TokioIo<UnixStream>) {
        self.connections.refused.fetch_add(1, Ordering::Relaxed);
        if !self.is_full {
            self.is_full = true;
            tracing::warn!(
                connections = CONNECTIONS_MAX,
                "the API has as many connections as it may: refusing more"
            );
        }
        if let Ok(place) = Arc::clone(&self.connections.refusals).try_acquire_owned() {
            tokio::spawn(say_busy(stream, place));
        }
    }

    /// Listens anew when the socket's file was removed or replaced: nobody could connect any more.
    async fn keep_in_place(&mut self) {
        if self.socket.is_in_place() {
            self.problem = None;
            return;
        }
        let place = self.socket.place.clone();
        // Trying a socket that is there may take a moment.
        let listening = tokio::task::spawn_blocking(move || socket::listen(&place)).await;
        let listening = listening.map_err(|error| error.to_string());
        match listening.and_then(|done| done.map_err(|error: SocketError| error.to_string())) {
            Ok((socket, listener)) => match UnixListener::from_std(listener) {
                Ok(listener) => {
                    (self.socket, self.listener) = (socket, listener);
                    let path = self.socket.place.path.display();
                    tracing::warn!(socket = %path, "the API's socket was removed or replaced; listening on a new one");
                }
                Err(error) => self.complain(error.to_string()),
            },
            Err(problem) => self.complain(problem),
        }
    }

    fn complain(&mut self, problem: String) {
        if self.problem.as_ref() != Some(&problem) {
            tracing::warn!(%problem, "the API's socket was removed or replaced, and nobody can reach this node; trying again");
        }
        self.problem = Some(problem);
    }
}

fn builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(BUFFER_BYTES_MAX);
    builder
}

/// Answers one request with the reason for its refusal.
async fn say_busy(stream: TokioIo<UnixStream>, place: OwnedSemaphorePermit) {
    let service = service_fn(async |_| {
        let words =
            format!("the node has {CONNECTIONS_MAX} API connections already: end some first");
        Ok::<_, Infallible>(ApiError::Busy(words).into_response())
    });
    let mut builder = builder();
    let connection = builder.keep_alive(false).serve_connection(stream, service);
    // Whoever does not listen goes without.
    let _told = tokio::time::timeout(REFUSAL_TIMEOUT, connection).await;
    drop(place);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_logged_at_once_and_then_counted() {
        let (mut failures, start) = (Failures::default(), Instant::now());
        let mut fail_after = |seconds| {
            failures.unlogged += 1;
            failures.due(start + Duration::from_secs(seconds))
        };
        assert_eq!(fail_after(0), Some(1));
        assert_eq!((fail_after(1), fail_after(59)), (None, None));
        assert_eq!(fail_after(60), Some(3));
        assert_eq!(fail_after(61), None);
    }
}
