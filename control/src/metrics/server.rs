//! Answers over HTTP, at an address of its own.
//!
//! | request | answer |
//! |---|---|
//! | `GET /metrics` | every series, as OpenMetrics |
//! | `GET /healthz` | 200 while the workers answer, else 503 with the reason |
//! | `GET /readyz` | 200 while all is as the configuration asks for, else 503 with the reasons, one a line |
//!
//! Nobody is asked who they are, so little is given to anyone: a connection carries one request and ends in
//! [`CONNECTION_TIMEOUT`], there are [`CONNECTIONS_MAX`] at a time, and the workers are asked at most once in
//! [`STATUS_LIFE`], however many ask here.

use super::{health, text};
use crate::api::{Api, error::ApiError, server::HEAD_TIMEOUT, status};
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Mutex, Semaphore, watch},
    time::timeout,
};

/// Connections at a time; those beyond are closed.
const CONNECTIONS_MAX: usize = 16;
/// How long a connection may take as a whole.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the workers may take to answer: one that is neither stopped nor stuck has by then.
const PATIENCE: Duration = Duration::from_secs(2);
/// For how long what they answered is told to others who ask.
const STATUS_LIFE: Duration = Duration::from_millis(200);
/// A pause when the system gives no further connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const _: () = assert!(PATIENCE.as_secs() < CONNECTION_TIMEOUT.as_secs());

/// The listening socket.
pub struct Server {
    listener: TcpListener,
}

/// What the answers are made of.
struct Source {
    api: Arc<Api>,
    latest: Mutex<Option<(Instant, Arc<status::Status>)>>,
}

/// Why there is no status.
#[derive(Debug, thiserror::Error)]
enum Unwell {
    #[error("the workers have not answered for {} s: they are stopped or stuck", PATIENCE.as_secs())]
    Silent,
    #[error(transparent)]
    Ended(#[from] ApiError),
}

impl IntoResponse for Unwell {
    fn into_response(self) -> Response {
        (StatusCode::SERVICE_UNAVAILABLE, format!("{self}\n")).into_response()
    }
}

impl Server {
    /// Listens.
    ///
    /// # Errors
    /// What the system refuses.
    pub async fn listen(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        Ok(Self { listener })
    }

    /// Answers until the sender of `stop` says something or is dropped.
    pub async fn run(self, api: Arc<Api>, mut stop: watch::Receiver<()>) {
        let router = router(api);
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let accepted = tokio::select! {
                _ = stop.changed() => return,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "no further connection for metrics; trying again");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
                let router = router.clone();
                tokio::spawn(async move {
                    serve(stream, router).await;
                    drop(place);
                });
            }
        }
    }
}

async fn serve(stream: TcpStream, router: Router) {
    let mut builder = http1::Builder::new();
    builder
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT);
    let service = TowerToHyperService::new(router);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    // Whoever it was knows as much: it went away, was too slow, or spoke no HTTP.
    let _ended = timeout(CONNECTION_TIMEOUT, connection).await;
}

fn router(api: Arc<Api>) -> Router {
    let source = Source {
        api,
        latest: Mutex::default(),
    };
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthy))
        .route("/readyz", get(ready))
        .fallback(nothing_there)
        .with_state(Arc::new(source))
}

impl Source {
    /// The node's status, at most [`STATUS_LIFE`] old.
    async fn status(&self) -> Result<Arc<status::Status>, Unwell> {
        let mut latest = self.latest.lock().await;
        if let Some((at, status)) = &*latest
            && at.elapsed() < STATUS_LIFE
        {
            return Ok(Arc::clone(status));
        }
        // Those who wait for the lock would wait as long again.
        *latest = None;
        let status = timeout(PATIENCE, status::of(&self.api)).await;
        let status = Arc::new(status.map_err(|_| Unwell::Silent)??);
        *latest = Some((Instant::now(), Arc::clone(&status)));
        Ok(status)
    }
}

async fn metrics(State(source): State<Arc<Source>>) -> Result<Response, Unwell> {
    let text = text::of(&*source.status().await?);
    Ok(([(CONTENT_TYPE, text::MEDIA_TYPE)], text).into_response())
}

async fn healthy(State(source): State<Arc<Source>>) -> Result<&'static str, Unwell> {
    source.status().await?;
    Ok("the workers answer\n")
}

async fn ready(State(source): State<Arc<Source>>) -> Result<Response, Unwell> {
    let status = source.status().await?;
    let problems = health::problems(&source.api.identity.config(), &status).await;
    if problems.is_empty() {
        return Ok("ready\n".into_response());
    }
    let words = problems.join("\n") + "\n";
    Ok((StatusCode::SERVICE_UNAVAILABLE, words).into_response())
}

async fn nothing_there() -> (StatusCode, &'static str) {
    let words = "there are GET /metrics, GET /healthz and GET /readyz\n";
    (StatusCode::NOT_FOUND, words)
}
