//! The file as it is written: every key optional, every value with its place.
//!
//! Unknown keys and values of the wrong type are taken out and noted, so that one typo does not
//! hide what else is wrong. The rules are in [`super::rules`].

use super::{
    problem::{Report, nearest, suggest},
    syntax,
};
use serde::{Deserialize, de::DeserializeOwned};
use std::ops::Range;
use toml::{
    Spanned,
    de::{DeArray, DeString, DeTable, DeValue, Deserializer},
};

type Field<T> = Option<Spanned<T>>;
type Names = Vec<Spanned<String>>;

/// What to do where there is no `[node]`.
pub(super) const NODE_FIX: &str =
    "write a [node] section with `name`, `network`, `listen` and the key files";

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) node: Field<Node>,
    pub(super) forwarding: Field<Forwarding>,
    #[serde(default)]
    pub(super) peers: Vec<Spanned<Peer>>,
    #[serde(default)]
    pub(super) channels: Vec<Spanned<Channel>>,
    pub(super) subnets: Field<Subnets>,
    pub(super) routing: Field<Routing>,
    pub(super) nat: Field<Nat>,
    pub(super) handshake: Field<Handshake>,
    #[serde(default)]
    pub(super) subnet_gateways: Vec<Spanned<SubnetGateway>>,
    #[serde(default)]
    pub(super) scopes: Vec<Spanned<Scope>>,
    #[serde(default)]
    pub(super) channel_authorities: Vec<Spanned<ChannelAuthority>>,
    pub(super) metrics: Field<Metrics>,
    pub(super) discovery: Field<Discovery>,
    pub(super) fallback: Field<Fallback>,
}

/// `[node]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "the section [node]")]
pub(super) struct Node {
    pub(super) name: Field<String>,
    pub(super) network: Field<String>,
    pub(super) node_key_file: Field<String>,
    pub(super) entity_key_file: Field<String>,
    pub(super) psk_file: Field<String>,
    pub(super) psk_generation: Field<i64>,
    pub(super) listen: Field<String>,
    pub(super) subnet: Field<String>,
    pub(super) socket: Field<String>,
    pub(super) socket_group: Field<String>,
    pub(super) congestion: Field<String>,
    pub(super) workers: Field<Workers>,
    pub(super) worker_cores: Field<Vec<Spanned<i64>>>,
    pub(super) driver: Field<String>,
    pub(super) busy_poll_us: Field<i64>,
    pub(super) wake_completions: Field<i64>,
    pub(super) zero_copy: Field<bool>,
    pub(super) tokens: Field<Names>,
    pub(super) capabilities: Field<Names>,
    pub(super) memberships: Field<Names>,
    pub(super) state: Field<String>,
    pub(super) logs: Field<String>,
}

/// A number, or a word.
#[derive(Debug)]
pub(super) enum Workers {
    Number(i64),
    Word(String),
}

impl<'de> Deserialize<'de> for Workers {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Workers;

            fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str("a whole number or \"auto\"")
            }

            fn visit_i64<E>(self, number: i64) -> Result<Workers, E> {
                Ok(Workers::Number(number))
            }

            fn visit_str<E>(self, word: &str) -> Result<Workers, E> {
                Ok(Workers::Word(word.to_owned()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A text, or several.
#[derive(Debug)]
pub(super) enum Texts {
    One(String),
    Many(Names),
}

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Texts;

            fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str("a text or a list of texts")
            }

            fn visit_str<E>(self, text: &str) -> Result<Texts, E> {
                Ok(Texts::One(text.to_owned()))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, all: A) -> Result<Texts, A::Error> {
                let all = serde::de::value::SeqAccessDeserializer::new(all);
                Names::deserialize(all).map(Texts::Many)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// `[forwarding]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "the section [forwarding]")]
pub(super) struct Forwarding {
    pub(super) mode: Field<String>,
    pub(super) interfaces: Field<Names>,
    pub(super) destinations_max: Field<i64>,
    pub(super) link_tags: Field<String>,
    pub(super) link_key_s: Field<i64>,
    pub(super) keepalive_ms: Field<i64>,
    pub(super) detect_multiplier: Field<i64>,
}

/// `[routing]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "the section [routing]")]
pub(super) struct Routing {
    pub(super) enabled: Field<bool>,
    pub(super) by_subnet: Field<bool>,
}

/// `[nat]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "the section [nat]")]
pub(super) struct Nat {
    pub(super) enabled: Field<bool>,
    pub(super) port_mapping: Field<bool>,
}

/// `[handshake]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "the section [handshake]")]
pub(super) struct Handshake {
    pub(super) pattern: Field<String>,
    pub(super) pq: Field<String>,
}

/// `[subnets]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "the section [subnets]")]
pub(super) struct Subnets {
    pub(super) issuers: Field<Names>,
    pub(super) filter_life_s: Field<i64>,
}

/// `[[subnet_gateways]]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a block [[subnet_gateways]]")]
pub(super) struct SubnetGateway {
    pub(super) entity: Field<String>,
    pub(super) subnet: Field<String>,
}

/// `[discovery]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "the section [discovery]")]
pub(super) struct Discovery {
    pub(super) admit: Field<String>,
    pub(super) seeds: Field<Names>,
    pub(super) exchange: Field<bool>,
    pub(super) file: Field<String>,
    pub(super) advertise: Field<Names>,
    pub(super) max_peers: Field<i64>,
    pub(super) lan: Field<bool>,
}

/// `[metrics]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "the section [metrics]")]
pub(super) struct Metrics {
    pub(super) listen: Field<String>,
}

/// `[fallback]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "the section [fallback]")]
pub(super) struct Fallback {
    pub(super) listen_tcp: Field<String>,
    pub(super) listen_ws: Field<String>,
    pub(super) certificate: Field<String>,
    pub(super) certificate_key: Field<String>,
    pub(super) trust: Field<String>,
    pub(super) after_ms: Field<i64>,
    pub(super) probe_s: Field<i64>,
}

/// `[[peers]]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a block [[peers]]")]
pub(super) struct Peer {
    pub(super) name: Field<String>,
    pub(super) node_key: Field<String>,
    pub(super) node_id: Field<String>,
    pub(super) entity_key: Field<String>,
    pub(super) address: Field<String>,
    pub(super) interface: Field<String>,
    pub(super) subnet: Field<String>,
    pub(super) link_tags: Field<String>,
    pub(super) pattern: Field<String>,
    pub(super) pq: Field<String>,
    pub(super) via: Field<Names>,
    pub(super) fallback: Field<Names>,
}

/// `[[channels]]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a block [[channels]]")]
pub(super) struct Channel {
    pub(super) name: Field<String>,
    pub(super) salt: Field<i64>,
    pub(super) priority: Field<i64>,
    pub(super) reliable: Field<bool>,
    pub(super) ordered: Field<bool>,
    pub(super) signed: Field<bool>,
    pub(super) hold_max_s: Field<i64>,
    pub(super) fan_out: Field<i64>,
    pub(super) max_rate_pps: Field<i64>,
    pub(super) visibility: Field<String>,
    pub(super) export_to: Field<Names>,
    pub(super) publish: Field<Names>,
    pub(super) subscribe: Field<Names>,
    pub(super) require_token: Field<bool>,
    pub(super) issuers: Field<Names>,
    pub(super) publish_caps: Field<Texts>,
    pub(super) subscribe_caps: Field<Texts>,
    pub(super) capability_issuers: Field<Names>,
    pub(super) persist: Field<bool>,
    pub(super) durability: Field<String>,
    pub(super) keep_events: Field<i64>,
    pub(super) keep_bytes: Field<i64>,
    pub(super) keep_for: Field<String>,
    pub(super) compact_by: Field<String>,
    pub(super) compact_after: Field<String>,
    pub(super) compact_removals_after: Field<String>,
    pub(super) replicas: Field<Names>,
    pub(super) acks: Field<String>,
}

/// `[[scopes]]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a block [[scopes]]")]
pub(super) struct Scope {
    pub(super) name: Field<String>,
    pub(super) max_rate_pps: Field<i64>,
    pub(super) visibility: Field<String>,
    pub(super) export_to: Field<Names>,
    pub(super) publish: Field<Names>,
    pub(super) subscribe: Field<Names>,
    pub(super) require_token: Field<bool>,
    pub(super) issuers: Field<Names>,
    pub(super) publish_caps: Field<Texts>,
    pub(super) subscribe_caps: Field<Texts>,
    pub(super) capability_issuers: Field<Names>,
}

/// `[[channel_authorities]]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a block [[channel_authorities]]")]
pub(super) struct ChannelAuthority {
    pub(super) entity: Field<String>,
    pub(super) within: Field<String>,
}

/// Reads the file's text; `None` when it is not TOML. Whatever is wrong is in `report`.
pub(super) fn read(text: &str, report: &mut Report<'_>) -> Option<File> {
    let mut table = syntax::read(text, report)?;
    if table.get_ref().is_empty() {
        let fix = format!("{NODE_FIX}; control/example.toml in Virga's source explains every key");
        report.add(0..0, "", "the file is empty", fix);
        return None;
    }
    take_unknown(table.get_mut(), report);
    loop {
        match File::deserialize(Deserializer::from(table.clone())) {
            Ok(file) => return Some(file),
            Err(error) => {
                let span = error.span().unwrap_or(0..0);
                // Each round takes one entry out, so that the loop ends.
                let Some(key) = take_at(table.get_mut(), &span, "") else {
                    report.add(span, "", error.message(), "");
                    return None;
                };
                let fix = match key.as_str() {
                    "node" | "forwarding" | "routing" | "nat" | "handshake" | "metrics"
                    | "discovery" | "fallback" => {
                        format!("begin the section with a line [{key}]")
                    }
                    "peers" | "channels" | "scopes" | "channel_authorities" | "subnet_gateways" => {
                        blocks_fix(&key)
                    }
                    _ => String::new(),
                };
                report.add_mistyped(span, &key, error.message(), fix);
            }
        }
    }
}

fn blocks_fix(key: &str) -> String {
    format!("begin each block with a line [[{key}]]")
}

/// Reads `[peers]` on as the one block that it is, once it is reported.
fn wrap_blocks(table: &mut DeTable<'_>, report: &mut Report<'_>) {
    for key in [
        "peers",
        "channels",
        "scopes",
        "channel_authorities",
        "subnet_gateways",
    ] {
        let Some(value) = table.get_mut(key) else {
            continue;
        };
        if value.get_ref().is_table() {
            report.add(value.span(), key, "is one section", blocks_fix(key));
            let block = std::mem::replace(value.get_mut(), DeValue::Boolean(false));
            let blocks: DeArray<'_> = [Spanned::new(value.span(), block)].into_iter().collect();
            *value.get_mut() = DeValue::Array(blocks);
        }
    }
}

/// Takes out, and reports, each key that no section has; what was probably meant is read on as that.
fn take_unknown(table: &mut DeTable<'_>, report: &mut Report<'_>) {
    keep_known(table, &fields::<File>(), "", report);
    wrap_blocks(table, report);
    for (key, value) in table.iter_mut() {
        let name = key.get_ref().to_string();
        let known = match name.as_str() {
            "node" => fields::<Node>(),
            "forwarding" => fields::<Forwarding>(),
            "routing" => fields::<Routing>(),
            "nat" => fields::<Nat>(),
            "handshake" => fields::<Handshake>(),
            "metrics" => fields::<Metrics>(),
            "discovery" => fields::<Discovery>(),
            "fallback" => fields::<Fallback>(),
            "peers" => fields::<Peer>(),
            "scopes" => fields::<Scope>(),
            "channel_authorities" => fields::<ChannelAuthority>(),
            "subnets" => fields::<Subnets>(),
            "subnet_gateways" => fields::<SubnetGateway>(),
            _ => fields::<Channel>(),
        };
        match value.get_mut() {
            DeValue::Table(section) => keep_known(section, &known, &name, report),
            DeValue::Array(blocks) => {
                for (index, block) in blocks.iter_mut().enumerate() {
                    if let DeValue::Table(section) = block.get_mut() {
                        keep_known(section, &known, &format!("{name}[{index}]"), report);
                    }
                }
            }
            _ => {}
        }
    }
}

fn keep_known(
    table: &mut DeTable<'_>,
    known: &[&'static str],
    path: &str,
    report: &mut Report<'_>,
) {
    let is_unknown = |key: &&Spanned<DeString<'_>>| !known.contains(&key.get_ref().as_ref());
    let unknown: Vec<Spanned<DeString<'_>>> = table.keys().filter(is_unknown).cloned().collect();
    for key in unknown {
        let fix = suggest(key.get_ref(), known.iter().copied());
        report.add(key.span(), join(path, key.get_ref()), "unknown key", fix);
        let (Some(value), Some(meant)) = (
            table.remove(&key),
            nearest(key.get_ref(), known.iter().copied()),
        ) else {
            continue;
        };
        match (table.get_mut(meant).map(Spanned::get_mut), value) {
            (None, value) => {
                let meant = Spanned::new(key.span(), meant.into());
                table.insert(meant, value);
            }
            // Blocks under both names are all read.
            (Some(DeValue::Array(blocks)), value) if value.get_ref().is_array() => {
                if let DeValue::Array(more) = value.into_inner() {
                    more.into_iter().for_each(|block| blocks.push(block));
                }
            }
            (Some(_), _) => {}
        }
    }
}

/// Takes out the innermost entry whose value holds `span`, and says what it is called.
fn take_at(table: &mut DeTable<'_>, span: &Range<usize>, path: &str) -> Option<String> {
    let holds = |value: &Spanned<DeValue<'_>>| {
        value.span().start <= span.start && span.end <= value.span().end
    };
    for (key, value) in table.iter_mut() {
        let path = join(path, key.get_ref());
        let inner = match value.get_mut() {
            DeValue::Table(section) => take_at(section, span, &path),
            DeValue::Array(blocks) => {
                blocks
                    .iter_mut()
                    .enumerate()
                    .find_map(|(index, block)| match block.get_mut() {
                        DeValue::Table(section) => {
                            take_at(section, span, &format!("{path}[{index}]"))
                        }
                        _ => None,
                    })
            }
            _ => None,
        };
        if inner.is_some() {
            return inner;
        }
    }
    let key = table
        .iter()
        .find(|(_, value)| holds(value))
        .map(|(key, _)| key.clone())?;
    table.remove(&key);
    Some(join(path, key.get_ref()))
}

fn join(path: &str, key: &str) -> String {
    match path {
        "" => key.into(),
        _ => format!("{path}.{key}"),
    }
}

/// The keys that `T` takes, as serde knows them.
pub(super) fn fields<T: DeserializeOwned>() -> Vec<&'static str> {
    let mut names = Vec::new();
    // Always fails: it only listens to what `T` asks for.
    let _ = T::deserialize(Listener(&mut names));
    names
}

struct Listener<'a>(&'a mut Vec<&'static str>);

impl<'de> serde::Deserializer<'de> for Listener<'_> {
    type Error = serde::de::value::Error;

    fn deserialize_any<V: serde::de::Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(serde::de::Error::custom("not a struct"))
    }

    fn deserialize_struct<V: serde::de::Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.0.extend_from_slice(fields);
        self.deserialize_any(visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}
