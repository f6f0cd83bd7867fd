//! What a request is refused with.

use crate::{
    channel::{PublishError, SubscribeError},
    dispatch::{Ended, NoSubscription},
};
use axum::{
    Json,
    extract::FromRequestParts,
    http::{StatusCode, request::Parts},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The JSON object that every error is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What happened, and what to do.
    pub error: String,
}

/// What there is to ask.
const REQUESTS: &str = "there are GET /status, GET /subscriptions, GET /capabilities, GET /channels, GET /why, POST /publish, POST /fanout, GET /subscribe, GET /replay, GET /flow, GET /capture, POST /capture, GET /config, POST /reload, POST /link, POST /token, POST /statement, POST /revocations, POST /identity, POST /channel";

/// Why a request was refused.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The request itself is wrong.
    #[error("{0}")]
    Request(String),
    /// There is no such channel, peer or route.
    #[error("{0}")]
    Missing(String),
    /// The route is there, for another method.
    #[error("this request has another method: {REQUESTS}")]
    Method,
    /// This node's entity has no right to it.
    #[error("{0}")]
    Forbidden(String),
    /// The node has no room for another.
    #[error("{0}")]
    Busy(String),
    /// The node is shutting down.
    #[error("the node is shutting down")]
    Stopping,
    /// It went wrong after some events were published.
    #[error(
        "{source}; before that, {published} of this request's events were published and {refused} refused"
    )]
    Interrupted {
        /// What went wrong.
        source: Box<Self>,
        /// Events that are on their way.
        published: u64,
        /// Events that were too large.
        refused: u64,
    },
    /// Something of this machine refused.
    #[error("{0}")]
    Failed(String),
}

impl From<PublishError> for ApiError {
    fn from(error: PublishError) -> Self {
        let text = error.to_string();
        match error {
            PublishError::UnknownChannel(_) => Self::Missing(text),
            PublishError::NotAuthorised(_) | PublishError::Token(..) | PublishError::Absent(_) => {
                Self::Forbidden(text)
            }
            PublishError::Quorum(..) | PublishError::NotKept(..) => Self::Busy(text),
            PublishError::Unsigned(..) | PublishError::Unconfirmed(..) => Self::Failed(text),
            PublishError::Stopping => Self::Stopping,
        }
    }
}

impl From<SubscribeError> for ApiError {
    fn from(error: SubscribeError) -> Self {
        let text = error.to_string();
        match error {
            SubscribeError::UnknownChannel(_) => Self::Missing(text),
            SubscribeError::NotAuthorised(_)
            | SubscribeError::Token(..)
            | SubscribeError::Absent(_) => Self::Forbidden(text),
            SubscribeError::TooMany => Self::Busy(text),
        }
    }
}

impl From<Ended> for ApiError {
    fn from(Ended: Ended) -> Self {
        Self::Stopping
    }
}

impl From<NoSubscription> for ApiError {
    fn from(error: NoSubscription) -> Self {
        match error {
            NoSubscription::Refused(error) => error.into(),
            NoSubscription::Ended(error) => error.into(),
        }
    }
}

impl ApiError {
    fn code(&self) -> StatusCode {
        match self {
            Self::Request(_) => StatusCode::BAD_REQUEST,
            Self::Missing(_) => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::Busy(_) | Self::Stopping => StatusCode::SERVICE_UNAVAILABLE,
            Self::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Interrupted { source, .. } => source.code(),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let error = self.to_string();
        (self.code(), Json(ErrorBody { error })).into_response()
    }
}

/// The answer to any other path.
pub(super) async fn no_such_route() -> ApiError {
    ApiError::Missing(format!("no such request: {REQUESTS}"))
}

/// The answer to any other method of a path.
pub(super) async fn no_such_method() -> ApiError {
    ApiError::Method
}

/// The values after a path's question mark; what is wrong with them is an [`ApiError`] too.
pub(super) struct Query<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query = axum::extract::Query::from_request_parts(parts, state).await;
        let axum::extract::Query(values) = query.map_err(|error| {
            let path = parts.uri.path();
            ApiError::Request(format!("{path}: {}", error.body_text()))
        })?;
        Ok(Self(values))
    }
}
