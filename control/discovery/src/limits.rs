//! Every number, with its invariant.

/// One second.
pub const SECOND_NS: u64 = 1_000_000_000;

/// Addresses of a node.
pub const ADDRESSES_MAX: usize = 8;
/// Bytes of a node's name.
pub const NAME_BYTES_MAX: usize = 32;
/// Seconds for which a record counts: what is not said again is forgotten.
pub const LIFETIME_S: u32 = 1_800;
/// Seconds after which a node says again what it is.
pub const RENEW_S: u64 = 600;
/// Introductions to one node without a session, after which this node says anew that it lives now.
pub const UNHEARD: u32 = 3;
/// Seconds between two of those.
pub const REISSUE_S: u64 = 20;
/// Seconds by which clocks may differ.
pub const CLOCK_SKEW_S: u64 = 300;

/// Nodes that the book has room for unless told otherwise, beside those that are pinned.
pub const PEERS_MAX: usize = 256;
/// Dials under way at a time.
pub const DIALS_MAX: usize = 16;
/// How long one dial may take.
pub const DIAL_NS: u64 = 8 * SECOND_NS;
/// The pause after a first dial that failed; each one doubles it.
pub const REDIAL_NS: u64 = 2 * SECOND_NS;
/// The longest such pause.
pub const REDIAL_NS_MAX: u64 = 120 * SECOND_NS;
/// Rounds over all addresses of a node that was never reached, before it is forgotten.
pub const ROUNDS_MAX: u32 = 3;
/// How long a node whose session has ended is waited for at the address where it was.
pub const LOST_NS: u64 = 20 * SECOND_NS;
/// The first pause between introductions to a node; each one doubles it.
pub const INTRODUCE_NS: u64 = SECOND_NS;
/// The longest such pause.
pub const INTRODUCE_NS_MAX: u64 = 30 * SECOND_NS;
/// How long nothing counts that is said under a key that two nodes have.
pub const TORN_NS: u64 = 600 * SECOND_NS;

/// How long a node that there was a session with is tried.
pub const FORGET_NS: u64 = 24 * 3_600 * SECOND_NS;

/// Part of the nodes that were never reached which one teller may have told of.
pub const TELLER_SHARE: usize = 4;

/// Records that one peer may have looked at at once.
pub const RECORDS_BURST: u32 = 256;
/// One more after each.
pub const RECORDS_PAUSE_NS: u64 = SECOND_NS / 64;

/// Peers that each news is passed on to.
pub const FANOUT: usize = 3;
/// News that wait to be passed on; what finds no room is asked for.
pub const NEWS_MAX: usize = 1_024;
/// News that are passed on in a tick.
pub const NEWS_A_TICK: usize = 32;
/// How often the state of dials and news is looked at.
pub const TICK_NS: u64 = SECOND_NS / 5;
/// The pause between two questions while this node has just started, or there was something new in the answer.
pub const ASK_SOON_NS: u64 = SECOND_NS;
/// The pause between two questions otherwise.
pub const ASK_NS: u64 = 20 * SECOND_NS;
/// Nodes that one question names: those that are known already.
pub const ASKED_MAX: usize = 400;
/// Records of one message.
pub const RECORDS_MAX: usize = 16;
/// Messages of one answer.
pub const ANSWERS_MAX: usize = 4;

/// Time between two probes of a healthy node.
pub const PROBE_NS: u64 = SECOND_NS;
/// How long the answer to a probe may take before others are asked to probe.
pub const PROBE_WAIT_NS: u64 = SECOND_NS / 2;
/// How many others.
pub const PROXIES: usize = 3;
/// By how much a node that is slow itself takes more time, at most.
pub const HEALTH_MAX: u32 = 8;
/// The shortest suspicion: so many probes' times, times the decimal logarithm of the number of members.
pub const SUSPICION_MIN: u64 = 4;
/// The longest suspicion is so many times the shortest.
pub const SUSPICION_MAX: u64 = 6;
/// Others whose own suspicion makes it the shortest.
pub const CONFIRMATIONS: u32 = 3;
/// How often an update is told, times the decimal logarithm of the number of members.
pub const TELL: u32 = 4;
/// Updates of one message.
pub const UPDATES_MAX: usize = 16;
/// Others' probes that this node has under way for them.
pub const RELAYS_MAX: usize = 256;
/// How long a dead member is remembered.
pub const DEAD_NS: u64 = 3_600 * SECOND_NS;

const _: () = assert!(RENEW_S * 2 < LIFETIME_S as u64, "a message may be lost");
const _: () = assert!(PROBE_WAIT_NS < PROBE_NS);
const _: () = assert!(RECORDS_MAX * ANSWERS_MAX <= RECORDS_BURST as usize);
const _: () = assert!(REDIAL_NS < REDIAL_NS_MAX && INTRODUCE_NS < INTRODUCE_NS_MAX);
const _: () = assert!(
    INTRODUCE_NS < DIAL_NS,
    "more than one introduction fits into a dial"
);
const _: () = assert!(TICK_NS < PROBE_WAIT_NS);
