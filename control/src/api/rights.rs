//! `POST /token`, `/statement`, `/membership`, `/revocations` and `/identity`: rights that come and end, and whose
//! they are; `GET /capabilities` and `/why`: what is said of entities, and what that lets them do.

use super::{Api, error::ApiError};
use crate::{
    capability::{Statement, statement::STATEMENT_BYTES_MAX},
    channel::explain::{Given, StatementStatus},
    config::Config,
    daemon::{identity::NotFollowed, rights::NotTaken},
    hex,
    membership::{MEMBERSHIP_BYTES, Membership},
    rights::{
        Chain,
        chain::CHAIN_BYTES_MAX,
        file::{self, IDENTITIES_BYTES_MAX},
        revocation::LIST_BYTES_MAX,
    },
};
use axum::{
    Json,
    body::{Body, to_bytes},
    extract::State,
    http::StatusCode,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A statement, with the names that this node's configuration has for its entities.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedStatement {
    /// The subject's name, if it has one.
    pub subject_name: Option<String>,
    /// The issuer's, if it has one.
    pub issuer_name: Option<String>,
    /// The rest.
    #[serde(flatten)]
    pub statement: StatementStatus,
}

impl NamedStatement {
    fn of(config: &Config, statement: StatementStatus) -> Self {
        let name = |key: &str| {
            let key = hex::decode(key).ok()?;
            config.entity_name(&key).map(str::to_owned)
        };
        Self {
            subject_name: name(&statement.subject),
            issuer_name: statement.issuer.as_deref().and_then(name),
            statement,
        }
    }
}

impl From<NotTaken> for ApiError {
    fn from(error: NotTaken) -> Self {
        let text = crate::cause::chain(&error);
        match error {
            NotTaken::Token(_)
            | NotTaken::Statement(_)
            | NotTaken::Membership(_)
            | NotTaken::List => Self::Request(text),
            NotTaken::NotKept(_) => Self::Failed(text),
            NotTaken::Ended(ended) => ended.into(),
        }
    }
}

impl From<NotFollowed> for ApiError {
    fn from(error: NotFollowed) -> Self {
        let text = crate::cause::chain(&error);
        match error {
            NotFollowed::Rejected(_) => Self::Request(text),
            NotFollowed::NotKept(_) | NotFollowed::Path(_) => Self::Failed(text),
            NotFollowed::Ended(ended) => ended.into(),
        }
    }
}

async fn whole(body: Body, bytes_max: usize) -> Result<Bytes, ApiError> {
    let read = to_bytes(body, bytes_max).await;
    read.map_err(|error| ApiError::Request(format!("the body, at most {bytes_max} bytes: {error}")))
}

pub(super) async fn token(
    State(api): State<Arc<Api>>,
    body: Body,
) -> Result<Json<Given>, ApiError> {
    let bytes = whole(body, CHAIN_BYTES_MAX).await?;
    let chain = Chain::parse(&bytes).map_err(|error| ApiError::Request(error.to_string()))?;
    let token = chain.authenticate().map_err(NotTaken::from)?;
    Ok(Json(api.rights.present(&token).await?))
}

pub(super) async fn statement(
    State(api): State<Arc<Api>>,
    body: Body,
) -> Result<Json<Given>, ApiError> {
    let bytes = whole(body, STATEMENT_BYTES_MAX).await?;
    let read = Statement::parse(&bytes).map_err(|error| ApiError::Request(error.to_string()))?;
    let statement = read
        .verify()
        .map_err(|error| ApiError::Request(error.to_string()))?;
    Ok(Json(api.rights.present_statement(&statement).await?))
}

pub(super) async fn membership(
    State(api): State<Arc<Api>>,
    body: Body,
) -> Result<Json<Given>, ApiError> {
    let bytes = whole(body, MEMBERSHIP_BYTES).await?;
    let read = Membership::parse(&bytes).map_err(|error| ApiError::Request(error.to_string()))?;
    let membership = read
        .verify()
        .map_err(|error| ApiError::Request(error.to_string()))?;
    Ok(Json(api.rights.present_membership(&membership).await?))
}

/// What is said of this node's entity, and of those that it has a session with.
pub(super) async fn capabilities(
    State(api): State<Arc<Api>>,
) -> Result<Json<Vec<NamedStatement>>, ApiError> {
    let each = api
        .dispatch
        .with_all(|now_ns, parts| parts.service.statements_status(now_ns));
    let mut all = Vec::new();
    // All workers have what is said of this node's own entity.
    for statement in each.await?.into_iter().flatten() {
        let named = NamedStatement::of(&api.identity.config(), statement);
        if !all.contains(&named) {
            all.push(named);
        }
    }
    Ok(Json(all))
}

pub(super) async fn revocations(
    State(api): State<Arc<Api>>,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let bytes = whole(body, LIST_BYTES_MAX).await?;
    api.rights.announce(bytes.to_vec()).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn identity(
    State(api): State<Arc<Api>>,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let bytes = whole(body, IDENTITIES_BYTES_MAX).await?;
    let claims = file::parse_identities(&bytes).map_err(ApiError::Request)?;
    // What is known already counts already.
    // Nor does it depend on whoever asked waiting for it.
    let identity = api.identity.clone();
    let done = tokio::spawn(async move { identity.announce(&claims).await }).await;
    let _learned = done.map_err(|error| ApiError::Failed(error.to_string()))??;
    Ok(StatusCode::NO_CONTENT)
}
