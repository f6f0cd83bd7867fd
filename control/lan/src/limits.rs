//! Every number, with its invariant.

use virga_discovery::limits::{RENEW_S, SECOND_NS};

/// How often sockets are read and what is due is said.
pub const TICK_NS: u64 = SECOND_NS / 10;
/// Messages of one LAN that are looked at in a tick.
pub const MESSAGES_A_TICK: usize = 64;
/// Messages of one LAN that are taken from the kernel in a tick: those beyond what is looked at are counted. The
/// kernel's buffer holds fewer small ones, and loses the rest as a network does.
pub const TAKEN_A_TICK: usize = 1_024;
/// Bytes that the kernel keeps of what was not read yet.
pub const BUFFER_BYTES: usize = 256 << 10;
/// Bytes of a message (RFC 6762, section 17).
pub const MESSAGE_BYTES_MAX: usize = 9_000;
/// Questions and records of a message; one with more is not read.
pub const RECORDS_MAX: usize = 256;
/// Pointers in a message times its questions and records, at most: a name may lead from one pointer to another.
pub const HOPS_MAX: usize = 32_768;
/// Nodes' services of one message that are looked at.
pub const SERVICES_MAX: usize = 16;

/// Records of other nodes that are kept.
pub const HEARD_MAX: usize = 512;
/// Of them, those that came from one address.
pub const HEARD_OF_ONE_MAX: usize = 64;

/// How long a service counts, in seconds: longer than until the node says it anew.
pub const TTL_S: u32 = 1_200;
/// The same for a host's addresses (RFC 6762, section 10).
pub const HOST_TTL_S: u32 = 120;
/// Between the two announcements of something new (RFC 6762, section 8.3).
pub const ANNOUNCE_AGAIN_NS: u64 = SECOND_NS;
/// The pause after the first question; each one doubles it.
pub const ASK_NS: u64 = SECOND_NS;
/// The longest such pause.
pub const ASK_NS_MAX: u64 = 512 * SECOND_NS;
/// Nothing is said again before so long (RFC 6762, section 6).
pub const SAY_AGAIN_NS: u64 = SECOND_NS;
/// A first question and an answer wait at random from so long to six times that, so that not all speak at once.
pub const WAIT_NS: u64 = SECOND_NS / 50;
/// How long after a LAN could not be used it is tried again.
pub const RETRY_NS: u64 = 5 * SECOND_NS;

const _: () = assert!(TTL_S as u64 >= 2 * RENEW_S, "a message may be lost");
const _: () = assert!(ASK_NS_MAX / SECOND_NS < TTL_S as u64);
const _: () = assert!(HEARD_OF_ONE_MAX < HEARD_MAX && MESSAGES_A_TICK < TAKEN_A_TICK);
const _: () = assert!(SERVICES_MAX <= HEARD_OF_ONE_MAX);
