//! Samples: which of the packets that are decided here somebody wants to see, how many at most, and what is kept
//! of each.
//!
//! The NIC path has a program of its own for it, which replaces the other only while somebody asks: until then
//! samples cost nothing. User space goes by the same order.

use crate::{
    header::{Header, NodeId, OriginHash, SessionId},
    limits::{SAMPLE_BURST_SHIFT, SAMPLE_BYTES_MAX},
    reason::COUNTERS,
};

/// What is asked for. All zeros: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Order {
    /// Monotonic nanoseconds from which on nothing is sampled any more: whoever asks renews it while it lives.
    pub until_ns: u64,
    /// Outcomes and reasons: a bit for the place of each one's counter.
    pub counters: u64,
    /// Packets of this origin alone; 0 is any.
    pub origin: OriginHash,
    /// For this node alone; 0 is any.
    pub destination: NodeId,
    /// Of this session alone; 0 is any.
    pub session: SessionId,
    /// Nanoseconds that one sample costs of what a CPU (a worker, in user space) may take.
    pub interval_ns: u64,
    /// Of this channel alone; [`ANY_CHANNEL`] is any.
    pub channel: u32,
    /// By this interface alone; 0 is any.
    pub ifindex: u32,
    /// One in so many is sampled, picked at random; 0 and 1 are each.
    pub one_in: u32,
    /// Bytes of each frame that are kept, from its first on.
    pub bytes: u32,
}

/// In place of a channel's hash: all of them, and packets without a header.
pub const ANY_CHANNEL: u32 = u32::MAX;

/// What one CPU, or worker, did of an order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Tally {
    /// From when on the next may be taken, less a burst.
    pub next_ns: u64,
    /// Packets that were asked for.
    pub matched: u64,
    /// Of those: passed over, as one in so many was asked for,
    pub passed_over: u64,
    /// above the rate,
    pub over_rate: u64,
    /// or without room to be told.
    pub no_room: u64,
    /// Samples.
    pub taken: u64,
}

/// What is told of a packet; the first bytes of its frame follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SampleHead {
    /// When it was decided, in monotonic nanoseconds.
    pub at_ns: u64,
    /// Interface it came in by.
    pub ifindex: u32,
    /// Place of the counter that it counts at: outcome or reason.
    pub counter: u32,
    /// Bytes of the whole frame.
    pub frame_bytes: u32,
    /// It stands for so many.
    pub one_in: u32,
    /// CPU that decided.
    pub cpu: u32,
    /// Always 0.
    pub reserved: u32,
}

/// A sample with room for all that can be kept.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Sample {
    /// What is told.
    pub head: SampleHead,
    /// The frame's first bytes.
    pub bytes: [u8; SAMPLE_BYTES_MAX],
}

const _: () = assert!(size_of::<Order>() == 64);
const _: () = assert!(size_of::<Tally>() == 48);
const _: () = assert!(size_of::<SampleHead>() == 32);
const _: () = assert!(size_of::<Sample>() == 32 + SAMPLE_BYTES_MAX);
const _: () = assert!(COUNTERS == 64, "a bit each");

impl Order {
    /// Whether a packet is asked for, by the place of its counter, its interface and its header, where it has one.
    #[inline(always)]
    #[must_use]
    pub const fn wants(&self, counter: u32, ifindex: u32, header: Option<&Header>) -> bool {
        if self.counters >> (counter & (COUNTERS - 1)) & 1 == 0
            || (self.ifindex != 0 && self.ifindex != ifindex)
        {
            return false;
        }
        match header {
            None => {
                self.channel == ANY_CHANNEL
                    && self.origin.0 | self.destination.0 | self.session.0 == 0
            }
            Some(h) => {
                (self.channel == ANY_CHANNEL || self.channel == h.channel_hash.0 as u32)
                    && (self.origin.0 == 0 || self.origin.0 == h.origin_hash.0)
                    && (self.destination.0 == 0 || self.destination.0 == h.destination.0)
                    && (self.session.0 == 0 || self.session.0 == h.session_id.0)
            }
        }
    }

    /// How many stand behind each sample.
    #[inline(always)]
    #[must_use]
    pub const fn weight(&self) -> u32 {
        if self.one_in == 0 { 1 } else { self.one_in }
    }
}

impl Tally {
    /// Whether a packet that is asked for becomes a sample; counts it either way. `random` is drawn anew for each.
    #[inline(always)]
    #[must_use]
    pub const fn admits(&mut self, order: &Order, now_ns: u64, random: u32) -> bool {
        self.matched += 1;
        // The upper half of the product is below `one_in`, each value as likely as another.
        if (random as u64 * order.weight() as u64) >> 32 != 0 {
            self.passed_over += 1;
            return false;
        }
        let burst_ns = order.interval_ns << SAMPLE_BURST_SHIFT;
        if self.next_ns > now_ns + burst_ns {
            self.over_rate += 1;
            return false;
        }
        let from = if self.next_ns > now_ns {
            self.next_ns
        } else {
            now_ns
        };
        self.next_ns = from + order.interval_ns;
        true
    }

    /// Both together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            next_ns: 0,
            matched: self.matched + other.matched,
            passed_over: self.passed_over + other.passed_over,
            over_rate: self.over_rate + other.over_rate,
            no_room: self.no_room + other.no_room,
            taken: self.taken + other.taken,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        header::{ChannelHash, StreamId, Subnet},
        limits::HEADER_BYTES,
        reason::{Outcome, Reason},
    };

    const ALL: Order = Order {
        until_ns: u64::MAX,
        counters: u64::MAX,
        origin: OriginHash(0),
        destination: NodeId(0),
        session: SessionId(0),
        interval_ns: 0,
        channel: ANY_CHANNEL,
        ifindex: 0,
        one_in: 0,
        bytes: 64,
    };

    fn header() -> Header {
        Header {
            channel_hash: ChannelHash(5),
            origin_hash: OriginHash(6),
            destination: NodeId(7),
            session_id: SessionId(8),
            stream_id: StreamId(9),
            subnet: Subnet(0),
            ..Header::decode(&[0; HEADER_BYTES])
        }
    }

    #[test]
    fn each_field_of_an_order_narrows_it() {
        let header = header();
        let magic = Reason::Magic.counter();
        let asks = |order: Order| order.wants(magic, 3, Some(&header));
        assert!(asks(ALL) && ALL.wants(magic, 3, None));
        type Change = fn(&mut Order, u32);
        let fields: [Change; 5] = [
            |o, wrong| o.ifindex = 3 + wrong,
            |o, wrong| o.channel = 5 + wrong,
            |o, wrong| o.origin.0 = 6 + u64::from(wrong),
            |o, wrong| o.destination.0 = 7 + u64::from(wrong),
            |o, wrong| o.session.0 = 8 + u64::from(wrong),
        ];
        for (number, change) in fields.into_iter().enumerate() {
            for (wrong, wants) in [(0, true), (1, false)] {
                let mut order = ALL;
                change(&mut order, wrong);
                assert_eq!(asks(order), wants, "field {number}");
            }
            let mut order = ALL;
            change(&mut order, 0);
            let is_of_any_packet = number == 0;
            assert_eq!(order.wants(magic, 3, None), is_of_any_packet);
        }
        let counters = 1 << Outcome::Local.counter();
        assert!(!asks(Order { counters, ..ALL }));
        assert!(Order { counters, ..ALL }.wants(Outcome::Local.counter(), 3, None));
    }

    #[test]
    fn a_rate_holds_over_any_second_but_for_a_burst() {
        let order = Order {
            interval_ns: 10_000_000,
            ..ALL
        };
        let mut tally = Tally::default();
        // A packet each 10 µs, for 10 s.
        let packets = 1_000_000_u64;
        let start = 1 << 40;
        let taken = (0..packets)
            .filter(|n| tally.admits(&order, start + n * 10_000, 0))
            .count() as u64;
        let burst = 1 << SAMPLE_BURST_SHIFT;
        assert!((1_000..=1_001 + burst).contains(&taken), "{taken}");
        assert_eq!(tally.over_rate, packets - taken);
        assert_eq!(tally.matched, packets);
    }

    #[test]
    fn one_in_so_many_is_picked_by_chance_alone() {
        let order = Order { one_in: 10, ..ALL };
        let mut tally = Tally::default();
        let mut state = 1_u32;
        let taken = (0..100_000).filter(|_| {
            state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
            tally.admits(&order, 1, state)
        });
        let taken = taken.count();
        assert!((9_000..11_000).contains(&taken), "{taken}");
        assert_eq!(tally.passed_over, 100_000 - taken as u64);
        assert_eq!(ALL.weight(), 1);
    }
}
