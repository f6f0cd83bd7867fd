//! Every number of the protocol, each with the invariant it must keep.

use virga_ebpf::limits::{HEADER_BYTES, OUTER_BYTES_MIN, OUTER_HEADERS_BYTES_MAX, TAG_BYTES};

/// Largest datagram that every path carries, less the outer headers. Handshakes and control fit it; a
/// session's data packets grow with its path.
pub const DATAGRAM_BYTES_MIN: usize = OUTER_BYTES_MIN - OUTER_HEADERS_BYTES_MAX;
/// Frames of one such packet, in the clear.
pub const PAYLOAD_BYTES_MIN: usize = DATAGRAM_BYTES_MIN - HEADER_BYTES - TAG_BYTES;
/// Largest datagram that a node sends or opens: what UDP over IPv4 carries.
pub const DATAGRAM_BYTES_MAX: usize = 65_507;
/// Segments of one transmit: what one GSO send takes (Linux's `UDP_MAX_SEGMENTS`).
pub const TRANSMIT_SEGMENTS_MAX: usize = 64;
/// Bytes of a transmit of several segments; a single datagram may be larger.
pub const TRANSMIT_BYTES_MAX: usize = 65_000;

/// A channel name's length is one byte on the wire.
pub const CHANNEL_NAME_BYTES_MAX: usize = 255;
/// Bytes before each message in a stream: its length.
pub const MESSAGE_PREFIX_BYTES: usize = 4;
/// Largest message of a stream, whatever its mode.
pub const MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// Largest open frame: type, salt, mode, name length and name.
pub const OPEN_FRAME_BYTES_MAX: usize = 1 + 4 + 1 + 1 + CHANNEL_NAME_BYTES_MAX;

/// Bytes that a receiver grants a stream beyond what its owner has read: any message fits.
pub const STREAM_WINDOW_BYTES: u64 = 2 * 1024 * 1024;
/// A stream's grant is raised once this much of it was read; any message fits what is left until
/// then, so that sender and receiver never wait for each other.
pub const STREAM_RAISE_BYTES: u64 = STREAM_WINDOW_BYTES / 4;
/// Bytes that a receiver grants a session beyond what its owner has read: any message fits.
pub const SESSION_WINDOW_BYTES: u64 = 8 * 1024 * 1024;
/// A session's grant is raised once this much of it was read; any message fits what is left.
pub const SESSION_RAISE_BYTES: u64 = SESSION_WINDOW_BYTES / 4;
/// Streams beyond those that a peer may have open that are still told apart, to be refused.
pub const STREAMS_AHEAD_MAX: u64 = 4_096;
/// Room that a stream keeps for bytes to come when nothing is in it.
pub const STREAM_SPARE_BYTES: usize = 4 * 1024;
/// Ranges that a receiver keeps of one stream's bytes; then only the next in order are taken. Twice
/// what a window of full packets can leave.
pub const RECEIVE_RANGES_MAX: usize = 4_096;
/// Starts of messages that a receiver keeps of an unordered stream: a range of bytes has two of its own.
pub const RECEIVE_STARTS_MAX: usize = 2 * RECEIVE_RANGES_MAX + 2;
/// Ranges and starts that a receiver keeps of all streams of a session; one more, and it is closed. An
/// honest sender has [`UNACKNOWLEDGED_MAX`] packets on their way, and each leaves one range of bytes, two
/// starts, a range of whole messages, one of those read and one of those unread at most.
pub const SESSION_ENTRIES_MAX: usize = 6 * UNACKNOWLEDGED_MAX;
/// Bytes that one stream holds for sending; more is refused as [`crate::SendError::Full`].
pub const STREAM_QUEUE_BYTES: usize = 2 * 1024 * 1024;
/// Bytes that all streams of one class of a session hold for sending: bulk takes no room of others.
pub const CLASS_QUEUE_BYTES: usize = 8 * 1024 * 1024;
/// Bytes that an unreliable message takes of that beside its own.
pub const EVENT_HELD_BYTES: usize = 32;
/// Unreliable messages of one packet: the receiver has room for several such packets.
pub const EVENTS_IN_PACKET_MAX: usize = 1_024;
/// Unreliable messages of a session that wait for fragments; one more, and the oldest is given up.
pub const REASSEMBLY_MESSAGES_MAX: usize = 64;
/// Bytes of those messages; one that does not fit, and the oldest is given up.
pub const REASSEMBLY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// An unreliable message of which no fragment came for this long is given up.
pub const REASSEMBLY_NS_MAX: u64 = 5_000_000_000;
/// Pieces that any message may come in.
pub const REASSEMBLY_PIECES_MIN: usize = 16;
/// Bytes of a message for which it may come in one piece more: far fewer than a full packet's, so that
/// senders never meet it, and enough that what a piece costs beside its bytes is bounded.
pub const REASSEMBLY_PIECE_BYTES: usize = 256;
/// Unread events of one session: beyond it unreliable ones are dropped and counted, and reliable
/// ones stay in their streams.
pub const EVENTS_UNREAD_MAX: usize = 4_096;
/// Small messages that came together share buffers of this many bytes,
pub const SHARED_BYTES_MAX: usize = 8 * 1024;
/// and of this many messages.
pub const SHARED_MESSAGES_MAX: usize = 64;
/// A message to send of fewer bytes is copied, though its sender would share it: that costs no more.
pub const SHARED_BYTES_MIN: usize = 512;

/// Sequences behind the newest that are still told apart from replays; a multiple of 64.
pub const REPLAY_WINDOW_PACKETS: u64 = 4_096;
/// Ranges of one acknowledgement; older ones were reported before.
pub const ACK_RANGES_MAX: usize = 32;
/// Packets that ask for an acknowledgement before one is sent at once.
pub const ACK_AFTER_PACKETS: u32 = 8;
/// Longest that an acknowledgement waits for company: short beside the round trips of paths that lose,
/// whose sender waits for it with a small window.
pub const ACK_WAIT_NS: u64 = 500_000;
/// How late a sender expects it at most: a receiver's processor may have other work.
pub const ACK_DELAY_NS: u64 = 5_000_000;
/// Unacknowledged packets of one session; nothing more that asks for an acknowledgement is sent.
pub const UNACKNOWLEDGED_MAX: usize = 16_384;

/// A session leaves out one of this many sequences at the start, at a place that only it knows;
pub const SKIP_GAP_MIN: u64 = 64;
/// then of twice as many each time, up to this many: an acknowledgement of one that was left out is a
/// lie. Each costs its receiver an acknowledgement at once, and a range in those that follow.
pub const SKIP_GAP_MAX: u64 = 1_024;
/// Sequences left out that are remembered: those among all packets that can be on their way.
pub const SKIPPED_KEPT_MAX: usize = 32;

/// Round trip assumed before the first sample (RFC 9002, 6.2.2).
pub const INITIAL_RTT_NS: u64 = 100_000_000;
/// Deadlines of messages are looked at this often at most.
pub const EXPIRE_EVERY_NS: u64 = 1_000_000;
/// And less often the more messages wait, each of which is looked at: a hundred times what a look takes,
/// so that a stream's deadlines cost its worker a hundredth. A full queue of one-byte messages is looked
/// at each 63 ms.
pub const EXPIRE_A_MESSAGE_NS: u64 = 1_000;
/// Clock granularity (RFC 9002, 6.1.2).
pub const GRANULARITY_NS: u64 = 1_000_000;
/// A packet is lost when one this many sequences newer was acknowledged (RFC 9002, 6.1.1).
pub const PACKET_THRESHOLD: u64 = 3;
/// That number's ceiling, once packets were seen to arrive late.
pub const PACKET_THRESHOLD_MAX: u64 = 1_024;
/// A packet is lost this many eighths of a round trip after it was sent, when a newer one was
/// acknowledged (RFC 9002, 6.1.2).
pub const TIME_THRESHOLD_EIGHTHS: u64 = 9;
/// That number's ceiling, once packets were seen to arrive late: two round trips.
pub const TIME_THRESHOLD_EIGHTHS_MAX: u64 = 16;
/// Times that losses are found, none of which arrives late, after which both thresholds are as at the
/// start (RFC 8985, 6.2).
pub const REORDERING_EPISODES: u32 = 16;
/// Packets declared lost that are remembered in case they arrive.
pub const LOST_KEPT_MAX: usize = 1_024;
/// Losses in a row that span this many probe time-outs start the congestion window anew (RFC 9002,
/// 7.6.1).
pub const PERSISTENT_CONGESTION: u64 = 3;
/// Probe time-outs double at most this often.
pub const PROBE_BACKOFF_MAX: u32 = 6;
/// Longest probe time-out.
pub const PROBE_NS_MAX: u64 = 5_000_000_000;
/// Congestion window at the start, in full packets (RFC 9002, 7.2).
pub const WINDOW_SEGMENTS_INITIAL: u64 = 10;
/// Congestion window's floor, in full packets (RFC 9002, 7.2).
pub const WINDOW_SEGMENTS_MIN: u64 = 2;
/// Congestion window's ceiling.
pub const WINDOW_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Pacing lets out at once what its rate gives in this time,
pub const PACER_BURST_NS: u64 = 1_000_000;
/// but no more than this: a receiver's socket has room for it also where the kernel caps its buffer,
pub const PACER_BURST_BYTES_MAX: u64 = 128 * 1024;
/// and no less than this many full packets: the initial window (RFC 9002, 7.7).
pub const PACER_BURST_SEGMENTS: u64 = WINDOW_SEGMENTS_INITIAL;
/// Datagrams that common links carry: IPv6 and IPv4 in tunnels, on Ethernet, in jumbo frames, on
/// loopback.
pub const MTU_SIZES: [usize; 7] = [1_372, 1_402, 1_452, 1_472, 8_952, 8_972, 65_487];
/// Losses of one size before it is given up (RFC 8899, 5.1.2).
pub const MTU_PROBES_MAX: u32 = 3;
/// Sizes closer than this are not told apart (nor closer than a 64th).
pub const MTU_STEP_BYTES: usize = 16;
/// How long after a search larger sizes are tried again (RFC 8899, 5.1.1).
pub const MTU_RAISE_NS: u64 = 600_000_000_000;
/// Times that larger packets are lost, none arriving in between, before the path is taken to carry
/// them no more.
pub const BLACK_HOLE_LOSSES: u32 = 3;

/// A session that was quiet this long gives memory back.
pub const REST_NS: u64 = 1_000_000_000;
/// Challenges to one new outer address of a peer.
pub const CHALLENGES_MAX: u32 = 3;
/// Shortest time between two challenges of a session.
pub const CHALLENGE_INTERVAL_NS: u64 = 100_000_000;
/// After a peer was followed to another address, it is not followed again for this long.
pub const MOVE_INTERVAL_NS: u64 = 1_000_000_000;

/// A neighbour that another transport carries is at an address of this network, or at `::1`: another program of
/// this machine can be there too, at another port.
pub const CARRIED_NETWORK: [u8; 2] = [127, 86];

/// Longest time between two frames of a link's keepalive.
pub const LINK_INTERVAL_NS_MAX: u64 = 10_000_000_000;
/// Intervals without a word after which a link is silent, at most.
pub const LINK_MISSES_MAX: u32 = 255;
/// Frames of a neighbour's in a row, none lost in between, that make it heard,
pub const LINK_IN_ROW_MIN: u32 = 3;
/// twice as many each time that the link falls, up to this many,
pub const LINK_IN_ROW_MAX: u32 = 48;
/// until it has stood for this long.
pub const LINK_STEADY_NS: u64 = 10_000_000_000;
/// A timer that comes later than this was not waited for: the worker had no processor.
pub const LINK_SLACK_NS: u64 = 2_000_000;
/// Where a neighbour's worker answers, and not its NIC path, silence must last so many times as long: others
/// may have its processor.
pub const LINK_PATIENCE: u64 = 5;
/// It must last so many times as long as the longest gap, too,
pub const LINK_GAPS: u64 = 2;
/// of the last one or two such times,
pub const LINK_GAP_WINDOW_NS: u64 = 30_000_000_000;
/// up to this long.
pub const LINK_PATIENCE_NS_MAX: u64 = 2_000_000_000;
/// A silence that was taken for a dead link and was over within this was none: packets only had to wait.
pub const LINK_LAPSE_NS_MAX: u64 = 1_000_000_000;
/// After so many of those in that time it must last [`LINK_GAPS`] times as long where NIC paths answer, too, up to
/// [`LINK_PATIENCE`] times as long as usual.
pub const LINK_LAPSES: u32 = 2;
/// Times in a row that a worker that was late may put off its verdict.
pub const LINK_POSTPONED_MAX: u32 = 4;
/// A neighbour that has not said yet whether it speaks the keepalive is told this often,
pub const LINK_SEARCH_EVERY_NS: u64 = 100_000_000;
/// so many times,
pub const LINK_SEARCHES: u64 = 10;
/// and then this often.
pub const LINK_SLOW_NS: u64 = 1_000_000_000;
/// A neighbour whose packets come straight and that does not speak the keepalive for this long into a
/// session is not judged by it.
pub const LINK_UNSPOKEN_NS: u64 = 3_000_000_000;

/// Half-open handshakes a peer may have at once.
pub const HALF_OPEN_PER_PEER_MAX: usize = 4;
/// Half-open handshakes that a worker's part of the node's takes at least: no peer alone fills it.
pub const HALF_OPEN_PART_MIN: usize = 4 * HALF_OPEN_PER_PEER_MAX;
/// Slots of the table of ingress sources for fair admission; a power of two.
pub const ADMISSION_SLOTS: usize = 1_024;
/// Handshake messages waiting to be sent; more are dropped, as the network might.
pub const OUTBOX_MAX: usize = 256;
/// Cookies that a node, all its workers together, sends per second to all.
pub const COOKIES_PER_SECOND: u64 = 2_048;
/// Cookies sent per second to one ingress source: the others find some left.
pub const COOKIES_PER_SECOND_PER_SOURCE: u64 = 64;
/// How long one cookie secret is used; the one before it stays valid as long again.
pub const COOKIE_SECRET_NS: u64 = 60_000_000_000;
/// Resets that a node, all its workers together, sends per second to all.
pub const RESETS_PER_SECOND: u64 = 1_024;
/// Resets sent per second to one ingress source: the others find some left.
pub const RESETS_PER_SECOND_PER_SOURCE: u64 = 16;
/// Introductions that a node listens to in a second: whoever has a network's key can make any number.
pub const INTRODUCTIONS_PER_SECOND: u64 = 128;
/// Those of one source address (a slot: [`ADMISSION_SLOTS`]); several nodes may share it.
pub const INTRODUCTIONS_PER_SECOND_PER_SOURCE: u64 = 32;
/// Longest network id in bytes.
pub const NETWORK_ID_BYTES_MAX: usize = 255;
/// Longest configurable duration, a year: sums with the clock cannot overflow.
pub const DURATION_NS_MAX: u64 = 366 * 86_400 * 1_000_000_000;
/// Configured peers.
pub const PEERS_MAX: usize = 65_536;
/// An old epoch's keys are dropped this long after the move to the next, or later, once the peer was heard in that.
pub const PREVIOUS_EPOCH_NS: u64 = 10_000_000_000;
/// Failed opens after which a session wants new keys (RFC 9001, 6.6, halved).
pub const FAILED_OPENS_REKEY: u64 = 1 << 35;
/// Failed opens after which a session closes (RFC 9001, 6.6).
pub const FAILED_OPENS_CLOSE: u64 = 1 << 36;
/// Highest sequence; a session closes before it could wrap.
pub const SEQUENCE_MAX: u64 = (1 << 62) - 1;

const _: () = assert!(PAYLOAD_BYTES_MIN == 1280 - 48 - 64 - 16);
const _: () = assert!(
    OPEN_FRAME_BYTES_MAX + 512 < PAYLOAD_BYTES_MIN,
    "a packet beside the longest name stays useful"
);
const _: () = assert!(MESSAGE_BYTES_MAX <= REASSEMBLY_BYTES_MAX);
const _: () = assert!(REASSEMBLY_PIECE_BYTES <= PAYLOAD_BYTES_MIN / 4);
const _: () = assert!(EVENTS_IN_PACKET_MAX * 4 <= EVENTS_UNREAD_MAX);
const _: () = assert!(MESSAGE_BYTES_MAX + EVENT_HELD_BYTES <= STREAM_QUEUE_BYTES);
const _: () = assert!(
    (MESSAGE_BYTES_MAX + MESSAGE_PREFIX_BYTES) as u64 <= STREAM_WINDOW_BYTES - STREAM_RAISE_BYTES,
    "a stream's credit that is not raised yet takes any message"
);
const _: () = assert!(
    (MESSAGE_BYTES_MAX + MESSAGE_PREFIX_BYTES) as u64 <= SESSION_WINDOW_BYTES - SESSION_RAISE_BYTES,
    "a session's credit that is not raised yet takes any message"
);
const _: () = assert!(STREAM_WINDOW_BYTES <= SESSION_WINDOW_BYTES);
const _: () = assert!(
    (RECEIVE_RANGES_MAX * PAYLOAD_BYTES_MIN) as u64 / 2 >= STREAM_WINDOW_BYTES,
    "full packets, every other one lost, never meet the bound"
);
const _: () = assert!(
    SESSION_ENTRIES_MAX as u64 * 64 <= SESSION_WINDOW_BYTES,
    "what is kept beside a session's bytes is less than they"
);
const _: () = assert!(MESSAGE_BYTES_MAX + MESSAGE_PREFIX_BYTES <= STREAM_QUEUE_BYTES);
const _: () = assert!(STREAM_QUEUE_BYTES <= CLASS_QUEUE_BYTES);
const _: () = assert!(REPLAY_WINDOW_PACKETS.is_multiple_of(64));
const _: () = assert!(TRANSMIT_BYTES_MAX >= DATAGRAM_BYTES_MIN);
const _: () = assert!(TRANSMIT_BYTES_MAX <= DATAGRAM_BYTES_MAX);
const _: () = assert!(
    DATAGRAM_BYTES_MAX - HEADER_BYTES <= 0xffff,
    "the header's payload length holds it"
);
const _: () = assert!(DURATION_NS_MAX < u64::MAX / 4);
const _: () = assert!(LINK_IN_ROW_MIN <= LINK_IN_ROW_MAX);
const _: () = assert!(LINK_SEARCHES * LINK_SEARCH_EVERY_NS < LINK_UNSPOKEN_NS);
const _: () = assert!(COOKIES_PER_SECOND_PER_SOURCE < COOKIES_PER_SECOND);
const _: () = assert!(RESETS_PER_SECOND_PER_SOURCE < RESETS_PER_SECOND);
const _: () = assert!(INTRODUCTIONS_PER_SECOND_PER_SOURCE < INTRODUCTIONS_PER_SECOND);
const _: () = assert!(ADMISSION_SLOTS.is_power_of_two());
const _: () = assert!(WINDOW_SEGMENTS_MIN <= WINDOW_SEGMENTS_INITIAL);
const _: () = assert!(WINDOW_SEGMENTS_INITIAL * DATAGRAM_BYTES_MAX as u64 <= WINDOW_BYTES_MAX);
const _: () = assert!(SKIP_GAP_MIN <= SKIP_GAP_MAX);
const _: () = assert!(
    SKIPPED_KEPT_MAX as u64 * SKIP_GAP_MAX / 2 >= UNACKNOWLEDGED_MAX as u64,
    "on average none is forgotten while packets about it are on their way"
);
const _: () = assert!(ACK_WAIT_NS <= ACK_DELAY_NS);
const _: () = assert!(PACKET_THRESHOLD <= PACKET_THRESHOLD_MAX);
const _: () = assert!(TIME_THRESHOLD_EIGHTHS <= TIME_THRESHOLD_EIGHTHS_MAX);
const _: () = assert!(MTU_SIZES[0] > DATAGRAM_BYTES_MIN);
const _: () = assert!(MTU_SIZES[MTU_SIZES.len() - 1] < DATAGRAM_BYTES_MAX);
const _: () = assert!(FAILED_OPENS_REKEY < FAILED_OPENS_CLOSE);
const _: () = assert!(
    ACK_RANGES_MAX * 16 + 32 <= PAYLOAD_BYTES_MIN,
    "an acknowledgement fits, each number of its ranges taking eight bytes"
);
