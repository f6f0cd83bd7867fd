//! `POST /token` and `POST /revocations`: rights that come, and rights that end.

use super::{Api, error::ApiError};
use crate::{
    daemon::rights::NotTaken,
    rights::{Chain, chain::CHAIN_BYTES_MAX, revocation::LIST_BYTES_MAX},
};
use axum::{
    body::{Body, to_bytes},
    extract::State,
    http::StatusCode,
};
use bytes::Bytes;
use std::sync::Arc;

impl From<NotTaken> for ApiError {
    fn from(error: NotTaken) -> Self {
        let text = crate::cause::chain(&error);
        match error {
            NotTaken::Token(_) | NotTaken::List => Self::Request(text),
            NotTaken::NotKept(_) => Self::Failed(text),
            NotTaken::Ended(ended) => ended.into(),
        }
    }
}

async fn whole(body: Body, bytes_max: usize) -> Result<Bytes, ApiError> {
    let read = to_bytes(body, bytes_max).await;
    read.map_err(|error| ApiError::Request(format!("the body, at most {bytes_max} bytes: {error}")))
}

pub(super) async fn token(State(api): State<Arc<Api>>, body: Body) -> Result<StatusCode, ApiError> {
    let bytes = whole(body, CHAIN_BYTES_MAX).await?;
    let chain = Chain::parse(&bytes).map_err(|error| ApiError::Request(error.to_string()))?;
    let token = chain.authenticate().map_err(NotTaken::from)?;
    api.rights.present(&token).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn revocations(
    State(api): State<Arc<Api>>,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let bytes = whole(body, LIST_BYTES_MAX).await?;
    api.rights.announce(bytes.to_vec()).await?;
    Ok(StatusCode::NO_CONTENT)
}
