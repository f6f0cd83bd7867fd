//! What subnets admit, on a running node: gateways' words are taken in, passed on and kept, and a gateway signs
//! its own.

use super::{COMPARE_EVERY, Flood, Outgoing, Peer, WORTHLESS_COST};
use crate::{
    admissions::Publication,
    cause,
    config::Config,
    daemon::{monotonic_ns, path, unix_ns},
    dispatch::Ended,
    filters::{
        Filters, FiltersStatus, Foreign, Now, Refused, Signer, Taken,
        held::{Crossing, Versions},
    },
    image,
    rights::file::{self, FileError},
};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{task::block_in_place, time::Instant};
use virga_ebpf::{header::NodeId, tables::Pair};

/// The file is written this long after a change.
const SAVE_AFTER: Duration = Duration::from_secs(2);
/// A filter is some 500 times a token's size, and its signature costs as much more to verify.
const FILTER_COST: f64 = 4.0;

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
                    let _held = held.take(&signed, now(), || true);
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
        let mut filtering = Self {
            held,
            signer: signs.map(|gateway| Signer::new(key.clone(), gateway.prefix, life_s)),
            configured: BTreeSet::new(),
            own: key.public,
            file,
            save_at: None,
            told,
            is_due: false,
            is_unsigned: true,
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

    /// Signs what there is to say of this node's own subnet, of which these pairs follow from tokens.
    fn sign(&mut self, admitted: &BTreeSet<Pair>) -> Option<Vec<u8>> {
        let now = now();
        let signer = self.signer.as_mut()?;
        let newest = self.held.newest(signer.prefix(), &self.own);
        if !self.is_unsigned && now.monotonic_ns < signer.due_ns() && newest <= signer.version() {
            return None;
        }
        let pairs = self.configured.union(admitted).copied().collect();
        let salt = match path::entropy() {
            Ok(mut entropy) => [entropy(), entropy()],
            Err(error) => {
                tracing::warn!(%error, "no filter is signed: the system gives no random numbers");
                return None;
            }
        };
        self.is_unsigned = false;
        let signed = signer.next(&pairs, newest, now, || salt)?;
        let bytes = signed.as_bytes().to_vec();
        // It is newer than all that is held, and signed.
        if let Err(refused) = self.held.take(&bytes, now, || true) {
            tracing::error!(
                why = refused.name(),
                "this node's own filter does not count"
            );
        }
        self.note();
        Some(bytes)
    }

    fn save(&self) {
        let signed = self.held.statements().map(|one| one.as_bytes());
        if let Err(error) = block_in_place(|| file::replace_filters(&self.file, signed)) {
            tracing::error!(
                error = cause::chain(&error as &FileError),
                "what other subnets admit is not kept: after a restart it has to be heard again"
            );
        }
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
        let signs = filtering.signer.as_ref().map(left);
        signs.into_iter().chain(filtering.save_at).min()
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
            filtering.is_due = true;
        }
        let to = self.told_of_filters(None).into_iter();
        to.map(|peer| (peer, versions.clone())).collect()
    }

    pub(super) fn on_filter(&mut self, from: NodeId, signed: &[u8], out: &mut Outgoing) {
        let (Some(filtering), Some(peer)) = (&mut self.filtering, self.peers.get_mut(&from)) else {
            return;
        };
        let may_verify = || peer.has_budget(Instant::now());
        match filtering.held.take(signed, now(), may_verify) {
            Ok(Taken::Known) => {}
            Ok(Taken::New) => {
                peer.budget -= FILTER_COST;
                filtering.note();
                let to = self.told_of_filters(Some(from)).into_iter();
                out.extend(to.map(|peer| (peer, Publication::Filter(signed.to_vec()))));
            }
            Err(Refused::Forged) => peer.budget -= WORTHLESS_COST,
            Err(_) => {}
        }
    }

    pub(super) fn on_versions(&mut self, from: NodeId, theirs: &[Versions], out: &mut Outgoing) {
        let Some(filtering) = &self.filtering else {
            return;
        };
        let lacking = filtering.held.lacking(theirs, now());
        out.extend(lacking.map(|one| (from, Publication::Filter(one.as_bytes().to_vec()))));
    }

    pub(super) fn follow_filters(&mut self, config: &Config) {
        if let Some(filtering) = &mut self.filtering {
            filtering.follow(config);
        }
    }

    /// Says what this node's subnet admits, if that has changed or is to be said again, and brings the tables to
    /// what the others admit.
    pub(super) async fn publish_filters(&mut self) -> Result<(), Ended> {
        let signed = match &mut self.filtering {
            // What the own guard does not hold yet, others shall not send.
            Some(filtering) if !self.is_guard_due => {
                block_in_place(|| filtering.sign(self.store.pairs()))
            }
            _ => None,
        };
        if let Some(signed) = signed {
            let to = self.told_of_filters(None).into_iter();
            let out = to.map(|peer| (peer, Publication::Filter(signed.clone())));
            self.send(out.collect()).await?;
        }
        let Some(filtering) = &mut self.filtering else {
            return Ok(());
        };
        if filtering.save_at.is_some_and(|due| due <= Instant::now()) {
            filtering.save_at = None;
            filtering.save();
        }
        if std::mem::take(&mut filtering.is_due) {
            let foreign = filtering.held.foreign(now());
            if foreign != filtering.told {
                filtering.told = foreign.clone();
                // The path logs what is in the way, and tries again.
                let _applied = self.path.set_foreign(foreign).await.ok_or(Ended)?;
            }
        }
        Ok(())
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
