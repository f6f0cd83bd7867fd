//! `GET /subscribe`: deliveries as the body of an answer that does not end.

use super::{
    Api,
    error::{ApiError, Query},
    frames::{Delivered, write_end},
};
use crate::{channel::Pattern, dispatch::Subscribed};
use axum::{
    body::Body,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use std::{convert::Infallible, sync::Arc};
use virga_transport::ChannelName;

/// Deliveries of one chunk of the body.
const CHUNK_EVENTS_MAX: usize = 512;

/// Which channels.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    channel: Option<String>,
    prefix: Option<String>,
}

/// Which channels a request means.
pub(super) fn pattern(channel: Option<&str>, prefix: Option<&str>) -> Result<Pattern, ApiError> {
    let parse =
        |name| ChannelName::parse(name).map_err(|error| ApiError::Request(error.to_string()));
    match (channel, prefix) {
        (Some(name), None) => Ok(Pattern::Channel(parse(name)?)),
        (None, Some(name)) => Ok(Pattern::Prefix(parse(name)?)),
        _ => Err(ApiError::Request(
            "say either channel=NAME or prefix=NAME".into(),
        )),
    }
}

/// One subscription; ends with the connection.
struct Subscription {
    api: Arc<Api>,
    subscribed: Subscribed,
    /// Whether the subscriber was told why the node ended it.
    is_told: bool,
}

pub(super) async fn get(
    State(api): State<Arc<Api>>,
    Query(wanted): Query<Wanted>,
) -> Result<Response, ApiError> {
    let pattern = pattern(wanted.channel.as_deref(), wanted.prefix.as_deref())?;
    let subscribed = api.dispatch.subscribe(&pattern).await?;
    let ended = subscribed.drain.ended();
    tokio::spawn(async move {
        if let Some(why) = ended.await {
            let (kind, name) = (pattern.kind(), pattern.name());
            tracing::info!(subscription = %format!("{kind} {name}"), %why,
                "a local subscription was ended");
        }
    });
    let subscription = Subscription {
        api,
        subscribed,
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
        let deliveries = self.subscribed.take(CHUNK_EVENTS_MAX).await;
        if deliveries.is_empty() {
            return self.last_chunk();
        }
        let mut chunk = BytesMut::new();
        for delivery in deliveries {
            let delivered = Delivered {
                channel: delivery.channel,
                entity: delivery.entity,
                sequence: delivery.sequence,
                received_unix_ns: self.api.clock.unix_ns(delivery.received_ns),
                payload: delivery.payload,
            };
            delivered.write(&mut chunk);
        }
        Some(chunk.freeze())
    }

    fn last_chunk(&mut self) -> Option<Bytes> {
        let why = self.subscribed.drain.end().filter(|_| !self.is_told)?;
        let mut chunk = BytesMut::new();
        write_end(&mut chunk, &why);
        self.is_told = true;
        Some(chunk.freeze())
    }
}
