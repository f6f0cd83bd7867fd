//! Every channel that a node knows of: those of its configuration, and those that authorities have declared.
//!
//! The newest declaration of each (owner, name) is kept. Which of them hold is a function of what is kept alone, so
//! that nodes that know the same agree, in whatever order they heard of it:
//!
//! 1. A channel of the configuration file holds, whatever is declared under its name or on its hash.
//! 2. Of the declarations the earlier holds: by `since`, then by owner, then by name. One whose name or hash is taken
//!    by then is denied, and never changes what the earlier one says. So is one that lists more publishers than the
//!    guards then have room for.
//!
//! A scope that is declared takes away from every channel below it, whoever's that is; it takes no name and no hash.
//!
//! `since` is the owner's word. An authority that backdates it can displace another's channel whose name or hash it
//! may take: authorities are trusted with that much, each within its own names.

use super::{
    declaration::{Declaration, DeclarationError},
    identity::Retired,
};
use crate::{
    config::{Authority, ChannelConfig, ScopeConfig},
    hex,
};
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;
use virga_ebpf::{header::ChannelHash, limits::PAIRS_MAX};
use virga_transport::ChannelName;

/// Declarations that a node keeps, of removed channels too. Each authority has the same share of them.
pub const DECLARATIONS_MAX: usize = 4_096;
/// Publishers that all channels together may list: half the pairs that a guard holds. The rest is for members'
/// control traffic and for who publishes by a token.
pub const PUBLISHERS_MAX: usize = PAIRS_MAX as usize / 2;
/// How far a declaration's beginning may lie ahead of the node's clock.
pub const AHEAD_NS_MAX: u64 = 300_000_000_000;
/// Salts that are tried for one whose hash is free.
const SALT_TRIES: u32 = 1 << 20;

/// Whose declaration of what.
pub type Place = (ChannelName, [u8; 32]);

/// A declaration, and its signed bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// What it says.
    pub declaration: Declaration,
    /// As it was signed.
    pub signed: Vec<u8>,
}

/// How a declared channel stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It holds.
    Holds,
    /// Its owner has removed it.
    Removed,
    /// This node's configuration file has a channel of that name, which holds.
    Configured,
    /// Somebody declared the name before.
    Taken {
        /// Whose it is.
        owner: [u8; 32],
    },
    /// Its owner is no authority any more: it has another key, and what the old one signed counts no more.
    Lapsed,
    /// An earlier channel has its hash.
    Collides {
        /// Which one.
        with: ChannelName,
    },
    /// With those whom it lists as publishers there would be more pairs than forwarders' guards have room for.
    NoRoom {
        /// Publishers that the channels before it list.
        publishers: usize,
    },
}

impl Standing {
    /// A word or a few, for people.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::Holds => "holds".into(),
            Self::Removed => "removed".into(),
            Self::Configured => "denied: the configuration file has this channel".into(),
            Self::Taken { owner } => format!("denied: {} declared it before", hex::encode(owner)),
            Self::Lapsed => {
                "denied: its owner has another key, which has to declare it anew".into()
            }
            Self::Collides { with } => format!("denied: {with} has its hash; give it another salt"),
            Self::NoRoom { publishers } => format!(
                "denied: other channels list {publishers} publishers, and guards have room for {PUBLISHERS_MAX} in all; list fewer, or require tokens"
            ),
        }
    }
}

/// What became of a declaration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// It is kept, in place of the owner's earlier one if there was one.
    New,
    /// It, or a newer one, is kept already.
    Known,
}

/// Why a declaration is not taken in; nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Denied {
    /// It is broken.
    #[error(transparent)]
    Declaration(#[from] DeclarationError),
    /// Its owner is no authority over the name.
    #[error(
        "entity {owner} is no authority over {name} at this node: name it in a [[channel_authorities]] block of the configuration",
        owner = hex::encode(owner)
    )]
    Authority {
        /// Whose it is.
        owner: [u8; 32],
        /// The channel.
        name: ChannelName,
    },
    /// It begins in the future.
    #[error(
        "the declaration of {0} begins more than 5 minutes after this node's clock: set the clocks right"
    )]
    Ahead(ChannelName),
    /// The node keeps as many of its owner as it may.
    #[error(
        "the node keeps {0} declarations of this owner already, those of removed channels among them, and has no room for more beside those of other authorities"
    )]
    Full(usize),
    /// The same or a newer one of its owner is kept.
    #[error(
        "version {is} of {name} is known, and this is version {given}: read it again (virga channel show), and change that"
    )]
    Old {
        /// The channel.
        name: ChannelName,
        /// The version that is kept.
        is: u64,
        /// This one's.
        given: u64,
    },
    /// It would not hold.
    #[error("channel {name} would not hold here: {}", standing.words())]
    Standing {
        /// The channel.
        name: ChannelName,
        /// Why.
        standing: Standing,
    },
    /// It would not hold for its hash.
    #[error("{name} and {with} share the hash {hash}: {}", match free { Some(salt) => format!("declare it with --salt {salt}"), None => "no hash is free; remove channels".into() })]
    Collision {
        /// The channel.
        name: ChannelName,
        /// Who has the hash.
        with: ChannelName,
        /// The hash.
        hash: ChannelHash,
        /// A salt with which it is free.
        free: Option<u32>,
    },
}

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct Catalogue {
    configured: Vec<ChannelConfig>,
    authorities: Vec<Authority>,
    /// Whose place others have taken: an authority is one by its later keys too, and by earlier ones for a while.
    retired: Retired,
    now_s: u64,
    kept: BTreeMap<Place, Kept>,
}

impl Catalogue {
    /// The configuration's channels, and whose declarations count.
    #[must_use]
    pub const fn new(configured: Vec<ChannelConfig>, authorities: Vec<Authority>) -> Self {
        Self {
            configured,
            authorities,
            retired: Retired::new(),
            now_s: 0,
            kept: BTreeMap::new(),
        }
    }

    /// Has these channels of the configuration, and these authorities, from now on. What is kept stays: whether it
    /// holds is judged anew.
    pub fn configure(&mut self, configured: Vec<ChannelConfig>, authorities: Vec<Authority>) {
        (self.configured, self.authorities) = (configured, authorities);
    }

    /// Goes by the keys that entities have at this time.
    pub fn follow(&mut self, retired: Retired, now_s: u64) {
        (self.retired, self.now_s) = (retired, now_s);
    }

    /// Whether an entity may declare a channel.
    fn heeds(&self, owner: &[u8; 32], name: &ChannelName) -> bool {
        let current = self.retired.current(owner);
        let until_s = self.retired.honoured_until_s(owner);
        until_s.is_none_or(|until_s| self.now_s < until_s)
            && self.authorities.iter().any(|authority| {
                let within = authority.within.as_ref();
                self.retired.current(&authority.entity.key) == current
                    && within.is_none_or(|prefix| name.is_within(prefix))
            })
    }

    /// Declarations that each authority may have here: whoever declares many shuts out no other one.
    fn share(&self) -> usize {
        let keys = self.authorities.iter().map(|one| one.entity.key);
        let keys: BTreeSet<[u8; 32]> = keys.map(|key| *self.retired.current(&key)).collect();
        DECLARATIONS_MAX / keys.len().max(1)
    }

    /// How many there are of an entity, by all the keys that it has had.
    fn kept_of(&self, owner: &[u8; 32]) -> usize {
        let current = self.retired.current(owner);
        let owners = self.kept.keys().map(|(_, owner)| owner);
        owners
            .filter(|owner| self.retired.current(owner) == current)
            .count()
    }

    /// All declarations that are kept.
    #[must_use]
    pub const fn kept(&self) -> &BTreeMap<Place, Kept> {
        &self.kept
    }

    /// Takes in a declaration from anyone: its owner signed it.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn learn(&mut self, signed: &[u8], now_ns: u64) -> Result<Learned, Denied> {
        // What needs no signature to be refused is refused without.
        let (name, owner, version) = Declaration::claimed(signed)?;
        if !self.heeds(&owner, &name) {
            return Err(Denied::Authority { owner, name });
        }
        let known = self.kept.get(&(name.clone(), owner));
        if let Some(is) = known.map(|known| known.declaration.version())
            && is > version
        {
            let given = version;
            return Err(Denied::Old { name, is, given });
        }
        if known.is_some_and(|known| known.signed == signed) {
            return Ok(Learned::Known);
        }
        let declaration = Declaration::parse(signed)?;
        if declaration.since_ns() > now_ns.saturating_add(AHEAD_NS_MAX) {
            return Err(Denied::Ahead(name));
        }
        let place = (name, owner);
        let share = self.share();
        if !self.kept.contains_key(&place)
            && self.kept.len() >= share
            && self.kept_of(&owner) >= share
        {
            return Err(Denied::Full(share));
        }
        self.take(place, declaration, signed)
    }

    /// Takes in what this node had kept, whatever its clock and its configuration say now: what does not
    /// hold by them is known all the same, so that nothing older is taken for new.
    ///
    /// # Errors
    /// [`Denied::Declaration`], where it is none.
    pub fn recall(&mut self, signed: &[u8]) -> Result<Learned, Denied> {
        let declaration = Declaration::parse(signed)?;
        let place = (declaration.name().clone(), *declaration.owner());
        self.take(place, declaration, signed)
    }

    fn take(
        &mut self,
        place: Place,
        declaration: Declaration,
        signed: &[u8],
    ) -> Result<Learned, Denied> {
        let known = self.kept.get(&place);
        if let Some(known) = known.filter(|known| !is_newer(&declaration, signed, known)) {
            let (is, given) = (known.declaration.version(), declaration.version());
            let (name, _) = place;
            return match is == given {
                true => Ok(Learned::Known),
                false => Err(Denied::Old { name, is, given }),
            };
        }
        let signed = signed.to_vec();
        let kept = Kept {
            declaration,
            signed,
        };
        self.kept.insert(place, kept);
        Ok(Learned::New)
    }

    /// The same for one that was made here: it must also be new, and hold.
    ///
    /// # Errors
    /// [`Denied`]; nothing has changed.
    pub fn declare(&mut self, signed: &[u8], now_ns: u64) -> Result<(), Denied> {
        let mut next = self.clone();
        let learned = next.learn(signed, now_ns)?;
        let given = Declaration::parse(signed)?;
        let (name, owner) = (given.name().clone(), *given.owner());
        let place = (name.clone(), owner);
        if learned == Learned::Known {
            let given = given.version();
            return Err(Denied::Old {
                name,
                is: given,
                given,
            });
        }
        match next.resolve().1.remove(&place) {
            None | Some(Standing::Holds | Standing::Removed) => {}
            Some(Standing::Collides { with }) => {
                let policy = given.policy().map_or_else(|| name.hash(0), |p| p.hash);
                return Err(Denied::Collision {
                    free: self.free_salt(&name),
                    name,
                    with,
                    hash: policy,
                });
            }
            Some(standing) => return Err(Denied::Standing { name, standing }),
        }
        *self = next;
        Ok(())
    }

    /// The channels that hold, those of the file first; and how each declaration stands.
    #[must_use]
    pub fn resolve(&self) -> (Vec<ChannelConfig>, BTreeMap<Place, Standing>) {
        let mut channels = self.configured.clone();
        let is_configured: BTreeSet<_> = channels.iter().map(|c| c.name.clone()).collect();
        let mut hashes: BTreeMap<u16, ChannelName> = BTreeMap::new();
        for channel in &channels {
            hashes.insert(channel.hash.0, channel.name.clone());
        }
        let mut owners: BTreeMap<&ChannelName, [u8; 32]> = BTreeMap::new();
        let mut all: Vec<(&Place, &Declaration)> = self
            .kept
            .iter()
            .map(|(place, kept)| (place, &kept.declaration))
            .collect();
        all.sort_by_key(|((name, owner), declaration)| {
            (declaration.since_ns(), *owner, name.clone())
        });
        let mut publishers: usize = channels.iter().map(publishers_of).sum();
        let mut standings = BTreeMap::new();
        for (place, declaration) in all {
            let (name, owner) = place;
            let standing = match declaration.policy() {
                None if declaration.is_removed() => Standing::Removed,
                _ if !self.heeds(owner, name) => Standing::Lapsed,
                // It takes away from whatever holds, and nobody takes its place.
                None => Standing::Holds,
                Some(_) if is_configured.contains(name) => Standing::Configured,
                Some(policy) => match (owners.get(name), hashes.get(&policy.hash.0)) {
                    (Some(&owner), _) => Standing::Taken { owner },
                    (None, Some(with)) => Standing::Collides { with: with.clone() },
                    (None, None) if publishers + publishers_of(policy) > PUBLISHERS_MAX => {
                        Standing::NoRoom { publishers }
                    }
                    (None, None) => {
                        publishers += publishers_of(policy);
                        owners.insert(name, *owner);
                        hashes.insert(policy.hash.0, name.clone());
                        channels.push(policy.clone());
                        Standing::Holds
                    }
                },
            };
            standings.insert(place.clone(), standing);
        }
        (channels, standings)
    }

    /// The scopes that hold.
    #[must_use]
    pub fn scopes(&self) -> Vec<ScopeConfig> {
        let kept = self.kept.iter();
        let heeded = kept.filter(|((name, owner), _)| self.heeds(owner, name));
        let scopes = heeded.filter_map(|(_, kept)| kept.declaration.scope());
        scopes.collect()
    }

    /// The smallest salt with which no channel that holds has the name's hash.
    fn free_salt(&self, name: &ChannelName) -> Option<u32> {
        let others = self.resolve().0.into_iter().filter(|c| c.name != *name);
        let taken: BTreeSet<u16> = others.map(|channel| channel.hash.0).collect();
        (0..SALT_TRIES).find(|salt| !taken.contains(&name.hash(*salt).0))
    }
}

/// Pairs that a channel adds to a guard.
fn publishers_of(channel: &ChannelConfig) -> usize {
    match channel.asks_publishers() {
        false => channel.publish.named().len(),
        // What they show says.
        true => 0,
    }
}

/// Of one owner's declarations of a name the highest version counts; of two of one version, which no honest owner
/// signs, the one whose bytes are greater, everywhere.
fn is_newer(declaration: &Declaration, signed: &[u8], known: &Kept) -> bool {
    (declaration.version(), signed) > (known.declaration.version(), &known.signed)
}

#[cfg(test)]
#[path = "tests/catalogue.rs"]
mod tests;
