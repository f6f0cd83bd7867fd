//! Signing what this node's entity says on channels whose events are signed: each batch once, behind what it
//! said before.
//!
//! Where a feed ends is on disk, in the folder `feeds` of the node's `state`, before a signature leaves the
//! node: to sign twice behind one head is a fork, which everybody who sees both can prove. So the folder has to
//! go along with an entity that moves.
//!
//! What this node's logs had taken before it was started was observed, too: what is signed waits until they are looked
//! through, but not for long. What has waited for longer than it may is not signed: it would be missing from the feed.
//!
//! ```text
//! feeds/ENTITY/CHANNEL: events signed 8 | head 32 | CRC-32C of these 4
//! ```
//! ENTITY is the key in hexadecimal digits, CHANNEL the channel's name with `+` for `/`.

use crate::{hex, keys::EntityKey};
use bytes::Bytes;
use ed25519_dalek::SigningKey;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use thiserror::Error;
use tokio::{
    sync::{OwnedMutexGuard, watch},
    time::{Instant, timeout_at},
};
use virga_state::{
    LogName, NameError,
    batch::{BatchError, FeedId, Verified},
    bundle,
    feed::{FeedEnd, Seen},
    fork::ForkProof,
    limits::{BATCH_EVENTS_MAX, SIGNED_PAYLOADS_MAX},
};
use virga_transport::ChannelName;

#[cfg(test)]
mod tests;

/// Nothing that is signed waits for longer until the logs are looked through, from then on when that began.
const LOOKED_WITHIN: Duration = Duration::from_secs(10);
/// Bytes of a feed's file.
const END_BYTES: usize = 8 + 32 + 4;

const _: () = assert!(END_BYTES == 44);

/// Why nothing was signed; the feed is where it was.
#[derive(Debug, Error)]
pub enum SigningError {
    /// The channel's name is none of a feed.
    #[error("{0}")]
    Name(#[from] NameError),
    /// Where the feed ends cannot be read or kept.
    #[error("where the feed ends, in {}: {source}", path.display())]
    End {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// It cannot be signed.
    #[error("{0}")]
    Batch(#[from] BatchError),
    /// Its time was over first.
    #[error("its time was over before it could be signed")]
    Late,
    /// The node stops.
    #[error("the node is shutting down")]
    Stopping,
}

/// The feeds of a node's entity, and what it has seen of others'. Cheap to clone.
#[derive(Clone)]
pub struct Signing(Arc<Inner>);

struct Inner {
    folder: PathBuf,
    entity: [u8; 32],
    key: SigningKey,
    /// One batch of a channel at a time.
    feeds: Mutex<BTreeMap<ChannelName, Arc<tokio::sync::Mutex<Option<FeedEnd>>>>>,
    seen: Mutex<Seen>,
    /// What is signed waits for that; none: it waits for no log any more.
    looking: watch::Sender<Option<Looking>>,
}

/// Logs that are looked through, and waited for.
struct Looking {
    until: Instant,
    /// None yet: it is being found out which.
    logs: BTreeSet<usize>,
}

/// A channel's feed while a batch of it is signed and handed out: the next waits for that.
pub struct Turn(OwnedMutexGuard<Option<FeedEnd>>);

impl std::fmt::Debug for Signing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Signing").field(&self.0.folder).finish()
    }
}

impl Signing {
    /// By this key, with what was signed before in this folder of the node's `state`.
    #[must_use]
    pub fn new(state: &Path, entity: &EntityKey) -> Self {
        Self(Arc::new(Inner {
            folder: state.join("feeds").join(hex::encode(&entity.public)),
            entity: entity.public,
            key: SigningKey::from_bytes(entity.seed.expose()),
            feeds: Mutex::default(),
            seen: Mutex::default(),
            looking: watch::Sender::new(None),
        }))
    }

    /// Whether what is signed now has to wait for the logs, see [`Signing::looked`].
    #[must_use]
    pub fn is_looking(&self) -> bool {
        self.0.looking.borrow().is_some()
    }

    /// Waits for the logs to be looked through, but not for long, and until that moment at most.
    pub async fn looked(&self, until: Option<Instant>) {
        let mut looking = self.0.looking.subscribe();
        let patience = looking.borrow_and_update().as_ref().map(|it| it.until);
        let Some(patience) = patience else {
            return;
        };
        let is_other = |now: &Option<Looking>| now.as_ref().is_none_or(|it| it.until != patience);
        let end = until.map_or(patience, |until| until.min(patience));
        let is_over = timeout_at(end, looking.wait_for(is_other)).await.is_err() && end == patience;
        // Once it took too long for one, nobody else waits; for what is looked through since, others may.
        let give_up = |looking: &mut Option<Looking>| {
            let is_it = !is_other(looking);
            if is_it {
                *looking = None;
            }
            is_it
        };
        if is_over && self.0.looking.send_if_modified(give_up) {
            tracing::info!(
                "logs are looked through still: what they had before they were opened is not named as observed yet"
            );
        }
    }

    /// Signs events, as many messages as that takes, unless that moment is over; gives how many events were too large
    /// for one, and what the next has to wait for.
    ///
    /// # Errors
    /// See [`SigningError`].
    pub async fn sign(
        &self,
        channel: &ChannelName,
        events: Vec<Bytes>,
        until: Option<Instant>,
    ) -> Result<(Vec<Bytes>, u64, Turn), SigningError> {
        let feed = {
            let feeds = self.0.feeds.lock();
            let mut feeds = feeds.unwrap_or_else(PoisonError::into_inner);
            Arc::clone(feeds.entry(channel.clone()).or_default())
        };
        let turn = feed.lock_owned();
        let mut turn = Turn(match until {
            Some(until) => timeout_at(until, turn)
                .await
                .map_err(|_| SigningError::Late)?,
            None => turn.await,
        });
        let (inner, channel) = (Arc::clone(&self.0), channel.clone());
        let signed = tokio::task::spawn_blocking(move || {
            if until.is_some_and(|until| Instant::now() >= until) {
                return Err(SigningError::Late);
            }
            let (messages, too_large) = inner.sign(&channel, &events, &mut turn)?;
            Ok((messages, too_large, turn))
        });
        signed.await.unwrap_or(Err(SigningError::Stopping))
    }

    /// What is signed waits for logs from now on, see [`Signing::look_through`]; if it does already, for no longer than it
    /// would have.
    pub fn begin_looking(&self) {
        let until = Instant::now() + LOOKED_WITHIN;
        self.0.looking.send_if_modified(|looking| {
            let is_first = looking.is_none();
            looking.get_or_insert_with(|| Looking {
                until,
                logs: BTreeSet::new(),
            });
            is_first
        });
    }

    /// These logs are looked through: if anything waits still, it waits for them, too.
    pub fn look_through(&self, logs: impl IntoIterator<Item = usize>) {
        self.change_looked(|waited| waited.extend(logs));
    }

    /// A log is looked through, or left: nothing waits for it any more.
    pub fn looked_through(&self, log: usize) {
        self.change_looked(|waited| {
            waited.remove(&log);
        });
    }

    /// Where no log is left then, nothing waits.
    fn change_looked(&self, change: impl FnOnce(&mut BTreeSet<usize>)) {
        self.0.looking.send_if_modified(|looking| {
            if let Some(it) = looking {
                change(&mut it.logs);
            }
            let is_over = looking.as_ref().is_some_and(|it| it.logs.is_empty());
            if is_over {
                *looking = None;
            }
            is_over
        });
    }

    /// Notes what a log of this node has taken, and when: what is signed next says that it was observed. Gives the proof
    /// if it contradicts what was seen of its feed.
    #[must_use]
    pub fn observe(&self, batch: &Verified, heard_unix_ns: u64) -> Option<Box<ForkProof>> {
        let seen = self.0.seen.lock();
        let mut seen = seen.unwrap_or_else(PoisonError::into_inner);
        seen.note(batch, heard_unix_ns)
    }
}

impl Inner {
    fn sign(
        &self,
        channel: &ChannelName,
        events: &[Bytes],
        turn: &mut Turn,
    ) -> Result<(Vec<Bytes>, u64), SigningError> {
        let name = LogName::parse(channel.as_str())?;
        let path = self.folder.join(name.folder());
        let failed = |source| SigningError::End {
            path: path.clone(),
            source,
        };
        let mut feed = match turn.0.take() {
            Some(feed) => feed,
            None => {
                let end = read(&path).map_err(failed)?;
                FeedEnd::at(name.clone(), self.entity, end)
            }
        };
        let begin = feed.clone();
        let id = FeedId::of(&name, &self.entity);
        let (batches, too_large) = cut(events);
        let mut messages = Vec::with_capacity(batches.len());
        for payloads in batches {
            let frontier = {
                let seen = self.seen.lock();
                seen.unwrap_or_else(PoisonError::into_inner).take_new(&id)
            };
            let batch = feed.sign(&self.key, frontier, payloads.iter().copied())?;
            messages.push(Bytes::from(bundle::encode(&batch, &payloads)));
        }
        if feed != begin {
            // What was not kept was not signed: nobody gets it.
            store(&path, feed.end()).map_err(failed)?;
        }
        *turn.0 = Some(feed);
        Ok((messages, too_large))
    }
}

/// Events in batches that can be signed, and how many are too large.
fn cut(events: &[Bytes]) -> (Vec<Vec<&[u8]>>, u64) {
    let (mut batches, mut too_large): (Vec<Vec<&[u8]>>, u64) = (Vec::new(), 0);
    let mut bytes = 0;
    for event in events {
        if event.len() > SIGNED_PAYLOADS_MAX {
            too_large += 1;
            continue;
        }
        bytes += event.len();
        match batches.last_mut() {
            Some(batch) if batch.len() < BATCH_EVENTS_MAX && bytes <= SIGNED_PAYLOADS_MAX => {
                batch.push(event);
            }
            _ => {
                bytes = event.len();
                batches.push(vec![event]);
            }
        }
    }
    (batches, too_large)
}

/// Where a feed ends, by its file; none where there is no file.
fn read(path: &Path) -> io::Result<Option<(u64, [u8; 32])>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let damaged = || {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "it is damaged: put a copy back; without it what is signed next could contradict what was signed before",
        )
    };
    let bytes: &[u8; END_BYTES] = bytes[..].try_into().map_err(|_| damaged())?;
    let (end, checksum) = bytes.split_at(END_BYTES - 4);
    if crc32c::crc32c(end).to_be_bytes() != checksum {
        return Err(damaged());
    }
    let (count, head) = end.split_at(8);
    let count = count.try_into().map(u64::from_be_bytes);
    match (count, head.try_into()) {
        (Ok(count), Ok(head)) => Ok(Some((count, head))),
        _ => Err(damaged()),
    }
}

/// Keeps where a feed ends, for good when this returns.
fn store(path: &Path, (count, head): (u64, [u8; 32])) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    let mut bytes = count.to_be_bytes().to_vec();
    bytes.extend(head);
    bytes.extend(crc32c::crc32c(&bytes).to_be_bytes());
    // No channel's name holds a `~`.
    let mut new = path.as_os_str().to_owned();
    new.push("~");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&new)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(folder)?.sync_all()
}
