//! `GET /config` and `POST /reload`: what the node runs by, and its file read anew.

use super::{Api, error::ApiError};
use crate::{
    cause,
    config::settings::Setting,
    daemon::reload::{self, NotReloaded, Reloaded},
};
use axum::{Json, extract::State};
use std::sync::Arc;

impl From<NotReloaded> for ApiError {
    fn from(error: NotReloaded) -> Self {
        let text = cause::chain(&error);
        match error {
            NotReloaded::Invalid(_) | NotReloaded::Restart(_) => Self::Request(text),
            NotReloaded::Metrics { .. } | NotReloaded::Path(_) => Self::Failed(text),
            NotReloaded::Ended(ended) => ended.into(),
        }
    }
}

pub(super) async fn get(State(api): State<Arc<Api>>) -> Json<Vec<Setting>> {
    Json(reload::running(&api.identity))
}

pub(super) async fn reload(State(api): State<Arc<Api>>) -> Result<Json<Reloaded>, ApiError> {
    // Whoever asked may go away: what was begun is done all the same.
    let done = tokio::spawn(async move { reload::reload(&api).await }).await;
    let done = done.map_err(|error| ApiError::Failed(error.to_string()))?;
    Ok(Json(done?))
}
