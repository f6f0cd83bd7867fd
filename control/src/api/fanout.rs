//! `POST /fanout`: a few events, and what became of them at each subscribing node.

use super::{
    Api,
    error::{ApiError, Query},
    frames::{Frames, LENGTH_BYTES},
};
use crate::channel::{FanOut, Plan, Policy, tally::Outcome};
use axum::{
    Json,
    body::{Body, to_bytes},
    extract::State,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::{
    num::{NonZeroU64, NonZeroUsize},
    sync::Arc,
    time::Duration,
};
use virga_transport::{ChannelName, limits::MESSAGE_BYTES_MAX};

/// Events of one request.
pub const EVENTS_MAX: usize = 1_024;
/// Bytes of one request's events, their lengths not counted.
pub const BYTES_MAX: usize = 4 * 1024 * 1024;

const _: () = assert!(BYTES_MAX >= MESSAGE_BYTES_MAX);

/// When a publish has succeeded, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Word {
    BestEffort,
    FailFast,
}

/// Which channel, and how.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Target {
    channel: String,
    policy: Option<Word>,
    /// The third policy: at so many nodes.
    quorum: Option<NonZeroUsize>,
    in_flight: Option<NonZeroUsize>,
    within_ms: Option<NonZeroU64>,
}

impl Target {
    fn plan(&self) -> Result<Plan, ApiError> {
        let usual = Plan::default();
        let policy = match (self.policy, self.quorum) {
            (None, None) => usual.policy,
            (None, Some(nodes)) => Policy::Quorum(nodes.get()),
            (Some(Word::BestEffort), None) => Policy::BestEffort,
            (Some(Word::FailFast), None) => Policy::FailFast,
            (Some(_), Some(_)) => {
                let what = "a quorum is a policy of its own: leave `policy` out";
                return Err(ApiError::Request(what.into()));
            }
        };
        let within = |ms: NonZeroU64| Duration::from_millis(ms.get());
        Ok(Plan {
            policy,
            in_flight_max: self.in_flight.map_or(usual.in_flight_max, Into::into),
            within: self.within_ms.map_or(usual.within, within),
        })
    }
}

/// What became of a publish.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Whether the policy is met.
    pub is_met: bool,
    /// Events that were offered to every subscriber there was.
    pub published: u64,
    /// Events that were not begun, because an earlier one had failed.
    pub withheld: u64,
    /// Programs on this node that took the last event.
    pub programs: usize,
    /// Every node that had subscribed.
    pub nodes: Vec<NodeReport>,
}

/// What became of a publish at one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// The node's id.
    pub node: String,
    /// What this node's configuration calls it.
    pub name: String,
    /// What became of the events.
    #[serde(flatten)]
    pub outcome: Outcome,
}

pub(super) async fn post(
    State(api): State<Arc<Api>>,
    Query(target): Query<Target>,
    body: Body,
) -> Result<Json<Report>, ApiError> {
    let name = ChannelName::parse(&target.channel);
    let name = name.map_err(|error| ApiError::Request(error.to_string()))?;
    let plan = target.plan()?;
    let bytes_max = BYTES_MAX + EVENTS_MAX * LENGTH_BYTES;
    let body = to_bytes(body, bytes_max).await.map_err(|error| {
        ApiError::Request(format!("the body, at most {bytes_max} bytes: {error}"))
    })?;
    let fan_out = api.dispatch.fan_out(&name, events(&body)?, plan);
    let mut stopping = api.stopping.clone();
    let fan_out = tokio::select! {
        biased;
        _ = stopping.changed() => return Err(ApiError::Stopping),
        fan_out = fan_out => fan_out?,
    };
    Ok(Json(api.name_all(fan_out)))
}

/// The events of a body, all of which the channel must carry.
fn events(body: &[u8]) -> Result<Vec<Bytes>, ApiError> {
    let wrong = |error: &dyn std::error::Error| {
        ApiError::Request(format!("nothing was published: {error}"))
    };
    let mut frames = Frames::default();
    frames.extend(body);
    let mut events = Vec::new();
    while let Some(event) = frames.next_frame().map_err(|error| wrong(&error))? {
        if event.len() > MESSAGE_BYTES_MAX || events.len() == EVENTS_MAX {
            return Err(ApiError::Request(format!(
                "nothing was published: event {} has {} bytes; a request has at most {EVENTS_MAX} events, of at \
                 most {MESSAGE_BYTES_MAX} bytes each",
                events.len() + 1,
                event.len()
            )));
        }
        events.push(event);
    }
    frames.end().map_err(|error| wrong(&error))?;
    Ok(events)
}

impl Api {
    /// Every node by its name.
    fn name_all(&self, fan_out: FanOut) -> Report {
        let config = self.identity.config();
        let nodes = fan_out.nodes.into_iter().map(|(id, outcome)| {
            let known = config.peers.iter().find(|peer| peer.id == id);
            NodeReport {
                node: id.to_string(),
                name: known.map(|peer| peer.name.clone()).unwrap_or_default(),
                outcome,
            }
        });
        Report {
            is_met: fan_out.is_met,
            published: fan_out.published,
            withheld: fan_out.withheld,
            programs: fan_out.programs,
            nodes: nodes.collect(),
        }
    }
}
