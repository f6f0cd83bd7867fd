//! `POST /publish`: events out of a request's body, batch by batch, at the pace of the subscribers.

use super::{
    Api,
    error::{ApiError, Query},
    frames::Frames,
};
use crate::channel::{Batch, Command, PublishError, PublishReport};
use axum::{Json, body::Body, extract::State};
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio::sync::oneshot;
use virga_transport::ChannelName;

/// Events of one command to the worker.
const BATCH_EVENTS_MAX: usize = 1_024;
/// Bytes of one command to the worker, the last event not counted.
const BATCH_BYTES_MAX: usize = 256 * 1024;

/// Which channel.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Target {
    channel: String,
}

/// What became of the events of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Events that went to every subscriber there was (perhaps none).
    pub published: u64,
    /// Events larger than the channel carries.
    pub refused: u64,
    /// Subscribers that the last event went to.
    pub subscribers: usize,
    /// Bytes of the largest event that the channel carries.
    pub event_bytes_max: usize,
}

pub(super) async fn post(
    State(api): State<Arc<Api>>,
    Query(target): Query<Target>,
    body: Body,
) -> Result<Json<Published>, ApiError> {
    let channel =
        ChannelName::parse(&target.channel).map_err(|e| ApiError::Request(e.to_string()))?;
    let mut total = Published::default();
    // Without any event yet: whether there is such a channel, and whether it may be published on.
    total.add(api.publish(&channel, Vec::new()).await?);
    let mut frames = Frames::default();
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|e| ApiError::Request(format!("the body broke off: {e}")))?;
        frames.extend(&chunk);
        loop {
            let batch = next_batch(&mut frames)?;
            if batch.is_empty() {
                break;
            }
            total.add(api.publish(&channel, batch).await?);
        }
    }
    frames
        .end()
        .map_err(|error| ApiError::Request(error.to_string()))?;
    Ok(Json(total))
}

/// Whole frames, up to a batch of them.
fn next_batch(frames: &mut Frames) -> Result<Vec<Bytes>, ApiError> {
    let mut batch = Vec::new();
    let mut bytes = 0;
    while batch.len() < BATCH_EVENTS_MAX && bytes < BATCH_BYTES_MAX {
        match frames.next_frame() {
            Ok(Some(event)) => {
                bytes += event.len();
                batch.push(event);
            }
            Ok(None) => break,
            Err(error) => return Err(ApiError::Request(error.to_string())),
        }
    }
    Ok(batch)
}

impl Published {
    fn add(&mut self, report: PublishReport) {
        self.published += report.published;
        self.refused += report.refused;
        self.event_bytes_max = report.event_bytes_max;
        if report.published > 0 {
            self.subscribers = report.subscribers;
        }
    }
}

impl Api {
    /// Publishes a batch, and waits until all of it is on its way.
    async fn publish(
        &self,
        channel: &ChannelName,
        events: Vec<Bytes>,
    ) -> Result<PublishReport, ApiError> {
        let (reply, answer) = oneshot::channel::<Result<PublishReport, PublishError>>();
        let done = Box::new(move |report| {
            // The request may have been given up meanwhile.
            let _given_up = reply.send(report);
        });
        self.command(Command::Publish {
            channel: channel.clone(),
            batch: Batch::new(events, done),
        })
        .await?;
        let report = answer.await.map_err(|_| ApiError::Stopping)?;
        Ok(report?)
    }
}
