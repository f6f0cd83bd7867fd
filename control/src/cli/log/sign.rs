//! Events that are signed where they are appended, by `virga log import --sign-with`.

use super::OneLog;
use crate::keys::EntityKey;
use ed25519_dalek::SigningKey;
use virga_state::{
    AppendError, OpenError,
    batch::{BatchError, FeedId},
    feed::{FeedEnd, Seen},
    io::{clock, driver::Driver, folder::Folder, open::OpenLog},
    limits::{BATCH_EVENTS_MAX, SIGNED_PAYLOADS_MAX},
    verify::{self, Depth},
};

/// Why nothing can be signed.
#[derive(Debug, thiserror::Error)]
pub(super) enum SignError {
    /// The log cannot be read.
    #[error("what is signed in the log cannot be read: {0}")]
    Open(#[from] OpenError),
    /// To begin anew could be a fork.
    #[error(
        "the log is damaged, or its first events were removed, and what is left has none that this entity signed: where its feed ends is not known, and to begin it anew could contradict what it signed before"
    )]
    UnknownEnd,
}

/// An entity that signs, and what waits for its signature.
pub(super) struct Author {
    key: SigningKey,
    feed: FeedId,
    end: FeedEnd,
    seen: Seen,
    waiting: Vec<Vec<u8>>,
    bytes: usize,
}

impl Author {
    /// Goes on where the entity ended in a log that is open, and has observed all else that is signed there.
    pub(super) fn open(log: &OneLog, disk: &Folder, key: &EntityKey) -> Result<Self, SignError> {
        let mut seen = Seen::default();
        let report = verify::verify_with(disk, &log.name, Depth::Content, |offset, batch| {
            // `verify` tells of forks.
            let _fork = seen.note(&batch, offset);
        })?;
        let feed = FeedId::of(&log.name, &key.public);
        let end = seen.end(&feed);
        if end.is_none() && (report.first_offset > 0 || report.flaw_count > 0) {
            return Err(SignError::UnknownEnd);
        }
        Ok(Self {
            key: SigningKey::from_bytes(key.seed.expose()),
            feed,
            end: FeedEnd::at(log.name.clone(), key.public, end),
            seen,
            waiting: Vec::new(),
            bytes: 0,
        })
    }

    /// Takes an event; signs what waits once that is as much as one signature is for.
    pub(super) fn push(
        &mut self,
        logs: &mut [OpenLog; 1],
        driver: &mut Driver,
        payload: Vec<u8>,
    ) -> Result<(), AppendError> {
        if payload.len() > SIGNED_PAYLOADS_MAX {
            return Err(AppendError::TooLarge(payload.len()));
        }
        if self.bytes + payload.len() > SIGNED_PAYLOADS_MAX {
            self.sign(logs, driver)?;
        }
        self.bytes += payload.len();
        self.waiting.push(payload);
        match self.waiting.len() {
            BATCH_EVENTS_MAX => self.sign(logs, driver),
            _ => Ok(()),
        }
    }

    /// Signs what waits, and appends it.
    pub(super) fn sign(
        &mut self,
        logs: &mut [OpenLog; 1],
        driver: &mut Driver,
    ) -> Result<(), AppendError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let payloads: Vec<&[u8]> = self.waiting.iter().map(Vec::as_slice).collect();
        let frontier = self.seen.take_new(&self.feed);
        let signed = self.end.sign(&self.key, frontier, payloads.iter().copied());
        let batch = signed.map_err(|error: BatchError| AppendError::Signature(error))?;
        loop {
            let now = clock::now_unix_ns();
            match logs[0].log.append_signed(now, &batch, &payloads) {
                Ok(_) => break,
                Err(AppendError::Full) if driver.round(logs) => {}
                Err(error) => return Err(error),
            }
        }
        self.waiting.clear();
        self.bytes = 0;
        Ok(())
    }
}
