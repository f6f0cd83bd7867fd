//! A log's events from a place on, and on with what is appended.

use super::{LogStatus, State};
use crate::api::frames::{KeptEvent, write_gap};
use bytes::{Bytes, BytesMut};
use tokio::sync::watch;
use virga_state::{ReadError, Reader, io::folder::Folder};
use virga_transport::ChannelName;

/// Events of one chunk, and bytes that end it.
const CHUNK_EVENTS_MAX: usize = 512;
const CHUNK_BYTES: usize = 256 * 1024;

/// See the module.
pub struct Follower {
    channel: ChannelName,
    /// Not there only while it reads.
    reader: Option<Reader<Folder>>,
    state: State,
}

impl Follower {
    pub(super) const fn new(channel: ChannelName, reader: Reader<Folder>, state: State) -> Self {
        Self {
            channel,
            reader: Some(reader),
            state,
        }
    }

    /// Where the next event is; none after a reading that was given up.
    #[must_use]
    pub fn position(&self) -> Option<u64> {
        self.reader.as_ref().map(Reader::position)
    }

    /// Waits for events, and gives some as frames. None: the node stops.
    ///
    /// # Errors
    /// Why the log cannot be read on.
    pub async fn next_chunk(&mut self) -> Result<Option<Bytes>, String> {
        loop {
            let (readable, is_left) = {
                let state = self.state.borrow_and_update();
                (state.readable, state.is_left)
            };
            let Some(mut reader) = self.reader.take() else {
                return Ok(None);
            };
            let channel = self.channel.clone();
            let reading = tokio::task::spawn_blocking(move || {
                reader.set_limit(readable);
                let chunk = read(&mut reader, &channel);
                (reader, chunk)
            });
            let Ok((reader, chunk)) = reading.await else {
                return Err("reading it was given up".into());
            };
            self.reader = Some(reader);
            let chunk = chunk.map_err(|error| error.to_string())?;
            if !chunk.is_empty() {
                return Ok(Some(chunk));
            }
            if is_left {
                return Err(format!("the node keeps {} no more", self.channel));
            }
            if self.changed(readable).await.is_err() {
                return Ok(None);
            }
        }
    }

    /// Waits until there is more to read than that, or the log is left.
    async fn changed(&mut self, readable: u64) -> Result<(), watch::error::RecvError> {
        let is_more = |state: &LogStatus| state.readable != readable || state.is_left;
        self.state.wait_for(is_more).await.map(|_| ())
    }
}

/// What there is now, at most a chunk; nothing of it follows a gap, so that the reader is where the gap ends.
fn read(reader: &mut Reader<Folder>, channel: &ChannelName) -> Result<Bytes, ReadError> {
    let mut chunk = BytesMut::new();
    for _ in 0..CHUNK_EVENTS_MAX {
        match reader.next_event() {
            Ok(None) => break,
            Ok(Some(event)) => KeptEvent::write(&mut chunk, channel, &event),
            Err(error @ ReadError::Io { .. }) => return Err(error),
            Err(error @ (ReadError::Damaged { .. } | ReadError::Gone { .. })) => {
                write_gap(&mut chunk, &format!("{channel}: {error}"));
                break;
            }
        }
        if chunk.len() >= CHUNK_BYTES {
            break;
        }
    }
    Ok(chunk.freeze())
}
