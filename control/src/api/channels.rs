//! `GET /channels` and `POST /channel`: the channels that hold here, and those that authorities declare.

use super::{Api, error::ApiError};
use crate::{
    config::{ChannelConfig, Config, Entity, Listed, values},
    daemon::{declared::NotDeclared, identity::NotFollowed},
    hex,
    rights::{Declaration, catalogue::Standing, declaration::DECLARATION_BYTES_MAX},
};
use axum::{
    Json,
    body::{Body, to_bytes},
    extract::State,
    http::StatusCode,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};

/// One channel's policy, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyView {
    /// Keeps names apart that would share a hash.
    pub salt: u32,
    /// What headers call it, in hex.
    pub hash: String,
    /// Class 0 to 6.
    pub priority: u8,
    /// `unreliable`, `ordered` or `unordered`.
    pub mode: String,
    /// How long a subscriber that does not read may hold it up, where it is reliable.
    pub hold_max_s: u32,
    /// Packets a second of each publisher.
    pub max_rate_pps: Option<u32>,
    /// How far its packets go among subnets.
    pub visibility: String,
    /// Where to it is exported.
    pub export_to: Vec<String>,
    /// Who may publish; none where tokens or capabilities alone decide.
    pub publish: Option<Vec<String>>,
    /// Who may subscribe, likewise.
    pub subscribe: Option<Vec<String>>,
    /// Whose tokens count; nobody's where none is required.
    pub issuers: Vec<String>,
    /// What is asked of publishers' capabilities.
    pub publish_caps: Option<String>,
    /// What is asked of subscribers' capabilities.
    pub subscribe_caps: Option<String>,
    /// Whose word about capabilities counts.
    pub capability_issuers: Vec<String>,
    /// Scopes that narrow it here, the broadest first; of a declared channel the rest is as its owner signed it.
    #[serde(default)]
    pub scopes: Vec<String>,
}

/// One channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelView {
    /// Full name.
    pub name: String,
    /// Who declared it; none where it is in the configuration file.
    pub owner: Option<String>,
    /// How it stands.
    pub standing: String,
    /// Whether it holds.
    pub holds: bool,
    /// Which of its owner's declarations this is.
    pub version: Option<u64>,
    /// The declaration as it was signed, in base64url.
    pub signed: Option<String>,
    /// What it says; none where it is removed.
    pub policy: Option<PolicyView>,
    /// Whether it holds for all channels below its name.
    #[serde(default)]
    pub is_scope: bool,
}

/// What there is, and what a command needs to make another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelsView {
    /// This node's name.
    pub node: String,
    /// Entities' keys by the names that this node's configuration gives them.
    pub entities: BTreeMap<String, String>,
    /// All channels.
    pub channels: Vec<ChannelView>,
}

impl From<NotDeclared> for ApiError {
    fn from(error: NotDeclared) -> Self {
        let text = crate::cause::chain(&error);
        match error {
            NotDeclared::Denied(_) => Self::Request(text),
            NotDeclared::Followed(NotFollowed::Ended(ended)) => ended.into(),
            NotDeclared::NotKept(_) | NotDeclared::Followed(_) => Self::Failed(text),
        }
    }
}

impl PolicyView {
    /// Keys by the names that a node's configuration gives them.
    fn of(config: &Config, policy: &ChannelConfig) -> Self {
        let name = |entity: &Entity| match config.entity_name(&entity.key) {
            Some(name) => name.to_owned(),
            None => hex::encode(&entity.key),
        };
        let all = |entities: &[Entity]| entities.iter().map(name).collect();
        let names = |listed: &Listed| match listed {
            Listed::Anyone => None,
            Listed::Only(entities) => Some(all(entities)),
        };
        let asked = &policy.capabilities;
        let around = config.scopes.iter();
        let around = around.filter(|scope| policy.name.is_within(&scope.name));
        Self {
            salt: policy.salt,
            hash: policy.hash.to_string(),
            priority: policy.priority,
            mode: policy.mode.name().to_owned(),
            hold_max_s: policy.hold_max_s,
            max_rate_pps: policy.max_rate_pps,
            visibility: values::visibility_word(policy.visibility).to_owned(),
            export_to: policy.export_to.iter().map(values::prefix_word).collect(),
            publish: names(&policy.publish),
            subscribe: names(&policy.subscribe),
            issuers: all(&policy.issuers),
            publish_caps: asked.publish.as_ref().map(ToString::to_string),
            subscribe_caps: asked.subscribe.as_ref().map(ToString::to_string),
            capability_issuers: all(&asked.issuers),
            scopes: around.map(|scope| scope.name.to_string()).collect(),
        }
    }
}

pub(super) async fn get(State(api): State<Arc<Api>>) -> Json<ChannelsView> {
    let listed = api.identity.declared().await;
    let config = api.identity.config();
    let file = api.identity.configured();
    let configured = file.channels.iter().map(|channel| ChannelView {
        name: channel.name.to_string(),
        owner: None,
        standing: "holds: it is in the configuration file".to_owned(),
        holds: true,
        version: None,
        signed: None,
        policy: Some(PolicyView::of(&config, channel)),
        is_scope: false,
    });
    let declared = listed.into_iter().map(|one| {
        // It was read before it was kept.
        let declaration = Declaration::parse(&one.signed).ok();
        let scope = declaration.as_ref().and_then(Declaration::scope);
        let policy = declaration.as_ref().and_then(Declaration::policy).cloned();
        let is_scope = scope.is_some();
        let policy = policy.or_else(|| scope.map(|scope| scope.as_policy()));
        ChannelView {
            name: one.place.0.to_string(),
            owner: Some(hex::encode(&one.place.1)),
            standing: one.standing.words(),
            holds: one.standing == Standing::Holds,
            version: declaration.as_ref().map(Declaration::version),
            signed: Some(URL_SAFE_NO_PAD.encode(&one.signed)),
            policy: policy.map(|policy| PolicyView::of(&config, &policy)),
            is_scope,
        }
    });
    let entities = config.entities.iter();
    Json(ChannelsView {
        node: config.node.name.clone(),
        entities: entities
            .map(|named| (named.name.clone(), hex::encode(&named.entity.key)))
            .collect(),
        channels: configured.chain(declared).collect(),
    })
}

pub(super) async fn post(State(api): State<Arc<Api>>, body: Body) -> Result<StatusCode, ApiError> {
    let read = to_bytes(body, DECLARATION_BYTES_MAX).await;
    let signed = read.map_err(|error| {
        ApiError::Request(format!(
            "the body, at most {DECLARATION_BYTES_MAX} bytes: {error}"
        ))
    })?;
    // Whoever asked may go away: what was begun is done all the same.
    let identity = api.identity.clone();
    let done = tokio::spawn(async move { identity.declare(&signed).await }).await;
    done.map_err(|error| ApiError::Failed(error.to_string()))??;
    Ok(StatusCode::NO_CONTENT)
}
