//! A node: its peers, its sessions, and the five verbs over them.

use crate::{
    config::{ConfigError, NodeConfig},
    event::{
        ConnectError, Event, Handled, OpenError, SendError, SessionStatus, StreamSpec, Transmit,
    },
    reason::{DropReason, NodeCounters},
};
use std::net::SocketAddr;
use virga_ebpf::{
    hash,
    header::{NodeId, OriginHash, StreamId},
};
use x25519_dalek::{PublicKey, StaticSecret};

/// The protocol of one node, without any input or output.
pub struct Node {
    id: NodeId,
    origin: OriginHash,
    counters: NodeCounters,
}

impl Node {
    /// A node that has no session yet.
    ///
    /// # Errors
    /// When the configuration contradicts itself.
    pub fn new(config: NodeConfig, _now_ns: u64) -> Result<Self, ConfigError> {
        config.limits.check()?;
        let public = PublicKey::from(&StaticSecret::from(config.node_key));
        let entity = ed25519_dalek::SigningKey::from_bytes(&config.entity_key).verifying_key();
        Ok(Self {
            id: hash::node_id(public.as_bytes()),
            origin: hash::origin_hash(entity.as_bytes()),
            counters: NodeCounters::default(),
        })
    }

    /// This node's id.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// What headers call the entity on this node.
    #[must_use]
    pub fn origin(&self) -> OriginHash {
        self.origin
    }

    /// Takes one datagram in; it is opened in place.
    pub fn handle(&mut self, _now_ns: u64, _source: SocketAddr, _datagram: &mut [u8]) -> Handled {
        self.counters.drop(DropReason::UnknownSession);
        Handled::Dropped(DropReason::UnknownSession)
    }

    /// Appends the next run of datagrams to `buf`; `None` when there is nothing to send now.
    pub fn poll_transmit(&mut self, _now_ns: u64, _buf: &mut Vec<u8>) -> Option<Transmit> {
        None
    }

    /// When [`Node::handle_timeout`] is due, on the clock of `now_ns`.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<u64> {
        None
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, _now_ns: u64) {}

    /// What happened since; reading a message gives its sender room for more.
    pub fn poll(&mut self) -> Option<Event> {
        None
    }

    /// Has a session with `peer` from now on: tries again, with capped and jittered back-off,
    /// until [`Node::close`].
    ///
    /// # Errors
    /// When the peer is not configured.
    pub fn connect(&mut self, _now_ns: u64, peer: NodeId) -> Result<(), ConnectError> {
        Err(ConnectError::UnknownPeer(peer))
    }

    /// Queues a message on the session's control stream: reliable, ordered.
    ///
    /// # Errors
    /// See [`SendError`]; nothing was queued then.
    pub fn send_control(
        &mut self,
        _now_ns: u64,
        _peer: NodeId,
        _message: &[u8],
    ) -> Result<(), SendError> {
        Err(SendError::NoSession)
    }

    /// Opens a stream to `peer`; the first message tells the peer so.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_stream(
        &mut self,
        _now_ns: u64,
        peer: NodeId,
        _spec: &StreamSpec,
    ) -> Result<StreamId, OpenError> {
        Err(OpenError::NoSession(peer))
    }

    /// Queues a message on a stream that this node opened.
    ///
    /// # Errors
    /// See [`SendError`]; nothing was queued then.
    pub fn send(
        &mut self,
        _now_ns: u64,
        _peer: NodeId,
        _stream: StreamId,
        _event: &[u8],
    ) -> Result<(), SendError> {
        Err(SendError::NoSession)
    }

    /// Finishes a stream that this node opened, after what is queued.
    ///
    /// # Errors
    /// [`SendError::NoSession`] or [`SendError::NoStream`].
    pub fn finish_stream(
        &mut self,
        _now_ns: u64,
        _peer: NodeId,
        _stream: StreamId,
    ) -> Result<(), SendError> {
        Err(SendError::NoSession)
    }

    /// Refuses a stream that the peer opened: later messages are counted and dropped, and the peer
    /// is told.
    ///
    /// # Errors
    /// [`SendError::NoSession`] or [`SendError::NoStream`].
    pub fn refuse_stream(
        &mut self,
        _now_ns: u64,
        _peer: NodeId,
        _stream: StreamId,
    ) -> Result<(), SendError> {
        Err(SendError::NoSession)
    }

    /// Ends the session with `peer` and stops trying for another.
    pub fn close(&mut self, _now_ns: u64, _peer: NodeId) {}

    /// Every session, for people.
    pub fn sessions(&self) -> impl Iterator<Item = SessionStatus> + '_ {
        std::iter::empty()
    }

    /// What was counted.
    #[must_use]
    pub fn counters(&self) -> &NodeCounters {
        &self.counters
    }
}
