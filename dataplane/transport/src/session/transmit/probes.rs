//! Packets that only ask something of the path: how large a packet may be, where the peer is, and whether the
//! link to it carries anything.

use super::{Label, Run, begin, pad};
use crate::{
    event::Toward,
    frame::{Frame, LinkFrame, PADDING},
    path::Aside,
    recovery::Content,
    session::{Context, Session},
};
use virga_ebpf::{header::PRIORITY_CONTROL, limits::TAG_BYTES};

impl Session {
    /// Asks whether the peer is where its newest packet came from, or at another address; and answers the peer
    /// that asks the same.
    pub(super) fn build_aside(&mut self, ctx: &Context<'_>, out: &mut Vec<u8>) -> Option<Run> {
        if !self.is_established() {
            return None;
        }
        let wait_ns = self.path.round_trip().probe_ns();
        let (address, aside) = self.validation.aside(ctx.now_ns, wait_ns)?;
        let start = begin(out);
        match aside {
            Aside::Challenge(token) => Frame::PathChallenge { token }.write(out),
            Aside::Response(token) => Frame::PathResponse { token }.write(out),
        }
        let bytes = self.seal(ctx, out, start, &Label::CONTROL);
        Some(Run {
            toward: Toward::Address(address),
            ..Run::one(bytes)
        })
    }

    /// A packet of the link's keepalive, which is lost for good if it is. It does not count as a sign of life
    /// of the session, and may be answered by a reset.
    pub(crate) fn build_link(
        &mut self,
        ctx: &mut Context<'_>,
        frame: LinkFrame,
        out: &mut Vec<u8>,
    ) -> Option<usize> {
        if !self.is_established() || self.sequence >= ctx.limits.sequence_max {
            return None;
        }
        self.recovery.choose_skip(self.sequence, ctx.generator);
        let (start, sent_ns) = (begin(out), self.last_sent_ns);
        Frame::Link(frame).write(out);
        pad(out, start);
        let bytes = self.seal(ctx, out, start, &Label::CONTROL);
        ctx.counters.classes.sent(PRIORITY_CONTROL, bytes, 0, 0);
        self.last_sent_ns = sent_ns;
        Some(bytes)
    }

    /// A ping with padding, to find out whether the path carries a packet as large (RFC 8899).
    pub(super) fn build_mtu_probe(
        &mut self,
        ctx: &Context<'_>,
        out: &mut Vec<u8>,
    ) -> Option<usize> {
        if !self.is_established() || !self.may_ask() || self.sequence >= ctx.limits.sequence_max {
            return None;
        }
        let bytes = self.path.wants_mtu_probe(ctx.now_ns)?;
        let start = begin(out);
        Frame::Ping.write(out);
        out.resize(start + bytes - TAG_BYTES, PADDING);
        let sequence = self.sequence;
        self.seal(ctx, out, start, &Label::CONTROL);
        self.path.on_mtu_probe_sent(sequence, bytes);
        self.note_sent(ctx, sequence, bytes, 0, Content::default());
        Some(bytes)
    }
}
