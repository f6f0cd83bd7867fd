//! Messages of unreliable streams that came in pieces: put together, in bounded memory and time.

use crate::limits::{
    REASSEMBLY_BYTES_MAX, REASSEMBLY_MESSAGES_MAX, REASSEMBLY_NS_MAX, REASSEMBLY_PIECE_BYTES,
    REASSEMBLY_PIECES_MIN,
};
use bytes::Bytes;
use std::collections::BTreeMap;
use virga_ebpf::header::StreamId;

/// One piece of a message, as its frame says; `offset` and `bytes` are within `total`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fragment<'a> {
    pub(crate) message: u64,
    pub(crate) total: u64,
    pub(crate) offset: u64,
    pub(crate) bytes: &'a [u8],
}

/// A piece that overlaps or contradicts another of its message: no honest sender makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Contradiction;

/// A message of which pieces are missing.
#[derive(Debug)]
struct Unfinished {
    /// When its newest piece came.
    newest_ns: u64,
    /// Bytes of the whole message, as its first piece said.
    total: usize,
    /// By offset; put together when all are there, so that nobody makes this end clear memory for bytes
    /// that never come.
    pieces: BTreeMap<u64, Box<[u8]>>,
    /// Of all pieces; they do not overlap.
    held_bytes: usize,
}

impl Unfinished {
    fn overlaps(&self, start: u64, end: u64) -> bool {
        let before = self.pieces.range(..end).next_back();
        before.is_some_and(|(&at, piece)| at + piece.len() as u64 > start)
    }

    fn whole(self) -> Bytes {
        let mut whole = Vec::with_capacity(self.total);
        for piece in self.pieces.values() {
            whole.extend_from_slice(piece);
        }
        whole.into()
    }
}

/// The unfinished messages of one session.
#[derive(Debug, Default)]
pub(crate) struct Reassembly {
    unfinished: BTreeMap<(StreamId, u64), Unfinished>,
    /// Bytes of all of them when they are whole.
    held_bytes: usize,
}

impl Reassembly {
    /// Takes a piece in; gives the message when it was the last, and how many others had to give way.
    pub(crate) fn insert(
        &mut self,
        now_ns: u64,
        stream: StreamId,
        fragment: Fragment<'_>,
    ) -> Result<(Option<Bytes>, u64), Contradiction> {
        let place = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
        let key = (stream, fragment.message);
        let total = place(fragment.total);
        let mut given_up = 0;
        if !self.unfinished.contains_key(&key) {
            given_up = self.make_room(total);
            self.held_bytes += total;
        }
        let message = self.unfinished.entry(key).or_insert_with(|| Unfinished {
            newest_ns: now_ns,
            total,
            pieces: BTreeMap::new(),
            held_bytes: 0,
        });
        let end = fragment.offset + fragment.bytes.len() as u64;
        let is_crowded =
            message.pieces.len() > REASSEMBLY_PIECES_MIN + total / REASSEMBLY_PIECE_BYTES;
        if message.total != total || is_crowded || message.overlaps(fragment.offset, end) {
            return Err(Contradiction);
        }
        message.newest_ns = now_ns;
        message
            .pieces
            .insert(fragment.offset, fragment.bytes.into());
        message.held_bytes += fragment.bytes.len();
        if message.held_bytes < total {
            return Ok((None, given_up));
        }
        self.held_bytes -= total;
        let whole = self.unfinished.remove(&key).map(Unfinished::whole);
        Ok((whole, given_up))
    }

    /// Gives the oldest up until one more of `bytes` fits; gives how many.
    fn make_room(&mut self, bytes: usize) -> u64 {
        let mut given_up = 0;
        while self.unfinished.len() >= REASSEMBLY_MESSAGES_MAX
            || self.held_bytes + bytes > REASSEMBLY_BYTES_MAX
        {
            let oldest = self.unfinished.iter().min_by_key(|(_, m)| m.newest_ns);
            let Some((&key, _)) = oldest else { break };
            self.give_up(key);
            given_up += 1;
        }
        given_up
    }

    fn give_up(&mut self, key: (StreamId, u64)) {
        if let Some(message) = self.unfinished.remove(&key) {
            self.held_bytes -= message.total;
        }
    }

    /// When [`Reassembly::on_timeout`] is due.
    pub(crate) fn timeout(&self) -> Option<u64> {
        let newest = self.unfinished.values().map(|m| m.newest_ns).min()?;
        Some(newest + REASSEMBLY_NS_MAX)
    }

    /// Gives up what no piece came of for too long; gives how many.
    pub(crate) fn on_timeout(&mut self, now_ns: u64) -> u64 {
        self.give_up_where(|_, message| now_ns >= message.newest_ns + REASSEMBLY_NS_MAX)
    }

    /// Gives up what a stream that is over left unfinished; gives how many.
    pub(crate) fn on_stream_over(&mut self, stream: StreamId) -> u64 {
        self.give_up_where(|key, _| key.0 == stream)
    }

    fn give_up_where(&mut self, is_over: impl Fn(&(StreamId, u64), &Unfinished) -> bool) -> u64 {
        let all = self.unfinished.iter();
        let over = all.filter(|(key, message)| is_over(key, message));
        let over: Vec<_> = over.map(|(&key, _)| key).collect();
        for &key in &over {
            self.give_up(key);
        }
        over.len() as u64
    }

    #[cfg(any(test, fuzzing, feature = "sim"))]
    pub(crate) fn held(&self) -> (usize, usize) {
        (self.unfinished.len(), self.held_bytes)
    }
}
