//! The keys of a `[[channels]]` block that say whether this node keeps the channel, and how.

use super::{
    Config, Entity, Listed, NodeSection, file,
    problem::{Report, Section},
    replicas,
    rules::Checker,
    values::{self, Fault},
};
use crate::kept::Keeping;
use serde::{Deserialize, Serialize};
use std::{ops::Range, slice::from_ref};
use toml::Spanned;
use virga_state::{
    Durability, Options, Retention, compact::Rules, limits::REPLICAS_MAX, replica::Acks,
};

/// How long events are left as they are where nothing else is said.
const COMPACT_AFTER_NS: u64 = 24 * 3_600 * 1_000_000_000;

/// The keys, taken out of a block.
pub(super) struct Keys {
    persist: Option<Spanned<bool>>,
    durability: Option<Spanned<String>>,
    keep_events: Option<Spanned<i64>>,
    keep_bytes: Option<Spanned<i64>>,
    keep_for: Option<Spanned<String>>,
    compact_by: Option<Spanned<String>>,
    compact_after: Option<Spanned<String>>,
    compact_removals_after: Option<Spanned<String>>,
}

impl Keys {
    pub(super) const fn take(block: &mut file::Channel) -> Self {
        Self {
            persist: block.persist.take(),
            durability: block.durability.take(),
            keep_events: block.keep_events.take(),
            keep_bytes: block.keep_bytes.take(),
            keep_for: block.keep_for.take(),
            compact_by: block.compact_by.take(),
            compact_after: block.compact_after.take(),
            compact_removals_after: block.compact_removals_after.take(),
        }
    }

    /// Where the keys that only a kept channel has stand.
    fn others(&self) -> [(&'static str, Option<Range<usize>>); 7] {
        let (durability, keep_for) = (self.durability.as_ref(), self.keep_for.as_ref());
        let (events, bytes) = (self.keep_events.as_ref(), self.keep_bytes.as_ref());
        [
            ("durability", durability.map(Spanned::span)),
            ("keep_events", events.map(Spanned::span)),
            ("keep_bytes", bytes.map(Spanned::span)),
            ("keep_for", keep_for.map(Spanned::span)),
            ("compact_by", self.compact_by.as_ref().map(Spanned::span)),
            (
                "compact_after",
                self.compact_after.as_ref().map(Spanned::span),
            ),
            (
                "compact_removals_after",
                self.compact_removals_after.as_ref().map(Spanned::span),
            ),
        ]
    }

    /// How the channel is kept, if it is.
    pub(super) fn resolve(
        self,
        section: &Section,
        subscribe: &Listed,
        own: Option<&Entity>,
        report: &mut Report<'_>,
    ) -> Option<Keeping> {
        let Some(persist) = self.persist.as_ref().filter(|persist| *persist.get_ref()) else {
            for (key, span) in self.others() {
                if let Some(span) = span {
                    let what = "belongs to a channel that is kept";
                    report.add(
                        span,
                        section.key(key),
                        what,
                        "add persist = true, or remove it",
                    );
                }
            }
            return None;
        };
        if own.is_some_and(|own| !subscribe.contains(&own.key)) {
            let what = "is true, and this node may not subscribe: nothing would come to its log";
            let fix = "add this node's name to `subscribe`, or remove the key";
            report.add(persist.span(), section.key("persist"), what, fix);
        }
        if self.compact_by.is_none() {
            let others = self.others().into_iter().skip(5);
            for (key, span) in others.filter_map(|(key, span)| Some((key, span?))) {
                let what = "belongs to a channel whose log is compacted";
                let fix = "add compact_by = \"key\", or remove it";
                report.add(span, section.key(key), what, fix);
            }
        }
        let mut check = Checker { section, report };
        let durability = check.text("durability", self.durability, durability);
        let retention = Retention {
            events_max: check.number("keep_events", self.keep_events, 1, i64::MAX),
            bytes_max: check.number("keep_bytes", self.keep_bytes, 1, i64::MAX),
            age_ns_max: check.text("keep_for", self.keep_for, age_ns),
        };
        let options = Options {
            durability: durability.unwrap_or_default(),
            retention,
            ..Options::default()
        };
        let after_ns = check.text("compact_after", self.compact_after, age_ns);
        let removals_after_ns = check.text(
            "compact_removals_after",
            self.compact_removals_after,
            age_ns,
        );
        let key = check.text("compact_by", self.compact_by, member);
        let compaction = key.map(|key| Rules {
            key,
            after_ns: after_ns.unwrap_or(COMPACT_AFTER_NS),
            removals_after_ns,
        });
        Some(Keeping {
            options,
            compaction,
        })
    }
}

/// The same keys, where a command says that the node keeps a channel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeepWords {
    /// When an event counts as kept: `synced`, `flushed` or `memory`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub durability: Option<String>,
    /// Events at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_events: Option<u64>,
    /// Bytes at most, the newest segment aside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_bytes: Option<u64>,
    /// For how long, such as `30days`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_for: Option<String>,
    /// The member of the events that has their key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compact_by: Option<String>,
    /// How long events are left as they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compact_after: Option<String>,
    /// How long removals are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compact_removals_after: Option<String>,
    /// The nodes that hold the log together, by name or id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<Vec<String>>,
    /// When what this node publishes counts as published: `leader`, `quorum` or `all`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acks: Option<String>,
}

impl KeepWords {
    /// How the channel is kept.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub fn resolve(&self) -> Result<Keeping, String> {
        let number = |key: &str, number: Option<u64>| match number {
            Some(0) => Err(format!("{key} is 0; say 1 or more, or leave it out")),
            number => Ok(number),
        };
        let age = |key, text: &Option<String>| read(key, text.as_deref(), age_ns);
        let retention = Retention {
            events_max: number("keep_events", self.keep_events)?,
            bytes_max: number("keep_bytes", self.keep_bytes)?,
            age_ns_max: age("keep_for", &self.keep_for)?,
        };
        let durability = read("durability", self.durability.as_deref(), durability)?;
        let after_ns = age("compact_after", &self.compact_after)?;
        let removals_after_ns = age("compact_removals_after", &self.compact_removals_after)?;
        let key = read("compact_by", self.compact_by.as_deref(), member)?;
        if key.is_none() && (after_ns.is_some() || removals_after_ns.is_some()) {
            let what = "compact_after and compact_removals_after belong to a log that is compacted";
            return Err(format!("{what}; say compact_by, too, or leave them out"));
        }
        let acks = self.read_acks()?;
        match &self.replicas {
            None if acks.is_some() => {
                return Err(
                    "acks belongs to a log on several nodes; say replicas, too, or leave it out"
                        .into(),
                );
            }
            Some(nodes) if !(1..=REPLICAS_MAX).contains(&nodes.len()) => {
                let count = nodes.len();
                return Err(format!(
                    "replicas names {count} nodes, and 1 to {REPLICAS_MAX} hold a log; name three or five"
                ));
            }
            Some(_) if key.is_some() => {
                return Err(
                    "replicas hold a log whole, byte for byte; leave compact_by out".into(),
                );
            }
            Some(_) if durability.is_some_and(|word| word != Durability::Synced) => {
                return Err(
                    "what replicas promise each other rests on what is on disk; leave durability out"
                        .into(),
                );
            }
            _ => {}
        }
        Ok(Keeping {
            options: Options {
                durability: durability.unwrap_or_default(),
                retention,
                ..Options::default()
            },
            compaction: key.map(|key| Rules {
                key,
                after_ns: after_ns.unwrap_or(COMPACT_AFTER_NS),
                removals_after_ns,
            }),
        })
    }

    fn read_acks(&self) -> Result<Option<Acks>, String> {
        read("acks", self.acks.as_deref(), replicas::acks)
    }

    /// When what this node publishes counts as published, where several nodes hold the log.
    #[must_use]
    pub fn acks(&self) -> Acks {
        self.read_acks().ok().flatten().unwrap_or_default()
    }

    /// Whether the log is to be on a node.
    #[must_use]
    pub fn is_on(&self, node: &NodeSection) -> bool {
        let is_it = |word: &String| *word == node.name || *word == node.id.to_string();
        let replicas = self.replicas.as_ref();
        replicas.is_none_or(|words| words.iter().any(is_it))
    }

    /// The same with the nodes' names in place of their ids, where they are known.
    #[must_use]
    pub fn shown(mut self, config: &Config) -> Self {
        for word in self.replicas.iter_mut().flatten() {
            if let Ok(found) = replicas::named_replicas(from_ref(word), config) {
                *word = found.into_iter().map(|node| node.name).collect();
            }
        }
        self
    }

    /// What is said, as in the file.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        let text = |key: &str, text: &Option<String>| Some(format!("{key} {}", text.as_ref()?));
        let number = |key: &str, number: Option<u64>| Some(format!("{key} {}", number?));
        let all = [
            number("keep_events", self.keep_events),
            number("keep_bytes", self.keep_bytes),
            text("keep_for", &self.keep_for),
            text("compact_by", &self.compact_by),
            text("compact_after", &self.compact_after),
            text("compact_removals_after", &self.compact_removals_after),
            self.replicas
                .as_ref()
                .map(|nodes| format!("replicas {}", nodes.join(" "))),
            text("acks", &self.acks),
        ];
        all.into_iter().flatten().collect()
    }
}

fn read<T>(
    key: &str,
    text: Option<&str>,
    read: impl Fn(&str) -> Result<T, Fault>,
) -> Result<Option<T>, String> {
    let value = text.map(read).transpose();
    value.map_err(|fault| format!("{key}: {fault}"))
}

fn durability(word: &str) -> Result<Durability, Fault> {
    word.parse().or_else(|_| {
        values::fault(
            format!("{word:?} is no durability"),
            "write \"synced\", \"flushed\" or \"memory\"",
        )
    })
}

fn member(word: &str) -> Result<String, Fault> {
    match word {
        "" => values::fault(
            "it is empty",
            "write the member of the events' JSON objects that has their key, such as \"key\"",
        ),
        word => Ok(word.to_owned()),
    }
}

fn age_ns(text: &str) -> Result<u64, Fault> {
    let nanoseconds = humantime::parse_duration(text).map(|age| age.as_nanos());
    let nanoseconds = nanoseconds.ok().and_then(|ns| u64::try_from(ns).ok());
    match nanoseconds.filter(|ns| *ns > 0) {
        Some(nanoseconds) => Ok(nanoseconds),
        None => values::fault(
            format!("{text:?} is no length of time"),
            "write a number and a unit, such as \"24h\" or \"30days\"",
        ),
    }
}
