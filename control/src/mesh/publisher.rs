//! Many events over one connection.

use super::{Mesh, MeshError, read_json};
use crate::api::{frames::write_event, publish::Published};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use http_body_util::{BodyExt, StreamBody};
use hyper::{Method, body::Frame};
use std::{convert::Infallible, sync::Arc};
use thiserror::Error;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::JoinHandle,
};
use virga_transport::limits::MESSAGE_BYTES_MAX;

/// Events that a publisher holds before it makes its caller wait.
const EVENTS_MAX: usize = 1_024;
/// Bytes that those may have; a larger event than that is held alone.
const BYTES_MAX: u32 = 4 * 1024 * 1024;
/// Events that travel to the node in one piece, where as many wait.
const PIECE_EVENTS_MAX: usize = 256;

const _: () = assert!(BYTES_MAX as usize >= MESSAGE_BYTES_MAX);

/// Publishes on one channel over one connection, at the pace of the subscribers.
#[derive(Debug)]
pub struct Publisher {
    events: mpsc::Sender<Waiting>,
    /// Room for events that wait, in bytes.
    room: Arc<Semaphore>,
    request: JoinHandle<Result<Published, MeshError>>,
    event_bytes_max: usize,
}

/// An event on its way to the node, and the room that it takes up until then.
#[derive(Debug)]
struct Waiting {
    event: Bytes,
    _room: OwnedSemaphorePermit,
}

/// An event that was not taken; it is the caller's again.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TryPublishError {
    /// As many wait already as may.
    #[error("the publisher is full: the subscribers are slower than this program")]
    Full(Bytes),
    /// The connection is gone; [`Publisher::finish`] says why.
    #[error("the publisher's connection is gone")]
    Gone(Bytes),
}

fn ended<T>(_: T) -> MeshError {
    MeshError::Broken("the node ended the request".into())
}

/// The room that an event takes up.
fn room(event: &[u8]) -> u32 {
    u32::try_from(event.len())
        .unwrap_or(BYTES_MAX)
        .min(BYTES_MAX)
}

impl Publisher {
    /// Begins the request; `channel_now` is what the node said to an empty one.
    pub(super) fn start(mesh: Mesh, uri: String, channel_now: Published) -> Self {
        let (events, waiting) = mpsc::channel(EVENTS_MAX);
        let (answered, until_answered) = oneshot::channel::<()>();
        let pieces = futures_util::stream::unfold(waiting, next_piece).take_until(until_answered);
        let body = BodyExt::boxed(StreamBody::new(pieces));
        let request = tokio::spawn(async move {
            let answer = match mesh.send(Method::POST, uri, body).await {
                Ok(answer) => read_json(answer).await,
                Err(error) => Err(error),
            };
            // The node has said all that it will: the body ends, whatever was still to come.
            drop(answered);
            answer
        });
        Self {
            events,
            room: Arc::new(Semaphore::new(BYTES_MAX as usize)),
            request,
            event_bytes_max: channel_now.event_bytes_max,
        }
    }

    /// Bytes of the largest event that the channel carries; the node refuses larger ones.
    #[must_use]
    pub const fn event_bytes_max(&self) -> usize {
        self.event_bytes_max
    }

    /// Waits until the node ends the request by itself, early; [`Publisher::finish`] says why.
    pub async fn ended(&self) {
        self.events.closed().await;
    }

    /// Queues an event; waits while the subscribers are slower than this program.
    ///
    /// # Errors
    /// [`MeshError::Broken`] when the connection is gone; [`Publisher::finish`] says why.
    pub async fn publish(&self, event: &[u8]) -> Result<(), MeshError> {
        let room = Arc::clone(&self.room).acquire_many_owned(room(event));
        let waiting = Waiting {
            _room: room.await.map_err(ended)?,
            event: Bytes::copy_from_slice(event),
        };
        self.events.send(waiting).await.map_err(ended)
    }

    /// Queues an event, if there is room.
    ///
    /// # Errors
    /// [`TryPublishError`] gives the event back.
    pub fn try_publish(&self, event: impl Into<Bytes>) -> Result<(), TryPublishError> {
        use mpsc::error::TrySendError;
        let event = event.into();
        let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(room(&event)) else {
            return Err(match self.events.is_closed() {
                true => TryPublishError::Gone(event),
                false => TryPublishError::Full(event),
            });
        };
        let waiting = Waiting { event, _room: room };
        self.events.try_send(waiting).map_err(|error| match error {
            TrySendError::Full(waiting) => TryPublishError::Full(waiting.event),
            TrySendError::Closed(waiting) => TryPublishError::Gone(waiting.event),
        })
    }

    /// Waits until all events are on their way, and says what became of them.
    ///
    /// # Errors
    /// What ended the connection before that.
    pub async fn finish(self) -> Result<Published, MeshError> {
        let Self {
            events, request, ..
        } = self;
        drop(events);
        request
            .await
            .map_err(|error| MeshError::Broken(error.to_string()))?
    }
}

/// Puts events that wait together into one piece of the body.
async fn next_piece(
    mut events: mpsc::Receiver<Waiting>,
) -> Option<(Result<Frame<Bytes>, Infallible>, mpsc::Receiver<Waiting>)> {
    let mut waiting = Vec::new();
    if events.recv_many(&mut waiting, PIECE_EVENTS_MAX).await == 0 {
        return None;
    }
    let mut piece = BytesMut::new();
    for Waiting { event, .. } in waiting {
        write_event(&mut piece, &event);
    }
    Some((Ok(Frame::data(piece.freeze())), events))
}
