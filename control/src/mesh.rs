//! The mesh from a program's point of view: publish and subscribe through the node on this machine.
//!
//! ```
//! use futures_util::StreamExt as _;
//! use virga::mesh::Mesh;
//!
//! # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/one_node.rs"));
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let node = Mesh::start(one_node(folder.path(), 1)?).await?;
//! let socket = "/run/virga/edge-a.sock";
//! # let socket = folder.path().join("node.sock");
//! let mesh = Mesh::open(socket).await?;
//!
//! let mut events = mesh.subscribe_prefix("metrics").await?;
//! let publisher = mesh.publisher("metrics/here").await?;
//! publisher.publish(b"load 0.42").await?;
//!
//! while let Some(delivery) = events.next().await {
//!     let delivery = delivery?;
//!     println!("{}: {} bytes", delivery.channel, delivery.payload.len());
//! #   assert_eq!(delivery.payload, &b"load 0.42"[..]);
//! #   break;
//! }
//! # node.stop().await?;
//! # Ok(())
//! # }
//! ```
//!
//! Without a daemon, [`Mesh::start`] runs a node in the program's own process:
//!
//! ```
//! use virga::{config::Config, mesh::Mesh};
//!
//! # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/one_node.rs"));
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # /*
//! let config = Config::load("/etc/virga/node.toml".as_ref())?;
//! # */
//! # let config = one_node(folder.path(), 2)?;
//! let mesh = Mesh::start(config).await?;
//! let published = mesh.publish("metrics/here", b"load 0.42").await?;
//! assert_eq!(published.published, 1);
//! mesh.stop().await?;
//! # Ok(())
//! # }
//! ```
//!
//! [`blocking`] is the same without `async`.

use crate::{
    api::{
        error::ErrorBody,
        frames::{Delivered, FrameError, Frames, parse_end, write_event},
        publish::Published,
        status::{LinkState, Status},
    },
    channel::{Plan, status::SubscriptionStatus},
    config::Config,
    daemon::{DaemonError, embedded::Embedded},
    routes::RoutesStatus,
    trace::Trace,
};
use bytes::{Bytes, BytesMut};
use futures_core::Stream;
use futures_util::StreamExt as _;
use http_body_util::{BodyExt, Collected, Full, Limited, combinators::BoxBody};
use hyper::{Method, Request, Response, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use std::{
    convert::Infallible,
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use thiserror::Error;
use tokio::net::UnixStream;

pub mod blocking;
mod capture;
mod channels;
mod config;
mod fan_out;
mod flow;
mod fold;
mod publisher;
mod replay;
mod rights;

pub use crate::api::frames::{KeptEvent, LogOpened};
pub use capture::Capture;
pub use fan_out::{ChannelPublisher, FanOutError};
pub use flow::Flow;
pub use fold::{Live, LiveError};
pub use publisher::{Publisher, TryPublishError};
pub use replay::{Replay, Replayed, Which};
pub use virga_state::Cursor;

/// One event as a subscriber gets it.
pub type Delivery = Delivered;

/// How often it is looked for subscribers that are awaited.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Most bytes of an answer that is not a subscription.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Why something did not happen.
#[derive(Debug, Error)]
pub enum MeshError {
    /// No node answers.
    #[error(
        "cannot reach the node at {}: {source}; {}", path.display(), match .source.kind() {
            io::ErrorKind::PermissionDenied => "run as root, or as a member of the node's `socket_group`",
            _ => "is it running (virga node run)?",
        }
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

/// The node on this machine, or in this process. Cheap to clone; each request has its own connection.
#[derive(Clone, Debug)]
pub struct Mesh {
    node: Node,
}

/// Where the node is.
#[derive(Clone, Debug)]
enum Node {
    /// A daemon, on this socket.
    Daemon(Arc<Path>),
    /// In this process.
    Here(Arc<Embedded>),
}

impl Mesh {
    /// The node that listens on this socket.
    ///
    /// # Errors
    /// [`MeshError::Unreachable`] when nobody answers there.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, MeshError> {
        let mesh = Self {
            node: Node::Daemon(path.as_ref().into()),
        };
        mesh.connect().await?;
        Ok(mesh)
    }

    /// Runs a node in this process, on threads of its own, and gives its mesh; there is no daemon. It listens
    /// on its configuration's socket too, so `virga status` and other programs reach it as they reach a
    /// daemon. It ends with [`Mesh::stop`], or by itself after the last clone of this is dropped,
    /// and the last subscription and publisher that came of one.
    ///
    /// # Errors
    /// [`DaemonError`]: what is in its way, as `virga node run` says it.
    pub async fn start(config: Config) -> Result<Self, DaemonError> {
        let embedded = Embedded::start(config).await?;
        Ok(Self {
            node: Node::Here(Arc::new(embedded)),
        })
    }

    /// Ends the node that [`Mesh::start`] runs, and waits for it: what was published has arrived then, or
    /// its subscribers did not take it within some seconds. A daemon goes on.
    ///
    /// # Errors
    /// [`DaemonError::Ended`]: it had ended before, or did not end as it should.
    pub async fn stop(&self) -> Result<(), DaemonError> {
        match &self.node {
            Node::Daemon(_) => Ok(()),
            Node::Here(embedded) => embedded.stop().await,
        }
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
        let uri = self.publish_uri(channel).await?;
        let answer = self.send(Method::POST, uri, body).await?;
        read_json(answer).await
    }

    /// A publisher that keeps its connection.
    ///
    /// # Errors
    /// As [`Mesh::publish`].
    pub async fn publisher(&self, channel: &str) -> Result<Publisher, MeshError> {
        // Asked first, so that a refusal is an error here and not of some later event.
        let channel_now = self.publish_nothing(channel).await?;
        let uri = self.publish_uri(channel).await?;
        Ok(Publisher::start(self.clone(), uri, channel_now))
    }

    /// The same; an event that was not sent to a subscriber this long after the node got it is given up
    /// and counted. Rounded up to whole milliseconds.
    ///
    /// # Errors
    /// As [`Mesh::publish`].
    pub async fn publisher_within(
        &self,
        channel: &str,
        within: Duration,
    ) -> Result<Publisher, MeshError> {
        let channel_now = self.publish_nothing(channel).await?;
        let within_ms = within.as_nanos().div_ceil(1_000_000).max(1);
        let within_ms = u64::try_from(within_ms).unwrap_or(u64::MAX);
        let uri = self.publish_uri(channel).await?;
        let uri = format!("{uri}&within_ms={within_ms}");
        Ok(Publisher::start(self.clone(), uri, channel_now))
    }

    /// A publisher that says what became of each publish at each subscribing node.
    ///
    /// # Errors
    /// As [`Mesh::publish`].
    pub async fn channel_publisher(
        &self,
        channel: &str,
        plan: Plan,
    ) -> Result<ChannelPublisher, MeshError> {
        self.publish_nothing(channel).await?;
        let channel = self.channel_name(channel).await?;
        Ok(ChannelPublisher::new(self.clone(), channel, plan))
    }

    /// How many subscribers a channel has: programs on this node, and other nodes that this one knows of.
    /// A node that has started hears of the others' within a few seconds.
    ///
    /// # Errors
    /// As [`Mesh::publish`].
    pub async fn subscribers(&self, channel: &str) -> Result<usize, MeshError> {
        Ok(self.publish_nothing(channel).await?.subscribers)
    }

    /// Waits until a channel has so many subscribers, and returns how many there are. Never gives up:
    /// put a time-out around it.
    ///
    /// # Errors
    /// As [`Mesh::publish`].
    pub async fn wait_for_subscribers(
        &self,
        channel: &str,
        count: usize,
    ) -> Result<usize, MeshError> {
        loop {
            let subscribers = self.subscribers(channel).await?;
            if subscribers >= count {
                return Ok(subscribers);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn publish_nothing(&self, channel: &str) -> Result<Published, MeshError> {
        let none: [&[u8]; 0] = [];
        self.publish_batch(channel, none).await
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
        let name = self.channel_name(name).await?;
        let uri = format!("/subscribe?{key}={name}");
        let answer = self.send(Method::GET, uri, empty()).await?;
        Ok(Subscription {
            _mesh: self.clone(),
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

    /// This node's subscriptions at other nodes, and how each stands: all local subscribers' together.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn subscriptions(&self) -> Result<Vec<SubscriptionStatus>, MeshError> {
        let answer = self
            .send(Method::GET, "/subscriptions".into(), empty())
            .await?;
        read_json(answer).await
    }

    /// Who leads where, and by whose word.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn routes(&self) -> Result<RoutesStatus, MeshError> {
        let answer = self.send(Method::GET, "/routes".into(), empty()).await?;
        read_json(answer).await
    }

    /// The way that packets for a node take, by a peer's name or the node's id, and how each link on it is doing.
    ///
    /// # Errors
    /// [`MeshError::Refused`] when there is no such node.
    pub async fn trace(&self, to: &str) -> Result<Trace, MeshError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if !to.chars().all(plain) {
            let message = format!("{to:?} is neither a peer's name nor a node's id");
            return Err(MeshError::Refused { code: 400, message });
        }
        let uri = format!("/trace?to={to}");
        let answer = self.send(Method::GET, uri, empty()).await?;
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
        let ended = || MeshError::Broken("the node in this process has ended".into());
        match &self.node {
            Node::Daemon(path) => {
                let stream = UnixStream::connect(&**path).await;
                stream.map_err(|source| MeshError::Unreachable {
                    path: path.to_path_buf(),
                    source,
                })
            }
            Node::Here(embedded) => match embedded.connect().await {
                Ok(stream) => stream.ok_or_else(ended),
                Err(error) => Err(MeshError::Broken(format!(
                    "no connection to the node in this process: {error}"
                ))),
            },
        }
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
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX);
        let message = match body.collect().await.map(Collected::to_bytes) {
            Ok(body) => match serde_json::from_slice::<ErrorBody>(&body) {
                Ok(body) => body.error,
                Err(_) => String::from_utf8_lossy(&body).into_owned(),
            },
            Err(error) => format!("the node answered {code}, and its reason was lost: {error}"),
        };
        let code = code.as_u16();
        Err(MeshError::Refused { code, message })
    }
}

fn empty() -> Body {
    whole(Vec::new())
}

fn whole(body: Vec<u8>) -> Body {
    Full::new(Bytes::from(body)).boxed()
}

async fn read_json<T: serde::de::DeserializeOwned>(
    answer: Response<Incoming>,
) -> Result<T, MeshError> {
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX);
    let body = body
        .collect()
        .await
        .map_err(|error| MeshError::Broken(error.to_string()))?;
    serde_json::from_slice(&body.to_bytes()).map_err(|error| MeshError::Answer(error.to_string()))
}

/// Deliveries as they come; ends when the node stops. Dropping it ends the subscription.
#[derive(Debug)]
pub struct Subscription {
    /// A node in this process goes on while there is somebody to deliver to.
    _mesh: Mesh,
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
