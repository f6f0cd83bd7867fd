//! What gateways have said, the newest of each, and what the tables shall hold of it.

use super::{
    LIFE_S_MAX,
    statement::{Head, Said, Statement},
};
use crate::{
    config::{PeerSubnet, SubnetGateway},
    hex,
    rights::chain::CLOCK_SKEW_S_MAX,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use virga_ebpf::{
    guard::Guard,
    image::{ForeignGuard, Image},
    limits::{DENIED_MAX, GUARD_FALSE_POSITIVE_RATE_MAX, GUARD_LINES_PER_BANK},
    subnet::SubnetPrefix,
    tables::{GuardInfo, Pair},
};

/// The two clocks run apart by more only where one was set or stood still.
const CLOCKS_DIFFER_NS: u64 = 1_000_000_000;

/// The time, on the two clocks that are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Unix milliseconds: what is signed.
    pub unix_ms: u64,
    /// The kernel's monotonic nanoseconds: what the tables go by.
    pub monotonic_ns: u64,
}

impl Now {
    /// Unix seconds.
    #[must_use]
    pub const fn unix_s(self) -> u64 {
        self.unix_ms / 1_000
    }

    /// When a Unix second comes, on the monotonic clock.
    fn monotonic_at(self, unix_s: u64) -> u64 {
        let left_ms = unix_s.saturating_mul(1_000).saturating_sub(self.unix_ms);
        self.monotonic_ns
            .saturating_add(left_ms.saturating_mul(1_000_000))
    }
}

/// Why words were not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refused {
    /// They cannot be read.
    Malformed,
    /// Whoever says them is no gateway of that subnet.
    Signer,
    /// A newer version is held.
    Old,
    /// Their time is over.
    Expired,
    /// They shall count for longer than any may: a clock is wrong.
    Ahead,
    /// Their sender sent too much in a short time.
    Busy,
    /// The signature is wrong.
    Forged,
}

impl Refused {
    /// A word for counters.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Signer => "signer",
            Self::Old => "old",
            Self::Expired => "expired",
            Self::Ahead => "ahead",
            Self::Busy => "busy",
            Self::Forged => "forged",
        }
    }
}

/// What became of words that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// They count from now on.
    New,
    /// They were held already.
    Known,
}

/// Which versions a node holds of one gateway; 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Versions {
    /// The gateway's entity key.
    pub signer: [u8; 32],
    /// Its subnet.
    pub prefix: SubnetPrefix,
    /// Of the filter.
    pub filter: u64,
    /// Of the list of withdrawn pairs.
    pub withdrawn: u64,
}

/// Words, when their time is over on the monotonic clock, and their place among all that came.
#[derive(Clone, Debug)]
struct Dated {
    statement: Statement,
    ends_ns: u64,
    came: u64,
}

#[derive(Clone, Debug, Default)]
struct Known {
    filter: Option<Dated>,
    withdrawn: Option<Dated>,
}

fn version(dated: Option<&Dated>) -> u64 {
    dated.map_or(0, |dated| dated.statement.head().version)
}

fn is_live(dated: &Dated, monotonic_ns: u64) -> bool {
    monotonic_ns < dated.ends_ns
}

impl Known {
    /// Whether the filter is older than the one that the list goes with.
    fn is_behind(&self) -> bool {
        let list = self.withdrawn.as_ref().map(|list| list.statement.said());
        matches!(list, Some(Said::Withdrawn { base, .. }) if *base > version(self.filter.as_ref()))
    }

    /// A list counts, and the filter that it goes with is not here.
    fn is_short(&self, monotonic_ns: u64) -> bool {
        let list = self.withdrawn.as_ref();
        self.is_behind() && list.is_some_and(|list| is_live(list, monotonic_ns))
    }

    /// The filter, as long as it counts.
    fn live(&self, monotonic_ns: u64) -> Option<&Dated> {
        let filter = self.filter.as_ref();
        filter.filter(|one| is_live(one, monotonic_ns) && !self.is_behind())
    }

    /// Of the filter, whatever its age.
    fn guard(&self) -> Option<Guard> {
        match self.filter.as_ref()?.statement.said() {
            Said::Filter { salt, lines } => Some(guard(*salt, lines)),
            Said::Withdrawn { .. } => None,
        }
    }

    /// Pairs that are withdrawn: the list's, and where a filter came after the list, those that it does not hold
    /// again, since another gateway's may hold them.
    fn withdrawn(&self, monotonic_ns: u64) -> Vec<Pair> {
        let Some(list) = &self.withdrawn else {
            return Vec::new();
        };
        let Said::Withdrawn { pairs, .. } = list.statement.said() else {
            return Vec::new();
        };
        let is_newest = list.statement.head().version > version(self.filter.as_ref());
        let counts = is_live(list, monotonic_ns) || is_newest && self.live(monotonic_ns).is_some();
        let later = self.guard().filter(|_| !is_newest);
        let is_over = |pair: &Pair| later.as_ref().is_some_and(|guard| guard.is_hit(pair));
        let each = pairs.iter().filter(|pair| counts && !is_over(pair));
        each.copied().collect()
    }
}

/// A filter as `virga status` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FilterStatus {
    /// The subnet, with a length.
    pub subnet: String,
    /// The gateway's entity key, in hex.
    pub gateway: String,
    /// Whether destinations in the subnet are judged by this one now.
    pub is_used: bool,
    /// Whether it is this node's own.
    pub is_own: bool,
    /// Version; 0: nothing was heard of this gateway.
    pub version: u64,
    /// Seconds until it ends; none where it has, or where there is none.
    pub expires_in_s: Option<u64>,
    /// Banks of 4 KiB.
    pub banks: usize,
    /// Share of bits set.
    pub fill: f64,
    /// Estimated share of strangers that hit.
    pub false_positive_rate: f64,
    /// Whether that share is larger than a filter's shall be: the subnet has more pairs than one holds.
    #[serde(default)]
    pub is_overfull: bool,
    /// Pairs that are withdrawn.
    pub withdrawn: usize,
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FiltersStatus {
    /// Where destinations are judged by the exact pairs; none: everywhere.
    pub own: Option<String>,
    /// One for each gateway.
    pub filters: Vec<FilterStatus>,
    /// What peers sent and was not taken in, by why.
    pub refused: BTreeMap<String, u64>,
}

/// What the tables shall hold of other subnets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Foreign {
    /// Where the exact pairs hold.
    pub own: SubnetPrefix,
    /// Of every other subnet that has a gateway; one without bits where there is none that counts.
    pub filters: BTreeMap<SubnetPrefix, ForeignGuard>,
    /// Pairs withdrawn from them.
    pub denied: BTreeSet<(SubnetPrefix, Pair)>,
}

impl Foreign {
    /// Puts it into tables whose clock was 0 at `zero_ns` of the monotonic one.
    pub fn write(&self, zero_ns: u64, image: &mut Image) {
        image.subnet_mask = self.own.mask;
        let ours = |(prefix, filter): (&SubnetPrefix, &ForeignGuard)| {
            let mut filter = filter.clone();
            filter.expires_ns = filter.expires_ns.saturating_sub(zero_ns).max(1);
            (*prefix, filter)
        };
        image.filters = self.filters.iter().map(ours).collect();
        image.denied.clone_from(&self.denied);
    }
}

/// What other gateways of the same subnet say.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// Whether the configuration names any.
    pub are_there: bool,
    /// Their filters that count.
    pub guards: Vec<Guard>,
}

/// In place of a filter that there is not: it has no bits, and its time is over.
fn closed() -> ForeignGuard {
    ForeignGuard {
        salt: [0; 2],
        lines: vec![[0; 8]; GUARD_LINES_PER_BANK as usize],
        expires_ns: 1,
    }
}

fn guard(salt: [u64; 2], lines: &[[u64; 8]]) -> Guard {
    let banks = lines.len() / GUARD_LINES_PER_BANK as usize;
    Guard {
        info: GuardInfo {
            salt,
            bank_mask: u32::try_from(banks).unwrap_or(1).wrapping_sub(1),
            reserved: 0,
        },
        lines: lines.to_vec(),
    }
}

/// What another subnet's gateway says of a pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crossing {
    /// The subnet, with a length.
    pub subnet: String,
    /// What becomes of packets there, in words.
    pub words: String,
}

/// The newest words of each gateway. However they come, the same ones are left; of several gateways of a subnet the
/// one whose filter came last is heeded, since their versions go by clocks of their own.
#[derive(Clone, Debug)]
pub struct Filters {
    own: SubnetPrefix,
    /// How many words have come.
    came: u64,
    /// The only ones whose words count.
    gateways: BTreeMap<(SubnetPrefix, [u8; 32]), Known>,
    /// What was not taken in.
    refused: BTreeMap<Refused, u64>,
}

impl Filters {
    /// Holds nothing yet. `own` is where the exact pairs hold.
    #[must_use]
    pub fn new(own: SubnetPrefix, gateways: &[SubnetGateway]) -> Self {
        let places = gateways.iter().map(|one| (one.prefix, one.entity.key));
        Self {
            own,
            came: 0,
            gateways: places.map(|place| (place, Known::default())).collect(),
            refused: BTreeMap::new(),
        }
    }

    /// Goes by the keys that gateways have now; what others said counts no more. Whether any are new.
    pub fn follow(&mut self, gateways: &[SubnetGateway]) -> bool {
        let places: BTreeSet<_> = gateways.iter().map(|g| (g.prefix, g.entity.key)).collect();
        let is_same = self.gateways.keys().eq(places.iter());
        self.gateways.retain(|place, _| places.contains(place));
        for place in places {
            self.gateways.entry(place).or_default();
        }
        !is_same
    }

    /// Takes words in, if they are newer than what is held of their gateway. What is cheap to look at is looked
    /// at before the signature; `may_verify` is asked right before that, with the signer's key.
    ///
    /// # Errors
    /// [`Refused`], which is counted.
    pub fn take(
        &mut self,
        bytes: &[u8],
        now: Now,
        may_verify: impl FnOnce(&[u8; 32]) -> bool,
    ) -> Result<Taken, Refused> {
        let taken = self.judge(bytes, now, may_verify);
        if let Err(refused) = taken {
            *self.refused.entry(refused).or_default() += 1;
        }
        taken
    }

    fn judge(
        &mut self,
        bytes: &[u8],
        now: Now,
        may_verify: impl FnOnce(&[u8; 32]) -> bool,
    ) -> Result<Taken, Refused> {
        let read = Statement::parse(bytes).map_err(|_| Refused::Malformed)?;
        let claimed = read.claimed();
        let Head {
            signer,
            prefix,
            version: offered,
            expires_s,
        } = *claimed.head();
        let known = self.gateways.get_mut(&(prefix, signer));
        let known = known.ok_or(Refused::Signer)?;
        let is_filter = matches!(claimed.said(), Said::Filter { .. });
        let place = match is_filter {
            true => &mut known.filter,
            false => &mut known.withdrawn,
        };
        if place
            .as_ref()
            .is_some_and(|held| held.statement == *claimed)
        {
            return Ok(Taken::Known);
        }
        if offered <= version(place.as_ref()) {
            return Err(Refused::Old);
        }
        if expires_s <= now.unix_s() {
            return Err(Refused::Expired);
        }
        if expires_s > now.unix_s() + u64::from(LIFE_S_MAX) + CLOCK_SKEW_S_MAX {
            return Err(Refused::Ahead);
        }
        if !may_verify(&signer) {
            return Err(Refused::Busy);
        }
        let statement = read.verify().map_err(|_| Refused::Forged)?;
        let ends_ns = now.monotonic_at(expires_s);
        self.came += 1;
        let came = self.came;
        *place = Some(Dated {
            statement,
            ends_ns,
            came,
        });
        Ok(Taken::New)
    }

    /// What is held, in short.
    pub fn versions(&self) -> impl Iterator<Item = Versions> {
        let each = self.gateways.iter();
        each.map(|(&(prefix, signer), known)| Versions {
            signer,
            prefix,
            filter: version(known.filter.as_ref()),
            withdrawn: version(known.withdrawn.as_ref()),
        })
    }

    /// What somebody who holds these versions lacks and still counts, lists first.
    #[must_use]
    pub fn lacking(&self, theirs: &[Versions], now: Now) -> Vec<&Statement> {
        let their = |prefix, signer| {
            let mut all = theirs.iter();
            let one = all.find(|one| one.prefix == prefix && one.signer == signer);
            one.map_or((0, 0), |one| (one.filter, one.withdrawn))
        };
        let mut lacking = Vec::new();
        for (&(prefix, signer), known) in &self.gateways {
            let (filter, withdrawn) = their(prefix, signer);
            let both = [(&known.withdrawn, withdrawn), (&known.filter, filter)];
            lacking.extend(both.into_iter().filter_map(|(one, than)| {
                let one = one.as_ref().filter(|one| is_live(one, now.monotonic_ns))?;
                (one.statement.head().version > than).then_some(one)
            }));
        }
        let is_filter = |one: &&Dated| matches!(one.statement.said(), Said::Filter { .. });
        lacking.sort_by_key(|one| (is_filter(one), one.came));
        lacking.into_iter().map(|one| &one.statement).collect()
    }

    /// Everything that is held, as it was signed and in the order in which it came.
    #[must_use]
    pub fn statements(&self) -> Vec<&Statement> {
        let known = self.gateways.values();
        let mut all: Vec<&Dated> = known
            .flat_map(|known| known.filter.iter().chain(&known.withdrawn))
            .collect();
        all.sort_by_key(|one| one.came);
        all.into_iter().map(|one| &one.statement).collect()
    }

    /// Whether a list counts without the filter that it goes with, which a neighbour may have.
    #[must_use]
    pub fn is_short(&self, now: Now) -> bool {
        let mut known = self.gateways.values();
        known.any(|known| known.is_short(now.monotonic_ns))
    }

    /// Goes by the wall clock where that has come further than the monotonic one since words were taken in: it was
    /// set right, or the machine slept.
    pub fn settle(&mut self, now: Now) {
        for known in self.gateways.values_mut() {
            for one in known.filter.iter_mut().chain(&mut known.withdrawn) {
                let ends_ns = now.monotonic_at(one.statement.head().expires_s);
                if ends_ns.saturating_add(CLOCKS_DIFFER_NS) < one.ends_ns {
                    one.ends_ns = ends_ns;
                }
            }
        }
    }

    /// What the other gateways of a subnet let through by what is held here, for one that signs there.
    #[must_use]
    pub fn beside(&self, prefix: SubnetPrefix, signer: &[u8; 32], now: Now) -> Beside {
        let others = || self.of(prefix).filter(|(other, _)| *other != signer);
        let live = others().filter(|(_, known)| known.live(now.monotonic_ns).is_some());
        Beside {
            are_there: others().next().is_some(),
            guards: live.filter_map(|(_, known)| known.guard()).collect(),
        }
    }

    /// What a gateway's list holds that counts.
    #[must_use]
    pub fn withdrawn_by(&self, prefix: SubnetPrefix, signer: &[u8; 32], now: Now) -> Vec<Pair> {
        let known = self.gateways.get(&(prefix, *signer));
        known.map_or_else(Vec::new, |known| known.withdrawn(now.monotonic_ns))
    }

    /// The highest version that is held of a gateway.
    #[must_use]
    pub fn newest(&self, prefix: SubnetPrefix, signer: &[u8; 32]) -> u64 {
        let known = self.gateways.get(&(prefix, *signer));
        known.map_or(0, |known| {
            version(known.filter.as_ref()).max(version(known.withdrawn.as_ref()))
        })
    }

    /// The other subnets that have gateways.
    fn others(&self) -> BTreeSet<SubnetPrefix> {
        let prefixes = self.gateways.keys().map(|(prefix, _)| *prefix);
        prefixes.filter(|prefix| *prefix != self.own).collect()
    }

    /// The gateways of a subnet, and what is known of each.
    fn of(&self, prefix: SubnetPrefix) -> impl Iterator<Item = (&[u8; 32], &Known)> {
        let range = (prefix, [0; 32])..=(prefix, [u8::MAX; 32]);
        self.gateways
            .range(range)
            .map(|((_, signer), known)| (signer, known))
    }

    /// The filter that a subnet is judged by: of those that count the one that came last. None while a list lacks
    /// its filter.
    fn used(&self, prefix: SubnetPrefix, monotonic_ns: u64) -> Option<(&[u8; 32], &Dated)> {
        let mut all = self.of(prefix);
        if all.any(|(_, known)| known.is_short(monotonic_ns)) {
            return None;
        }
        let all = self.of(prefix);
        let live = all.filter_map(|(signer, known)| Some((signer, known.live(monotonic_ns)?)));
        live.max_by_key(|(_, one)| one.came)
    }

    /// What the tables shall hold. A subnet whose withdrawn pairs find no room is closed.
    #[must_use]
    pub fn foreign(&self, now: Now) -> Foreign {
        let mut foreign = Foreign {
            own: self.own,
            ..Foreign::default()
        };
        for prefix in self.others() {
            let (mut filter, mut denied) = (closed(), BTreeSet::new());
            if let Some((_, used)) = self.used(prefix, now.monotonic_ns)
                && let Said::Filter { salt, lines } = used.statement.said()
            {
                filter = ForeignGuard {
                    salt: *salt,
                    lines: lines.clone(),
                    expires_ns: used.ends_ns,
                };
                // Each gateway's word about what is over counts, whoever's filter is in use.
                let lists = self.of(prefix);
                let lists = lists.flat_map(|(_, known)| known.withdrawn(now.monotonic_ns));
                denied.extend(lists.map(|pair| (prefix, pair)));
            }
            if foreign.denied.len() + denied.len() > DENIED_MAX as usize {
                (filter, denied) = (closed(), BTreeSet::new());
            }
            foreign.denied.append(&mut denied);
            foreign.filters.insert(prefix, filter);
        }
        foreign
    }

    /// What becomes of a pair's packets to each other subnet.
    #[must_use]
    pub fn crossings(&self, pair: &Pair, now: Now) -> Vec<Crossing> {
        let foreign = self.foreign(now);
        let each = foreign.filters.iter().map(|(prefix, filter)| {
            let subnet = shown(*prefix);
            let words = match self.used(*prefix, now.monotonic_ns) {
                _ if now.monotonic_ns >= filter.expires_ns => {
                    "dropped: no filter of that subnet counts here now".to_owned()
                }
                _ if foreign.denied.contains(&(*prefix, *pair)) => {
                    "dropped: a gateway there has withdrawn the pair".to_owned()
                }
                Some((_, used)) if guard(filter.salt, &filter.lines).is_hit(pair) => {
                    let version = used.statement.head().version;
                    format!("pass: the pair is in that subnet's filter, version {version}")
                }
                _ => "dropped: the pair is not in that subnet's filter".to_owned(),
            };
            Crossing { subnet, words }
        });
        each.collect()
    }

    /// As `virga status` shows it; `own` is this node's entity.
    #[must_use]
    pub fn status(&self, own: &[u8; 32], now: Now) -> FiltersStatus {
        let each = self.gateways.iter().map(|(&(prefix, signer), known)| {
            let used = self.used(prefix, now.monotonic_ns).map(|(by, _)| *by);
            let held = known.filter.as_ref();
            let built = known.guard();
            let rate = built.as_ref().map_or(0.0, Guard::false_positive_rate);
            let live = known.live(now.monotonic_ns);
            let left_ns = live.map(|one| one.ends_ns - now.monotonic_ns);
            let lines = built.as_ref().map_or(0, |guard| guard.lines.len());
            FilterStatus {
                subnet: shown(prefix),
                gateway: hex::encode(&signer),
                is_used: prefix != self.own && used == Some(signer),
                is_own: signer == *own,
                version: version(held),
                expires_in_s: left_ns.map(|ns| ns / 1_000_000_000),
                banks: lines / GUARD_LINES_PER_BANK as usize,
                fill: built.as_ref().map_or(0.0, Guard::fill),
                false_positive_rate: rate,
                is_overfull: rate >= GUARD_FALSE_POSITIVE_RATE_MAX,
                withdrawn: known.withdrawn(now.monotonic_ns).len(),
            }
        });
        let refused = self.refused.iter();
        FiltersStatus {
            own: Some(shown(self.own)),
            filters: each.collect(),
            refused: refused
                .map(|(why, &count)| (why.name().to_owned(), count))
                .collect(),
        }
    }
}

fn shown(prefix: SubnetPrefix) -> String {
    let SubnetPrefix { subnet, mask } = prefix;
    PeerSubnet { subnet, mask }.to_string()
}
