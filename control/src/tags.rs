//! Link tags: which neighbours have agreed on keys, each link and direction for itself.
//!
//! The receiver chooses the keys and says so in the session that both have; a key is in all its tables before
//! it is said. The sender has it in all its own before it answers. Only some time after that answer does the
//! receiver drop what comes without a tag, and from then on only a proven session can talk it out of it: a
//! link that is silent, or a neighbour that has restarted, changes nothing. Two keys are held at any time, so
//! that the next one is agreed on while the last one is in use; the one before is overwritten by it.
//!
//! What is told is in [`Said`], where the workers leave what they heard in [`Heard`].

mod heard;
#[cfg(test)]
mod tests;

pub use heard::{Heard, News};

use crate::{
    config::{Config, LinkTags, Reach},
    hex,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};
use virga_ebpf::{hash::keyed, header::NodeId, image::Image, tables::NextHop, tag::TagKey};

const SECOND_NS: u64 = 1_000_000_000;

/// Where a node with this socket keeps the keys of its links: beside it, gone with the machine's next start.
#[must_use]
pub fn file(socket: &Path) -> PathBuf {
    socket.with_extension("links")
}

/// How long untagged packets may be under way after a neighbour has said that it sends none any more.
pub const SETTLE_NS: u64 = 2 * SECOND_NS;
/// What was said and not answered is said again after so long: it may have found no room.
const ASK_AGAIN_NS: u64 = 10 * SECOND_NS;
/// A neighbour that has a proven session and has not answered for so long does not know of tags any more.
pub const UNANSWERED_NS: u64 = 30 * SECOND_NS;

/// What neighbours tell each other about the packets between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// "I check what you send me by this key, beside the one before."
    Check {
        /// Which of the two: 0 or 1.
        parity: u8,
        /// The key.
        key: TagKey,
    },
    /// "I check nothing that you send me."
    Unchecked,
    /// "All that I send you has a tag of the key of this parity."
    Tagged {
        /// Which of the two: 0 or 1.
        parity: u8,
    },
    /// "I send you no tags."
    Untagged,
}

/// What `virga status` shows of one neighbour's tags.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagsStatus {
    /// What comes from it without a right tag is dropped.
    pub checked: bool,
    /// Why not, or what is wrong although it is.
    pub checked_why: Option<String>,
    /// What goes to it has tags.
    pub sent: bool,
    /// Why not.
    pub sent_why: Option<String>,
}

/// How far a neighbour has agreed to have its packets checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// There was no session yet.
    Unasked,
    /// It was told the latest key: first, and last.
    Asked { since_ns: u64, last_ns: u64 },
    /// It sends no tags.
    Declined,
    /// It has answered, then.
    Agreed { since_ns: u64 },
}

/// One neighbour.
#[derive(Debug)]
struct Link {
    name: String,
    address: SocketAddr,
    policy: LinkTags,
    /// Who else is at its IP address: packets do not tell which of them they are from.
    shares_with: Option<String>,
    has_session: bool,
    stage: Stage,
    demands: bool,
    /// Keys of what comes from it.
    keys: [TagKey; 2],
    latest: u8,
    latest_since_ns: u64,
    /// Keys of what goes to it, and which is in use.
    onward: [TagKey; 2],
    sends: Option<u8>,
    /// It has said that it checks nothing.
    is_unchecked_there: bool,
    to_say: Vec<Said>,
}

/// All neighbours' keys, without any input or output.
pub struct Tags {
    links: BTreeMap<NodeId, Link>,
    key_life_ns: u64,
    seed: [u8; 32],
    drawn: u64,
}

impl std::fmt::Debug for Tags {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tags").field("links", &self.links).finish()
    }
}

impl Tags {
    /// Nobody has agreed yet. `seed` is random and secret.
    #[must_use]
    pub fn new(config: &Config, seed: [u8; 32]) -> Self {
        let mut tags = Self {
            links: BTreeMap::new(),
            key_life_ns: 0,
            seed,
            drawn: 0,
        };
        tags.follow(config, &BTreeSet::new());
        tags
    }

    /// Has the neighbours of another configuration. Those that are `anew` begin as if nothing had been agreed on;
    /// with the others all stays as it is.
    pub fn follow(&mut self, config: &Config, anew: &BTreeSet<NodeId>) {
        self.key_life_ns = u64::from(config.forwarding.link_key_s) * SECOND_NS;
        let adjacent = config.peers.iter().filter(|peer| peer.is_adjacent());
        let adjacent: BTreeSet<NodeId> = adjacent.map(|peer| peer.id).collect();
        self.links
            .retain(|peer, _| adjacent.contains(peer) && !anew.contains(peer));
        for peer in &config.peers {
            let Reach::Adjacent { address, .. } = &peer.reach else {
                continue;
            };
            if self.links.contains_key(&peer.id) {
                continue;
            }
            let policy = config.link_tags(peer);
            let link = Link {
                name: peer.name.clone(),
                address: *address,
                policy,
                shares_with: None,
                has_session: false,
                stage: Stage::Unasked,
                demands: policy == LinkTags::Require,
                keys: [self.draw(), self.draw()],
                latest: 0,
                latest_since_ns: 0,
                onward: [TagKey::default(); 2],
                sends: None,
                is_unchecked_there: false,
                to_say: Vec::new(),
            };
            self.links.insert(peer.id, link);
        }
        self.look_who_shares();
    }

    fn draw(&mut self) -> TagKey {
        self.drawn += 1;
        let drawn = keyed(&self.seed, &[&self.drawn.to_be_bytes()]);
        TagKey::from_bytes(drawn.first_chunk().unwrap_or(&[0; 16]))
    }

    /// What a next daemon needs to go on without a packet lost: a line for each neighbour.
    #[must_use]
    pub fn saved(&self) -> String {
        let hex = |[even, odd]: &[TagKey; 2]| {
            let mut both = [0; 32];
            both[..16].copy_from_slice(&even.to_bytes());
            both[16..].copy_from_slice(&odd.to_bytes());
            hex::encode(&both)
        };
        let line = |(peer, link): (&NodeId, &Link)| {
            let sends = link
                .sends
                .map_or("-".to_owned(), |parity| parity.to_string());
            let (keys, onward) = (hex(&link.keys), hex(&link.onward));
            let demands = u8::from(link.demands);
            format!("{peer} {demands} {} {keys} {sends} {onward}\n", link.latest)
        };
        self.links.iter().map(line).collect()
    }

    /// Goes on with what an earlier daemon saved, as far as the configuration still has it so. Lines that say
    /// nothing of a neighbour are left out.
    pub fn restore(&mut self, saved: &str) {
        for (peer, before) in saved.lines().filter_map(Before::parse) {
            let Some(link) = self.links.get_mut(&peer) else {
                continue;
            };
            if link.can_check() {
                link.demands |= before.demands;
                (link.keys, link.latest) = (before.keys, before.latest);
            }
            if link.policy != LinkTags::Off {
                (link.onward, link.sends) = (before.onward, before.sends);
            }
        }
    }

    /// Enters the keys into what the tables shall say.
    pub fn write(&self, image: &mut Image) {
        for link in self.links.values() {
            let address = link.address.ip().into();
            if link.can_check() {
                for (place, enforced) in &mut image.neighbours {
                    if place.address == address {
                        enforced.tag_keys = link.keys;
                        enforced.demands_tag = link.demands;
                    }
                }
            }
            let Some(parity) = link.sends else { continue };
            for (key, next_hop) in &mut image.next_hops {
                if key.target == address && key.port == link.address.port() {
                    next_hop.tag_keys = link.onward;
                    next_hop.flags |= NextHop::TAGGED;
                    next_hop.flags |= if parity == 1 { NextHop::ODD } else { 0 };
                }
            }
        }
    }

    /// Whether a neighbour may be taken to be at another address: not at that of another whose packets are
    /// checked, since nobody could tell the two apart, and what was checked would be no more. On loopback, where
    /// IPv6 has one address for all that are carried, only what the configuration requires stands in the way:
    /// a neighbour that nothing reaches is of less use than one whose packets are not checked.
    #[must_use]
    pub fn may_move(&self, peer: NodeId, address: SocketAddr) -> bool {
        let is_loopback = address.ip().is_loopback();
        let is_strict = |link: &Link| match is_loopback {
            true => link.policy == LinkTags::Require,
            false => link.can_check() && link.demands,
        };
        let own = self.links.get(&peer);
        let must_check = own.is_some_and(|link| link.policy == LinkTags::Require);
        let others = self.links.iter().filter(|(other, _)| **other != peer);
        let mut there = others.filter(|(_, link)| link.address.ip() == address.ip());
        !there.any(|(_, link)| is_strict(link) || must_check)
    }

    /// A neighbour is at another address.
    pub fn moved(&mut self, peer: NodeId, address: SocketAddr) {
        if let Some(link) = self.links.get_mut(&peer) {
            link.address = address;
        }
        self.look_who_shares();
    }

    fn look_who_shares(&mut self) {
        let places: Vec<(NodeId, IpAddr, String)> = self
            .links
            .iter()
            .map(|(&id, link)| (id, link.address.ip(), link.name.clone()))
            .collect();
        for (id, link) in &mut self.links {
            let others = places.iter().filter(|(other, ..)| other != id);
            let mut there = others.filter(|(_, ip, _)| *ip == link.address.ip());
            let shared = there.next().map(|(.., name)| name.clone());
            let before = std::mem::replace(&mut link.shares_with, shared);
            // Of a session that began meanwhile nothing was asked.
            let is_due = link.has_session && link.stage == Stage::Unasked;
            if before.is_some() && is_due && link.can_check() {
                link.stage = Stage::asked(0);
            }
        }
    }

    /// Neighbours have other node keys, and so other ids: their machines keep what was agreed on.
    pub fn renamed(&mut self, ids: &[(NodeId, NodeId)]) {
        let changed = ids.iter().filter(|(before, now)| before != now);
        let links = changed.filter_map(|(before, now)| {
            let mut link = self.links.remove(before)?;
            link.has_session = false;
            Some((*now, link))
        });
        let links: Vec<(NodeId, Link)> = links.collect();
        self.links.extend(links);
    }

    /// Takes in what a worker heard of a neighbour. Whether the tables have to follow.
    pub fn hear(&mut self, now_ns: u64, peer: NodeId, news: &News) -> bool {
        let Some(link) = self.links.get_mut(&peer) else {
            return false;
        };
        match news.session {
            Some(true) => link.begin(now_ns),
            Some(false) => {
                link.has_session = false;
                link.to_say.clear();
            }
            None => {}
        }
        let said = [news.of_receiver, news.of_sender];
        let mut is_changed = false;
        for said in said.into_iter().flatten() {
            is_changed |= link.on_said(now_ns, said);
        }
        is_changed
    }

    /// When [`Tags::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<u64> {
        let due = |link: &Link| link.due_ns(self.key_life_ns);
        self.links.values().filter_map(due).min()
    }

    /// Demands what is agreed on, and gives links new keys in their time. Whether the tables have to follow.
    pub fn handle_timeout(&mut self, now_ns: u64) -> bool {
        let life_ns = self.key_life_ns;
        let is_due = |link: &Link| link.due_ns(life_ns).is_some_and(|due| due <= now_ns);
        let due = self.links.iter().filter(|(_, link)| is_due(link));
        let due: Vec<NodeId> = due.map(|(&peer, _)| peer).collect();
        let mut is_changed = false;
        for peer in &due {
            let key = self.draw();
            if let Some(link) = self.links.get_mut(peer) {
                is_changed |= match link.stage {
                    Stage::Asked { since_ns, .. } => link.ask_again(now_ns, since_ns),
                    _ if link.demands => {
                        link.renew(now_ns, key);
                        true
                    }
                    _ => {
                        link.demands = true;
                        true
                    }
                };
            }
        }
        is_changed
    }

    /// What is to be said to neighbours now that the tables have followed.
    pub fn take_said(&mut self) -> Vec<(NodeId, Said)> {
        let links = self.links.iter_mut();
        links
            .flat_map(|(&peer, link)| link.to_say.drain(..).map(move |said| (peer, said)))
            .collect()
    }

    /// What there is to show of a neighbour.
    #[must_use]
    pub fn status(&self, peer: NodeId) -> TagsStatus {
        self.links.get(&peer).map(Link::status).unwrap_or_default()
    }
}

/// What an earlier daemon had agreed on with one neighbour.
struct Before {
    demands: bool,
    latest: u8,
    keys: [TagKey; 2],
    sends: Option<u8>,
    onward: [TagKey; 2],
}

impl Before {
    fn parse(line: &str) -> Option<(NodeId, Self)> {
        let words: Vec<&str> = line.split(' ').collect();
        let [peer, demands, latest, keys, sends, onward] = words[..] else {
            return None;
        };
        let bit = |word: &str| word.parse::<u8>().ok().filter(|&bit| bit <= 1);
        let both = |word: &str| {
            let bytes = hex::decode(word).ok()?;
            let (even, odd) = (bytes.first_chunk()?, bytes.last_chunk()?);
            Some([even, odd].map(TagKey::from_bytes))
        };
        let sends = match sends {
            "-" => None,
            parity => Some(bit(parity)?),
        };
        let before = Self {
            demands: bit(demands)? == 1,
            latest: bit(latest)?,
            keys: both(keys)?,
            sends,
            onward: both(onward)?,
        };
        Some((NodeId(u64::from_str_radix(peer, 16).ok()?), before))
    }
}

impl Stage {
    const fn asked(now_ns: u64) -> Self {
        Self::Asked {
            since_ns: now_ns,
            last_ns: now_ns,
        }
    }

    /// Asked, again and again.
    const fn is_unanswered(self) -> bool {
        match self {
            Self::Asked { since_ns, last_ns } => since_ns != last_ns,
            Self::Unasked | Self::Declined | Self::Agreed { .. } => false,
        }
    }
}

impl Link {
    fn can_check(&self) -> bool {
        self.policy != LinkTags::Off && self.shares_with.is_none()
    }

    /// A session is there: the neighbour may have restarted and know nothing, or all of it.
    fn begin(&mut self, now_ns: u64) {
        self.has_session = true;
        self.to_say.clear();
        if self.can_check() {
            self.stage = Stage::asked(now_ns);
            self.ask();
        } else {
            // The neighbour sends no tags from now on: they are agreed on anew once it can be told from others.
            if self.policy == LinkTags::Auto {
                (self.stage, self.demands) = (Stage::Unasked, false);
            }
            self.to_say.push(Said::Unchecked);
        }
    }

    fn ask(&mut self) {
        let parity = self.latest;
        let key = self.keys[usize::from(parity)];
        self.to_say.push(Said::Check { parity, key });
    }

    /// Whether the tables have to follow: what nobody answers is demanded no longer, unless the configuration
    /// says so.
    fn ask_again(&mut self, now_ns: u64, since_ns: u64) -> bool {
        let last_ns = now_ns;
        self.stage = Stage::Asked { since_ns, last_ns };
        self.ask();
        let is_given_up = self.policy == LinkTags::Auto
            && self.demands
            && now_ns.saturating_sub(since_ns) >= UNANSWERED_NS;
        self.demands &= !is_given_up;
        is_given_up
    }

    fn on_said(&mut self, now_ns: u64, said: Said) -> bool {
        match said {
            Said::Check { .. } if self.policy == LinkTags::Off => {
                self.to_say.push(Said::Untagged);
                false
            }
            Said::Check { parity, key } => {
                let before = (self.onward, self.sends);
                self.onward[usize::from(parity & 1)] = key;
                self.sends = Some(parity & 1);
                self.is_unchecked_there = false;
                self.to_say.push(Said::Tagged { parity });
                before != (self.onward, self.sends)
            }
            Said::Unchecked => {
                self.is_unchecked_there = true;
                self.sends.take().is_some()
            }
            Said::Tagged { parity } => {
                if matches!(self.stage, Stage::Asked { .. }) && parity == self.latest {
                    self.stage = Stage::Agreed { since_ns: now_ns };
                }
                false
            }
            Said::Untagged => {
                self.stage = Stage::Declined;
                let demands = self.can_check() && self.policy == LinkTags::Require;
                std::mem::replace(&mut self.demands, demands) != demands
            }
        }
    }

    fn due_ns(&self, key_life_ns: u64) -> Option<u64> {
        match self.stage {
            Stage::Agreed { since_ns } if !self.demands => Some(since_ns + SETTLE_NS),
            // Not before what came under the key before it has come.
            Stage::Agreed { since_ns } => {
                Some((self.latest_since_ns + key_life_ns).max(since_ns + SETTLE_NS))
            }
            Stage::Asked { last_ns, .. } if self.has_session => Some(last_ns + ASK_AGAIN_NS),
            Stage::Unasked | Stage::Asked { .. } | Stage::Declined => None,
        }
    }

    /// The next key, in the place of the one before the latest.
    fn renew(&mut self, now_ns: u64, key: TagKey) {
        self.latest ^= 1;
        self.latest_since_ns = now_ns;
        self.keys[usize::from(self.latest)] = key;
        self.stage = Stage::asked(now_ns);
        if self.has_session {
            self.ask();
        }
    }

    fn status(&self) -> TagsStatus {
        let off = || Some("the configuration says so".to_owned());
        let checked_why = match (&self.shares_with, self.stage) {
            _ if self.policy == LinkTags::Off => off(),
            (Some(other), _) => Some(format!("{other} is at the same IP address")),
            (None, Stage::Declined) => Some("the neighbour sends none".to_owned()),
            (None, Stage::Unasked) => Some("there was no session with it yet".to_owned()),
            (None, stage) if self.has_session && stage.is_unanswered() => {
                Some("the neighbour does not answer: is it of an older version, or is this node not next to it there?".to_owned())
            }
            (None, _) if self.demands => None,
            (None, Stage::Asked { .. }) => Some("the neighbour has not answered yet".to_owned()),
            (None, Stage::Agreed { .. }) => Some("agreed on just now".to_owned()),
        };
        let sent_why = match self.sends {
            _ if self.policy == LinkTags::Off => off(),
            Some(_) => None,
            None if self.is_unchecked_there => Some("the neighbour checks none".to_owned()),
            None => Some("the neighbour has not asked for them yet".to_owned()),
        };
        TagsStatus {
            checked: self.demands && self.can_check(),
            checked_why,
            sent: self.sends.is_some(),
            sent_why,
        }
    }
}
