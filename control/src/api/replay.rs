//! `GET /replay`: what logs hold from a place on, and on with what comes, as the body of an answer that
//! does not end.

use super::{
    Api,
    error::{ApiError, Query},
    frames::write_end,
    subscribe::pattern,
};
use crate::kept::follow::Follower;
use axum::{
    body::Body,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use std::{convert::Infallible, sync::Arc};
use tokio::sync::mpsc;
use virga_state::Cursor;

/// Chunks that wait for the reader: what is read ahead of it.
const CHUNKS_MAX: usize = 2;

/// Which channels, and from where on.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    channel: Option<String>,
    prefix: Option<String>,
    from: String,
}

impl Wanted {
    fn cursor(&self) -> Result<Cursor, ApiError> {
        let cursor = self.from.parse::<Cursor>();
        let cursor = cursor.map_err(|error| ApiError::Request(error.to_string()))?;
        match (cursor, &self.prefix) {
            (Cursor::Offset(_) | Cursor::After(_), Some(_)) => Err(ApiError::Request(
                "an offset is a place in one log: with a prefix say start, end or time:SECONDS"
                    .into(),
            )),
            _ => Ok(cursor),
        }
    }
}

pub(super) async fn get(
    State(api): State<Arc<Api>>,
    Query(wanted): Query<Wanted>,
) -> Result<Response, ApiError> {
    let pattern = pattern(wanted.channel.as_deref(), wanted.prefix.as_deref())?;
    let cursor = wanted.cursor()?;
    let channels = api.kept.matching(&pattern);
    if channels.is_empty() {
        let words = format!(
            "no log of {} {} is kept here: add persist = true to the channel",
            pattern.kind(),
            pattern.name()
        );
        return Err(ApiError::Missing(words));
    }
    let (to, chunks) = mpsc::channel(CHUNKS_MAX);
    for channel in channels {
        let kept = api.kept.clone();
        // Looking for the place reads files.
        let opening = tokio::task::spawn_blocking(move || kept.follow(&channel, cursor));
        let opened = opening.await.map_err(failed)?.map_err(failed)?;
        if let Some(follower) = opened {
            tokio::spawn(pass_on(follower, to.clone()));
        }
    }
    drop(to);
    let state = (chunks, api.stopping.clone());
    let chunks = futures_util::stream::unfold(state, |(mut chunks, mut stopping)| async {
        let chunk = tokio::select! {
            chunk = chunks.recv() => chunk?,
            _ = stopping.changed() => return None,
        };
        Some((Ok::<Bytes, Infallible>(chunk), (chunks, stopping)))
    });
    let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((kind, Body::from_stream(chunks)).into_response())
}

/// Until whoever reads is gone, the node stops, or the log cannot be read on.
async fn pass_on(mut follower: Follower, to: mpsc::Sender<Bytes>) {
    loop {
        let chunk = tokio::select! {
            chunk = follower.next_chunk() => chunk,
            () = to.closed() => return,
        };
        let (chunk, is_last) = match chunk {
            Ok(Some(chunk)) => (chunk, false),
            Ok(None) => return,
            Err(why) => {
                let mut end = BytesMut::new();
                write_end(&mut end, &why);
                (end.freeze(), true)
            }
        };
        if to.send(chunk).await.is_err() || is_last {
            return;
        }
    }
}

fn failed(error: impl std::fmt::Display) -> ApiError {
    ApiError::Failed(error.to_string())
}
