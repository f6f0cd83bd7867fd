//! What a node sends: handshake messages and its sessions' packets, in turn.

use super::Node;
use crate::event::{Toward, Transmit};
use virga_ebpf::header::SessionId;

/// Whose turn it is to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Handshakes,
    Sessions,
}

impl Turn {
    const fn other(self) -> Self {
        match self {
            Self::Handshakes => Self::Sessions,
            Self::Sessions => Self::Handshakes,
        }
    }
}

impl Node {
    /// Appends the next run of datagrams to `buf`; `None` when there is nothing to send now.
    /// Handshake messages and sessions take turns: neither can keep the other waiting. Links' keepalives,
    /// which are few and due now, go first.
    pub fn poll_transmit(&mut self, now_ns: u64, buf: &mut Vec<u8>) -> Option<Transmit> {
        if let Some(transmit) = self.transmit_link(now_ns, buf) {
            return Some(transmit);
        }
        let turn = self.turn;
        self.turn = turn.other();
        match turn {
            Turn::Handshakes => self
                .transmit_handshake(buf)
                .or_else(|| self.transmit_session(now_ns, buf)),
            Turn::Sessions => self
                .transmit_session(now_ns, buf)
                .or_else(|| self.transmit_handshake(buf)),
        }
    }

    fn transmit_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Transmit> {
        let outbound = self.outbox.pop_front()?;
        self.counters.sent_datagrams += 1;
        buf.extend_from_slice(&outbound.bytes);
        let bytes = outbound.bytes.len();
        Some(Transmit {
            destination: outbound.destination,
            toward: Toward::Route,
            bytes,
            segment_bytes: bytes,
        })
    }

    fn transmit_session(&mut self, now_ns: u64, buf: &mut Vec<u8>) -> Option<Transmit> {
        while let Some(id) = self.row.pop_front() {
            let sent = self.with_session(now_ns, id, |session, ctx| {
                let run = session.poll_transmit(ctx, buf);
                session.is_queued = run.is_some();
                run.map(|run| (run, session.ends.peer))
            });
            if let Some(Some((run, destination))) = sent {
                self.row.push_back(id);
                self.counters.sent_datagrams += run.count;
                self.settle(now_ns, id, self.events.len());
                return Some(Transmit {
                    destination,
                    toward: run.toward,
                    bytes: run.bytes,
                    segment_bytes: run.segment_bytes,
                });
            }
            self.update_timer(now_ns, id);
        }
        None
    }

    /// Sets the timer of a session that has nothing to send, and acts on its outcome.
    fn update_timer(&mut self, now_ns: u64, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        session.is_queued = true;
        self.settle(now_ns, id, self.events.len());
        if let Some(session) = self.sessions.get_mut(&id) {
            session.is_queued = false;
        }
    }
}
