//! `GET /subscribe`: deliveries as the body of an answer that does not end.

use super::{
    Api, Service,
    error::{ApiError, Query},
    frames::{Delivered, write_end},
    outlet::{self, Drain},
};
use crate::channel::{Command, Pattern, SubscriberId};
use axum::{
    body::Body,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use std::{convert::Infallible, sync::Arc};
use tokio::sync::oneshot;
use virga_transport::{
    ChannelName,
    worker::{Commander, Refused},
};

/// Deliveries of one chunk of the body.
const CHUNK_EVENTS_MAX: usize = 512;

/// Which channels.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    channel: Option<String>,
    prefix: Option<String>,
}

impl Wanted {
    fn pattern(&self) -> Result<Pattern, ApiError> {
        let parse = |name: &String| {
            ChannelName::parse(name).map_err(|error| ApiError::Request(error.to_string()))
        };
        match (&self.channel, &self.prefix) {
            (Some(name), None) => Ok(Pattern::Channel(parse(name)?)),
            (None, Some(name)) => Ok(Pattern::Prefix(parse(name)?)),
            _ => Err(ApiError::Request(
                "say either channel=NAME or prefix=NAME".into(),
            )),
        }
    }
}

/// One subscription; ends with the connection.
struct Subscription {
    api: Arc<Api>,
    id: SubscriberId,
    drain: Drain,
    /// Whether the subscriber was told why the node ended it.
    is_told: bool,
}

pub(super) async fn get(
    State(api): State<Arc<Api>>,
    Query(wanted): Query<Wanted>,
) -> Result<Response, ApiError> {
    let pattern = wanted.pattern()?;
    let (outlet, mut drain) = outlet::queue();
    let ended = drain.ended();
    let asked = match &pattern {
        Pattern::Channel(name) => format!("channel {name}"),
        Pattern::Prefix(name) => format!("prefix {name}"),
    };
    let (reply, answer) = oneshot::channel();
    let done = Box::new(move |subscribed| {
        // When the request was given up, the queue's other end is gone and the service notices.
        let _given_up = reply.send(subscribed);
    });
    api.command(Command::Subscribe {
        pattern,
        outlet,
        done,
    })
    .await?;
    let id = answer.await.map_err(|_| ApiError::Stopping)??;
    tokio::spawn(async move {
        if let Some(why) = ended.await {
            tracing::info!(subscription = %asked, %why, "a local subscription was ended");
        }
    });
    let subscription = Subscription {
        api,
        id,
        drain,
        is_told: false,
    };
    let chunks = futures_util::stream::unfold(subscription, |mut subscription| async {
        let chunk = subscription.next_chunk().await?;
        Some((Ok::<Bytes, Infallible>(chunk), subscription))
    });
    let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((kind, Body::from_stream(chunks)).into_response())
}

impl Subscription {
    async fn next_chunk(&mut self) -> Option<Bytes> {
        let deliveries = self.drain.take(CHUNK_EVENTS_MAX).await;
        if deliveries.is_empty() {
            return self.last_chunk();
        }
        if self.drain.has_drained() {
            // When the worker has ended, so does this body, with the queue's other end.
            let _ended = self.api.command(Command::Drained(self.id)).await;
        }
        let mut chunk = BytesMut::new();
        for delivery in deliveries {
            let delivered = Delivered {
                channel: delivery.channel,
                entity: delivery.entity,
                sequence: delivery.sequence,
                received_unix_ns: self.api.unix_zero_ns.saturating_add(delivery.received_ns),
                payload: delivery.payload,
            };
            delivered.write(&mut chunk);
        }
        Some(chunk.freeze())
    }

    fn last_chunk(&mut self) -> Option<Bytes> {
        let why = self.drain.end().filter(|_| !self.is_told)?;
        let mut chunk = BytesMut::new();
        write_end(&mut chunk, why);
        self.is_told = true;
        Some(chunk.freeze())
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        leave(&self.api.commander, self.id);
    }
}

/// Tells the worker that a subscriber is gone; while it is busy, until it takes that: a reliable
/// channel that waits for this subscriber would wait on.
fn leave(commander: &Commander<Service>, id: SubscriberId) {
    let Err(Refused::Full(again)) = commander.command(Command::Unsubscribe(id)) else {
        return;
    };
    // Without a runtime the daemon has ended.
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        let commander = commander.clone();
        runtime.spawn(async move {
            // With the worker, all subscriptions have ended.
            let _ended = super::command(&commander, again).await;
        });
    }
}

#[cfg(test)]
mod tests;
