//! What subnets admit, on a running node: gateways' words are taken in, passed on and kept, and a gateway signs
//! its own.

use super::{COMPARE_EVERY, Flood, Outgoing, Peer};
use crate::{
    admissions::Publication,
    cause,
    config::Config,
    daemon::{monotonic_ns, path, unix_ns},
    dispatch::Ended,
    filters::{
        Filters, FiltersStatus, Foreign, Now, Refused, Said, Signer, Taken,
        held::{Crossing, Versions},
    },
    image,
    rights::file::{self, FileError},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{task::block_in_place, time::Instant};
use virga_ebpf::{header::NodeId, tables::Pair};

/// The file is written this long after a change.
const SAVE_AFTER: Duration = Duration::from_secs(2);
/// A gateway says something 20 times a second at most, a list and a filter each time. So many words of one gateway
/// that come by one peer are verified a second, and so many at once.
const WORDS_PER_S: f64 = 50.0;
const WORDS_AT_ONCE: f64 = 100.0;
/// Forged ones count so much more.
const FORGED_COST: f64 = 16.0;
/// A peer that tells what it holds is answered so often a second, and so often at once, with so many bytes; the next
/// comparison goes on.
const ANSWERS_PER_S: f64 = 1.0;
const ANSWERS_AT_ONCE: f64 = 4.0;
const ANSWER_BYTES: usize = 4 << 20;
/// What was refused because too much came is asked for this long after, as is what is still missing.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// What is left of how much somebody may do.
#[derive(Debug)]
struct Allowance {
    left: f64,
    filled: Instant,
}

impl Allowance {
    fn full(at_once: f64, now: Instant) -> Self {
        Self {
            left: at_once,
            filled: now,
        }
    }

    /// Whether it may be done once more, which is counted.
    fn spend(&mut self, per_s: f64, at_once: f64, now: Instant) -> bool {
        let passed_s = now.duration_since(self.filled).as_secs_f64();
        self.left = (self.left + passed_s * per_s).min(at_once);
        self.filled = now;
        let may = self.left >= 1.0;
        self.left -= if may { 1.0 } else { 0.0 };
        may
    }
}

/// Of a node that names gateways.
pub(in crate::daemon) struct Filtering {
    held: Filters,
    signer: Option<Signer>,
    /// What the configuration admits, where this node signs.
    configured: BTreeSet<Pair>,
    own: [u8; 32],
    file: PathBuf,
    save_at: Option<Instant>,
    /// What the tables were last told.
    told: Foreign,
    /// They may have to be told something else.
    is_due: bool,
    /// What the subnet admits may be something else than what was signed.
    is_unsigned: bool,
    /// A pair may have been taken back that the file does not tell of: it is written before the tables change.
    is_unsaved: bool,
    /// When neighbours are asked for what is missing, and how long after again.
    ask_at: Option<Instant>,
    ask_gap: Duration,
    /// Something was refused because too much came.
    was_busy: bool,
    /// By peer and gateway.
    words: BTreeMap<(NodeId, [u8; 32]), Allowance>,
    answers: BTreeMap<NodeId, Allowance>,
    /// The log says that the filter holds too much.
    has_warned: bool,
}

fn now() -> Now {
    Now {
        unix_ms: unix_ns() / 1_000_000,
        monotonic_ns: monotonic_ns(),
    }
}

fn filters_file(state: &Path) -> PathBuf {
    state.join("filters")
}

impl Filtering {
    /// What the node knew when it last ran, less what has ended since; none where it names no gateways.
    pub(in crate::daemon) fn recall(config: &Config) -> Option<Self> {
        let own = config.exact_within()?;
        let mut held = Filters::new(own, &config.subnet_gateways);
        let file = filters_file(&config.node.state);
        match file::read_filters(&file) {
            Ok(kept) => {
                for signed in kept {
                    // What has ended since it was written is left out.
                    let _held = held.take(&signed, now(), |_| true);
                }
            }
            Err(error) => tracing::warn!(
                error = cause::chain(&error),
                "what other subnets admit is not known any more; until neighbours tell it again, nothing goes there"
            ),
        }
        let key = &config.keys.entity;
        let mut own_prefixes = config.subnet_gateways.iter();
        let signs = own_prefixes.find(|g| g.entity.key == key.public && g.prefix == own);
        let life_s = config.filter_life_s;
        let told = held.foreign(now());
        let signer = signs.map(|gateway| {
            let mut signer = Signer::new(key.clone(), gateway.prefix, life_s);
            let taken_back = held.withdrawn_by(gateway.prefix, &key.public, now());
            signer.recall(taken_back, now());
            signer
        });
        let mut filtering = Self {
            held,
            signer,
            configured: BTreeSet::new(),
            own: key.public,
            file,
            save_at: None,
            told,
            is_due: false,
            is_unsigned: true,
            is_unsaved: false,
            ask_at: None,
            ask_gap: ASK_AGAIN,
            was_busy: false,
            words: BTreeMap::new(),
            answers: BTreeMap::new(),
            has_warned: false,
        };
        filtering.follow(config);
        Some(filtering)
    }

    /// What the tables begin with.
    pub(in crate::daemon) const fn foreign(&self) -> &Foreign {
        &self.told
    }

    /// Goes by another configuration.
    fn follow(&mut self, config: &Config) {
        self.is_due |= self.held.follow(&config.subnet_gateways);
        // Whoever else speaks for the entity now knows what it has heard.
        if config.absence.is_some() {
            self.signer = None;
        }
        if self.signer.is_some() {
            self.configured = image::configured_pairs(config).collect();
            self.is_unsigned = true;
        }
    }

    /// What the subnet admits has changed.
    pub(super) const fn look_again(&mut self) {
        self.is_unsigned = true;
    }

    fn note(&mut self) {
        self.is_due = true;
        self.save_at
            .get_or_insert_with(|| Instant::now() + SAVE_AFTER);
    }

    /// Signs what there is to say of this node's own subnet, of which these pairs follow from tokens. As long as the
    /// own guard does not hold them, nothing that is new is said, and what was taken back is.
    fn sign(&mut self, admitted: &BTreeSet<Pair>, is_guard_due: bool) -> Vec<Vec<u8>> {
        let now = now();
        let Some(signer) = &mut self.signer else {
            return Vec::new();
        };
        let newest = self.held.newest(signer.prefix(), &self.own);
        let has_none = !self.is_unsigned && now.monotonic_ns < signer.due_ns();
        if has_none && newest <= signer.version() || is_guard_due && signer.version() == 0 {
            return Vec::new();
        }
        let mut pairs: BTreeSet<Pair> = self.configured.union(admitted).copied().collect();
        if is_guard_due {
            pairs.retain(|pair| signer.admits(pair));
        }
        let mut entropy = match path::entropy() {
            Ok(entropy) => entropy,
            Err(error) => {
                tracing::warn!(%error, "no filter is signed: the system gives no random numbers; tried again");
                signer.put_off(now);
                return Vec::new();
            }
        };
        self.is_unsigned = is_guard_due;
        let beside = self.held.beside(signer.prefix(), &self.own, now);
        let salt = || [entropy(), entropy()];
        let signed = signer.next(&pairs, newest, &beside, now, salt);
        for one in &signed {
            // It is newer than all that is held, and signed.
            if let Err(refused) = self.held.take(one.as_bytes(), now, |_| true) {
                tracing::error!(
                    why = refused.name(),
                    "what this node says of its own subnet does not count"
                );
            }
            self.is_unsaved |= matches!(one.said(), Said::Withdrawn { .. });
        }
        if !signed.is_empty() {
            self.warn_of_excess();
            self.note();
        }
        let bytes = signed.iter().map(|one| one.as_bytes().to_vec());
        bytes.collect()
    }

    /// Says once that the filter holds more than it should, and again where that has ended and begins anew.
    fn warn_of_excess(&mut self) {
        let Some(signer) = &self.signer else { return };
        let (excess, unlisted) = (signer.excess(), signer.unlisted());
        let is_too_much = excess.is_some() || unlisted > 0;
        if is_too_much && !self.has_warned {
            tracing::warn!(
                rate = excess.unwrap_or_default(),
                unlisted,
                "this node's subnet has more pairs than its filter or list holds: other subnets let more through to it than they should, and it is dropped in this subnet alone; split the subnet"
            );
        }
        self.has_warned = is_too_much;
    }

    /// Whether this is a gateway of the subnet that this node signs for.
    fn is_beside(&self, gateway: &[u8; 32]) -> bool {
        let own = self.signer.as_ref().map(Signer::prefix);
        let mut all = self.held.versions();
        all.any(|one| one.signer == *gateway && Some(one.prefix) == own)
    }

    /// Whether neighbours are to be asked now for what is missing.
    fn asks(&mut self) -> bool {
        let at = Instant::now();
        let is_short = self.held.is_short(now());
        if !is_short && !self.was_busy {
            (self.ask_at, self.ask_gap) = (None, ASK_AGAIN);
            return false;
        }
        let first = if is_short { at } else { at + ASK_AGAIN };
        if *self.ask_at.get_or_insert(first) > at {
            return false;
        }
        self.was_busy = false;
        self.ask_at = Some(at + self.ask_gap);
        self.ask_gap = (self.ask_gap * 2).min(COMPARE_EVERY);
        true
    }

    /// Writes the file, and tries again later where that fails.
    pub(super) fn save_due(&mut self) {
        if self.save_at.take().is_some() && !self.save() {
            self.save_at = Some(Instant::now() + SAVE_AFTER);
        }
        self.is_unsaved = false;
    }

    fn save(&self) -> bool {
        let signed = self.held.statements().into_iter();
        let signed = signed.map(|one| one.as_bytes());
        let saved = block_in_place(|| file::replace_filters(&self.file, signed));
        if let Err(error) = &saved {
            tracing::error!(
                error = cause::chain(error as &FileError),
                "what other subnets admit, and what they took back, is not kept: a restart would forget it; tried again"
            );
        }
        saved.is_ok()
    }
}

impl Flood {
    /// When something is due of what subnets admit.
    pub(super) fn filters_due(&self) -> Option<Instant> {
        let filtering = self.filtering.as_ref()?;
        let left = |signer: &Signer| {
            let left_ns = signer.due_ns().saturating_sub(monotonic_ns());
            Instant::now() + Duration::from_nanos(left_ns).min(COMPARE_EVERY)
        };
        // Before the own guard holds anything, nothing is signed.
        let signs = filtering.signer.as_ref();
        let signs = signs.filter(|signer| !self.is_guard_due || signer.version() > 0);
        let others = [filtering.save_at, filtering.ask_at];
        let all = signs.map(left).into_iter();
        all.chain(others.into_iter().flatten()).min()
    }

    /// Neighbours that there is a session with, all but one.
    fn told_of_filters(&self, but: Option<NodeId>) -> Vec<NodeId> {
        let is_told = |peer: &Peer| peer.is_neighbour && peer.is_connected;
        let peers = self.peers.iter().filter(|(_, peer)| is_told(peer));
        peers
            .map(|(&id, _)| id)
            .filter(|id| Some(*id) != but)
            .collect()
    }

    /// What this node holds, in short.
    pub(super) fn versions(&self) -> Option<Publication> {
        let filtering = self.filtering.as_ref()?;
        Some(Publication::Versions(filtering.held.versions().collect()))
    }

    /// Compares with the neighbours what is held, and looks whose time is over.
    pub(super) fn compare_filters(&mut self) -> Outgoing {
        let Some(versions) = self.versions() else {
            return Outgoing::new();
        };
        if let Some(filtering) = &mut self.filtering {
            filtering.held.settle(now());
            filtering.is_due = true;
        }
        let to = self.told_of_filters(None).into_iter();
        to.map(|peer| (peer, versions.clone())).collect()
    }

    pub(super) fn on_filter(&mut self, from: NodeId, signed: &[u8], out: &mut Outgoing) {
        let Some(filtering) = &mut self.filtering else {
            return;
        };
        let at = Instant::now();
        let mut by = [0; 32];
        let words = &mut filtering.words;
        let may_verify = |signer: &[u8; 32]| {
            by = *signer;
            let allowance = words.entry((from, by));
            let allowance = allowance.or_insert_with(|| Allowance::full(WORDS_AT_ONCE, at));
            allowance.spend(WORDS_PER_S, WORDS_AT_ONCE, at)
        };
        match filtering.held.take(signed, now(), may_verify) {
            Ok(Taken::Known) => {}
            Ok(Taken::New) => {
                filtering.note();
                // Another gateway of the own subnet may let through what this one has taken back.
                filtering.is_unsigned |= filtering.is_beside(&by);
                let to = self.told_of_filters(Some(from)).into_iter();
                out.extend(to.map(|peer| (peer, Publication::Filter(signed.to_vec()))));
            }
            Err(Refused::Forged) => {
                if let Some(allowance) = filtering.words.get_mut(&(from, by)) {
                    allowance.left -= FORGED_COST;
                }
            }
            Err(Refused::Busy) => filtering.was_busy = true,
            Err(_) => {}
        }
    }

    pub(super) fn on_versions(&mut self, from: NodeId, theirs: &[Versions], out: &mut Outgoing) {
        let is_neighbour = self.peers.get(&from).is_some_and(|peer| peer.is_neighbour);
        let Some(filtering) = self.filtering.as_mut().filter(|_| is_neighbour) else {
            return;
        };
        let at = Instant::now();
        let allowance = filtering.answers.entry(from);
        let allowance = allowance.or_insert_with(|| Allowance::full(ANSWERS_AT_ONCE, at));
        if !allowance.spend(ANSWERS_PER_S, ANSWERS_AT_ONCE, at) {
            return;
        }
        let mut left = ANSWER_BYTES;
        for one in filtering.held.lacking(theirs, now()) {
            let bytes = one.as_bytes();
            let Some(after) = left.checked_sub(bytes.len()) else {
                break;
            };
            left = after;
            out.push((from, Publication::Filter(bytes.to_vec())));
        }
    }

    pub(super) fn follow_filters(&mut self, config: &Config) {
        if let Some(filtering) = &mut self.filtering {
            filtering.follow(config);
        }
    }

    /// Says what this node's subnet admits, if that has changed or is to be said again, and brings the tables to
    /// what the others admit.
    pub(super) async fn publish_filters(&mut self) -> Result<(), Ended> {
        let Some(filtering) = &mut self.filtering else {
            return Ok(());
        };
        let is_guard_due = self.is_guard_due;
        let signed = block_in_place(|| filtering.sign(self.store.pairs(), is_guard_due));
        let foreign = std::mem::take(&mut filtering.is_due).then(|| filtering.held.foreign(now()));
        let foreign = foreign.filter(|foreign| *foreign != filtering.told);
        let is_saved_first = filtering.is_unsaved || foreign.is_some();
        let is_due = filtering.save_at.is_some_and(|due| due <= Instant::now());
        // What a restart would forget the tables do not get.
        if is_saved_first || is_due {
            filtering.save_due();
        }
        let asks = filtering.asks();
        let mut out = Outgoing::new();
        for peer in self.told_of_filters(None) {
            let each = signed.iter();
            out.extend(each.map(|one| (peer, Publication::Filter(one.clone()))));
            let versions = asks.then(|| self.versions()).flatten();
            out.extend(versions.map(|versions| (peer, versions)));
        }
        self.send(out).await?;
        if let (Some(foreign), Some(filtering)) = (foreign, &mut self.filtering) {
            filtering.told = foreign.clone();
            // The path logs what is in the way, and tries again.
            let _applied = self.path.set_foreign(foreign).await.ok_or(Ended)?;
        }
        Ok(())
    }

    /// Nothing more is heard: what the file does not tell yet is written.
    pub(super) fn keep_filters(&mut self) {
        if let Some(filtering) = &mut self.filtering {
            filtering.save_due();
        }
    }

    pub(super) fn filters_status(&self) -> FiltersStatus {
        let status = |one: &Filtering| one.held.status(&one.own, now());
        self.filtering.as_ref().map(status).unwrap_or_default()
    }

    pub(super) fn crossings(&self, pair: &Pair) -> Vec<Crossing> {
        let crossings = |one: &Filtering| one.held.crossings(pair, now());
        self.filtering.as_ref().map(crossings).unwrap_or_default()
    }
}
