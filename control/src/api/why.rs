//! `GET /why`: what an entity may do on a channel, and which check refuses what it may not.

use super::{
    Api,
    error::{ApiError, Query},
};
use crate::{
    channel::explain::{Check, Explained, Outcome},
    config::{ChannelConfig, Config, Entity, PeerConfig, Reach, values},
    filters::held::Crossing,
    hex,
    rights::{Operation, catalogue::Standing},
};
use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use virga_ebpf::{
    image::exports_of,
    subnet::{Visibility, may_cross},
    tables::Pair,
};
use virga_transport::ChannelName;

/// All of it, as this node sees it now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    /// The channel's full name.
    pub channel: String,
    /// What headers call it, in hex.
    pub hash: String,
    /// The entity's public key, in hex.
    pub entity: String,
    /// What the configuration calls it.
    pub entity_name: Option<String>,
    /// To publish, and to subscribe.
    pub operations: Vec<WhyOperation>,
}

/// One thing that the entity may do, or may not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyOperation {
    /// `publish` or `subscribe`.
    pub operation: String,
    /// Whether no check fails.
    pub is_allowed: bool,
    /// Each check, in the order in which a packet meets them.
    pub checks: Vec<Check>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Question {
    channel: String,
    entity: String,
}

pub(super) async fn get(
    State(api): State<Arc<Api>>,
    Query(question): Query<Question>,
) -> Result<Json<Why>, ApiError> {
    let config = &api.identity.config();
    let name = ChannelName::parse(&question.channel);
    let name = name.map_err(|error| ApiError::Request(error.to_string()))?;
    let mut channels = config.channels.iter();
    let Some(channel) = channels.find(|channel| channel.name == name) else {
        return Err(absent(&api, &name).await);
    };
    let entity = entity(config, &question.entity)?;
    let (name, key) = (channel.name.clone(), entity.key);
    let each = api
        .dispatch
        .with_all(move |now_ns, parts| parts.service.explain(now_ns, &name, &key));
    let mut known: Option<Explained> = None;
    // One worker has the session, if there is one; all know of this node's own entity.
    for explained in each.await?.into_iter().flatten() {
        if known.as_ref().is_none_or(|known| !known.is_known) {
            known = Some(explained);
        }
    }
    let Some(known) = known else {
        return Err(ApiError::Failed(format!(
            "no worker knows {}",
            channel.name
        )));
    };
    let pair = Pair::new(entity.origin, channel.hash);
    let admits = api.path.admits(pair).await.ok_or(ApiError::Stopping)?;
    let crossings = api.rights.crossings(pair).await.ok_or(ApiError::Stopping)?;
    let operations = known.operations.into_iter().map(|(operation, checks)| {
        let mut all = vec![channel_check(channel)];
        all.extend(checks);
        all.push(session_check(config, &entity, known.is_known));
        all.extend(visibility_check(config, &entity, channel, operation));
        if operation == Operation::Publish {
            all.push(guard_check(config, &entity, channel, admits));
            let crossings = crossings.iter();
            all.extend(crossings.map(|Crossing { subnet, words }| {
                Check::new("gateway", Outcome::Told, format!("to {subnet}: {words}"))
            }));
            all.push(rate_check(channel));
        }
        WhyOperation {
            operation: operation.name().to_owned(),
            is_allowed: all.iter().all(|check| check.outcome != Outcome::Failed),
            checks: all,
        }
    });
    Ok(Json(Why {
        channel: channel.name.to_string(),
        hash: channel.hash.to_string(),
        entity: hex::encode(&entity.key),
        entity_name: config.entity_name(&entity.key).map(str::to_owned),
        operations: operations.collect(),
    }))
}

/// Why there is no such channel here.
async fn absent(api: &Api, name: &ChannelName) -> ApiError {
    let declared = api.identity.declared().await.into_iter();
    // What its owner has removed is not there for anybody.
    let mut denied = declared.filter(|one| {
        one.place.0 == *name && !matches!(one.standing, Standing::Holds | Standing::Removed)
    });
    ApiError::Missing(match denied.next() {
        Some(one) => format!(
            "channel {name} is declared and does not hold on this node, so nobody may do anything there; {}",
            one.standing.words()
        ),
        None => format!(
            "channel {name} is not configured on this node, so nobody may do anything there: add a [[channels]] block"
        ),
    })
}

/// By its name, or its key in hex.
fn entity(config: &Config, text: &str) -> Result<Entity, ApiError> {
    let mut named = config.entities.iter();
    if let Some(named) = named.find(|named| named.name == text) {
        return Ok(named.entity);
    }
    hex::decode(text).map(Entity::from_key).map_err(|_| {
        let names: Vec<&str> = config.entities.iter().map(|e| e.name.as_str()).collect();
        ApiError::Missing(format!(
            "{text:?} is neither a public key of 64 hex digits nor an entity that this node's configuration names: {}",
            names.join(", ")
        ))
    })
}

fn channel_check(channel: &ChannelConfig) -> Check {
    let words = format!("it is configured here; headers call it {}", channel.hash);
    Check::new("channel", Outcome::Passed, words)
}

fn session_check(config: &Config, entity: &Entity, is_known: bool) -> Check {
    const NAME: &str = "session";
    if config.keys.entity.public == entity.key {
        return match &config.absence {
            None => Check::new(NAME, Outcome::Passed, "it is this node's own entity"),
            Some(why) => Check::new(NAME, Outcome::Failed, why.clone()),
        };
    }
    let Some(peer) = peer_of(config, entity) else {
        let words = "no peer of this node's configuration has it, so it has no session here";
        return Check::new(NAME, Outcome::Failed, words);
    };
    let way = match &peer.reach {
        Reach::Adjacent { address, .. } => format!("at {address}"),
        Reach::Via { primary, .. } => format!("by {}", config.peers[*primary].name),
        Reach::Learned => "as its neighbours say".to_owned(),
    };
    match is_known {
        true => {
            let words = format!("its node, {}, has one with this node", peer.name);
            Check::new(NAME, Outcome::Passed, words)
        }
        false => {
            let words = format!(
                "there is none with its node, {}, reached {way}: what it would show is not known here",
                peer.name
            );
            Check::new(NAME, Outcome::Told, words)
        }
    }
}

/// Where the entity lives, if not here.
fn peer_of<'c>(config: &'c Config, entity: &Entity) -> Option<&'c PeerConfig> {
    let mut peers = config.peers.iter();
    peers.find(|peer| peer.entities.contains(&entity.key))
}

/// Whether the channel goes between the entity's node and this one, where that is not everywhere.
fn visibility_check(
    config: &Config,
    entity: &Entity,
    channel: &ChannelConfig,
    operation: Operation,
) -> Option<Check> {
    const NAME: &str = "visibility";
    let peer = peer_of(config, entity).filter(|_| channel.visibility != Visibility::Global)?;
    let word = values::visibility_word(channel.visibility);
    let there = peer.subnet.map(|placed| placed.subnet);
    let (here, there) = (config.node.subnet, there.unwrap_or_default());
    let (from, to, own_part) = match operation {
        Operation::Publish => (there, here, &channel.subscribe),
        _ => (here, there, &channel.publish),
    };
    let exports = exports_of(&channel.export_to);
    let crosses = may_cross(
        channel.hash,
        channel.visibility,
        || Some(&exports),
        from,
        to,
    );
    let way = format!(
        "from {} to {}",
        values::subnet_word(from),
        values::subnet_word(to)
    );
    if crosses {
        let words = format!("the channel is {word} and goes {way}");
        return Some(Check::new(NAME, Outcome::Passed, words));
    }
    let words = format!(
        "the channel is {word} and does not go {way}, where {} is",
        match operation {
            Operation::Publish => "this node",
            _ => peer.name.as_str(),
        }
    );
    // Others, that are nearer to it, may have to do with it.
    let outcome = match own_part.contains(&config.keys.entity.public) {
        true => Outcome::Failed,
        false => Outcome::Told,
    };
    Some(Check::new(NAME, outcome, words))
}

/// What forwarding here does with its packets; the packets of this node's own are not forwarded.
fn guard_check(config: &Config, entity: &Entity, channel: &ChannelConfig, admits: bool) -> Check {
    const NAME: &str = "guard";
    let pair = format!("origin {}, channel {}", entity.origin, channel.hash);
    if config.keys.entity.public == entity.key && config.absence.is_none() {
        let words = "this node's own packets do not pass its own guard";
        return Check::new(NAME, Outcome::Told, words);
    }
    let words = match admits {
        true => format!("packets on their way through this node pass ({pair})"),
        false => format!("packets on their way through this node are dropped ({pair})"),
    };
    // It delivers what is for itself by the session's entity, not by the header.
    Check::new(NAME, Outcome::Told, words)
}

fn rate_check(channel: &ChannelConfig) -> Check {
    let words = match channel.max_rate_pps {
        Some(rate) => format!("forwarders let {rate} packets a second through"),
        None => "there is no bound".to_owned(),
    };
    Check::new("rate", Outcome::Told, words)
}
