//! The node's local API: HTTP over a Unix socket, for `pub`, `sub`, `status` and [`crate::mesh`].
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /status` | | [`status::Status`] as JSON |
//! | `GET /subscriptions` | | this node's subscriptions at others, part of the status, as JSON |
//! | `POST /publish?channel=NAME` | events, each after its length | [`publish::Published`] as JSON, once the body ends |
//! | `GET /subscribe?channel=NAME` or `?prefix=NAME` | | deliveries, without end: [`frames`] |
//! | `POST /link?peer=NAME&state=up` or `down` | | 204 |
//!
//! An error is a JSON object with one key, `error`. Who may open the socket may do all of this: its
//! directory and its mode are the permission ([`socket`]). How many connections, and for how long:
//! [`server`].

pub mod error;
pub mod frames;
pub mod outlet;
pub mod publish;
pub mod server;
pub mod socket;
pub mod status;
pub mod subscribe;

use crate::{
    channel::{ChannelService, Command},
    config::Config,
    daemon::path,
};
use axum::{
    Router,
    routing::{get, post},
};
use error::ApiError;
use outlet::Queue;
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;
use virga_transport::worker::{Commander, Parts, Refused, Task};

/// The service that the node's worker runs.
pub type Service = ChannelService<Queue>;

/// How long a request waits before it asks a busy worker again.
const BUSY_PAUSE: Duration = Duration::from_millis(1);

/// What every request needs.
pub struct Api {
    /// The node's configuration.
    pub config: Arc<Config>,
    /// The worker.
    pub commander: Commander<Service>,
    /// What owns the forwarding path.
    pub path: path::Asker,
    /// Its sender is dropped when the daemon stops.
    pub stopping: watch::Receiver<()>,
    /// The API's own connections.
    pub connections: Arc<server::Connections>,
    /// Unix time at the worker's time 0.
    pub unix_zero_ns: u64,
    /// When the daemon started.
    pub started: std::time::Instant,
}

impl Api {
    /// Has the worker do something; waits while it is busy.
    pub(crate) async fn command(&self, asked: Command<Queue>) -> Result<(), ApiError> {
        command(&self.commander, asked).await
    }

    /// Looks at what the worker owns, on its thread.
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(u64, &Parts<Service>) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        let mut task: Task<Service> = Box::new(move |now_ns, parts| {
            // The request may have been given up meanwhile.
            let _given_up = reply.send(look(now_ns, parts));
        });
        loop {
            match self.commander.run(task) {
                Ok(()) => return answer.await.map_err(|_| ApiError::Stopping),
                Err(Refused::Ended(_)) => return Err(ApiError::Stopping),
                Err(Refused::Full(again)) => task = again,
            }
            tokio::time::sleep(BUSY_PAUSE).await;
        }
    }
}

async fn command(
    commander: &Commander<Service>,
    mut command: Command<Queue>,
) -> Result<(), ApiError> {
    loop {
        match commander.command(command) {
            Ok(()) => return Ok(()),
            Err(Refused::Ended(_)) => return Err(ApiError::Stopping),
            Err(Refused::Full(again)) => command = again,
        }
        tokio::time::sleep(BUSY_PAUSE).await;
    }
}

/// All routes.
pub fn router(api: Arc<Api>) -> Router {
    Router::new()
        .route("/status", get(status::get))
        .route("/subscriptions", get(status::subscriptions))
        .route("/publish", post(publish::post))
        .route("/subscribe", get(subscribe::get))
        .route("/link", post(status::link))
        .fallback(error::no_such_route)
        .method_not_allowed_fallback(error::no_such_method)
        .with_state(api)
}
