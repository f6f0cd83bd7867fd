//! `GET /capture`: packets as they are decided upon, until whoever asks goes away. `POST /capture` ends that.

use super::{
    Api,
    error::{ApiError, Query},
};
use crate::capture::{asked::Asked, run::NoCapture};
use axum::{
    body::Body,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use std::{convert::Infallible, sync::Arc};

impl From<NoCapture> for ApiError {
    fn from(error: NoCapture) -> Self {
        let text = error.to_string();
        match error {
            NoCapture::Asked(_) => Self::Request(text),
            NoCapture::Busy => Self::Busy(text),
            NoCapture::Refused(_) => Self::Failed(text),
            NoCapture::Ended(_) => Self::Stopping,
        }
    }
}

pub(super) async fn get(
    State(api): State<Arc<Api>>,
    Query(asked): Query<Asked>,
) -> Result<Response, ApiError> {
    let config = api.identity.config();
    let lines = api.captures.begin(asked, &config).await?;
    let chunks = futures_util::stream::unfold(lines, |mut lines| async {
        let chunk = lines.recv().await?;
        Some((Ok::<Bytes, Infallible>(chunk), lines))
    });
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((kind, Body::from_stream(chunks)).into_response())
}

pub(super) async fn stop(State(api): State<Arc<Api>>) -> Result<StatusCode, ApiError> {
    match api.captures.stop() {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(ApiError::Missing("no capture goes on".to_owned())),
    }
}
