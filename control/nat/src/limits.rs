//! Every number.

const MS: u64 = 1_000_000;
const S: u64 = 1_000 * MS;

/// Packets to one address in one try.
pub const PROBES_MAX: u32 = 10;
/// Packets of one try that go to the address that a neighbour told of, in turn with the port that the peer's router maps
/// and with where the peer was before the try, where it has those; the others are for one that the peer was heard from.
pub const PROBES_TOLD: u32 = 6;
/// After the first packet to an address the next one comes so much later, and then twice as much: one that is answered
/// is not overtaken by the next one where the round trip is as long.
pub const PROBE_NS: u64 = 100 * MS;
/// The node with the higher id begins so much later: what it hears before has come through its NAT unasked.
pub const SECOND_NS: u64 = 400 * MS;
/// How long a try takes at most.
pub const MEETING_NS: u64 = 10 * S;
/// How long a neighbour may take to answer that is asked for a meeting.
pub const ANSWER_NS: u64 = 3 * S;
/// Before the first try neighbours have time to say what they see.
pub const SETTLE_NS: u64 = S;
/// Before the second try; each further one waits twice as long.
pub const RETRY_NS: u64 = 5 * S;
/// But no longer.
pub const RETRY_NS_MAX: u64 = 600 * S;
/// Behind two symmetric NATs, one of whose routers may map a port at any time and tells only neighbours of it.
pub const SYMMETRIC_NS_MAX: u64 = 60 * S;
/// How long the link to a peer that was reached may be silent before that is taken back, where its keepalive comes
/// often.
pub const SILENT_NS: u64 = 5 * S;
/// How long it must have lasted for the next try to be a first one.
pub const STABLE_NS: u64 = 60 * S;
/// Tries at a time.
pub const MEETINGS_MAX: usize = 8;
/// Peers that are sent to straight at a time.
pub const PUNCHED_MAX: usize = 64;
/// Packets to addresses that others told of, all at once.
pub const PROBES_BURST: u32 = 80;
/// One more each.
pub const PROBES_PAUSE_NS: u64 = 200 * MS;
/// Messages of one peer that are followed, all at once.
pub const SAID_BURST: u32 = 32;
/// One more each.
pub const SAID_PAUSE_NS: u64 = 250 * MS;
/// Meetings that are arranged for one that asks, all at once.
pub const ASKS_BURST: u32 = 8;
/// One more each.
pub const ASKS_PAUSE_NS: u64 = 2 * S;
/// Meetings that one is told of that others ask for, all at once: fewer than it follows, and more than one asker has.
pub const MET_BURST: u32 = 16;
/// One more each.
pub const MET_PAUSE_NS: u64 = 500 * MS;
/// Messages of those whose session was not seen yet: they wait for the next look.
pub const EARLY_MAX: usize = 64;
/// Of one of them.
pub const EARLY_OF_ONE_MAX: usize = 8;
/// Times that one peer's word of a mapped port has it tried at once that it relays to, all at once.
pub const HINTS_BURST: u32 = 2;
/// One more each: no sooner than where two symmetric NATs are tried for nothing.
pub const HINTS_PAUSE_NS: u64 = SYMMETRIC_NS_MAX;
/// The pauses behind such a try are as after so many in vain, where there were more: it is the peer's word alone.
pub const HINTED_IN_VAIN_MAX: u32 = 3;
/// How often neighbours are told again what they were told.
pub const TELL_NS: u64 = 10 * S;
/// Those of others that see this node's address, whose word counts.
pub const OBSERVERS_MAX: usize = 16;

const _: () = assert!(
    PROBES_TOLD < PROBES_MAX && PROBES_BURST as usize >= MEETINGS_MAX * PROBES_MAX as usize
);
// Each of three addresses is asked.
const _: () = assert!(PROBES_TOLD >= 3);
const _: () = assert!(RETRY_NS << HINTED_IN_VAIN_MAX <= HINTS_PAUSE_NS);
const _: () = assert!(PROBE_NS * ((1 << PROBES_TOLD) - 1) + SECOND_NS < MEETING_NS);
const _: () = assert!(ASKS_BURST < MET_BURST && MET_BURST < SAID_BURST);
const _: () = assert!(ASKS_PAUSE_NS > MET_PAUSE_NS && MET_PAUSE_NS > SAID_PAUSE_NS);
