//! A datagram's way through a worker: decided upon, then sent on, handed over, or opened.

use super::{
    Service, WorkerCounters,
    mailbox::{Slots, is_handshake},
};
use crate::{
    event::Event,
    flow::{self, Untimed},
    forward::{Forwarder, Forwarding},
    io::{
        clock::unix_ns,
        driver::{Outlet, Run, Sent},
    },
    limits::TRANSMIT_BYTES_MAX,
    node::Node,
};
use std::net::SocketAddr;

/// What a datagram meets on its way in.
pub(super) struct Inward<'a, S> {
    pub(super) node: &'a mut Node,
    pub(super) forwarder: &'a mut Forwarder,
    pub(super) service: &'a mut S,
    pub(super) counters: &'a mut WorkerCounters,
    pub(super) others: &'a mut Slots,
}

impl<S: Service> Inward<'_, S> {
    /// Sends on what is for others, and hands over what is for this node.
    pub(super) fn take_in(&mut self, now_ns: u64, outlet: &mut Outlet<'_>, run: Run<'_>) {
        if let Some(flow) = self.node.flow_mut() {
            flow.set_waited(waited(self.forwarder, &run, unix_ns()));
        }
        let mut onward = Onward::new(run.segment_bytes);
        for at in (0..run.bytes.len()).step_by(run.segment_bytes) {
            let end = run.bytes.len().min(at + run.segment_bytes);
            let datagram = &mut run.bytes[at..end];
            match self
                .forwarder
                .handle(now_ns, run.ifindex, run.source, datagram)
            {
                Forwarding::Forward { to } => {
                    self.counters.forwarded += 1;
                    if !onward.extend(to, at, end) {
                        self.counters.forward_blocked += onward.flush(outlet, run.bytes);
                        onward.begin(to, at, end);
                    }
                }
                Forwarding::Local => self.deliver(now_ns, run.source, datagram),
                // The forwarder has counted it, and noted what is one.
                Forwarding::Echo | Forwarding::Drop(_) => {}
            }
        }
        self.counters.forward_blocked += onward.flush(outlet, run.bytes);
        if let Some(flow) = self.node.flow_mut() {
            flow.set_waited(Err(Untimed::Earlier));
        }
    }

    /// Opens a datagram, or hands it over to the worker whose session it is.
    fn deliver(&mut self, now_ns: u64, source: SocketAddr, datagram: &mut [u8]) {
        let Some(owner) = self.others.other_owner(datagram) else {
            return self.open(now_ns, source, datagram);
        };
        // All workers know the tag's key: what an outsider made takes no place in the ring.
        if is_handshake(datagram) && self.node.refuse_forged(datagram) {
            return;
        }
        if self.others.hand_over(now_ns, owner, source, datagram) {
            self.counters.handed_over += 1;
        } else {
            self.counters.hand_over_full += 1;
        }
    }

    /// Opens a datagram and tells the service at once: the node holds only so many unread events.
    pub(super) fn open(&mut self, now_ns: u64, source: SocketAddr, datagram: &mut [u8]) {
        // The node counts what it drops.
        let _counted = self.node.handle(now_ns, source, datagram);
        while let Some(event) = self.node.poll() {
            follow(self.forwarder, &event);
            self.service.on_event(now_ns, self.node, event);
        }
    }
}

/// How long a run waited in the kernel; what was carried has waited elsewhere before that.
fn waited(forwarder: &Forwarder, run: &Run<'_>, unix_ns: u64) -> Result<u64, Untimed> {
    match forwarder.is_carried(run.source) {
        true => Err(Untimed::Carried),
        false => flow::waited(run.stamp, unix_ns),
    }
}

/// A neighbour that moved is sent to where it is; a link that died gives way to backups.
pub(super) fn follow(forwarder: &mut Forwarder, event: &Event) {
    match event {
        Event::AddressChanged { peer, address } => forwarder.follow(*peer, *address),
        Event::Link { peer, state, .. } if state.is_dead() => forwarder.avoid(*peer),
        _ => {}
    }
}

/// Neighbouring datagrams of one received run that go to the same next hop: sent on in one call.
struct Onward {
    segment_bytes: usize,
    to: Option<SocketAddr>,
    from: usize,
    end: usize,
}

impl Onward {
    fn new(segment_bytes: usize) -> Self {
        Self {
            segment_bytes,
            to: None,
            from: 0,
            end: 0,
        }
    }

    /// Takes the datagram in when it follows the others and goes the same way.
    fn extend(&mut self, to: SocketAddr, at: usize, end: usize) -> bool {
        let fits = self.to == Some(to) && self.end == at && end - self.from <= TRANSMIT_BYTES_MAX;
        if fits {
            self.end = end;
        }
        fits
    }

    fn begin(&mut self, to: SocketAddr, at: usize, end: usize) {
        self.to = Some(to);
        self.from = at;
        self.end = end;
    }

    /// Sends what was taken in; for how many datagrams there was no room.
    fn flush(&mut self, outlet: &mut Outlet<'_>, run: &[u8]) -> u64 {
        let Some(to) = self.to.take() else {
            return 0;
        };
        let bytes = &run[self.from..self.end];
        match outlet.send(to, bytes, self.segment_bytes) {
            Sent::Done => 0,
            Sent::Blocked { from } => (bytes.len() - from).div_ceil(self.segment_bytes) as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::driver::Stamp;
    use virga_ebpf::{header::NodeId, image::Image};

    #[test]
    fn what_was_carried_has_no_wait_and_what_came_by_udp_has() {
        let [carrier, other]: [SocketAddr; 2] =
            ["127.86.0.1:5000", "127.0.0.1:5000"].map(|at| at.parse().unwrap());
        let mut image = Image::default();
        image.adjacent.insert(NodeId(7), carrier);
        let mut forwarder = Forwarder::new();
        forwarder.apply(&image, || 7).unwrap();
        let run = |source| Run {
            source,
            ifindex: 0,
            bytes: &mut [],
            segment_bytes: 1,
            stamp: Stamp::At(40),
        };
        let waited_from = |source| waited(&forwarder, &run(source), 100);
        assert_eq!(waited_from(other), Ok(60));
        assert_eq!(waited_from(carrier), Err(Untimed::Carried));
    }
}
