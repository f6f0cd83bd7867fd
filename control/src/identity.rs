//! Who is where: the configuration as placements and successions have changed it since.
//!
//! A [`Book`] holds the newest signed word of each entity that the configuration knows. What it makes of a
//! configuration depends on that alone, not on the order in which the objects came:
//! - An entity is where its latest placement says, else at its own `[[peers]]` block. A node may have several;
//!   one that is placed there takes nothing from those that were there before.
//! - A placement to a node that no block names takes the entity's own block over: the node has another key.
//! - From its time on a succession puts the new key wherever the configuration means the old one. Among
//!   issuers the old key stays beside the new one, for the tokens that it signed: they count as long as the
//!   succession says.
//!
//! Only a placement that an entity's present key has signed counts.

use crate::{
    config::{Config, Entity, Listed, PeerConfig, is_low_order, is_weak},
    rights::identity::{Claim, Identity, IdentityError, Placement, Retired, Succession},
};
use std::collections::BTreeMap;
use thiserror::Error;
use virga_ebpf::{hash, header::NodeId};

#[cfg(test)]
mod tests;

/// Keys that one entity may have had.
pub const LINEAGE_MAX: usize = 16;

/// The newest signed word of each entity.
#[derive(Clone, Debug, Default)]
pub struct Book {
    placements: BTreeMap<[u8; 32], Kept<Placement>>,
    /// By the old key. The first that is known stays: who signs two has lost the key to somebody.
    successions: BTreeMap<[u8; 32], Kept<Succession>>,
}

#[derive(Clone, Debug)]
struct Kept<T> {
    what: T,
    claim: Claim,
}

/// Why an object does not count; nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Rejected {
    /// It is none, or is not signed.
    #[error(transparent)]
    Broken(#[from] IdentityError),
    /// No entity here has that key.
    #[error("no entity that this node's configuration names has or had the key {}", crate::hex::encode(.0))]
    Unknown([u8; 32]),
    /// The same one is known, or a later one.
    #[error("a placement of version {known} is known, and this is version {is}")]
    Old {
        /// The newest.
        known: u64,
        /// This one's.
        is: u64,
    },
    /// No honest node has that key.
    #[error("the node key is a point of low order")]
    NodeKey,
    /// It contradicts what is known.
    #[error("{0}")]
    Conflict(&'static str),
}

/// What became of an object that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// It counts from now on.
    New,
    /// It did before.
    Known,
}

/// A configuration as it is now.
#[derive(Clone, Debug)]
pub struct Present {
    /// What the file says, changed by what entities have said since.
    pub config: Config,
    /// Keys whose place others have taken.
    pub retired: Retired,
    /// Where entities were before: whoever still claims to be one there is told.
    pub former: Vec<(NodeId, [u8; 32])>,
}

/// Where an entity lives.
enum Home {
    Here,
    /// At the peer of that index.
    Peer(usize),
    /// At the peer of that index, which has another key now.
    Renewed(usize, [u8; 32]),
    /// Where this node knows no way.
    Nowhere,
}

impl Book {
    /// Takes an object in, if it counts.
    ///
    /// # Errors
    /// [`Rejected`]. Signatures are verified last: cheap checks keep most of what is worthless out.
    pub fn learn(&mut self, config: &Config, claim: &Claim) -> Result<Learned, Rejected> {
        match claim.what() {
            Identity::Placement(placement) => self.learn_placement(config, placement, claim),
            Identity::Succession(succession) => self.learn_succession(config, succession, claim),
        }
    }

    fn learn_placement(
        &mut self,
        config: &Config,
        what: Placement,
        claim: &Claim,
    ) -> Result<Learned, Rejected> {
        if !self.knows(config, &what.entity) {
            return Err(Rejected::Unknown(what.entity));
        }
        if let Some(known) = self.placements.get(&what.entity) {
            if known.claim == *claim {
                return Ok(Learned::Known);
            }
            let (known, is) = (known.what.version, what.version);
            if is < known {
                return Err(Rejected::Old { known, is });
            }
            // Of two with one version the same one counts at every node.
            let before = &self.placements[&what.entity].claim;
            if is == known && claim.as_bytes() < before.as_bytes() {
                let two = "the entity has signed two placements with this version";
                return Err(Rejected::Conflict(two));
            }
        }
        if is_low_order(&what.node_key) {
            return Err(Rejected::NodeKey);
        }
        claim.verify()?;
        let claim = claim.clone();
        self.placements.insert(what.entity, Kept { what, claim });
        Ok(Learned::New)
    }

    fn learn_succession(
        &mut self,
        config: &Config,
        what: Succession,
        claim: &Claim,
    ) -> Result<Learned, Rejected> {
        let Succession { old, new, .. } = what;
        if !self.knows(config, &old) && !self.knows(config, &new) {
            return Err(Rejected::Unknown(old));
        }
        let conflict = |words| Err(Rejected::Conflict(words));
        match self.successions.get(&old) {
            Some(known) if known.claim == *claim => return Ok(Learned::Known),
            Some(_) => return conflict("another key is known to have taken the old one's place"),
            None => {}
        }
        if self.successions.values().any(|known| known.what.new == new) {
            return conflict("the new key has taken another one's place already");
        }
        if is_weak(&new) {
            return conflict("the new key is a weak one, which no honest entity has");
        }
        let names = |key: &[u8; 32]| config.entities.iter().any(|e| e.entity.key == *key);
        if names(&old) && names(&new) {
            return conflict("the configuration names both keys, as two entities");
        }
        let (before, after) = (self.lineage(&old), self.lineage(&new));
        if after.contains(&old) {
            return conflict("the new key had that place before");
        }
        if before.len() + after.len() > LINEAGE_MAX {
            return conflict("the entity has had as many keys as it may");
        }
        claim.verify()?;
        let claim = claim.clone();
        self.successions.insert(old, Kept { what, claim });
        Ok(Learned::New)
    }

    /// A key with all that came before and after it, whether or not they are in effect.
    fn lineage(&self, key: &[u8; 32]) -> Vec<[u8; 32]> {
        let mut keys = vec![*key];
        let mut first = *key;
        while let Some(known) = self.successions.values().find(|k| k.what.new == first) {
            first = known.what.old;
            keys.push(first);
        }
        let mut last = *key;
        while let Some(known) = self.successions.get(&last) {
            last = known.what.new;
            keys.push(last);
        }
        keys
    }

    /// Whether the configuration names a key, or one that it followed or that followed it.
    fn knows(&self, config: &Config, key: &[u8; 32]) -> bool {
        let keys = self.lineage(key);
        let mut named = config.entities.iter();
        named.any(|named| keys.contains(&named.entity.key))
    }

    /// All objects, to be passed on: each after those by which its keys are known.
    #[must_use]
    pub fn claims(&self) -> Vec<&Claim> {
        let mut claims = Vec::new();
        let follows = |key: &[u8; 32]| self.successions.values().any(|kept| kept.what.new == *key);
        for first in self.successions.keys().filter(|old| !follows(old)) {
            let mut old = *first;
            while let Some(kept) = self.successions.get(&old) {
                claims.push(&kept.claim);
                old = kept.what.new;
            }
        }
        claims.extend(self.placements.values().map(|kept| &kept.claim));
        claims
    }

    /// The next Unix second at which a succession takes effect, or what an old key signed counts no more.
    #[must_use]
    pub fn next_s(&self, now_s: u64) -> Option<u64> {
        let successions = self.successions.values().map(|kept| kept.what);
        let times = successions.flat_map(|what| [what.from_s, what.honoured_until_s]);
        times.filter(|&from_s| from_s > now_s).min()
    }

    /// Successions that are in effect.
    #[must_use]
    pub fn retired(&self, now_s: u64) -> Retired {
        let mut retired = Retired::default();
        for (&old, kept) in &self.successions {
            let mut current = old;
            while let Some(next) = self.successions.get(&current)
                && next.what.from_s <= now_s
            {
                current = next.what.new;
            }
            if current != old {
                retired.add(old, current, kept.what.honoured_until_s);
            }
        }
        retired
    }

    /// The configuration as it is now.
    #[must_use]
    pub fn present(&self, configured: &Config, now_s: u64) -> Present {
        let retired = self.retired(now_s);
        let mut config = configured.clone();
        rename(&mut config, &retired);
        // Declared channels too, and by the keys that entities have now.
        for channel in &mut config.channels {
            channel.narrow(&config.scopes);
        }
        self.settle(configured, &mut config, &retired);
        let former = former(configured, &config);
        config.absence = self.absence(&config, &retired);
        Present {
            config,
            retired,
            former,
        }
    }

    /// Puts every entity where it lives.
    fn settle(&self, configured: &Config, config: &mut Config, retired: &Retired) {
        let placements = self.placements.values().map(|kept| kept.what);
        let mut placements: Vec<Placement> = placements.collect();
        // Whoever first signed for a key that no file has brings it to its own block; who follows moves there.
        placements.sort_by_key(|placement| (placement.version, placement.entity));
        for placement in placements {
            let mut named = config.entities.iter();
            let is_current = retired.current(&placement.entity) == &placement.entity;
            if !is_current || !named.any(|named| named.entity.key == placement.entity) {
                continue;
            }
            let home = home(configured, config, &placement);
            for peer in &mut config.peers {
                peer.entities.retain(|key| *key != placement.entity);
            }
            match home {
                Home::Here | Home::Nowhere => {}
                Home::Peer(index) => config.peers[index].entities.push(placement.entity),
                Home::Renewed(index, node_key) => {
                    let peer = &mut config.peers[index];
                    (peer.node_key, peer.id) = (node_key.into(), hash::node_id(&node_key));
                    peer.entities.push(placement.entity);
                }
            }
        }
    }

    /// Why this node speaks for no entity.
    fn absence(&self, config: &Config, retired: &Retired) -> Option<String> {
        let own = config.keys.entity.public;
        let current = retired.current(&own);
        if *current != own {
            return Some(format!(
                "the key {} has taken the place of this node's entity key: put the key file that `virga entity rotate` wrote in its place and restart the node",
                crate::hex::encode(current)
            ));
        }
        let placement = self.placements.get(&own)?.what;
        if placement.node_key == config.keys.node.public {
            return None;
        }
        let id = hash::node_id(&placement.node_key);
        let peer = config.peers.iter().find(|peer| peer.id == id);
        let name = peer.map_or("a node that is no peer of this one", |peer| {
            peer.name.as_str()
        });
        Some(format!(
            "this node's entity lives on {name} ({id}) now, by its placement of version {}: publish and subscribe there, or move it back with `virga entity move`",
            placement.version
        ))
    }
}

/// Puts new keys wherever old ones are meant.
fn rename(config: &mut Config, retired: &Retired) {
    if retired.is_empty() {
        return;
    }
    let renew = |entity: &mut Entity| {
        let current = retired.current(&entity.key);
        if *current != entity.key {
            *entity = Entity::from_key(*current);
        }
    };
    config
        .entities
        .iter_mut()
        .for_each(|e| renew(&mut e.entity));
    // What an old key signed counts for a while.
    let renew_issuers = |issuers: &mut Vec<Entity>| {
        issuers.iter_mut().for_each(renew);
        for issuer in issuers.clone() {
            issuers.extend(retired.before(&issuer.key).map(Entity::from_key));
        }
    };
    renew_issuers(&mut config.subnet_issuers);
    let gateways = config.subnet_gateways.iter_mut();
    gateways.for_each(|gateway| renew(&mut gateway.entity));
    let renew_listed = |listed: &mut Listed| {
        if let Listed::Only(entities) = listed {
            entities.iter_mut().for_each(renew);
        }
    };
    for scope in &mut config.scopes {
        renew_listed(&mut scope.publish);
        renew_listed(&mut scope.subscribe);
        renew_issuers(&mut scope.issuers);
        renew_issuers(&mut scope.capabilities.issuers);
    }
    for channel in &mut config.channels {
        renew_listed(&mut channel.publish);
        renew_listed(&mut channel.subscribe);
        renew_issuers(&mut channel.issuers);
        renew_issuers(&mut channel.capabilities.issuers);
    }
    for peer in &mut config.peers {
        let mut entity = Entity::from_key(peer.entity_key);
        renew(&mut entity);
        (peer.entity_key, peer.origin) = (entity.key, entity.origin);
        for key in &mut peer.entities {
            *key = *retired.current(key);
        }
    }
}

fn home(configured: &Config, config: &Config, placement: &Placement) -> Home {
    let key = &placement.node_key;
    if *key == config.keys.node.public {
        return Home::Here;
    }
    // Also by the key that the file gives, where the node has another one by now.
    let peers = configured.peers.iter().zip(&config.peers);
    let id = hash::node_id(key);
    let is_key =
        |peer: &PeerConfig| peer.id == id && peer.node_key.known().is_none_or(|k| k == *key);
    let is_there = |(file, now): (&PeerConfig, &PeerConfig)| is_key(file) || is_key(now);
    if let Some(index) = peers.map(is_there).position(|is_there| is_there) {
        return Home::Peer(index);
    }
    let is_free = id != config.node.id && config.peers.iter().all(|peer| peer.id != id);
    let mut peers = config.peers.iter();
    match peers.position(|peer| peer.entity_key == placement.entity) {
        Some(index) if is_free => Home::Renewed(index, *key),
        _ => Home::Nowhere,
    }
}

/// Where the file says that entities are, and they are no more; this node's own is not looked for elsewhere.
fn former(configured: &Config, config: &Config) -> Vec<(NodeId, [u8; 32])> {
    let own = config.keys.entity.public;
    let peers = configured.peers.iter().zip(&config.peers);
    let mut former = Vec::new();
    for (file, now) in peers {
        for key in [file.entity_key, now.entity_key] {
            if key != own && !now.entities.contains(&key) && !former.contains(&(now.id, key)) {
                former.push((now.id, key));
            }
        }
    }
    former
}

/// Whether the latest of an entity's placements names this node.
#[must_use]
pub fn is_placed(claims: &[Claim], entity: &[u8; 32], node_key: &[u8; 32]) -> bool {
    let placements = claims.iter().filter_map(|claim| match claim.what() {
        Identity::Placement(placement) if placement.entity == *entity => Some(placement),
        _ => None,
    });
    let latest = placements.max_by_key(|placement| placement.version);
    latest.is_some_and(|placement| placement.node_key == *node_key)
}

/// Whether a key has followed another, over one or more successions.
#[must_use]
pub fn has_followed(claims: &[Claim], old: &[u8; 32], current: &[u8; 32]) -> bool {
    let mut key = *old;
    for _ in 0..LINEAGE_MAX {
        let next = claims.iter().find_map(|claim| match claim.what() {
            Identity::Succession(succession) if succession.old == key => Some(succession.new),
            _ => None,
        });
        match next {
            Some(next) if next == *current => return true,
            Some(next) => key = next,
            None => return false,
        }
    }
    false
}

/// The book of objects that were kept, in any order. What speaks of entities that the configuration does not
/// name any more is left out.
#[must_use]
pub fn book(config: &Config, mut claims: Vec<Claim>) -> Book {
    let mut book = Book::default();
    // Each of a lineage is known by the one before or after it.
    loop {
        let before = claims.len();
        claims.retain(|claim| matches!(book.learn(config, claim), Err(Rejected::Unknown(_))));
        if claims.len() == before {
            return book;
        }
    }
}
