//! Introductions: what a node says of itself to one that does not have it among its peers.
//!
//! Whoever owns this node decides what follows from it; here it is only as authentic as the network's key makes it.

use super::Node;
use crate::{
    event::{ConnectError, Event},
    handshake::{INTRODUCTION_BYTES_MAX, Kind},
    policy::Pattern,
    reason::DropReason,
    session::Queued,
};
use bytes::Bytes;
use std::net::SocketAddr;
use virga_ebpf::header::{NodeId, SessionId};

impl Node {
    /// Says something of this node to a peer, which may not know it: 1 to [`INTRODUCTION_BYTES_MAX`] bytes, once.
    ///
    /// # Errors
    /// When the peer is not configured.
    ///
    /// # Panics
    /// When there are more bytes, or none.
    pub fn introduce(&mut self, peer: NodeId, words: &[u8]) -> Result<(), ConnectError> {
        assert!((1..=INTRODUCTION_BYTES_MAX).contains(&words.len()));
        if !self.peers.contains_key(&peer) {
            return Err(ConnectError::UnknownPeer(peer));
        }
        let kind = (Kind::Introduction, Pattern::Xx);
        let none = SessionId(0);
        self.post(kind, peer, none, none, words, &[0; 16]);
        Ok(())
    }

    pub(super) fn on_introduction(
        &mut self,
        now_ns: u64,
        source: SocketAddr,
        words: &[u8],
    ) -> Result<(), DropReason> {
        if !self.gate.admit_introduction(now_ns, source.ip()) {
            return Err(DropReason::HandshakeRate);
        }
        let words = Bytes::copy_from_slice(words);
        let event = Event::Introduced { source, words };
        self.events.push_back(Queued::new(SessionId(0), event));
        Ok(())
    }
}
