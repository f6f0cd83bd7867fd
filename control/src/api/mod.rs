//! The node's local API: HTTP over a Unix socket, for `pub`, `sub`, `status` and [`crate::mesh`].
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /status` | | [`status::Status`] as JSON |
//! | `GET /subscriptions` | | this node's subscriptions at others, part of the status, as JSON |
//! | `POST /publish?channel=NAME` | events, each after its length | [`publish::Published`] as JSON, once the body ends |
//! | `POST /fanout?channel=NAME` and `policy`, `quorum`, `in_flight`, `within_ms` | a few events, each after its length | [`fanout::Report`] as JSON, once it is known |
//! | `GET /subscribe?channel=NAME` or `?prefix=NAME` | | deliveries, without end: [`frames`] |
//! | `GET /replay?channel=NAME` or `?prefix=NAME`, `from=CURSOR`, where one of several is meant `at=NAME` and `log=ID`, `places=true` to be told how far each was given | | what is kept here, or at another node, from there on, and on with what comes, without end: [`frames`] |
//! | `POST /token` | a token's chain | it is held and shown to all peers; [`Given`](crate::channel::explain::Given) as JSON: what it gives here, and what the neighbours made of it |
//! | `POST /statement` | a signed statement about this node's entity | the same |
//! | `GET /capabilities` | | [`rights::NamedStatement`]s as JSON: what is said of this node's entity and of peers |
//! | `GET /why?channel=NAME&entity=KEY` or a name | | [`why::Why`] as JSON: what the entity may do there, check by check |
//! | `POST /revocations` | a signed revocation list | 204; it counts, is kept and passed on |
//! | `POST /identity` | a file of placements and successions | 204; they count, are kept and passed on |
//! | `GET /channels` | | the channels that the node knows: [`channels::ChannelsView`] as JSON |
//! | `POST /channel` | a signed declaration | 204; it holds, is kept and passed on |
//! | `POST /keep?channel=NAME` | how ([`KeepWords`](crate::config::keeping::KeepWords) as JSON) | [`Holds`](crate::kept::chosen::Holds) as JSON; this node keeps the channel, and when it is started again |
//! | `POST /leave?channel=NAME` | | [`Holds`](crate::kept::chosen::Holds) as JSON; it keeps it no more, if a command had it kept |
//! | `GET /routes` | | [`routes::RoutesStatus`](crate::routes::RoutesStatus) as JSON: who leads where, and by whose word |
//! | `GET /trace?to=NAME` or a node's id | | [`trace::Trace`](crate::trace::Trace) as JSON: the way that packets take, link by link |
//! | `GET /flow?channel=NAME` and what of [`Asked`](crate::flow::Asked) | | how long the channel's events stay in each stage here, a line of JSON now and then ([`Report`](crate::flow::Report)), until the connection ends |
//! | `GET /capture` and what of [`capture::asked`](crate::capture::asked) | | packets as they are decided upon, a line of JSON each ([`Line`](crate::capture::line::Line)), until the connection ends |
//! | `POST /capture` | | 204; the capture that goes on ends, with its last line |
//! | `GET /config` | | [`Setting`](crate::config::settings::Setting)s as JSON: what the node runs by, key by key, without secrets |
//! | `POST /reload` | | the configuration file is read anew; [`Reloaded`](crate::daemon::reload::Reloaded) as JSON: what has changed |
//! | `POST /link?peer=NAME&state=up` or `down` | | 204 |
//!
//! An error is a JSON object with one key, `error`. Who may open the socket may do all of this: its
//! directory and its mode are the permission ([`socket`]). How many connections, and for how long:
//! [`server`].

mod capture;
pub mod channels;
mod config;
pub mod error;
pub mod fanout;
mod flow;
pub mod frames;
pub mod outlet;
pub mod publish;
mod replay;
pub mod rights;
pub mod server;
pub mod socket;
pub mod status;
pub mod subscribe;
mod trace;
pub mod why;

use crate::{
    capture::run::Captures,
    daemon::{
        clock::Clock, discovery::Finder, identity::Registry, nat::Crossing, path,
        reload::Reloading, rights::Keeper, tracer::Tracer,
    },
    dispatch::Dispatch,
    fallback::Shown,
    flow::run::Flows,
    kept::Kept,
    placement::Place,
    reading::Reading,
};
use axum::{
    Router,
    routing::{get, post},
};
use std::sync::Arc;
use tokio::sync::watch;

/// What every request needs.
pub struct Api {
    /// The node's configuration, and where entities are.
    pub identity: Registry,
    /// The workers.
    pub dispatch: Dispatch,
    /// How datagrams find their worker.
    pub steering: String,
    /// Where each worker is, and why there.
    pub placement: Vec<Place>,
    /// What owns the forwarding path.
    pub path: path::Asker,
    /// What looks for other nodes.
    pub finder: Finder,
    /// Ways through NATs.
    pub crossing: Crossing,
    /// What carries neighbours that UDP does not reach.
    pub fallback: Shown,
    /// What follows the way of packets.
    pub tracer: Tracer,
    /// What shows packets as they are decided upon.
    pub captures: Captures,
    /// What times events of a channel, stage by stage.
    pub flows: Flows,
    /// What keeps tokens and revocation lists.
    pub rights: Keeper,
    /// Its sender is dropped when the daemon stops.
    pub stopping: watch::Receiver<()>,
    /// Channels that are kept.
    pub kept: Kept,
    /// How logs of other nodes are read.
    pub reading: Reading,
    /// The API's own connections.
    pub connections: Arc<server::Connections>,
    /// What a reload of the configuration replaces beside it.
    pub reloading: Reloading,
    /// Unix time, by the workers' time.
    pub clock: Clock,
    /// When the daemon started.
    pub started: std::time::Instant,
}

/// All routes.
pub fn router(api: Arc<Api>) -> Router {
    Router::new()
        .route("/status", get(status::get))
        .route("/subscriptions", get(status::subscriptions))
        .route("/publish", post(publish::post))
        .route("/fanout", post(fanout::post))
        .route("/subscribe", get(subscribe::get))
        .route("/replay", get(replay::get))
        .route("/link", post(status::link))
        .route("/config", get(config::get))
        .route("/reload", post(config::reload))
        .route("/routes", get(status::routes))
        .route("/trace", get(trace::get))
        .route("/flow", get(flow::get))
        .route("/capture", get(capture::get).post(capture::stop))
        .route("/channels", get(channels::get))
        .route("/channel", post(channels::post))
        .route("/keep", post(channels::keep))
        .route("/leave", post(channels::leave))
        .route("/token", post(rights::token))
        .route("/statement", post(rights::statement))
        .route("/membership", post(rights::membership))
        .route("/capabilities", get(rights::capabilities))
        .route("/why", get(why::get))
        .route("/revocations", post(rights::revocations))
        .route("/identity", post(rights::identity))
        .fallback(error::no_such_route)
        .method_not_allowed_fallback(error::no_such_method)
        .with_state(api)
}
