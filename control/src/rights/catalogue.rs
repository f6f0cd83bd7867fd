//! Every channel that a node knows of: those of its configuration, and those that authorities have declared.
//!
//! The newest declaration of each (owner, name) is kept. Which of them hold is a function of what is kept alone, so
//! that nodes that know the same agree, in whatever order they heard of it:
//!
//! 1. A channel of the configuration file holds, whatever is declared under its name or on its hash.
//! 2. Of the declarations the earlier holds: by `since`, then by owner, then by name. One whose name or hash is taken
//!    by then is denied, and never changes what the earlier one says.
//!
//! `since` is the owner's word. An authority that backdates it can displace another's channel whose name or hash it
//! may take: authorities are trusted with that much, each within its own names.

use super::{
    declaration::{Declaration, DeclarationError},
    identity::Retired,
};
use crate::{
    config::{Authority, ChannelConfig},
    hex,
};
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;
use virga_ebpf::header::ChannelHash;
use virga_transport::ChannelName;

/// Declarations that a node keeps, of removed channels too.
pub const DECLARATIONS_MAX: usize = 4_096;
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
    /// The node keeps as many as it may.
    #[error(
        "the node keeps {DECLARATIONS_MAX} declarations already, those of removed channels among them"
    )]
    Full,
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
        let declaration = Declaration::parse(signed)?;
        let (name, owner) = (declaration.name().clone(), *declaration.owner());
        if !self.heeds(&owner, &name) {
            return Err(Denied::Authority { owner, name });
        }
        if declaration.since_ns() > now_ns.saturating_add(AHEAD_NS_MAX) {
            return Err(Denied::Ahead(name));
        }
        let place = (name, owner);
        if !self.kept.contains_key(&place) && self.kept.len() >= DECLARATIONS_MAX {
            return Err(Denied::Full);
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
        let mut standings = BTreeMap::new();
        for (place, declaration) in all {
            let (name, owner) = place;
            let standing = match declaration.policy() {
                None => Standing::Removed,
                Some(_) if !self.heeds(owner, name) => Standing::Lapsed,
                Some(_) if is_configured.contains(name) => Standing::Configured,
                Some(policy) => match (owners.get(name), hashes.get(&policy.hash.0)) {
                    (Some(&owner), _) => Standing::Taken { owner },
                    (None, Some(with)) => Standing::Collides { with: with.clone() },
                    (None, None) => {
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

    /// The smallest salt with which no channel that holds has the name's hash.
    fn free_salt(&self, name: &ChannelName) -> Option<u32> {
        let others = self.resolve().0.into_iter().filter(|c| c.name != *name);
        let taken: BTreeSet<u16> = others.map(|channel| channel.hash.0).collect();
        (0..SALT_TRIES).find(|salt| !taken.contains(&name.hash(*salt).0))
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
