//! Samples of what a worker's forwarder decides, as the NIC path takes them ([`virga_ebpf::sample`]): where there is
//! no NIC path, and of what it hands over.

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use virga_ebpf::{
    header::Header,
    limits::{HEADER_BYTES, SAMPLE_BYTES_MAX},
    sample::{Order, Sample, SampleHead, Tally},
};

/// Samples that wait to be taken.
const WAITING_MAX: usize = 256;

/// A datagram as the socket gave it: the kernel keeps the outer headers to itself.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Where it came from.
    pub source: SocketAddr,
    /// The rest; its frame is the datagram, its CPU the worker.
    pub sample: Sample,
    /// Bytes that were kept.
    pub kept: usize,
}

/// What workers did of an order, together. Each writes its own.
#[derive(Debug, Default)]
struct Counts {
    matched: AtomicU64,
    passed_over: AtomicU64,
    over_rate: AtomicU64,
    no_room: AtomicU64,
    taken: AtomicU64,
}

/// One worker's tap, to be given to its forwarder.
#[derive(Debug)]
pub struct Tap {
    order: Order,
    tally: Tally,
    worker: u32,
    /// State of the numbers that pick one in so many.
    state: u64,
    to: Sender<Seen>,
    counts: Arc<Counts>,
}

/// What taps tell.
#[derive(Debug)]
pub struct Taken {
    seen: Receiver<Seen>,
    counts: Vec<Arc<Counts>>,
}

/// Taps for so many workers, each with the rate of the order. `seed` makes what one in so many picks.
#[must_use]
pub fn taps(order: &Order, workers: usize, seed: u64) -> (Vec<Tap>, Taken) {
    let (to, seen) = bounded(WAITING_MAX);
    let taps: Vec<Tap> = (0..workers)
        .map(|worker| {
            let worker = u32::try_from(worker).unwrap_or(u32::MAX);
            Tap {
                order: *order,
                tally: Tally::default(),
                worker,
                state: seed ^ u64::from(worker) << 32,
                to: to.clone(),
                counts: Arc::default(),
            }
        })
        .collect();
    let counts = taps.iter().map(|tap| Arc::clone(&tap.counts)).collect();
    (taps, Taken { seen, counts })
}

impl Tap {
    /// Whose it is, as its samples say it.
    pub const fn set_worker(&mut self, worker: u32) {
        self.worker = worker;
    }

    /// The order from now on.
    pub fn set_order(&mut self, order: &Order) {
        self.order = *order;
    }

    /// Takes a sample of a datagram, if it is asked for; `header` is what it had when it came. False: nobody
    /// takes samples any more.
    pub(crate) fn note(
        &mut self,
        (now_ns, ifindex, source): (u64, u32, SocketAddr),
        (header, datagram): (Option<&[u8; HEADER_BYTES]>, &[u8]),
        counter: u32,
    ) -> bool {
        let decoded = header.map(Header::decode);
        if !self.order.wants(counter, ifindex, decoded.as_ref()) {
            return true;
        }
        let random = self.draw();
        let mut goes_on = true;
        if self.tally.admits(&self.order, now_ns, random) {
            let asked = usize::try_from(self.order.bytes).unwrap_or(SAMPLE_BYTES_MAX);
            let kept = asked.min(datagram.len()).min(SAMPLE_BYTES_MAX);
            let head = SampleHead {
                at_ns: now_ns,
                ifindex,
                counter,
                frame_bytes: u32::try_from(datagram.len()).unwrap_or(u32::MAX),
                one_in: self.order.weight(),
                cpu: self.worker,
                reserved: 0,
            };
            let mut bytes = [0; SAMPLE_BYTES_MAX];
            bytes[..kept].copy_from_slice(&datagram[..kept]);
            if let Some(header) = header {
                let kept = kept.min(HEADER_BYTES);
                bytes[..kept].copy_from_slice(&header[..kept]);
            }
            let sample = Sample { head, bytes };
            match self.to.try_send(Seen {
                source,
                sample,
                kept,
            }) {
                Ok(()) => self.tally.taken += 1,
                Err(TrySendError::Full(_)) => self.tally.no_room += 1,
                Err(TrySendError::Disconnected(_)) => goes_on = false,
            }
        }
        self.show();
        goes_on
    }

    /// 32 bits, as evenly spread as chance would have them (SplitMix64: Steele, Lea, Flood, 2014).
    fn draw(&mut self) -> u32 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ self.state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        u32::try_from((z ^ z >> 31) >> 32).unwrap_or(0)
    }

    fn show(&self) {
        let Tally {
            next_ns: _,
            matched,
            passed_over,
            over_rate,
            no_room,
            taken,
        } = self.tally;
        let counts = &self.counts;
        for (shown, count) in [
            (&counts.matched, matched),
            (&counts.passed_over, passed_over),
            (&counts.over_rate, over_rate),
            (&counts.no_room, no_room),
            (&counts.taken, taken),
        ] {
            shown.store(count, Ordering::Relaxed);
        }
    }
}

impl Taken {
    /// The next sample that waits.
    #[must_use]
    pub fn next(&self) -> Option<Seen> {
        self.seen.try_recv().ok()
    }

    /// What all workers did of the order.
    #[must_use]
    pub fn tally(&self) -> Tally {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        self.counts.iter().fold(Tally::default(), |sum, one| {
            sum.and(Tally {
                next_ns: 0,
                matched: of(&one.matched),
                passed_over: of(&one.passed_over),
                over_rate: of(&one.over_rate),
                no_room: of(&one.no_room),
                taken: of(&one.taken),
            })
        })
    }
}
