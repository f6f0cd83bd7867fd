//! The mesh from a program's point of view: publish and subscribe through the node on this machine.
//!
//! ```no_run
//! use futures_util::StreamExt as _;
//! use virga::mesh::Mesh;
//!
//! # async fn example() -> Result<(), virga::mesh::MeshError> {
//! let mesh = Mesh::open("/run/virga/edge-a.sock").await?;
//!
//! let mut events = mesh.subscribe_prefix("metrics").await?;
//! let publisher = mesh.publisher("metrics/edge-a").await?;
//! publisher.publish(b"load 0.42").await?;
//!
//! while let Some(delivery) = events.next().await {
//!     let delivery = delivery?;
//!     println!("{}: {} bytes", delivery.channel, delivery.payload.len());
//! }
//! # Ok(())
//! # }
//! ```

use crate::api::{
    error::ErrorBody,
    frames::{Delivered, FrameError, Frames, parse_end, write_event},
    publish::Published,
    status::{LinkState, Status},
};
use bytes::{Bytes, BytesMut};
use futures_core::Stream;
use futures_util::StreamExt as _;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Frame, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use std::{
    convert::Infallible,
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use thiserror::Error;
use tokio::{net::UnixStream, sync::mpsc, task::JoinHandle};

/// One event as a subscriber gets it.
pub type Delivery = Delivered;

/// Events that a [`Publisher`] holds before it makes its caller wait.
const PUBLISHER_EVENTS_MAX: usize = 1_024;
/// Events that travel to the node in one piece, where as many wait.
const PIECE_EVENTS_MAX: usize = 256;
/// Most bytes of an answer that is not a subscription.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Why something did not happen.
#[derive(Debug, Error)]
pub enum MeshError {
    /// No node answers.
    #[error(
        "cannot reach the node at {}: {source}; is it running (virga node run), and may you open its socket?", path.display()
    )]
    Unreachable {
        /// Its socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The node refused, and says why.
    #[error("{message}")]
    Refused {
        /// The HTTP status code.
        code: u16,
        /// The node's words.
        message: String,
    },
    /// The node went away in between.
    #[error("the connection to the node broke off: {0}")]
    Broken(String),
    /// The node ended the subscription, and says why; what came before it is whole.
    #[error("the node ended the subscription: {0}")]
    Ended(String),
    /// The node sent something that is no answer: another version?
    #[error("the node's answer cannot be read: {0}")]
    Answer(String),
    /// Not a channel name.
    #[error(transparent)]
    Name(#[from] virga_transport::NameError),
}

impl From<hyper::Error> for MeshError {
    fn from(error: hyper::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

impl From<FrameError> for MeshError {
    fn from(error: FrameError) -> Self {
        Self::Answer(error.to_string())
    }
}

type Body = BoxBody<Bytes, Infallible>;

/// The node on this machine. Cheap to clone; each request has its own connection.
#[derive(Clone, Debug)]
pub struct Mesh {
    path: Arc<Path>,
}

impl Mesh {
    /// The node that listens on this socket.
    ///
    /// # Errors
    /// [`MeshError::Unreachable`] when nobody answers there.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, MeshError> {
        let mesh = Self {
            path: path.as_ref().into(),
        };
        mesh.connect().await?;
        Ok(mesh)
    }

    /// Publishes one event, and returns once it is on its way to every subscriber. For more than a
    /// few, [`Mesh::publisher`] is faster.
    ///
    /// # Errors
    /// [`MeshError::Refused`] when this node may not publish there, or there is no such channel.
    pub async fn publish(&self, channel: &str, event: &[u8]) -> Result<Published, MeshError> {
        self.publish_batch(channel, [event]).await
    }

    /// Publishes events in order, and returns once all are on their way to every subscriber.
    ///
    /// # Errors
    /// As [`Mesh::publish`]; events before the error may have been published.
    pub async fn publish_batch<E: AsRef<[u8]>>(
        &self,
        channel: &str,
        events: impl IntoIterator<Item = E>,
    ) -> Result<Published, MeshError> {
        let mut body = BytesMut::new();
        for event in events {
            write_event(&mut body, event.as_ref());
        }
        let body = Full::new(body.freeze()).boxed();
        let answer = self.send(Method::POST, publish_uri(channel)?, body).await?;
        read_json(answer).await
    }

    /// A publisher that keeps its connection.
    ///
    /// # Errors
    /// As [`Mesh::publish`].
    pub async fn publisher(&self, channel: &str) -> Result<Publisher, MeshError> {
        // Asked first, so that a refusal is an error here and not of some later event.
        let none: [&[u8]; 0] = [];
        self.publish_batch(channel, none).await?;
        let uri = publish_uri(channel)?;
        let (events, waiting) = mpsc::channel(PUBLISHER_EVENTS_MAX);
        let pieces = futures_util::stream::unfold(waiting, next_piece);
        let body = BodyExt::boxed(StreamBody::new(pieces));
        let mesh = self.clone();
        let request = tokio::spawn(async move {
            let answer = mesh.send(Method::POST, uri, body).await?;
            read_json(answer).await
        });
        Ok(Publisher { events, request })
    }

    /// Subscribes to one channel.
    ///
    /// # Errors
    /// [`MeshError::Refused`] when this node may not subscribe to it, or there is no such channel.
    pub async fn subscribe(&self, channel: &str) -> Result<Subscription, MeshError> {
        self.subscribe_to("channel", channel).await
    }

    /// Subscribes to every channel at or below a prefix that this node may subscribe to.
    ///
    /// # Errors
    /// [`MeshError::Refused`] when there is none.
    pub async fn subscribe_prefix(&self, prefix: &str) -> Result<Subscription, MeshError> {
        self.subscribe_to("prefix", prefix).await
    }

    async fn subscribe_to(&self, key: &str, name: &str) -> Result<Subscription, MeshError> {
        virga_transport::ChannelName::parse(name)?;
        let uri = format!("/subscribe?{key}={name}");
        let answer = self.send(Method::GET, uri, empty()).await?;
        Ok(Subscription {
            body: answer.into_body(),
            frames: Frames::default(),
        })
    }

    /// What the node is doing.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn status(&self) -> Result<Status, MeshError> {
        let answer = self.send(Method::GET, "/status".into(), empty()).await?;
        read_json(answer).await
    }

    /// Takes the next hop to an adjacent peer in or out of use.
    ///
    /// # Errors
    /// [`MeshError::Refused`] when there is no such next hop.
    pub async fn set_link(&self, peer: &str, state: LinkState) -> Result<(), MeshError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if !peer.chars().all(plain) {
            let message = format!("{peer:?} is not a peer's name");
            return Err(MeshError::Refused { code: 400, message });
        }
        let uri = format!("/link?peer={peer}&state={}", state.name());
        self.send(Method::POST, uri, empty()).await?;
        Ok(())
    }

    async fn connect(&self) -> Result<UnixStream, MeshError> {
        let stream = UnixStream::connect(&*self.path).await;
        stream.map_err(|source| MeshError::Unreachable {
            path: self.path.to_path_buf(),
            source,
        })
    }

    /// One request on a connection of its own; any answer but a success is an error.
    async fn send(
        &self,
        method: Method,
        uri: String,
        body: Body,
    ) -> Result<Response<Incoming>, MeshError> {
        let stream = TokioIo::new(self.connect().await?);
        let (mut sender, connection) = http1::handshake(stream).await?;
        // It ends with the answer's body; its errors show there too.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header(hyper::header::HOST, "node")
            .body(body)
            .map_err(|error| MeshError::Answer(error.to_string()))?;
        let answer = sender.send_request(request).await?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let code = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        let message = match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(body) => body.error,
            Err(_) => String::from_utf8_lossy(&body).into_owned(),
        };
        Err(refused(code, message))
    }
}

fn refused(code: StatusCode, message: String) -> MeshError {
    MeshError::Refused {
        code: code.as_u16(),
        message,
    }
}

/// A valid name needs no escaping in a URI.
fn publish_uri(channel: &str) -> Result<String, MeshError> {
    virga_transport::ChannelName::parse(channel)?;
    Ok(format!("/publish?channel={channel}"))
}

fn empty() -> Body {
    Full::new(Bytes::new()).boxed()
}

async fn read_json<T: serde::de::DeserializeOwned>(
    answer: Response<Incoming>,
) -> Result<T, MeshError> {
    let body = http_body_util::Limited::new(answer.into_body(), ANSWER_BYTES_MAX);
    let body = body
        .collect()
        .await
        .map_err(|error| MeshError::Broken(error.to_string()))?;
    serde_json::from_slice(&body.to_bytes()).map_err(|error| MeshError::Answer(error.to_string()))
}

/// Puts events that wait together into one piece of the body.
async fn next_piece(
    mut waiting: mpsc::Receiver<Bytes>,
) -> Option<(Result<Frame<Bytes>, Infallible>, mpsc::Receiver<Bytes>)> {
    let mut events = Vec::new();
    if waiting.recv_many(&mut events, PIECE_EVENTS_MAX).await == 0 {
        return None;
    }
    let mut piece = BytesMut::new();
    for event in events {
        write_event(&mut piece, &event);
    }
    Some((Ok(Frame::data(piece.freeze())), waiting))
}

/// Publishes on one channel over one connection, at the pace of the subscribers.
#[derive(Debug)]
pub struct Publisher {
    events: mpsc::Sender<Bytes>,
    request: JoinHandle<Result<Published, MeshError>>,
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

impl Publisher {
    /// Queues an event; waits while the subscribers are slower than this program.
    ///
    /// # Errors
    /// [`MeshError::Broken`] when the connection is gone; [`Publisher::finish`] says why.
    pub async fn publish(&self, event: &[u8]) -> Result<(), MeshError> {
        let sent = self.events.send(Bytes::copy_from_slice(event)).await;
        sent.map_err(|_| MeshError::Broken("the node ended the request".into()))
    }

    /// Queues an event, if there is room.
    ///
    /// # Errors
    /// [`TryPublishError`] gives the event back.
    pub fn try_publish(&self, event: impl Into<Bytes>) -> Result<(), TryPublishError> {
        use mpsc::error::TrySendError;
        self.events
            .try_send(event.into())
            .map_err(|error| match error {
                TrySendError::Full(event) => TryPublishError::Full(event),
                TrySendError::Closed(event) => TryPublishError::Gone(event),
            })
    }

    /// Waits until all events are on their way, and says what became of them.
    ///
    /// # Errors
    /// What ended the connection before that.
    pub async fn finish(self) -> Result<Published, MeshError> {
        let Self { events, request } = self;
        drop(events);
        request
            .await
            .map_err(|error| MeshError::Broken(error.to_string()))?
    }
}

/// Deliveries as they come; ends when the node stops. Dropping it ends the subscription.
#[derive(Debug)]
pub struct Subscription {
    body: Incoming,
    frames: Frames,
}

impl Stream for Subscription {
    type Item = Result<Delivery, MeshError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        use hyper::body::Body as _;
        loop {
            match self.frames.next_frame() {
                Ok(Some(frame)) => {
                    if let Some(why) = parse_end(&frame) {
                        return Poll::Ready(Some(Err(MeshError::Ended(why))));
                    }
                    let delivery = Delivered::parse(frame).map_err(MeshError::from);
                    return Poll::Ready(Some(delivery));
                }
                Ok(None) => {}
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            }
            match std::task::ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => {
                    if let Some(bytes) = frame.data_ref() {
                        self.frames.extend(bytes);
                    }
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => return Poll::Ready(None),
            }
        }
    }
}

impl Subscription {
    /// The next delivery; `None` when the node stops.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn next_delivery(&mut self) -> Option<Result<Delivery, MeshError>> {
        self.next().await
    }
}
