//! Evidence of a running node: what peers and programs hand in goes into the store and the guards, on to
//! the neighbours, and into the files that a restart begins with ([`kept`]).
//!
//! One task owns the store.

mod filters;
mod kept;
mod peer;
mod waiting;

use super::{path, unix_ns};
use crate::{
    admissions::{
        EvidenceId, Inbox, Kind, Piece, Publication, Store, Verdict, inbox::Heard, store::Taken,
    },
    config::Config,
    dispatch::{Dispatch, Ended},
    filters::{FiltersStatus, held::Crossing},
    identity::Present,
    image,
    rights::List,
};
pub(super) use filters::Filtering;
pub(super) use kept::recall;
use peer::{ALL, Peer, TOKENS};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
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
/// Pieces that are sent for one answer to a digest; the next comparison goes on.
const SENT_AT_ONCE_MAX: usize = 1_024;
/// Worthless ones count so much more.
const WORTHLESS_COST: f64 = 64.0;
/// Ids that a neighbour is not sent again in this session, because it refused them.
const REFUSED_MAX: usize = 8_192;
/// The file is written this long after a change.
const SAVE_AFTER: Duration = Duration::from_millis(500);
/// What this node's entity has shown that is remembered.
const OWN_MAX: usize = 128;
/// Requests that wait for the task.
const ASKS_MAX: usize = 64;

enum Ask {
    Present {
        piece: Piece,
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
    /// Passes a token or a statement of this node's entity on, and waits until the neighbours have it in their
    /// guards, at most [`PRESENT_WAIT`].
    ///
    /// # Errors
    /// [`Ended`].
    pub async fn present(&self, piece: Piece) -> Result<Vec<Confirmation>, Ended> {
        let (reply, answer) = oneshot::channel();
        let asked = self.0.send(Ask::Present { piece, reply }).await;
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

/// Who may publish where, as far as tokens and issuers' statements say it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AdmissionsStatus {
    /// Tokens that are held.
    pub tokens: usize,
    /// Statements of issuers that are held.
    #[serde(default)]
    pub statements: usize,
    /// Entities that both are about.
    pub holders: usize,
    /// Pairs (entity, channel) that follow from it for the guard.
    pub pairs: usize,
    /// Pairs that found no room.
    pub pairs_refused: u64,
    /// Statements that found none.
    #[serde(default)]
    pub statements_refused: u64,
    /// Tokens and statements that peers sent, by what became of them; held ones that came again are not counted.
    pub verdicts: BTreeMap<String, u64>,
    /// Of those, tokens that were refused, by the reason.
    #[serde(default)]
    pub tokens_refused: BTreeMap<String, u64>,
    /// Neighbours that there is a session with.
    pub neighbours: usize,
    /// What other subnets admit, as their gateways say it.
    #[serde(default)]
    pub filters: FiltersStatus,
}

/// The task's state.
pub(super) struct Flood {
    store: Store,
    inbox: Inbox,
    dispatch: Dispatch,
    path: path::Asker,
    kept: kept::Files,
    peers: BTreeMap<NodeId, Peer>,
    /// What this node's entity has shown, whether it counts or not: it may, when channels are others.
    own: BTreeMap<EvidenceId, Piece>,
    waiting: Vec<Waiting>,
    verdicts: BTreeMap<Verdict, u64>,
    tokens_refused: BTreeMap<Verdict, u64>,
    save_at: Option<Instant>,
    compare_at: Instant,
    /// What the guards were last told is not what follows now.
    is_guard_due: bool,
    filtering: Option<Filtering>,
}

fn by_name(verdicts: &BTreeMap<Verdict, u64>) -> BTreeMap<String, u64> {
    let verdicts = verdicts.iter();
    verdicts
        .map(|(verdict, &count)| (verdict.name().to_owned(), count))
        .collect()
}

/// What is to be sent.
type Outgoing = Vec<(NodeId, Publication)>;

fn now_s() -> u64 {
    unix_ns() / 1_000_000_000
}

/// Has it go by where entities are, and by the keys that they have.
fn follow(store: &mut Store, present: &Present) {
    let config = &present.config;
    // Another node's packets come by here once the entity is there.
    let is_here = config.absence.is_none();
    let own = is_here.then_some(config.keys.entity.public);
    store.set_room(image::room(config));
    let entities = config.entities.iter().map(|named| named.entity.key);
    let (channels, retired) = (&config.channels[..], present.retired.clone());
    store.follow(own, (channels, entities), retired, now_s());
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
            kept: kept::Files::of(&config.node.state),
            peers: peer::all(config),
            own: kept::own(config).map(|piece| (piece.id(), piece)).collect(),
            waiting: Vec::new(),
            verdicts: BTreeMap::new(),
            tokens_refused: BTreeMap::new(),
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
            for peer in self.peers.values_mut() {
                // What has ended since is not told again anyway.
                peer.refused.retain(|&id| self.store.has(id));
            }
            let mut digests = self.digests();
            digests.extend(self.compare_filters());
            self.send(digests).await?;
        }
        if self.save_at.is_some_and(|due| due <= now) {
            self.save_at = None;
            self.kept.save(&self.store);
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

    /// What this node has, for each neighbour.
    fn digests(&self) -> Outgoing {
        let digests = [TOKENS, ALL].map(|kinds| self.store.digest(kinds));
        let to = self.neighbours(None).map(|peer| {
            let takes_all = self.peers.get(&peer).is_some_and(|peer| peer.kinds == ALL);
            let digest = digests[usize::from(takes_all)].clone();
            (peer, Publication::Digest(Box::new(digest)))
        });
        to.collect()
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
                peer.kinds = TOKENS;
                if peer.is_neighbour && self.store.is_needed() {
                    let digest = Box::new(self.store.digest(peer.kinds));
                    out.push((from, Publication::Statements));
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
            Heard::Said(Publication::Evidence(piece)) => self.on_evidence(from, piece, out, held),
            Heard::Said(Publication::Filter(signed)) => self.on_filter(from, &signed, out),
            Heard::Said(Publication::Versions(theirs)) => self.on_versions(from, &theirs, out),
            Heard::Said(Publication::Afresh) => peer.refused.clear(),
            Heard::Said(Publication::Statements) => {
                peer.kinds = ALL;
                if peer.is_neighbour && self.store.is_needed() {
                    let digest = Box::new(self.store.digest(ALL));
                    out.push((from, Publication::Digest(digest)));
                }
            }
            Heard::Said(Publication::Digest(digest)) => {
                let own = self.store.digest(peer.kinds);
                for bucket in own.differing(&digest) {
                    let ids = self.store.ids(bucket, peer.kinds).collect();
                    let bucket = u8::try_from(bucket).unwrap_or(u8::MAX);
                    out.push((from, Publication::Have { bucket, ids }));
                }
            }
            Heard::Said(Publication::Have { bucket, ids }) => {
                let mut left = peer.sendable(Instant::now());
                let lacks =
                    |id: &EvidenceId| ids.binary_search(id).is_err() && !peer.refused.contains(id);
                let lacking = self.store.ids(bucket.into(), peer.kinds).filter(lacks);
                let pieces = lacking.filter_map(|id| self.store.piece(id));
                for piece in pieces.take(SENT_AT_ONCE_MAX) {
                    if left == 0 {
                        break;
                    }
                    let bytes = piece.as_bytes().len();
                    left = left.saturating_sub(bytes);
                    peer.sendable = peer.sendable.saturating_sub(bytes);
                    out.push((from, Publication::Evidence(piece)));
                }
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
        piece: Piece,
        out: &mut Outgoing,
        held: &mut Vec<(NodeId, EvidenceId)>,
    ) {
        let id = piece.id();
        let Some(peer) = self.peers.get_mut(&from) else {
            return;
        };
        let is_known = self.store.has(id);
        let has_budget = is_known || peer.has_budget(Instant::now());
        let taken = match has_budget {
            true => self.store.take(&piece, now_s()),
            false => Err(Verdict::Busy),
        };
        match taken {
            Ok(Taken::Known(id)) => held.push((from, id)),
            Ok(Taken::New(id)) => {
                peer.budget -= 1.0;
                *self.verdicts.entry(Verdict::Admitted).or_default() += 1;
                held.push((from, id));
                self.pass_on(&piece, Some(from), out);
            }
            Err(verdict) => {
                let is_worthless = match piece {
                    Piece::Token(_) => matches!(verdict, Verdict::Forged | Verdict::Revoked),
                    Piece::Statement(_) => verdict == Verdict::Forged,
                };
                if is_worthless {
                    peer.budget -= WORTHLESS_COST;
                } else if !is_known && self.store.has(id) {
                    // It has been taken back, and keeps earlier ones away.
                    peer.budget -= 1.0;
                    self.save_soon();
                }
                *self.verdicts.entry(verdict).or_default() += 1;
                if piece.kind() == Kind::Token {
                    *self.tokens_refused.entry(verdict).or_default() += 1;
                }
                out.push((from, Publication::Confirm { id, verdict }));
            }
        }
    }

    /// Tells the neighbours of something new.
    fn pass_on(&mut self, piece: &Piece, from: Option<NodeId>, out: &mut Outgoing) {
        let takes = |id: &NodeId| {
            let kinds = self.peers.get(id).map_or(TOKENS, |peer| peer.kinds);
            kinds.contains(&piece.kind())
        };
        let to = self.neighbours(from).filter(takes);
        let told = to.map(|peer| (peer, Publication::Evidence(piece.clone())));
        out.extend(told.collect::<Vec<_>>());
        self.save_soon();
    }

    fn save_soon(&mut self) {
        self.save_at
            .get_or_insert_with(|| Instant::now() + SAVE_AFTER);
    }

    /// Remembers what this node's entity has shown.
    fn keep_own(&mut self, piece: &Piece) {
        if self.own.len() >= OWN_MAX {
            self.own.pop_first();
        }
        self.own.insert(piece.id(), piece.clone());
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
            Ask::Present { piece, reply } => {
                let taken = self.store.take(&piece, now_s());
                let own = piece.id();
                self.keep_own(&piece);
                let known = self.peers.iter().filter(|(_, peer)| peer.is_neighbour);
                let known = known.map(|(&id, peer)| (id, peer.name.clone(), peer.is_connected));
                let is_told = taken.is_ok();
                let mut waiting = Waiting::new(own, reply, is_told, known);
                let mut out = Outgoing::new();
                if is_told {
                    self.pass_on(&piece, None, &mut out);
                } else if self.store.has(own) {
                    self.save_soon();
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
                    self.save_soon();
                }
                self.publish().await.map(|_| ())
            }
            Ask::Follow(present, reply) => {
                let issuers = self.store.issuers().clone();
                follow(&mut self.store, &present);
                self.follow_filters(&present.config);
                // A node that has another key now is another peer, of which nothing was heard.
                let mut before = std::mem::replace(&mut self.peers, peer::all(&present.config));
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
                // What gave nothing may give something now.
                let mut out = Outgoing::new();
                for piece in self.own.clone().into_values() {
                    if let Ok(Taken::New(_)) = self.store.take(&piece, now_s()) {
                        self.pass_on(&piece, None, &mut out);
                    }
                }
                let _given_up = reply.send(());
                self.is_guard_due = true;
                self.publish().await?;
                self.send(out).await?;
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
        let digests = self.digests().into_iter();
        let asked = digests.flat_map(|(peer, digest)| {
            // A node that asked for nothing before has not said what it takes.
            let said = [Publication::Statements, Publication::Afresh, digest];
            said.map(|said| (peer, said))
        });
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

    fn status(&self) -> AdmissionsStatus {
        let (tokens, holders) = (self.store.tokens().count(), self.store.size().1);
        AdmissionsStatus {
            tokens,
            statements: self.store.statements().count(),
            holders,
            pairs: self.store.pairs().len(),
            pairs_refused: self.store.pairs_refused,
            statements_refused: self.store.statements_refused,
            verdicts: by_name(&self.verdicts),
            tokens_refused: by_name(&self.tokens_refused),
            neighbours: self.neighbours(None).count(),
            filters: self.filters_status(),
        }
    }
}
