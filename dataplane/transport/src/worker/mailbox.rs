//! What a worker got and another one owns: handed over in a bounded ring, never waited for.
//!
//! Two rings a worker, filled by all others: handshakes, which anybody can send, and packets of sessions,
//! which they so do not crowd out. The buffers come back to the others by a third one, so that
//! a ring that has been full once allocates no more. A full ring loses the datagram, counted, as a
//! full socket would.

use crate::{
    io::wake::Wake,
    share::{FLAGS_AT, Share},
};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::{net::SocketAddr, sync::Arc};
use virga_ebpf::header::Flags;

/// Packets of sessions that wait in one worker's ring at most.
pub const HANDED_OVER_MAX: usize = 512;
/// Handshakes that do.
pub const HANDSHAKES_HANDED_OVER_MAX: usize = 64;
/// Buffers above this size are not kept for later.
const SPARE_BYTES_MAX: usize = 16 * 1024;

/// A datagram for another worker.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) handed_ns: u64,
    pub(super) source: SocketAddr,
    pub(super) datagram: Vec<u8>,
}

/// A worker's own rings.
#[derive(Debug)]
pub(super) struct Mailbox {
    packets: Receiver<Parcel>,
    handshakes: Receiver<Parcel>,
    spare: Sender<Vec<u8>>,
}

impl Mailbox {
    /// Packets of sessions first, but of every eight the last is a handshake where there is one: `n` counts
    /// what was taken before.
    pub(super) fn next_parcel(&self, n: usize) -> Option<Parcel> {
        let (first, second) = match n % 8 {
            7 => (&self.handshakes, &self.packets),
            _ => (&self.packets, &self.handshakes),
        };
        first.try_recv().or_else(|_| second.try_recv()).ok()
    }

    pub(super) fn len(&self) -> usize {
        self.packets.len() + self.handshakes.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.packets.is_empty() && self.handshakes.is_empty()
    }

    /// Gives the buffer back.
    pub(super) fn give_back(&self, parcel: Parcel) {
        if parcel.datagram.capacity() <= SPARE_BYTES_MAX {
            // Enough are there, or those who would use it have ended.
            let _freed = self.spare.try_send(parcel.datagram);
        }
    }
}

/// Another worker's rings.
#[derive(Clone, Debug)]
struct Slot {
    packets: Sender<Parcel>,
    handshakes: Sender<Parcel>,
    spare: Receiver<Vec<u8>>,
    wake: Arc<Wake>,
    is_rung: bool,
}

/// All workers' rings, as one of them reaches them.
#[derive(Debug)]
pub(super) struct Slots {
    share: Share,
    slots: Vec<Slot>,
}

/// A ring for each worker, and how all of them reach each other; `wakes` in the workers' order.
pub(super) fn connect(wakes: &[Arc<Wake>]) -> Vec<(Mailbox, Slots)> {
    let mut mailboxes = Vec::new();
    let mut slots = Vec::new();
    for wake in wakes {
        let (packets_in, packets) = bounded(HANDED_OVER_MAX);
        let (handshakes_in, handshakes) = bounded(HANDSHAKES_HANDED_OVER_MAX);
        let (spare, spare_out) = bounded(HANDED_OVER_MAX + HANDSHAKES_HANDED_OVER_MAX);
        mailboxes.push(Mailbox {
            packets,
            handshakes,
            spare,
        });
        slots.push(Slot {
            packets: packets_in,
            handshakes: handshakes_in,
            spare: spare_out,
            wake: Arc::clone(wake),
            is_rung: true,
        });
    }
    let reach = |share| Slots {
        share,
        slots: slots.clone(),
    };
    let slots = Share::split(wakes.len()).map(reach);
    mailboxes.into_iter().zip(slots).collect()
}

impl Slots {
    /// Whose the datagram is; `None`: this worker's own.
    pub(super) fn other_owner(&self, datagram: &[u8]) -> Option<u8> {
        let owner = self.share.owner_of_datagram(datagram);
        (owner != self.share.worker()).then_some(owner)
    }

    /// Puts a datagram into its owner's ring; whether there was room. [`Slots::ring`] follows.
    pub(super) fn hand_over(
        &mut self,
        now_ns: u64,
        owner: u8,
        source: SocketAddr,
        datagram: &[u8],
    ) -> bool {
        let Some(slot) = self.slots.get_mut(usize::from(owner)) else {
            return false;
        };
        let ring = match is_handshake(datagram) {
            true => &slot.handshakes,
            false => &slot.packets,
        };
        if ring.is_full() {
            return false;
        }
        let mut buffer = slot.spare.try_recv().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(datagram);
        let parcel = Parcel {
            handed_ns: now_ns,
            source,
            datagram: buffer,
        };
        let is_taken = ring.try_send(parcel).is_ok();
        slot.is_rung &= !is_taken;
        is_taken
    }

    /// Wakes those that something was handed over to.
    pub(super) fn ring(&mut self) {
        for slot in self.slots.iter_mut().filter(|slot| !slot.is_rung) {
            slot.wake.ring();
            slot.is_rung = true;
        }
    }
}

/// By its flags, as [`Share::owner_of_datagram`] reads them.
pub(super) fn is_handshake(datagram: &[u8]) -> bool {
    let flags = datagram.get(FLAGS_AT).copied().unwrap_or(0);
    Flags(flags).contains(Flags::HANDSHAKE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use virga_ebpf::header::{Header, SessionId};

    #[test]
    fn a_full_ring_refuses_and_its_buffers_are_used_again() {
        let wakes: Vec<_> = (0..2).map(|_| Arc::new(Wake::new().unwrap())).collect();
        let mut ends = connect(&wakes);
        let (mailbox, _) = ends.pop().unwrap();
        let (_, mut slots) = ends.pop().unwrap();
        let source = "127.0.0.1:1".parse().unwrap();
        let of = |worker| {
            let header = Header {
                session_id: SessionId(worker),
                ..Header::default()
            };
            header.encode()
        };
        assert_eq!(slots.other_owner(&of(0)), None);
        assert_eq!(slots.other_owner(&of(1)), Some(1));
        let taken = (0..HANDED_OVER_MAX + 7).filter(|_| slots.hand_over(1, 1, source, &of(1)));
        assert_eq!(taken.count(), HANDED_OVER_MAX);
        slots.ring();
        let mut places = Vec::new();
        while let Some(parcel) = mailbox.next_parcel(0) {
            assert_eq!(parcel.datagram, of(1));
            places.push(parcel.datagram.as_ptr());
            mailbox.give_back(parcel);
        }
        assert_eq!(places.len(), HANDED_OVER_MAX);
        // A full ring's refusals took no buffer away from it.
        assert!(mailbox.is_empty() && slots.hand_over(1, 1, source, b"x"));
        let parcel = mailbox.next_parcel(0).unwrap();
        assert!(places.contains(&parcel.datagram.as_ptr()));
    }

    #[test]
    fn handshakes_take_no_place_of_packets_and_neither_waits_for_the_others_end() {
        let wakes: Vec<_> = (0..2).map(|_| Arc::new(Wake::new().unwrap())).collect();
        let mut ends = connect(&wakes);
        let (mailbox, _) = ends.pop().unwrap();
        let (_, mut slots) = ends.pop().unwrap();
        let source = "127.0.0.1:1".parse().unwrap();
        let mut handshake = Header::default().encode();
        handshake[FLAGS_AT] = Flags::HANDSHAKE.0;
        let packet = Header::default().encode();
        let mut taken = |what: &[u8]| {
            let offered = 0..2 * HANDED_OVER_MAX;
            offered
                .filter(|_| slots.hand_over(1, 1, source, what))
                .count()
        };
        assert_eq!(taken(&handshake), HANDSHAKES_HANDED_OVER_MAX);
        assert_eq!(taken(&packet), HANDED_OVER_MAX);
        let next = |n| is_handshake(&mailbox.next_parcel(n).unwrap().datagram);
        let handshakes = (0..80).filter(|&n| next(n)).count();
        assert_eq!(handshakes, 10);
    }
}
