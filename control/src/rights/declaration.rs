//! A channel that was made by command, or a scope: its policy, signed by an authority over its name.
//!
//! ```text
//! fields of type 5          bytes
//!   owner                      32  ed25519 public key; its signature is the object's
//!   name                  1 - 255  the channel's full name
//!   since                       8  when the owner first declared it: Unix time in nanoseconds
//!   version                     8  counts up; the highest counts
//!   policy                0 or 16  salt 4, priority 1, mode 1, hold_max_s 4, max_rate_pps 4 (0: none), lists 1,
//!                                  visibility 1
//!   publish, subscribe,         -  entities' keys, 32 bytes each, in order, each once: who may, whose tokens count,
//!   issuers, vouchers              and whose statements about capabilities do
//!   publish_caps,               -  what is asked of capabilities, as filters are written; empty: nothing
//!   subscribe_caps
//!   exports                     -  subnets, 4 bytes and a mask of 4 each, in order, each once
//! ```
//! Without a policy the channel is removed. `lists` says which lists there are: bit 0 publish, bit 1 subscribe. Bit 3
//! makes it a scope, which holds for its name and all below it: salt, priority, mode and hold_max_s are 0
//! then. A channel's publish or subscribe list that is not there keeps nobody out, and needs issuers or a filter. The newest version of each (owner, name) is kept, also of
//! what is removed: without it an old one would count again.

use super::signed::{self, Fields, Kind, ObjectError, Writer};
use crate::{
    capability::{Filter, filter::FILTER_BYTES_MAX},
    config::{CapabilityRules, ChannelConfig, Entity, Listed, ScopeConfig},
    hex,
    keys::EntityKey,
};
use std::collections::BTreeSet;
use thiserror::Error;
use virga_ebpf::{
    header::{PRIORITY_CONTROL, Subnet},
    limits::EXPORTS_PER_CHANNEL,
    subnet::{SubnetPrefix, Visibility},
};
use virga_transport::{ChannelName, Mode};

/// Entities of one list.
pub const ENTITIES_MAX: usize = 512;
/// Bytes of the largest declaration.
pub const DECLARATION_BYTES_MAX: usize = 1_024
    + 4 * ENTITIES_MAX * KEY_BYTES
    + 2 * FILTER_BYTES_MAX
    + EXPORTS_PER_CHANNEL as usize * PREFIX_BYTES;

const KEY_BYTES: usize = 32;
const POLICY_BYTES: usize = 16;
/// Where a policy says which lists there are.
const LISTS_AT: usize = 14;
const PREFIX_BYTES: usize = 8;
/// Their numbers are their places.
const VISIBILITIES: [Visibility; 4] = [
    Visibility::SubnetLocal,
    Visibility::ParentVisible,
    Visibility::Exported,
    Visibility::Global,
];
const HAS_PUBLISH: u8 = 1;
const HAS_SUBSCRIBE: u8 = 2;
const IS_SCOPE: u8 = 8;

/// Who declared a channel, when, and which of its declarations this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declaration {
    owner: [u8; 32],
    since_ns: u64,
    version: u64,
    name: ChannelName,
    /// None: it is removed. A scope's is of [`ScopeConfig::as_policy`].
    policy: Option<ChannelConfig>,
    is_scope: bool,
}

/// Why there is no such declaration; whoever wrote it is at fault.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DeclarationError {
    /// Its form is wrong.
    #[error("the channel's declaration cannot be read: {0}")]
    Object(#[from] ObjectError),
    /// Its owner did not sign it.
    #[error("the channel's declaration is not signed by its owner {}", hex::encode(.0))]
    Signature([u8; 32]),
    /// Nobody could do anything there, or a list is too long.
    #[error("the channel's policy {0}")]
    Policy(&'static str),
}

impl Declaration {
    /// A channel's first declaration.
    #[must_use]
    pub fn new(owner: [u8; 32], since_ns: u64, policy: ChannelConfig) -> Self {
        Self {
            owner,
            since_ns,
            version: 1,
            name: policy.name.clone(),
            policy: Some(policy),
            is_scope: false,
        }
    }

    /// A scope's first declaration.
    #[must_use]
    pub fn of_scope(owner: [u8; 32], since_ns: u64, scope: &ScopeConfig) -> Self {
        Self {
            is_scope: true,
            ..Self::new(owner, since_ns, scope.as_policy())
        }
    }

    /// The next one, of a scope.
    #[must_use]
    pub fn next_scope(&self, scope: &ScopeConfig) -> Self {
        Self {
            is_scope: true,
            ..self.next(Some(scope.as_policy()))
        }
    }

    /// The next one, with another policy or none.
    #[must_use]
    pub fn next(&self, policy: Option<ChannelConfig>) -> Self {
        Self {
            version: self.version + 1,
            policy,
            is_scope: false,
            ..self.clone()
        }
    }

    /// Who declared it.
    #[must_use]
    pub const fn owner(&self) -> &[u8; 32] {
        &self.owner
    }

    /// When its owner says that it first did.
    #[must_use]
    pub const fn since_ns(&self) -> u64 {
        self.since_ns
    }

    /// Counts the owner's declarations of it.
    #[must_use]
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// The channel's full name.
    #[must_use]
    pub const fn name(&self) -> &ChannelName {
        &self.name
    }

    /// Whether it says that nothing is there any more.
    #[must_use]
    pub const fn is_removed(&self) -> bool {
        self.policy.is_none()
    }

    /// The channel's policy; none where it is removed, or a scope.
    #[must_use]
    pub fn policy(&self) -> Option<&ChannelConfig> {
        self.policy.as_ref().filter(|_| !self.is_scope)
    }

    /// The scope; none where it is removed, or a channel.
    #[must_use]
    pub fn scope(&self) -> Option<ScopeConfig> {
        let policy = self.policy.as_ref().filter(|_| self.is_scope);
        policy.map(ScopeConfig::of)
    }

    /// Neither a channel nor a scope can be like this.
    fn check(&self) -> Result<(), DeclarationError> {
        let Some(policy) = &self.policy else {
            return Ok(());
        };
        match self.is_scope {
            false => check(policy),
            true => check_scope(policy),
        }
    }

    /// Signs it.
    ///
    /// # Errors
    /// [`DeclarationError::Policy`].
    pub fn sign(&self, owner: &EntityKey) -> Result<Vec<u8>, DeclarationError> {
        debug_assert_eq!(owner.public, self.owner);
        self.check()?;
        let writer = Writer::new(Kind::Declaration)
            .field(&self.owner)
            .field(self.name.as_str().as_bytes())
            .field(&self.since_ns.to_be_bytes())
            .field(&self.version.to_be_bytes());
        let Some(policy) = &self.policy else {
            let empty = (0..FIELDS_OF_POLICY).fold(writer, |writer, _| writer.field(&[]));
            return Ok(empty.sign(owner));
        };
        let asked = &policy.capabilities;
        let caps = |filter: &Option<Filter>| filter.as_ref().map(Filter::to_string);
        Ok(writer
            .field(&head(policy, if self.is_scope { IS_SCOPE } else { 0 }))
            .field(&keys(named(&policy.publish)))
            .field(&keys(named(&policy.subscribe)))
            .field(&keys(all(&policy.issuers)))
            .field(&keys(all(&asked.issuers)))
            .field(caps(&asked.publish).unwrap_or_default().as_bytes())
            .field(caps(&asked.subscribe).unwrap_or_default().as_bytes())
            .field(&exports(&policy.export_to))
            .sign(owner))
    }

    /// Of what, whose and which version it claims to be, to be looked at before the signature is.
    ///
    /// # Errors
    /// [`DeclarationError`].
    pub fn claimed(bytes: &[u8]) -> Result<(ChannelName, [u8; 32], u64), DeclarationError> {
        let mut fields = Fields::of(Kind::Declaration, bytes)?;
        let owner = fields.array("owner")?;
        let name = channel_name(fields.next("name")?)?;
        let (_since_ns, version) = (fields.u64("since")?, fields.u64("version")?);
        Ok((name, owner, version))
    }

    /// Reads a signed declaration, all of `bytes`.
    ///
    /// # Errors
    /// [`DeclarationError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, DeclarationError> {
        let mut fields = Fields::of(Kind::Declaration, bytes)?;
        let owner = fields.array("owner")?;
        if !signed::is_signed_by(bytes, &owner) {
            return Err(DeclarationError::Signature(owner));
        }
        let name = channel_name(fields.next("name")?)?;
        let (since_ns, version) = (fields.u64("since")?, fields.u64("version")?);
        let head = fields.next("policy")?;
        let mut list = |field| entities(field, fields.next(field)?);
        let lists = [
            list("publish list")?,
            list("subscribe list")?,
            list("issuers")?,
            list("vouchers")?,
        ];
        let filters = [
            filter("publish_caps", fields.next("publish_caps")?)?,
            filter("subscribe_caps", fields.next("subscribe_caps")?)?,
        ];
        let export_to = prefixes(fields.next("exports")?)?;
        fields.end()?;
        let is_empty = lists.iter().all(Vec::is_empty)
            && filters.iter().all(Option::is_none)
            && export_to.is_empty();
        let is_scope = head
            .get(LISTS_AT)
            .is_some_and(|lists| lists & IS_SCOPE != 0);
        let policy = match head.first_chunk::<POLICY_BYTES>() {
            Some(exact) if head.len() == POLICY_BYTES => {
                Some(policy(&name, exact, (lists, filters, export_to))?)
            }
            None if head.is_empty() && is_empty => None,
            _ => return Err(wrong("policy", "has neither 0 nor 16 bytes").into()),
        };
        let declaration = Self {
            owner,
            since_ns,
            version,
            name,
            policy,
            is_scope,
        };
        declaration.check()?;
        Ok(declaration)
    }
}

fn wrong(field: &'static str, what: &str) -> ObjectError {
    let what = what.to_owned();
    ObjectError::Field { field, what }
}

/// Fields after the version.
const FIELDS_OF_POLICY: usize = 8;

fn channel_name(bytes: &[u8]) -> Result<ChannelName, ObjectError> {
    let name = std::str::from_utf8(bytes).ok();
    let name = name.and_then(|name| ChannelName::parse(name).ok());
    name.ok_or_else(|| wrong("name", "is not a channel's name"))
}

/// How long a subscriber that does not read may hold a channel up at most.
const HOLD_MAX_S_MAX: u32 = 86_400;

/// What no policy may be.
fn check(policy: &ChannelConfig) -> Result<(), DeclarationError> {
    let asked = &policy.capabilities;
    let is_open = |listed: &Listed, caps: &Option<Filter>| {
        matches!(listed, Listed::Anyone) && policy.issuers.is_empty() && caps.is_none()
    };
    let fault = if is_open(&policy.publish, &asked.publish)
        || is_open(&policy.subscribe, &asked.subscribe)
    {
        "keeps nobody out: name publishers and subscribers, require a token, or ask for capabilities"
    } else if let Some(fault) = fault_of_both(policy) {
        fault
    } else if matches!(&policy.publish, Listed::Only(nobody) if nobody.is_empty()) {
        "lets nobody publish, so nothing can pass: name publishers, or remove the channel"
    } else if policy.priority >= PRIORITY_CONTROL {
        "has a priority above 6"
    } else if !(1..=HOLD_MAX_S_MAX).contains(&policy.hold_max_s) {
        "has a hold_max_s that is not 1 to 86400"
    } else {
        return Ok(());
    };
    Err(DeclarationError::Policy(fault))
}

/// What neither a channel nor a scope may say.
fn fault_of_both(policy: &ChannelConfig) -> Option<&'static str> {
    let asked = &policy.capabilities;
    let asks = asked.publish.is_some() || asked.subscribe.is_some();
    let is_exported = policy.visibility == Visibility::Exported;
    let fault = if asks == asked.issuers.is_empty() {
        "says whose word about capabilities counts exactly where it asks for some"
    } else if is_exported == policy.export_to.is_empty() {
        "names subnets exactly where it is exported"
    } else if policy.export_to.len() > EXPORTS_PER_CHANNEL as usize {
        "is exported to more subnets than a router holds"
    } else if [&policy.publish, &policy.subscribe]
        .iter()
        .any(|list| list.named().len() > ENTITIES_MAX)
        || policy.issuers.len() > ENTITIES_MAX
        || asked.issuers.len() > ENTITIES_MAX
    {
        "has a list of more than 512 entities: use tokens"
    } else if policy.max_rate_pps == Some(0) {
        "lets no packet pass: its rate is 0"
    } else {
        return None;
    };
    Some(fault)
}

/// What no scope may be.
fn check_scope(policy: &ChannelConfig) -> Result<(), DeclarationError> {
    let scope = ScopeConfig::of(policy);
    let open = ScopeConfig {
        name: policy.name.clone(),
        publish: Listed::Anyone,
        subscribe: Listed::Anyone,
        issuers: Vec::new(),
        capabilities: CapabilityRules::default(),
        visibility: Visibility::Global,
        export_to: BTreeSet::new(),
        max_rate_pps: None,
    };
    let fault = if scope.as_policy() != *policy {
        "is a scope's and says what only a channel can have"
    } else if scope == open {
        "is a scope's and takes nothing away"
    } else {
        match fault_of_both(policy) {
            None => return Ok(()),
            Some(fault) => fault,
        }
    };
    Err(DeclarationError::Policy(fault))
}

fn mode_number(mode: Mode) -> u8 {
    let place = Mode::ALL.iter().position(|other| *other == mode);
    place
        .and_then(|place| u8::try_from(place).ok())
        .unwrap_or(u8::MAX)
}

fn all(entities: &[Entity]) -> Vec<[u8; 32]> {
    entities.iter().map(|entity| entity.key).collect()
}

fn named(listed: &Listed) -> Vec<[u8; 32]> {
    all(listed.named())
}

fn exports(prefixes: &BTreeSet<SubnetPrefix>) -> Vec<u8> {
    let bytes = |prefix: &SubnetPrefix| [prefix.subnet.0.to_be_bytes(), prefix.mask.to_be_bytes()];
    prefixes.iter().flat_map(bytes).flatten().collect()
}

fn keys(mut keys: Vec<[u8; 32]>) -> Vec<u8> {
    keys.sort_unstable();
    keys.dedup();
    keys.concat()
}

fn head(policy: &ChannelConfig, kind: u8) -> Vec<u8> {
    let has = |listed: &Listed, bit| match listed {
        Listed::Only(_) => bit,
        Listed::Anyone => 0,
    };
    let lists = has(&policy.publish, HAS_PUBLISH) | has(&policy.subscribe, HAS_SUBSCRIBE) | kind;
    let mut head = policy.salt.to_be_bytes().to_vec();
    head.extend([policy.priority, mode_number(policy.mode)]);
    head.extend(policy.hold_max_s.to_be_bytes());
    head.extend(policy.max_rate_pps.unwrap_or(0).to_be_bytes());
    head.extend([lists, policy.visibility as u8]);
    head
}

fn entities(field: &'static str, bytes: &[u8]) -> Result<Vec<Entity>, ObjectError> {
    let (keys, rest) = bytes.as_chunks::<KEY_BYTES>();
    if !rest.is_empty() {
        return Err(wrong(field, "is not whole keys"));
    }
    if !keys.is_sorted_by(|one, next| one < next) {
        return Err(wrong(field, "is not in order, each once"));
    }
    Ok(keys.iter().map(|&key| Entity::from_key(key)).collect())
}

/// One filter, as it is shown; none where nothing is asked.
fn filter(field: &'static str, bytes: &[u8]) -> Result<Option<Filter>, ObjectError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| wrong(field, "is not text"))?;
    let filter = Filter::parse(text).map_err(|_| wrong(field, "is not a filter"))?;
    match filter.to_string() == text {
        true => Ok(Some(filter)),
        false => Err(wrong(field, "is not written as filters are shown")),
    }
}

fn prefixes(bytes: &[u8]) -> Result<BTreeSet<SubnetPrefix>, ObjectError> {
    let (all, rest) = bytes.as_chunks::<PREFIX_BYTES>();
    if !rest.is_empty() {
        return Err(wrong("exports", "is not whole subnets"));
    }
    let prefix = |&[s0, s1, s2, s3, m0, m1, m2, m3]: &[u8; PREFIX_BYTES]| SubnetPrefix {
        subnet: Subnet(u32::from_be_bytes([s0, s1, s2, s3])),
        mask: u32::from_be_bytes([m0, m1, m2, m3]),
    };
    let all: Vec<SubnetPrefix> = all.iter().map(prefix).collect();
    let is_whole = |one: &SubnetPrefix| {
        let bits = one.mask.leading_ones();
        one.mask != 0 && one.mask.count_ones() == bits && one.subnet.0 & !one.mask == 0
    };
    match all.is_sorted_by(|one, next| one < next) && all.iter().all(is_whole) {
        true => Ok(all.into_iter().collect()),
        false => Err(wrong(
            "exports",
            "is not a list of subnets in order, each once",
        )),
    }
}

/// The lists, the filters, and where to it is exported.
type Rest = (
    [Vec<Entity>; 4],
    [Option<Filter>; 2],
    BTreeSet<SubnetPrefix>,
);

fn policy(
    name: &ChannelName,
    head: &[u8; POLICY_BYTES],
    ([publish, subscribe, issuers, vouchers], [publish_caps, subscribe_caps], export_to): Rest,
) -> Result<ChannelConfig, ObjectError> {
    let [
        s0,
        s1,
        s2,
        s3,
        priority,
        mode,
        h0,
        h1,
        h2,
        h3,
        r0,
        r1,
        r2,
        r3,
        lists,
        visibility,
    ] = *head;
    let salt = u32::from_be_bytes([s0, s1, s2, s3]);
    let rate = u32::from_be_bytes([r0, r1, r2, r3]);
    let mode = Mode::ALL.get(usize::from(mode));
    let mode = *mode.ok_or_else(|| wrong("policy", "has a mode that there is not"))?;
    let visibility = VISIBILITIES.get(usize::from(visibility));
    let visibility =
        *visibility.ok_or_else(|| wrong("policy", "has a visibility that there is not"))?;
    if lists & !(HAS_PUBLISH | HAS_SUBSCRIBE | IS_SCOPE) != 0 {
        return Err(wrong("policy", "has bits that are not known"));
    }
    let listed = |field, bit, entities: Vec<Entity>| match (lists & bit != 0, entities.is_empty()) {
        (true, _) => Ok(Listed::Only(entities)),
        (false, true) => Ok(Listed::Anyone),
        (false, false) => Err(wrong(field, "is there, and the policy says that it is not")),
    };
    Ok(ChannelConfig {
        name: name.clone(),
        salt,
        hash: name.hash(salt),
        priority,
        mode,
        hold_max_s: u32::from_be_bytes([h0, h1, h2, h3]),
        fan_out: 0,
        keep: None,
        scopes: Vec::new(),
        max_rate_pps: (rate > 0).then_some(rate),
        visibility,
        export_to,
        publish: listed("publish list", HAS_PUBLISH, publish)?,
        subscribe: listed("subscribe list", HAS_SUBSCRIBE, subscribe)?,
        issuers,
        capabilities: CapabilityRules {
            publish: publish_caps,
            subscribe: subscribe_caps,
            issuers: vouchers,
        },
    })
}

#[cfg(test)]
#[path = "tests/declaration.rs"]
mod tests;
