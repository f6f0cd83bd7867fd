//! What a peer may cost this node: how often it may ask, and how many signatures it may have verified. Counted for the
//! peer and not for its session, so that a new session begins with nothing more.

use super::entry::Index;
use std::collections::BTreeMap;
use virga_routing::allowance::Allowance;

/// Bytes of what is published that a packet carries, as submissions are counted.
const PACKET_BYTES: usize = 1_024;

const SECOND_NS: u64 = 1_000_000_000;

/// Tokens, statements and memberships of one peer that are looked at in one go, and one more each [`LOOK_EACH_NS`]:
/// each costs signatures to verify. A peer that shows all it may have can do so several times over.
pub(crate) const LOOKS_MAX: u32 = 512;
/// See [`LOOKS_MAX`].
pub(crate) const LOOK_EACH_NS: u64 = SECOND_NS / 32;
/// Subscriptions that one peer may ask for in one go, and one more each [`ASK_EACH_NS`]: each is compared with every
/// channel. All that it may have, twice over.
pub(crate) const ASKS_MAX: u32 = 8_192;
/// See [`ASKS_MAX`].
pub(crate) const ASK_EACH_NS: u64 = SECOND_NS / 512;

/// Questions of one peer for events of logs in one go, and one more each [`READ_EACH_NS`]: each reads files.
pub(crate) const READS_MAX: u32 = 4_096;
/// See [`READS_MAX`].
pub(crate) const READ_EACH_NS: u64 = SECOND_NS / 4_096;

/// Times that one publisher may name relays for its events in one go, and one more each [`REDIRECT_EACH_NS`]: each has
/// another node asked.
pub(crate) const REDIRECTS_MAX: u32 = 64;
/// See [`REDIRECTS_MAX`].
pub(crate) const REDIRECT_EACH_NS: u64 = SECOND_NS / 4;
/// Times that one peer may ask for events of others in one go, and one more each [`FEED_EACH_NS`]: each has a publisher
/// asked. Beside the former: several publishers may send it here.
pub(crate) const FEEDS_MAX: u32 = 256;
/// See [`FEEDS_MAX`].
pub(crate) const FEED_EACH_NS: u64 = SECOND_NS / 64;

/// What a channel's `max_rate_pps` leaves of what one publisher submits to a log that is on several nodes: as many packets
/// a second, and a second's worth at once.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rated {
    /// When all that went would have gone at that rate.
    free_ns: u64,
}

impl Rated {
    /// In how many nanoseconds the next may go.
    pub(crate) const fn wait_ns(&self, now_ns: u64) -> u64 {
        self.free_ns
            .saturating_sub(now_ns.saturating_add(SECOND_NS))
    }

    /// Notes what goes now, in the packets that it fills.
    pub(crate) fn note(&mut self, now_ns: u64, bytes: usize, rate_pps: u32) {
        let packets = u64::try_from(bytes.div_ceil(PACKET_BYTES).max(1)).unwrap_or(u64::MAX);
        let lasts_ns = packets.saturating_mul(SECOND_NS) / u64::from(rate_pps.max(1));
        self.free_ns = self.free_ns.max(now_ns).saturating_add(lasts_ns);
    }
}

/// What one peer may still cost.
#[derive(Debug)]
pub(crate) struct Costs {
    /// Signed objects that it shows.
    pub(crate) looks: Allowance,
    /// Subscriptions that it asks for.
    pub(crate) asks: Allowance,
    /// Events of logs that it asks for.
    pub(crate) reads: Allowance,
    /// Relays that it names for its events.
    pub(crate) redirects: Allowance,
    /// Events of others that it asks for.
    pub(crate) feeds: Allowance,
    /// What it submits to logs that are on several nodes, by channel.
    pub(crate) submitted: BTreeMap<Index, Rated>,
}

impl Default for Costs {
    fn default() -> Self {
        Self {
            looks: Allowance::new(LOOKS_MAX, LOOK_EACH_NS),
            asks: Allowance::new(ASKS_MAX, ASK_EACH_NS),
            reads: Allowance::new(READS_MAX, READ_EACH_NS),
            redirects: Allowance::new(REDIRECTS_MAX, REDIRECT_EACH_NS),
            feeds: Allowance::new(FEEDS_MAX, FEED_EACH_NS),
            submitted: BTreeMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn submissions_are_as_many_packets_a_second_and_no_more() {
        let (mut rated, mut now_ns) = (Rated::default(), 5);
        let mut sent = 0;
        while now_ns < 10 * SECOND_NS {
            now_ns += rated.wait_ns(now_ns);
            // Three packets each.
            rated.note(now_ns, 2 * PACKET_BYTES + 1, 100);
            sent += 3;
        }
        assert!((1_000..1_110).contains(&sent), "{sent}");
        // What was not used in a pause is lost, but for a second's worth.
        now_ns += 100 * SECOND_NS;
        let at_once = (0..1_000).take_while(|_| {
            let goes = rated.wait_ns(now_ns) == 0;
            rated.note(now_ns, 0, 100);
            goes
        });
        assert_eq!(at_once.count(), 101);
    }
}
