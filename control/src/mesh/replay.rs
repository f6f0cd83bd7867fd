//! Kept events, from any place on.
//!
//! ```
//! use virga::mesh::{Cursor, Mesh, Replayed};
//!
//! # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/one_node.rs"));
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let mesh = Mesh::start(one_node(folder.path(), 5)?).await?;
//! # /*
//! let mesh = Mesh::open("/run/virga/edge-a.sock").await?;
//! # */
//! # mesh.publish_batch("metrics/here", [b"load 0.42", b"load 0.40"]).await?;
//! let mut events = mesh.replay("metrics/here", Cursor::Offset(1)).await?;
//! while let Some(next) = events.next_kept().await {
//!     match next? {
//!         Replayed::Event(event) => println!("{}: {} bytes", event.offset, event.payload.len()),
//!         Replayed::Gap(why) => eprintln!("{why}"),
//!     }
//! #   break;
//! }
//! # mesh.stop().await?;
//! # Ok(())
//! # }
//! ```

use super::{Mesh, MeshError};
use crate::{
    api::frames::{Frames, KeptEvent, LogOpened, Place, ReplayFrame},
    hex,
};
use futures_core::Stream;
use futures_util::StreamExt as _;
use hyper::{Method, body::Incoming};
use std::{
    collections::BTreeMap,
    pin::Pin,
    task::{Context, Poll},
};
use virga_state::{Cursor, format::LogId};
use virga_transport::ChannelName;

/// What a log gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replayed {
    /// An event.
    Event(KeptEvent),
    /// Events that it cannot give, and why: retention has removed them, or they are damaged.
    Gap(String),
}

/// What a replay has, where it is asked for places.
#[derive(Debug)]
pub(super) enum Item {
    Given(Replayed),
    Place(Place),
}

/// Which log of a channel is meant, where several nodes keep one each; any where nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Which {
    /// The node that keeps it, by its name or its id in hex.
    pub node: Option<String>,
    /// Its id, as [`Replay::log`] told it before: offsets are places in that log and in no other.
    pub log: Option<LogId>,
}

impl Mesh {
    /// Reads a kept channel's log from a place on, and goes on with what comes: each event once, in the
    /// log's order, however slowly it is read. Begin at [`Cursor::After`] the last event that was dealt
    /// with, and nothing is missed or seen twice.
    ///
    /// Where this node does not keep the channel (`persist = true`), a node is read that does; over restarts of that
    /// node it goes on where it was.
    ///
    /// # Errors
    /// [`MeshError::Refused`] where this node's entity may not subscribe, or nobody keeps the channel.
    pub async fn replay(&self, channel: &str, from: Cursor) -> Result<Replay, MeshError> {
        self.replay_at(channel, from, &Which::default()).await
    }

    /// The same of one of several logs.
    ///
    /// # Errors
    /// The same.
    pub async fn replay_at(
        &self,
        channel: &str,
        from: Cursor,
        which: &Which,
    ) -> Result<Replay, MeshError> {
        self.replay_of("channel", channel, from, which).await
    }

    /// The same for every kept channel at or below a prefix: of each in its log's order, of several in
    /// none. An offset is no place in several logs.
    ///
    /// # Errors
    /// [`MeshError::Refused`] where there is none, or the place is an offset.
    pub async fn replay_prefix(&self, prefix: &str, from: Cursor) -> Result<Replay, MeshError> {
        let which = Which::default();
        self.replay_of("prefix", prefix, from, &which).await
    }

    /// The same as [`Self::replay_at`], with places between.
    pub(super) async fn replay_with_places(
        &self,
        channel: &str,
        from: Cursor,
        which: &Which,
    ) -> Result<Replay, MeshError> {
        let key = "places=true&channel";
        self.replay_of(key, channel, from, which).await
    }

    async fn replay_of(
        &self,
        key: &str,
        name: &str,
        from: Cursor,
        which: &Which,
    ) -> Result<Replay, MeshError> {
        let name = self.channel_name(name).await?;
        let mut uri = format!("/replay?{key}={name}&from={from}");
        if let Some(node) = &which.node {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
            if !node.chars().all(plain) {
                let message = format!("{node:?} is neither a peer's name nor a node's id");
                return Err(MeshError::Refused { code: 400, message });
            }
            uri += "&at=";
            uri += node;
        }
        if let Some(log) = &which.log {
            uri += "&log=";
            uri += &hex::encode_bytes(log);
        }
        let answer = self.send(Method::GET, uri, super::empty()).await?;
        Ok(Replay {
            body: answer.into_body(),
            frames: Frames::default(),
            logs: BTreeMap::new(),
            _mesh: self.clone(),
        })
    }
}

/// Kept events as they come; ends when the node stops. Dropping it ends the replay.
#[derive(Debug)]
pub struct Replay {
    body: Incoming,
    frames: Frames,
    /// Which log each channel's events come from.
    logs: BTreeMap<ChannelName, LogOpened>,
    /// A node in this process runs as long as it is read from.
    _mesh: Mesh,
}

impl Stream for Replay {
    type Item = Result<Replayed, MeshError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            return Poll::Ready(match std::task::ready!(self.poll_item(context)) {
                Some(Ok(Item::Given(given))) => Some(Ok(given)),
                Some(Ok(Item::Place(_))) => continue,
                Some(Err(error)) => Some(Err(error)),
                None => None,
            });
        }
    }
}

impl Replay {
    /// Which log a channel's events came from until now; none before the first.
    #[must_use]
    pub fn log(&self, channel: &ChannelName) -> Option<&LogOpened> {
        self.logs.get(channel)
    }

    /// What comes next, a place too; `None` when the node stops.
    pub(super) fn poll_item(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Item, MeshError>>> {
        use hyper::body::Body as _;
        loop {
            match self.frames.next_frame() {
                Ok(Some(frame)) => {
                    return Poll::Ready(Some(match ReplayFrame::parse(frame) {
                        Ok(ReplayFrame::Opened(opened)) => {
                            self.logs.insert(opened.channel.clone(), opened);
                            continue;
                        }
                        Ok(ReplayFrame::Kept(event)) => Ok(Item::Given(Replayed::Event(event))),
                        Ok(ReplayFrame::Gap(why)) => Ok(Item::Given(Replayed::Gap(why))),
                        Ok(ReplayFrame::Place(place)) => Ok(Item::Place(place)),
                        Ok(ReplayFrame::Ended(why)) => Err(MeshError::Ended(why)),
                        Err(error) => Err(error.into()),
                    }));
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

    /// What comes next; `None` when the node stops.
    ///
    /// # Errors
    /// When the connection broke, or the log cannot be read on.
    pub async fn next_kept(&mut self) -> Option<Result<Replayed, MeshError>> {
        self.next().await
    }
}
