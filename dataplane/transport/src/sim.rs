//! A network that is not there: latency, loss, reordering, duplication, corruption, packet sizes, links
//! with queues, partitions. It has no clock of its own, and everything depends on its seed alone.
//!
//! Two simulators stand on it. Tests of the protocol drive a [`crate::Node`] by its five verbs, so that they can look at
//! each datagram between two of them and put in their own. [`crate::io::simulated`] is a worker's driver: there whole
//! workers run, with their queues, rings, forwarders and sockets.

use crate::{
    limits::{DATAGRAM_BYTES_MAX, DATAGRAM_BYTES_MIN},
    random::Generator,
};
use std::collections::{BTreeMap, BTreeSet};

/// A millisecond.
pub const MS: u64 = 1_000_000;
/// A second.
pub const SECOND: u64 = 1_000 * MS;

/// What the network does to each datagram; chances are in percent.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// How long it takes at least.
    pub latency_ns: u64,
    /// How much longer it may take.
    pub jitter_ns: u64,
    /// Lost.
    pub loss: u64,
    /// Carried twice.
    pub duplication: u64,
    /// One bit of it changed.
    pub corruption: u64,
    /// Late by at most `late_ns`: others overtake it.
    pub reordering: u64,
    /// See `reordering`.
    pub late_ns: u64,
    /// Largest that gets through.
    pub datagram_bytes: usize,
    /// Bytes a second of each node's link; 0 for a link without end.
    pub rate: u64,
    /// Bytes that wait for such a link at most; more are lost.
    pub queue_bytes: u64,
}

impl Weather {
    /// Nothing happens but time.
    pub const CALM: Self = Self {
        latency_ns: 5 * MS,
        jitter_ns: 0,
        loss: 0,
        duplication: 0,
        corruption: 0,
        reordering: 0,
        late_ns: 0,
        datagram_bytes: DATAGRAM_BYTES_MIN,
        rate: 0,
        queue_bytes: 0,
    };
    /// A fifth is lost, and not much arrives in order.
    pub const STORM: Self = Self {
        jitter_ns: 20 * MS,
        loss: 20,
        duplication: 10,
        corruption: 5,
        ..Self::CALM
    };
}

/// A datagram that arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// When.
    pub at_ns: u64,
    /// Whose.
    pub from: usize,
    /// Where.
    pub to: usize,
    /// What is left of it.
    pub bytes: Vec<u8>,
}

/// Datagrams on their way between nodes that are known by numbers.
pub struct Network {
    /// May change at any time: what is on its way is not concerned.
    pub weather: Weather,
    /// Nothing gets through.
    pub is_cut: bool,
    /// From whom to whom nothing gets through.
    pub parted: BTreeSet<(usize, usize)>,
    /// Until when each node's link is busy.
    busy_until_ns: BTreeMap<usize, u64>,
    flying: BTreeMap<(u64, u64), Arrival>,
    generator: Generator,
    count: u64,
}

impl Network {
    /// A network whose chances depend on `seed` alone.
    #[must_use]
    pub fn new(seed: u64, weather: Weather) -> Self {
        debug_assert!(weather.datagram_bytes <= DATAGRAM_BYTES_MAX);
        let mut bytes = [0xee; 32];
        bytes[..8].copy_from_slice(&seed.to_be_bytes());
        Self {
            weather,
            is_cut: false,
            parted: BTreeSet::new(),
            busy_until_ns: BTreeMap::new(),
            flying: BTreeMap::new(),
            generator: Generator::new(&bytes, b"sim"),
            count: 0,
        }
    }

    /// `percent` chances in a hundred.
    fn chance(&mut self, percent: u64) -> bool {
        percent > 0 && self.generator.below(100) < percent
    }

    /// Puts a datagram on the wire.
    pub fn send(&mut self, now_ns: u64, from: usize, to: usize, mut bytes: Vec<u8>) {
        let is_too_big = bytes.len() > self.weather.datagram_bytes;
        let is_parted = self.is_cut || self.parted.contains(&(from, to));
        if self.chance(self.weather.loss) || is_parted || is_too_big {
            return;
        }
        if !self.queue(now_ns, from, bytes.len() as u64) {
            return;
        }
        if self.chance(self.weather.duplication) {
            self.land_later(now_ns, from, to, bytes.clone());
        }
        if self.chance(self.weather.corruption) {
            let at = self.generator.below(bytes.len() as u64);
            let bit = self.generator.below(8);
            if let Some(byte) = usize::try_from(at).ok().and_then(|at| bytes.get_mut(at)) {
                *byte ^= 1 << bit;
            }
        }
        self.land_later(now_ns, from, to, bytes);
    }

    /// Puts a datagram into the queue of its sender's link; `false` when that is full.
    fn queue(&mut self, now_ns: u64, from: usize, bytes: u64) -> bool {
        let Weather {
            rate, queue_bytes, ..
        } = self.weather;
        if rate == 0 {
            return true;
        }
        let busy_ns = self.busy_until_ns.entry(from).or_insert(0);
        let from_ns = now_ns.max(*busy_ns);
        if (from_ns - now_ns) * rate / SECOND > queue_bytes {
            return false;
        }
        *busy_ns = from_ns + bytes * SECOND / rate;
        true
    }

    fn land_later(&mut self, now_ns: u64, from: usize, to: usize, bytes: Vec<u8>) {
        let mut late_ns = self.generator.below(self.weather.jitter_ns + 1);
        if self.chance(self.weather.reordering) {
            late_ns += 1 + self.generator.below(self.weather.late_ns);
        }
        let busy_ns = self.busy_until_ns.get(&from).copied().unwrap_or(0);
        let at_ns = now_ns.max(busy_ns) + self.weather.latency_ns + late_ns;
        self.count += 1;
        let arrival = Arrival {
            at_ns,
            from,
            to,
            bytes,
        };
        self.flying.insert((at_ns, self.count), arrival);
    }

    /// When the next datagram arrives.
    #[must_use]
    pub fn next_ns(&self) -> Option<u64> {
        self.flying.first_key_value().map(|(&(at_ns, _), _)| at_ns)
    }

    /// The next datagram that has arrived by now.
    pub fn receive(&mut self, now_ns: u64) -> Option<Arrival> {
        let entry = self.flying.first_entry()?;
        (entry.key().0 <= now_ns).then(|| entry.remove())
    }
}
