//! `POST /publish`: events out of a request's body, batch by batch, at the pace of the subscribers.

use super::{
    Api,
    error::{ApiError, Query},
    frames::Frames,
};
use crate::channel::PublishReport;
use axum::{
    Json,
    body::{Body, BodyDataStream},
    extract::State,
};
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};
use std::{num::NonZeroU64, sync::Arc, time::Duration};
use virga_transport::ChannelName;

/// Events of one command to the worker.
const BATCH_EVENTS_MAX: usize = 1_024;
/// Bytes of one command to the worker, the last event not counted.
const BATCH_BYTES_MAX: usize = 256 * 1024;

/// How long the rest of a body is read, and thrown away, after an answer that did not wait for it:
/// whoever is still sending then finds the answer, not a closed connection.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(2);

/// Which channel.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Target {
    channel: String,
    /// Milliseconds after which an event that was not sent to a subscriber is given up.
    within_ms: Option<NonZeroU64>,
}

/// What became of the events of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Events that were offered to every subscriber there was (perhaps none).
    pub published: u64,
    /// Of those, times that one did not get to one subscriber: its session ended, or (unreliable) it
    /// had no room.
    pub lost: u64,
    /// Events that went to nobody, because their deadline passed while they waited for subscribers.
    pub expired: u64,
    /// Events larger than the channel carries.
    pub refused: u64,
    /// Published events that went to nobody: there was no subscriber.
    pub unheard: u64,
    /// Subscribers, programs on this node and other nodes, that took the last event; where none was
    /// published, those that there are.
    pub subscribers: usize,
    /// Bytes of the largest event that the channel carries.
    pub event_bytes_max: usize,
}

pub(super) async fn post(
    State(api): State<Arc<Api>>,
    Query(target): Query<Target>,
    body: Body,
) -> Result<Json<Published>, ApiError> {
    let mut total = Published::default();
    let mut chunks = body.into_data_stream();
    match api.publish_body(&target, &mut chunks, &mut total).await {
        Ok(()) => Ok(Json(total)),
        Err(error) => {
            tokio::spawn(tokio::time::timeout(DISCARD_TIMEOUT, discard(chunks)));
            Err(match total {
                Published {
                    published: 0,
                    refused: 0,
                    ..
                } => error,
                Published {
                    published, refused, ..
                } => ApiError::Interrupted {
                    source: Box::new(error),
                    published,
                    refused,
                },
            })
        }
    }
}

async fn discard(mut chunks: BodyDataStream) {
    while let Some(Ok(_)) = chunks.next().await {}
}

/// Whole frames, up to a batch of them, and how many were too long for any channel.
fn next_batch(frames: &mut Frames) -> (Vec<Bytes>, u64) {
    let mut batch = Vec::new();
    let (mut bytes, mut too_long) = (0, 0);
    while batch.len() < BATCH_EVENTS_MAX && bytes < BATCH_BYTES_MAX {
        match frames.next_frame() {
            Ok(Some(event)) => {
                bytes += event.len();
                batch.push(event);
            }
            Ok(None) => break,
            Err(_) => {
                frames.skip();
                too_long += 1;
            }
        }
    }
    (batch, too_long)
}

impl Published {
    fn add(&mut self, report: PublishReport) {
        if report.published > 0 || self.published == 0 {
            self.subscribers = report.subscribers;
        }
        self.published += report.published;
        self.lost += report.lost;
        self.expired += report.expired;
        self.refused += report.refused;
        self.unheard += report.unheard;
        self.event_bytes_max = report.event_bytes_max;
    }
}

impl Api {
    /// Publishes all events of a body, and counts them as it goes.
    async fn publish_body(
        &self,
        target: &Target,
        chunks: &mut BodyDataStream,
        total: &mut Published,
    ) -> Result<(), ApiError> {
        let wrong = |error: &dyn std::error::Error| ApiError::Request(error.to_string());
        let name = ChannelName::parse(&target.channel).map_err(|error| wrong(&error))?;
        let within = target.within_ms.map(|ms| Duration::from_millis(ms.get()));
        let channel = (&name, within);
        // Without any event yet: whether there is such a channel, and whether it may be published on.
        let publish = |events, too_long| self.dispatch.publish(channel, events, too_long);
        total.add(publish(Vec::new(), 0).await?);
        let mut frames = Frames::default();
        let mut stopping = self.stopping.clone();
        loop {
            let chunk = tokio::select! {
                biased;
                _ = stopping.changed() => return Err(ApiError::Stopping),
                chunk = chunks.next() => chunk,
            };
            let Some(chunk) = chunk else {
                break;
            };
            let chunk =
                chunk.map_err(|error| ApiError::Request(format!("the body broke off: {error}")))?;
            frames.extend(&chunk);
            loop {
                let (batch, too_long) = next_batch(&mut frames);
                if batch.is_empty() && too_long == 0 {
                    break;
                }
                total.add(publish(batch, too_long).await?);
            }
        }
        frames.end().map_err(|error| wrong(&error))
    }
}
