//! Which packets somebody wants to see, as a request says it, and the order that the forwarding path gets of it.

use super::line::Place;
use crate::config::Config;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use virga_ebpf::{
    header::{NodeId, OriginHash, SessionId},
    limits::{SAMPLE_BYTES_MAX, SAMPLES_PER_SECOND_MAX},
    reason::{Outcome, Reason},
    sample::{ANY_CHANNEL, Order},
};
use virga_transport::ChannelName;

/// Samples a second, where nobody says how many.
pub const RATE: u32 = 1_000;
/// Bytes that are kept of a frame whose payload nobody asked for: all headers that there can be.
const HEADERS_BYTES: u32 = 320;
const NS_PER_SECOND: u64 = 1_000_000_000;

/// A request; what is not said is not asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// Only by this interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Only what was decided there: `nic` or `userspace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// `forward`, `local`, `echo`, `drop`, `pass`, with commas between.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    /// Reasons of drops, with commas between.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Only of this channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
    /// Only of this entity: a name, its key, or what headers call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// Only to this node: a name, or its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// Only of this session, in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// At most so many a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u32>,
    /// One in so many; 0: as many as the rate lets through, picked evenly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_in: Option<u32>,
    /// End after so many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// End after so long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
    /// With what follows the headers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<bool>,
}

/// The counters of packets that a verdict means. Whether one is sent on by another interface or by its own, or that
/// failed, is known only afterwards.
pub const VERDICTS: [(&str, &[Outcome]); 5] = [
    (
        "forward",
        &[Outcome::Redirect, Outcome::Transmit, Outcome::Aborted],
    ),
    ("local", &[Outcome::Local, Outcome::Xsk]),
    ("echo", &[Outcome::Echo]),
    ("drop", &[]),
    ("pass", &[Outcome::Pass]),
];

/// The verdict that counts at a place.
#[must_use]
pub fn verdict(counter: u32) -> &'static str {
    let of = |(_, outcomes): &&(&str, &[Outcome])| outcomes.iter().any(|o| o.counter() == counter);
    VERDICTS.iter().find(of).map_or("drop", |(name, _)| name)
}

/// What became of a packet, by the name of its counter.
#[must_use]
pub fn label(counter: u32) -> &'static str {
    let outcomes = Outcome::ALL.iter().map(|o| (o.counter(), o.name()));
    let reasons = Reason::ALL.iter().map(|r| (r.counter(), r.name()));
    let mut all = outcomes.chain(reasons);
    all.find(|(at, _)| *at == counter)
        .map_or("unknown", |(_, name)| name)
}

fn counters(asked: &Asked) -> Result<u64, String> {
    let drops = || {
        Reason::ALL
            .iter()
            .map(|r| 1_u64 << r.counter())
            .sum::<u64>()
    };
    let mut mask = 0_u64;
    for reason in asked.reason.iter().flat_map(|text| text.split(',')) {
        let known = Reason::ALL.iter().find(|r| r.name() == reason);
        mask |= 1
            << known
                .ok_or_else(|| {
                    let all: Vec<&str> = Reason::ALL.iter().map(|r| r.name()).collect();
                    format!(
                        "there is no reason {reason:?}; there are {}",
                        all.join(", ")
                    )
                })?
                .counter();
    }
    let verdicts = match (&asked.verdict, &asked.reason) {
        (Some(verdicts), _) => verdicts,
        (None, Some(_)) => return Ok(mask),
        (None, None) => "forward,local,echo,drop",
    };
    for name in verdicts.split(',') {
        let known = VERDICTS.iter().find(|(known, _)| *known == name);
        let (_, outcomes) = known.ok_or_else(|| {
            let all = VERDICTS.map(|(name, _)| name).join(", ");
            format!("there is no verdict {name:?}; there are {all}")
        })?;
        match name {
            // Reasons that are named say which drops.
            "drop" if asked.reason.is_some() => {}
            "drop" => mask |= drops(),
            _ => mask |= outcomes.iter().map(|o| 1_u64 << o.counter()).sum::<u64>(),
        }
    }
    Ok(mask)
}

/// 16 hex digits.
fn number(text: &str) -> Option<u64> {
    let is_hex = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
    u64::from_str_radix(text, 16).ok().filter(|_| is_hex)
}

/// What headers call an entity: by its name, its key, or just that.
pub(crate) fn origin(text: &str, config: &Config) -> Result<OriginHash, String> {
    let named = config.entities.iter().find(|named| named.name == *text);
    let by_name = named.map(|named| named.entity.origin);
    let own = (config.node.name == *text).then_some(config.node.origin);
    let key = || crate::hex::decode(text).ok();
    let by_key = || key().map(|key| virga_ebpf::hash::origin_hash(&key));
    let by_hash = || number(text).map(OriginHash);
    let found = own.or(by_name).or_else(by_hash).or_else(by_key);
    found.ok_or_else(|| {
        let names: Vec<&str> = config.entities.iter().map(|e| &*e.name).collect();
        format!(
            "{text:?} is neither an entity that this node's configuration names ({}), nor its key of 64 hex digits, \
             nor the 16 that headers call it by",
            names.join(", ")
        )
    })
}

impl Asked {
    /// The order that asks for it; `interfaces` are the kernel's. It has no end yet.
    ///
    /// # Errors
    /// What is asked for and is not there.
    pub fn order(
        &self,
        config: &Config,
        interfaces: &BTreeMap<u32, String>,
    ) -> Result<Order, String> {
        let rate = self.rate.unwrap_or(RATE);
        if !(1..=SAMPLES_PER_SECOND_MAX).contains(&rate) {
            return Err(format!(
                "a rate of {rate} packets a second: from 1 to {SAMPLES_PER_SECOND_MAX} can be had"
            ));
        }
        let bytes = match self.payload {
            Some(true) => u32::try_from(SAMPLE_BYTES_MAX).unwrap_or(u32::MAX),
            _ => HEADERS_BYTES,
        };
        Ok(Order {
            until_ns: 0,
            counters: counters(self)?,
            origin: self.origin(config)?,
            destination: self.destination(config)?,
            session: self.session()?,
            interval_ns: NS_PER_SECOND / u64::from(rate),
            channel: self.channel(config)?,
            ifindex: self.ifindex(interfaces)?,
            one_in: self.one_in.unwrap_or(1),
            bytes,
        })
    }

    fn ifindex(&self, interfaces: &BTreeMap<u32, String>) -> Result<u32, String> {
        let Some(name) = &self.interface else {
            return Ok(0);
        };
        let found = interfaces.iter().find(|(_, known)| *known == name);
        found.map(|(ifindex, _)| *ifindex).ok_or_else(|| {
            let all: Vec<&str> = interfaces.values().map(String::as_str).collect();
            format!("there is no interface {name}; there are {}", all.join(", "))
        })
    }

    fn channel(&self, config: &Config) -> Result<u32, String> {
        let Some(text) = &self.channel else {
            return Ok(ANY_CHANNEL);
        };
        let name = ChannelName::parse(text).map_err(|error| error.to_string())?;
        let mut channels = config.channels.iter();
        match channels.find(|channel| channel.name == name) {
            Some(channel) => Ok(u32::from(channel.hash.0)),
            None => Err(format!(
                "this node knows no channel {name}: `virga channel list` shows those that it knows"
            )),
        }
    }

    fn origin(&self, config: &Config) -> Result<OriginHash, String> {
        let Some(text) = &self.origin else {
            return Ok(OriginHash(0));
        };
        origin(text, config)
    }

    fn destination(&self, config: &Config) -> Result<NodeId, String> {
        let Some(text) = &self.destination else {
            return Ok(NodeId(0));
        };
        let peer = config.peer(text).map(|peer| peer.id);
        let own = (config.node.name == *text).then_some(config.node.id);
        let found = own.or(peer).or_else(|| number(text).map(NodeId));
        found.ok_or_else(|| {
            format!("{text:?} is neither a peer's name nor a node's id of 16 hex digits")
        })
    }

    fn session(&self) -> Result<SessionId, String> {
        let Some(text) = &self.session else {
            return Ok(SessionId(0));
        };
        number(text).map(SessionId).ok_or_else(|| {
            format!(
                "{text:?} is no session's id of 16 hex digits: `virga status --json` shows them"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(verdict: Option<&str>, reason: Option<&str>) -> Result<u64, String> {
        counters(&Asked {
            verdict: verdict.map(str::to_owned),
            reason: reason.map(str::to_owned),
            ..Asked::default()
        })
    }

    #[test]
    fn verdicts_and_reasons_become_the_counters_that_they_mean() {
        let drops: u64 = Reason::ALL.iter().map(|r| 1_u64 << r.counter()).sum();
        let magic = 1 << Reason::Magic.counter();
        let rate = 1 << Reason::Rate.counter();
        assert_eq!(mask(None, Some("magic,rate")), Ok(magic | rate));
        assert_eq!(mask(Some("drop"), None), Ok(drops));
        assert_eq!(mask(Some("drop"), Some("magic")), Ok(magic));
        assert_eq!(mask(Some("echo"), Some("magic")), Ok(magic | 1 << 6));
        assert_eq!(mask(Some("local"), None), Ok(1 << 1 | 1 << 5));
        // Other people's packets only where somebody says so.
        assert_eq!(mask(None, None).unwrap() & 1, 0);
        assert_eq!(mask(Some("pass"), None), Ok(1));
        assert!(mask(Some("dropped"), None).unwrap_err().contains("forward"));
        assert!(mask(None, Some("magick")).unwrap_err().contains("magic"));
    }

    #[test]
    fn every_counter_has_its_verdict_and_label() {
        for outcome in Outcome::ALL {
            assert_ne!(verdict(outcome.counter()), "drop", "{}", outcome.name());
            assert_eq!(label(outcome.counter()), outcome.name());
        }
        for reason in Reason::ALL {
            assert_eq!(verdict(reason.counter()), "drop");
            assert_eq!(label(reason.counter()), reason.name());
        }
        assert_eq!(label(63), "unknown");
    }
}
