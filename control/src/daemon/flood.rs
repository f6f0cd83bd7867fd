//! Evidence of a running node: what peers and programs hand in goes into the store and the guards, on to
//! the neighbours, and into a file that a restart begins with.
//!
//! One task owns the store. The file is there so that a restart loses no packet of others: a daemon that
//! begins with what it knew admits what the pinned maps admitted, less what has expired or is on a list
//! that was kept; lists that it has missed come with the first session.

mod filters;
mod waiting;

use super::{path, unix_ns};
use crate::{
    admissions::{EvidenceId, Inbox, Publication, Store, Verdict, inbox::Heard, store::Taken},
    cause,
    config::Config,
    dispatch::{Dispatch, Ended},
    filters::{FiltersStatus, held::Crossing},
    identity::Present,
    image,
    rights::{
        Authentic, List,
        file::{self, FileError},
    },
};
pub(super) use filters::Filtering;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::block_in_place,
    time::Instant,
};
use virga_ebpf::{header::NodeId, tables::Pair};
use waiting::Waiting;
pub use waiting::{Confirmation, PRESENT_WAIT};

/// Neighbours compare what they have this often.
pub const COMPARE_EVERY: Duration = Duration::from_secs(10);
/// What of one peer's is looked at before the next one's turn.
const TURN: usize = 64;
/// Tokens that are sent for one answer to a digest; the next comparison goes on.
const SENT_AT_ONCE_MAX: usize = 1_024;
/// Tokens of one peer that are verified a second, and how many may come at once.
const VERIFIED_PER_S: f64 = 500.0;
const VERIFIED_AT_ONCE: f64 = 4_096.0;
/// Worthless ones count so much more.
const WORTHLESS_COST: f64 = 64.0;
/// Ids that a neighbour is not sent again in this session, because it refused them.
const REFUSED_MAX: usize = 8_192;
/// The file is written this long after a change.
const SAVE_AFTER: Duration = Duration::from_millis(500);
/// Requests that wait for the task.
const ASKS_MAX: usize = 64;

enum Ask {
    Present {
        token: Box<Authentic>,
        reply: oneshot::Sender<Vec<Confirmation>>,
    },
    Revoked(Vec<u8>),
    Follow(Box<Present>, oneshot::Sender<()>),
    Status(oneshot::Sender<AdmissionsStatus>),
    Crossings(Pair, oneshot::Sender<Vec<Crossing>>),
}

/// How others reach the task. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Asker(mpsc::Sender<Ask>);

impl Asker {
    /// Passes a token of this node's entity on, and waits until the neighbours have it in their guards, at
    /// most [`PRESENT_WAIT`].
    ///
    /// # Errors
    /// [`Ended`].
    pub async fn present(&self, token: &Authentic) -> Result<Vec<Confirmation>, Ended> {
        let (reply, answer) = oneshot::channel();
        let token = Box::new(token.clone());
        let asked = self.0.send(Ask::Present { token, reply }).await;
        asked.map_err(|_| Ended)?;
        answer.await.map_err(|_| Ended)
    }

    /// An issuer has taken something back.
    ///
    /// # Errors
    /// [`Ended`].
    pub async fn revoked(&self, signed: Vec<u8>) -> Result<(), Ended> {
        self.0.send(Ask::Revoked(signed)).await.map_err(|_| Ended)
    }

    /// Entities are elsewhere, or have other keys: goes by that when this returns, but for the guards, which
    /// follow at once.
    ///
    /// # Errors
    /// [`Ended`].
    pub async fn follow(&self, present: &Present) -> Result<(), Ended> {
        let (reply, answer) = oneshot::channel();
        let present = Box::new(present.clone());
        let asked = self.0.send(Ask::Follow(present, reply)).await;
        asked.map_err(|_| Ended)?;
        answer.await.map_err(|_| Ended)
    }

    /// What becomes of a pair's packets to each other subnet. None: the daemon is shutting down.
    pub async fn crossings(&self, pair: Pair) -> Option<Vec<Crossing>> {
        let (reply, answer) = oneshot::channel();
        self.0.send(Ask::Crossings(pair, reply)).await.ok()?;
        answer.await.ok()
    }

    /// What is held. None: the daemon is shutting down.
    pub async fn status(&self) -> Option<AdmissionsStatus> {
        let (reply, answer) = oneshot::channel();
        self.0.send(Ask::Status(reply)).await.ok()?;
        answer.await.ok()
    }
}

/// Who may publish where, as far as tokens say it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AdmissionsStatus {
    /// Tokens that are held.
    pub tokens: usize,
    /// Entities that they belong to.
    pub holders: usize,
    /// Pairs (entity, channel) that follow from them for the guard.
    pub pairs: usize,
    /// Pairs that found no room.
    pub pairs_refused: u64,
    /// Tokens that peers sent, by what became of them; held ones that came again are not counted.
    pub verdicts: BTreeMap<String, u64>,
    /// Neighbours that there is a session with.
    pub neighbours: usize,
    /// What other subnets admit, as their gateways say it.
    #[serde(default)]
    pub filters: FiltersStatus,
}

struct Peer {
    name: String,
    /// It is told of what is new.
    is_neighbour: bool,
    is_connected: bool,
    /// What it refused in this session.
    refused: BTreeSet<EvidenceId>,
    budget: f64,
    filled: Instant,
}

impl Peer {
    /// Whether another of its tokens may be looked at.
    fn has_budget(&mut self, now: Instant) -> bool {
        let passed_s = now.duration_since(self.filled).as_secs_f64();
        self.budget = (self.budget + passed_s * VERIFIED_PER_S).min(VERIFIED_AT_ONCE);
        self.filled = now;
        self.budget >= 1.0
    }
}

/// The task's state.
pub(super) struct Flood {
    store: Store,
    inbox: Inbox,
    dispatch: Dispatch,
    path: path::Asker,
    file: PathBuf,
    peers: BTreeMap<NodeId, Peer>,
    waiting: Vec<Waiting>,
    verdicts: BTreeMap<Verdict, u64>,
    save_at: Option<Instant>,
    compare_at: Instant,
    /// What the guards were last told is not what follows now.
    is_guard_due: bool,
    filtering: Option<Filtering>,
}

/// What is to be sent.
type Outgoing = Vec<(NodeId, Publication)>;

fn now_s() -> u64 {
    unix_ns() / 1_000_000_000
}

/// What the node knew when it last ran, less what has ended since.
pub(super) fn recall(present: &Present, lists: &[Vec<u8>]) -> Store {
    let config = &present.config;
    let mut store = Store::new(None, &config.channels, image::room(config));
    follow(&mut store, present);
    // All of them were verified when they were read.
    for list in lists.iter().filter_map(|signed| List::parse(signed).ok()) {
        store.learn(list, now_s());
    }
    let own = config.node.tokens.iter();
    for token in own.map(|token| token.chain().encode()) {
        // One that gives no right to publish is no evidence.
        let _held = store.take(&token, now_s());
    }
    if store.is_needed() {
        let path = evidence_file(&config.node.state);
        match file::read_tokens(&path) {
            Ok(tokens) => {
                for token in tokens {
                    // What has ended since it was written is left out.
                    let _held = store.take(&token.encode(), now_s());
                }
            }
            Err(error) => tracing::warn!(
                error = cause::chain(&error),
                "what tokens had been heard of is lost; until neighbours tell it again, their packets do not pass"
            ),
        }
    }
    store
}

/// Has it go by where entities are, and by the keys that they have.
fn follow(store: &mut Store, present: &Present) {
    let config = &present.config;
    // Another node's packets come by here once the entity is there.
    let is_here = config.absence.is_none();
    let own = is_here.then_some(config.keys.entity.public);
    store.set_room(image::room(config));
    store.follow(own, &config.channels, present.retired.clone(), now_s());
}

/// The other nodes, of which nothing is heard yet.
fn peers(config: &Config) -> BTreeMap<NodeId, Peer> {
    let now = Instant::now();
    let peers = config.peers.iter().map(|peer| {
        let known = Peer {
            name: peer.name.clone(),
            is_neighbour: peer.is_adjacent(),
            is_connected: false,
            refused: BTreeSet::new(),
            budget: VERIFIED_AT_ONCE,
            filled: now,
        };
        (peer.id, known)
    });
    peers.collect()
}

fn evidence_file(state: &Path) -> PathBuf {
    state.join("evidence")
}

impl Flood {
    /// Runs until the workers end. `path` has to begin with the store's pairs.
    pub(super) fn run(
        (store, filtering): (Store, Option<Filtering>),
        config: &Config,
        inbox: &Inbox,
        dispatch: &Dispatch,
        path: &path::Asker,
    ) -> Asker {
        let (asker, asks) = mpsc::channel(ASKS_MAX);
        let mut flood = Self {
            store,
            inbox: inbox.clone(),
            dispatch: dispatch.clone(),
            path: path.clone(),
            file: evidence_file(&config.node.state),
            peers: peers(config),
            waiting: Vec::new(),
            verdicts: BTreeMap::new(),
            save_at: None,
            compare_at: Instant::now() + COMPARE_EVERY,
            is_guard_due: false,
            filtering,
        };
        tokio::spawn(async move {
            // With the workers, all that it does has ended.
            let _ended = flood.serve(asks).await;
            flood.keep_filters();
        });
        Asker(asker)
    }

    async fn serve(&mut self, mut asks: mpsc::Receiver<Ask>) -> Result<(), Ended> {
        loop {
            self.publish_filters().await?;
            let due = self.due();
            tokio::select! {
                () = self.inbox.changed() => self.hear().await?,
                ask = asks.recv() => match ask {
                    Some(ask) => self.answer(ask).await?,
                    None => return Ok(()),
                },
                () = tokio::time::sleep_until(due) => self.tick().await?,
            }
        }
    }

    /// When there is something to do without anybody asking.
    fn due(&self) -> Instant {
        let left_s = self.store.next_change_s().saturating_sub(now_s());
        // The clock may be set meanwhile.
        let change = Instant::now() + Duration::from_secs(left_s).min(COMPARE_EVERY);
        let waiting = self.waiting.iter().map(Waiting::until);
        let others = waiting.chain(self.save_at).chain(self.filters_due());
        let others = others.chain([self.compare_at]);
        others.fold(change, Instant::min)
    }

    async fn tick(&mut self) -> Result<(), Ended> {
        let now = Instant::now();
        self.store.pass(now_s());
        self.publish().await?;
        self.waiting.retain_mut(|one| !one.is_over(now));
        if self.compare_at <= now {
            self.compare_at = now + COMPARE_EVERY;
            let digest = self.store.digest();
            let to = self.neighbours(None);
            let digests = to.map(|peer| (peer, Publication::Digest(Box::new(digest.clone()))));
            let mut digests: Outgoing = digests.collect();
            digests.extend(self.compare_filters());
            self.send(digests).await?;
        }
        if self.save_at.is_some_and(|due| due <= now) {
            self.save_at = None;
            self.save();
        }
        Ok(())
    }

    /// Neighbours that there is a session with, all but one.
    fn neighbours(&self, but: Option<NodeId>) -> impl Iterator<Item = NodeId> {
        let is_told = |peer: &Peer| peer.is_neighbour && peer.is_connected;
        let peers = self.peers.iter().filter(move |(_, peer)| is_told(peer));
        peers
            .map(|(&id, _)| id)
            .filter(move |id| self.store.is_needed() && Some(*id) != but)
    }

    async fn hear(&mut self) -> Result<(), Ended> {
        let (mut out, mut held) = (Outgoing::new(), Vec::new());
        let heard = block_in_place(|| {
            for (peer, heard) in self.inbox.take(TURN) {
                self.follow(peer, heard, &mut out, &mut held);
            }
            std::mem::take(&mut out)
        });
        self.send(heard).await?;
        let verdict = match self.publish().await? {
            true => Verdict::Admitted,
            false => Verdict::Guard,
        };
        let confirm = |(peer, id)| (peer, Publication::Confirm { id, verdict });
        self.send(held.into_iter().map(confirm).collect()).await
    }

    /// Takes in what was heard; what to say to whom goes to `out`, and who told of what is held to `held`.
    fn follow(
        &mut self,
        from: NodeId,
        heard: Heard,
        out: &mut Outgoing,
        held: &mut Vec<(NodeId, EvidenceId)>,
    ) {
        let Some(peer) = self.peers.get_mut(&from) else {
            return;
        };
        match heard {
            Heard::Connected => {
                peer.is_connected = true;
                peer.refused.clear();
                if peer.is_neighbour && self.store.is_needed() {
                    let digest = Box::new(self.store.digest());
                    out.push((from, Publication::Digest(digest)));
                }
                if peer.is_neighbour {
                    out.extend(self.versions().map(|versions| (from, versions)));
                }
            }
            Heard::Closed => {
                peer.is_connected = false;
                self.confirmed(from, None, None);
            }
            Heard::Said(Publication::Evidence(token)) => self.on_evidence(from, &token, out, held),
            Heard::Said(Publication::Filter(signed)) => self.on_filter(from, &signed, out),
            Heard::Said(Publication::Versions(theirs)) => self.on_versions(from, &theirs, out),
            Heard::Said(Publication::Afresh) => peer.refused.clear(),
            Heard::Said(Publication::Digest(digest)) => {
                let own = self.store.digest();
                for bucket in own.differing(&digest) {
                    let ids = self.store.ids(bucket).collect();
                    let bucket = u8::try_from(bucket).unwrap_or(u8::MAX);
                    out.push((from, Publication::Have { bucket, ids }));
                }
            }
            Heard::Said(Publication::Have { bucket, ids }) => {
                let lacks =
                    |id: &EvidenceId| ids.binary_search(id).is_err() && !peer.refused.contains(id);
                let lacking = self.store.ids(bucket.into()).filter(lacks);
                let tokens = lacking.filter_map(|id| self.store.token(id));
                out.extend(tokens.take(SENT_AT_ONCE_MAX).map(|token| {
                    let evidence = Publication::Evidence(token.chain().encode());
                    (from, evidence)
                }));
            }
            Heard::Said(Publication::Confirm { id, verdict }) => {
                let is_kept = verdict != Verdict::Admitted && !verdict.is_passing();
                if is_kept && peer.refused.len() < REFUSED_MAX {
                    peer.refused.insert(id);
                }
                self.confirmed(from, Some(id), Some(verdict));
            }
        }
    }

    fn on_evidence(
        &mut self,
        from: NodeId,
        token: &[u8],
        out: &mut Outgoing,
        held: &mut Vec<(NodeId, EvidenceId)>,
    ) {
        let id = EvidenceId::of(token);
        let Some(peer) = self.peers.get_mut(&from) else {
            return;
        };
        let is_known = self.store.token(id).is_some();
        let has_budget = is_known || peer.has_budget(Instant::now());
        let taken = match has_budget {
            true => self.store.take(token, now_s()),
            false => Err(Verdict::Busy),
        };
        match taken {
            Ok(Taken::Known(id)) => held.push((from, id)),
            Ok(Taken::New(id)) => {
                peer.budget -= 1.0;
                *self.verdicts.entry(Verdict::Admitted).or_default() += 1;
                held.push((from, id));
                self.is_guard_due = true;
                self.pass_on(token, Some(from), out);
            }
            Err(verdict) => {
                if matches!(verdict, Verdict::Forged | Verdict::Revoked) {
                    peer.budget -= WORTHLESS_COST;
                }
                *self.verdicts.entry(verdict).or_default() += 1;
                out.push((from, Publication::Confirm { id, verdict }));
            }
        }
    }

    /// Tells the neighbours of something new.
    fn pass_on(&mut self, token: &[u8], from: Option<NodeId>, out: &mut Outgoing) {
        let evidence = |peer| (peer, Publication::Evidence(token.to_vec()));
        out.extend(self.neighbours(from).map(evidence));
        self.save_at
            .get_or_insert_with(|| Instant::now() + SAVE_AFTER);
    }

    /// A neighbour has said what became of something, or can say nothing more.
    fn confirmed(&mut self, peer: NodeId, id: Option<EvidenceId>, verdict: Option<Verdict>) {
        for one in &mut self.waiting {
            one.hear(peer, id, verdict);
        }
        let now = Instant::now();
        self.waiting.retain_mut(|one| !one.is_over(now));
    }

    async fn answer(&mut self, ask: Ask) -> Result<(), Ended> {
        match ask {
            Ask::Present { token, reply } => {
                let bytes = token.chain().encode();
                let taken = self.store.take(&bytes, now_s());
                let id = EvidenceId::of(&bytes);
                let known = self.peers.iter().filter(|(_, peer)| peer.is_neighbour);
                let known = known.map(|(&id, peer)| (id, peer.name.clone(), peer.is_connected));
                let is_told = taken.is_ok();
                let mut waiting = Waiting::new(id, reply, is_told, known);
                let mut out = Outgoing::new();
                if is_told {
                    self.is_guard_due = true;
                    self.pass_on(&bytes, None, &mut out);
                }
                self.publish().await?;
                if !waiting.is_over(Instant::now()) {
                    self.waiting.push(waiting);
                }
                self.send(out).await
            }
            Ask::Revoked(signed) => {
                if let Ok(list) = List::parse(&signed)
                    && self.store.learn(list, now_s())
                {
                    self.is_guard_due = true;
                    self.save_at
                        .get_or_insert_with(|| Instant::now() + SAVE_AFTER);
                }
                self.publish().await.map(|_| ())
            }
            Ask::Follow(present, reply) => {
                let issuers = self.store.issuers();
                follow(&mut self.store, &present);
                self.follow_filters(&present.config);
                // A node that has another key now is another peer, of which nothing was heard.
                let mut before = std::mem::replace(&mut self.peers, peers(&present.config));
                for (id, peer) in &mut self.peers {
                    if let Some(known) = before.remove(id) {
                        let (name, is_neighbour) = (peer.name.clone(), peer.is_neighbour);
                        *peer = Peer {
                            name,
                            is_neighbour,
                            ..known
                        };
                    }
                }
                let _given_up = reply.send(());
                self.is_guard_due = true;
                self.publish().await?;
                match self.store.issuers().is_subset(&issuers) {
                    true => Ok(()),
                    false => self.ask_afresh().await,
                }
            }
            Ask::Status(reply) => {
                let _given_up = reply.send(self.status());
                Ok(())
            }
            Ask::Crossings(pair, reply) => {
                let _given_up = reply.send(self.crossings(&pair));
                Ok(())
            }
        }
    }

    /// Whose tokens were refused may be trusted now: neighbours tell of all that this node does not have.
    async fn ask_afresh(&self) -> Result<(), Ended> {
        let digest = Publication::Digest(Box::new(self.store.digest()));
        let to = self.neighbours(None);
        let asked = to.flat_map(|peer| [(peer, Publication::Afresh), (peer, digest.clone())]);
        self.send(asked.collect()).await
    }

    /// Brings the guards to what follows now; whether they are there.
    async fn publish(&mut self) -> Result<bool, Ended> {
        if !self.is_guard_due && !self.store.has_changed() {
            return Ok(true);
        }
        let pairs = self.store.publish().clone();
        if let Some(filtering) = &mut self.filtering {
            filtering.look_again();
        }
        let applied = self.path.admit(pairs).await.ok_or(Ended)?;
        // The path logs what is in the way, and tries again.
        self.is_guard_due = applied.is_err();
        Ok(applied.is_ok())
    }

    async fn send(&self, out: Outgoing) -> Result<(), Ended> {
        if out.is_empty() {
            return Ok(());
        }
        let out = Arc::new(out);
        let sent = self.dispatch.with_all(move |now_ns, parts| {
            let node = &mut parts.node;
            parts.service.send_publications(now_ns, node, &out);
        });
        sent.await.map(|_| ())
    }

    fn save(&self) {
        let tokens = self.store.evidence().map(|(_, token)| token.chain());
        let saved = block_in_place(|| file::replace_tokens(&self.file, tokens));
        if let Err(error) = saved {
            tracing::error!(
                error = cause::chain(&error as &FileError),
                "who may publish by a token is not kept: after a restart it has to be heard again"
            );
        }
    }

    fn status(&self) -> AdmissionsStatus {
        let (tokens, holders) = self.store.size();
        let verdicts = self.verdicts.iter();
        AdmissionsStatus {
            tokens,
            holders,
            pairs: self.store.pairs().len(),
            pairs_refused: self.store.pairs_refused,
            verdicts: verdicts
                .map(|(verdict, &count)| (verdict.name().to_owned(), count))
                .collect(),
            neighbours: self.neighbours(None).count(),
            filters: self.filters_status(),
        }
    }
}
