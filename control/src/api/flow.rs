//! `GET /flow`: how long a channel's events stay in each stage here, until whoever asks goes away.

use super::{
    Api,
    error::{ApiError, Query},
};
use crate::flow::{Asked, run::NoFlow};
use axum::{
    body::Body,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use std::{convert::Infallible, sync::Arc};

impl From<NoFlow> for ApiError {
    fn from(error: NoFlow) -> Self {
        let text = error.to_string();
        match error {
            NoFlow::Asked(_) => Self::Request(text),
            NoFlow::Unknown(_) => Self::Missing(text),
            NoFlow::Busy => Self::Busy(text),
            NoFlow::Ended(_) => Self::Stopping,
        }
    }
}

pub(super) async fn get(
    State(api): State<Arc<Api>>,
    Query(asked): Query<Asked>,
) -> Result<Response, ApiError> {
    let config = api.identity.config();
    let reports = api.flows.begin(asked, &config).await?;
    let chunks = futures_util::stream::unfold(reports, |mut reports| async {
        let report = reports.recv().await?;
        Some((Ok::<Bytes, Infallible>(report), reports))
    });
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((kind, Body::from_stream(chunks)).into_response())
}
