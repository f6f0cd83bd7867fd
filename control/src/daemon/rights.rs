//! Tokens and revocation lists of a running node: what programs on this machine hand in, what peers
//! sent, and what must outlive a restart.
//!
//! Revocation lists are files, one an issuer, in `revocations/` of the node's state folder: without
//! them a restarted node would believe an old list that is sent to it again.

use super::{
    clock::Clock,
    flood::{self, AdmissionsStatus},
    path, unix_ns,
};
use crate::{
    admissions::Piece,
    capability::{Statement, statement::By},
    channel::{capabilities::Unusable, explain::Given, rights::Taken, subnets::Useless},
    config::NodeSection,
    dispatch::{Dispatch, Ended},
    filters::held::Crossing,
    hex,
    membership::Membership,
    notices::Notices,
    rights::{
        Authentic, List, Refusal,
        file::{self, FileError},
    },
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use virga_ebpf::tables::Pair;

/// How often the workers' idea of Unix time is set right.
const SET_CLOCK_EVERY: Duration = Duration::from_secs(10);

/// Hands rights to the workers, and keeps what must be kept. Cheap to clone.
#[derive(Clone)]
pub struct Keeper {
    dispatch: Dispatch,
    folder: PathBuf,
    flood: flood::Asker,
    path: path::Asker,
    clock: Clock,
    writing: Arc<Mutex<()>>,
}

/// Why something that was handed in does not count.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    /// The token gives nothing.
    #[error("the token is worthless here: {0}")]
    Token(#[from] Refusal),
    /// The membership is of no use here.
    #[error("the membership is of no use here: {0}")]
    Membership(#[from] Useless),
    /// The statement is of no use here.
    #[error("the statement is of no use here: {0}")]
    Statement(#[from] Unusable),
    /// The revocation list does not count.
    #[error(
        "the revocation list does not count: no channel here names its issuer, or a later one is known (`virga status` counts which)"
    )]
    List,
    /// It counts, until the node restarts.
    #[error("it counts from now on, and will be forgotten when the node restarts: {0}")]
    NotKept(#[from] FileError),
    /// The node is shutting down.
    #[error(transparent)]
    Ended(#[from] Ended),
}

/// The lists that were kept, as they were signed.
///
/// # Errors
/// [`FileError`]: one cannot be read, and without it the node might let in what was taken back.
pub(super) fn kept(state: &Path) -> Result<Vec<Vec<u8>>, FileError> {
    let folder = folder(state);
    let io_error = |source| FileError::Io {
        path: folder.clone(),
        operation: "list",
        source,
    };
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error(error)),
    };
    let mut lists = Vec::new();
    for entry in entries {
        let path = entry.map_err(io_error)?.path();
        // What a crash left half-written has another name.
        if path.extension().is_some_and(|e| e == EXTENSION) {
            let (_list, signed) = file::read_revocations(&path)?;
            lists.push(signed);
        }
    }
    Ok(lists)
}

const EXTENSION: &str = "revocations";

fn folder(state: &Path) -> PathBuf {
    state.join("revocations")
}

impl Keeper {
    pub(super) fn new(
        dispatch: Dispatch,
        state: &Path,
        (flood, path, clock): (flood::Asker, path::Asker, Clock),
    ) -> Self {
        Self {
            dispatch,
            flood,
            path,
            clock,
            folder: folder(state),
            writing: Arc::default(),
        }
    }

    /// Holds a token for this node's entity and shows it to all peers, until the node stops; says what
    /// it gives, and what the neighbours made of it, when it stands in their guards.
    ///
    /// # Errors
    /// [`NotTaken::Token`], [`NotTaken::Ended`].
    pub async fn present(&self, token: &Authentic) -> Result<Given, NotTaken> {
        let presented = token;
        let token = token.clone();
        let held = self.dispatch.with_all(move |now_ns, parts| {
            parts.service.take_token(now_ns, &mut parts.node, &token)?;
            Ok::<_, Refusal>(parts.service.given_by_token(now_ns, &token))
        });
        // All workers hold the same of this node's entity.
        let mut given = Given::default();
        for held in held.await? {
            given = held?;
        }
        let piece = Piece::Token(presented.chain().encode());
        given.neighbours = self.flood.present(piece).await?;
        Ok(given)
    }

    /// Who may publish where, as far as tokens and issuers' statements say it.
    pub async fn admissions(&self) -> Option<AdmissionsStatus> {
        self.flood.status().await
    }

    /// What becomes of a pair's packets to each other subnet.
    pub async fn crossings(&self, pair: Pair) -> Option<Vec<Crossing>> {
        self.flood.crossings(pair).await
    }

    /// The same of a statement about this node's entity.
    ///
    /// # Errors
    /// [`NotTaken::Statement`], [`NotTaken::Ended`].
    pub async fn present_statement(&self, statement: &Statement) -> Result<Given, NotTaken> {
        let presented = statement;
        let statement = statement.clone();
        let held = self.dispatch.with_all(move |now_ns, parts| {
            let node = &mut parts.node;
            parts.service.take_statement(now_ns, node, &statement)?;
            Ok::<_, Unusable>(parts.service.given_by_statement(now_ns, &statement))
        });
        let mut given = Given::default();
        for held in held.await? {
            given = held?;
        }
        if presented.by() != By::Itself {
            let piece = Piece::Statement(presented.as_bytes().to_vec());
            given.neighbours = self.flood.present(piece).await?;
        }
        Ok(given)
    }

    /// The same of a membership of this node's entity.
    ///
    /// # Errors
    /// [`NotTaken::Membership`], [`NotTaken::Ended`].
    pub async fn present_membership(&self, membership: &Membership) -> Result<Given, NotTaken> {
        let membership = membership.clone();
        let held = self.dispatch.with_all(move |now_ns, parts| {
            let node = &mut parts.node;
            parts.service.take_membership(now_ns, node, &membership)?;
            Ok::<_, Useless>(parts.service.given_by_membership(now_ns, &membership))
        });
        let mut given = Given::default();
        for held in held.await? {
            given = held?;
        }
        Ok(given)
    }

    /// Logs what of the configuration's tokens and statements gives nothing.
    pub(super) async fn warn_of_useless(&self, node: &NodeSection) -> Result<(), Ended> {
        let (tokens, statements) = (node.tokens.clone(), node.statements.clone());
        let useless = self.dispatch.with_all(move |now_ns, parts| {
            let service = &parts.service;
            let tokens = tokens.iter().filter_map(|token| {
                let why = service.given_by_token(now_ns, token).useless?;
                let last = token.chain().links().last()?;
                Some((format!("the token with link {}", last.id()), why))
            });
            let vouched = statements.iter().filter(|one| one.by() != By::Itself);
            let statements = vouched.filter_map(|statement| {
                let why = service.given_by_statement(now_ns, statement).useless?;
                Some((format!("the statement {}", statement.id()), why))
            });
            tokens.chain(statements).collect::<Vec<_>>()
        });
        for (what, why) in useless.await?.into_iter().next().unwrap_or_default() {
            tracing::warn!(%why, "{what}, which the configuration names, gives nothing here");
        }
        Ok(())
    }

    /// Has a revocation list count here, passes it on to all peers, and keeps it.
    ///
    /// # Errors
    /// [`NotTaken`].
    pub async fn announce(&self, signed: Vec<u8>) -> Result<(), NotTaken> {
        match self.teach(&signed).await? {
            true => Ok(self.keep(&signed)?),
            false => Err(NotTaken::List),
        }
    }

    /// Tells all workers; whether it counts at all of them.
    async fn teach(&self, signed: &[u8]) -> Result<bool, Ended> {
        let (signed, list) = (signed.to_vec(), signed.to_vec());
        let taken = self.dispatch.with_all(move |now_ns, parts| {
            let node = &mut parts.node;
            parts.service.on_revocations(now_ns, node, &signed)
        });
        let counts = !taken.await?.contains(&Taken::No);
        if counts {
            self.flood.revoked(list.clone()).await?;
            self.path.revoked(list).await;
        }
        Ok(counts)
    }

    /// Keeps a list, unless a later one of its issuer is kept.
    fn keep(&self, signed: &[u8]) -> Result<(), FileError> {
        // Two at a time would write the same file.
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let io_error = |operation, source| FileError::Io {
            path: self.folder.clone(),
            operation,
            source,
        };
        let list = List::parse(signed).map_err(|error| FileError::List {
            path: self.folder.clone(),
            error,
        })?;
        fs::create_dir_all(&self.folder).map_err(|e| io_error("make this folder", e))?;
        let name = format!("{}.{EXTENSION}", hex::encode(list.issuer()));
        let path = self.folder.join(name);
        let kept = file::read_revocations(&path);
        if kept.is_ok_and(|(kept, _)| kept.version() > list.version()) {
            return Ok(());
        }
        file::replace(&path, &file::revocations_line(signed))
    }

    /// Follows what peers tell, and the clock, until the workers end.
    pub(super) async fn run(self, notices: Notices) {
        let mut tick = tokio::time::interval(SET_CLOCK_EVERY);
        loop {
            let done = tokio::select! {
                _ = tick.tick() => self.set_clock().await,
                () = notices.changed() => self.follow(&notices).await,
            };
            if done.is_err() {
                return;
            }
        }
    }

    async fn set_clock(&self) -> Result<(), Ended> {
        let set = self.dispatch.with_all(|now_ns, parts| {
            let unix_zero_ns = unix_ns().saturating_sub(now_ns);
            parts.service.set_clock(unix_zero_ns);
            unix_zero_ns
        });
        // All workers count from the same time.
        if let Some(&unix_zero_ns) = set.await?.first() {
            self.clock.follow(unix_zero_ns);
        }
        Ok(())
    }

    async fn follow(&self, notices: &Notices) -> Result<(), Ended> {
        for signed in notices.take() {
            // On disk before all workers have it: what ends this node in between has it forgotten nowhere.
            let kept = self.keep(&signed);
            self.teach(&signed).await?;
            match kept {
                Ok(()) => {
                    tracing::info!("a peer sent a newer revocation list, which counts and is kept")
                }
                Err(error) => tracing::error!(
                    error = crate::cause::chain(&error),
                    "a peer sent a newer revocation list, which counts and will be forgotten at the next start"
                ),
            }
        }
        Ok(())
    }
}
