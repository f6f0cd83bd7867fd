//! `GET /channels` and `POST /channel`: the channels that hold here, and those that authorities declare; `POST /keep`
//! and `POST /leave`: whether this node keeps one.

use super::{
    Api,
    error::{ApiError, Query},
};
use crate::{
    channel::Pattern,
    config::{
        ChannelConfig, Config, Entity, Listed, keeping::KeepWords, may_hold, named_replicas, values,
    },
    daemon::{declared::NotDeclared, identity::NotFollowed},
    hex,
    kept::chosen::{Holds, NotKept},
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
use virga_transport::{ChannelName, Mode};

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
    /// Nodes that this one serves itself, and passes the events of others on to; 0: all, and none.
    #[serde(default)]
    pub fan_out: u8,
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
    /// How this node keeps it, where it does.
    #[serde(default)]
    pub kept: Option<KeptView>,
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

/// How the node keeps a channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptView {
    /// Whether a command had it kept, and not the configuration file.
    pub by_command: bool,
    /// When an event counts as kept; empty where only other nodes keep it, or will from this one's next start on.
    pub durability: String,
    /// Why it is not kept here, although it should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// What the command said.
    #[serde(default)]
    pub words: KeepWords,
}

impl KeptView {
    /// In words.
    #[must_use]
    pub fn words(&self) -> String {
        if let Some(problem) = &self.problem {
            return format!("not kept here, although a command said so: {problem}");
        }
        let by = match self.by_command {
            true if self.durability.is_empty() => "kept on other nodes, by command",
            true => "kept here by command",
            false => "kept here",
        };
        let mut all = self.words.words();
        if !self.durability.is_empty() {
            all.insert(0, self.durability.clone());
        }
        format!("{by} ({})", all.join(", "))
    }
}

/// Which channel is meant.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Named {
    channel: String,
}

impl Named {
    fn channel(&self) -> Result<ChannelName, ApiError> {
        let channel = ChannelName::parse(&self.channel);
        channel.map_err(|error| ApiError::Request(error.to_string()))
    }
}

impl From<NotKept> for ApiError {
    fn from(error: NotKept) -> Self {
        let text = crate::cause::chain(&error);
        match error {
            NotKept::InFile(_) | NotKept::Words(_) => Self::Request(text),
            NotKept::Unknown(_) => Self::Missing(text),
            NotKept::Full => Self::Busy(text),
            NotKept::Kept(_) | NotKept::NotNoted(_) => Self::Failed(text),
            NotKept::Ended => Self::Stopping,
        }
    }
}

/// Bytes of what says how a channel is kept.
const WORDS_BYTES_MAX: usize = 16 * 1_024;

pub(super) async fn keep(
    State(api): State<Arc<Api>>,
    Query(named): Query<Named>,
    body: Body,
) -> Result<Json<Holds>, ApiError> {
    let channel = named.channel()?;
    let read = to_bytes(body, WORDS_BYTES_MAX).await;
    let bytes = read.map_err(|error| {
        ApiError::Request(format!(
            "the body, at most {WORDS_BYTES_MAX} bytes: {error}"
        ))
    })?;
    let mut words: KeepWords = serde_json::from_slice(&bytes)
        .map_err(|error| ApiError::Request(format!("how the channel is kept: {error}")))?;
    let mode = api.dispatch.mode(&channel);
    if words.replicas.is_some() && !mode.is_some_and(Mode::is_reliable) {
        return Err(ApiError::Request(format!(
            "replicas hold the log of a reliable channel, and {channel} is none here"
        )));
    }
    let pattern = Pattern::Channel(channel.clone());
    let config = api.identity.config();
    if let Some(named) = &words.replicas {
        let nodes = named_replicas(named, &config).map_err(ApiError::Request)?;
        may_hold(&nodes, &channel, &config).map_err(ApiError::Forbidden)?;
        // Names may change.
        let ids = nodes.iter().map(|replica| replica.node.to_string());
        words.replicas = Some(ids.collect());
    }
    let is_here = words.is_on(&config.node);
    if is_here && api.dispatch.subscribable(&pattern).await?.is_empty() {
        return Err(ApiError::Forbidden(format!(
            "there is no channel {channel} here that this node's entity may subscribe to: nothing would come to its log"
        )));
    }
    // Whoever asked may go away: what was begun is done all the same.
    let kept = api.kept.clone();
    let done = tokio::spawn(async move { kept.keep(channel, words).await }).await;
    Ok(Json(
        done.map_err(|error| ApiError::Failed(error.to_string()))??,
    ))
}

pub(super) async fn leave(
    State(api): State<Arc<Api>>,
    Query(named): Query<Named>,
) -> Result<Json<Holds>, ApiError> {
    let (channel, kept) = (named.channel()?, api.kept.clone());
    let done = tokio::spawn(async move { kept.leave(&channel).await }).await;
    Ok(Json(
        done.map_err(|error| ApiError::Failed(error.to_string()))??,
    ))
}

/// The channels that the node keeps.
async fn kept(api: &Api) -> BTreeMap<String, KeptView> {
    let (mut notes, config) = (api.kept.by_command().await, api.identity.config());
    let logs = api.kept.status().into_iter();
    let logs = logs.map(|log| {
        let channel = ChannelName::parse(&log.channel).ok();
        let words = channel.and_then(|channel| notes.remove(&channel));
        let view = KeptView {
            by_command: words.is_some(),
            problem: log.problem.filter(|_| log.durability.is_empty()),
            durability: log.durability,
            words: words.unwrap_or_default().shown(&config),
        };
        (log.channel, view)
    });
    let mut kept: BTreeMap<String, KeptView> = logs.collect();
    let elsewhere = notes.into_iter().map(|(channel, words)| {
        let view = KeptView {
            by_command: true,
            problem: None,
            durability: String::new(),
            words: words.shown(&config),
        };
        (channel.to_string(), view)
    });
    kept.extend(elsewhere);
    kept
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
            fan_out: policy.fan_out,
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
    let mut kept = kept(&api).await;
    let configured = file.channels.iter().map(|channel| ChannelView {
        name: channel.name.to_string(),
        owner: None,
        standing: "holds: it is in the configuration file".to_owned(),
        holds: true,
        version: None,
        signed: None,
        policy: Some(PolicyView::of(&config, channel)),
        is_scope: false,
        kept: None,
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
            kept: None,
        }
    });
    let mut channels: Vec<ChannelView> = configured.chain(declared).collect();
    for channel in channels.iter_mut().filter(|channel| channel.holds) {
        channel.kept = kept.remove(&channel.name);
    }
    channels.extend(kept.into_iter().map(|(name, view)| ChannelView {
        name,
        owner: None,
        standing: "is not there now: nothing comes to its log".to_owned(),
        holds: false,
        version: None,
        signed: None,
        policy: None,
        is_scope: false,
        kept: Some(view),
    }));
    let entities = config.entities.iter();
    Json(ChannelsView {
        node: config.node.name.clone(),
        entities: entities
            .map(|named| (named.name.clone(), hex::encode(&named.entity.key)))
            .collect(),
        channels,
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
