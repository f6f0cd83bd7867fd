//! Every number of routing, with its invariant.

use crate::announcement::ANNOUNCEMENT_BYTES;

/// Destinations that one router knows: what finds no room is counted, and nothing that is known gives way.
pub const DESTINATIONS_MAX: usize = 16_384;
/// Neighbours of one router; as many as the tables have next hops.
pub const NEIGHBOURS_MAX: usize = 1_024;
/// The metric of what cannot be reached. Sums of costs end below it.
pub const UNREACHABLE: u32 = u32::MAX;
/// What one link costs at most.
pub const COST_MAX: u32 = 1 << 24;
/// Bytes of a message: it fits one packet of the smallest size, with the frame around it.
pub const MESSAGE_BYTES_MAX: usize = 1_024;
/// What changes within this time is told in one go.
pub const TICK_NS: u64 = 10_000_000;
/// Messages to one neighbour a tick; the rest waits for the next.
pub const MESSAGES_PER_TICK: u32 = 32;
/// Neighbours that a request for a newer sequence number passes.
pub const HOPS_MAX: u8 = 64;
/// Announcements with a wrong signature after which a neighbour is not listened to in this session.
pub const FORGED_MAX: u32 = 16;
/// Requests of one neighbour that wait to be passed on or answered.
pub const REQUESTS_MAX: usize = 1_024;
/// A router without a way asks again after this, then after twice this, and so on.
pub const ASK_AGAIN_NS: u64 = 100_000_000;
/// The longest of these pauses.
pub const ASK_AGAIN_NS_MAX: u64 = 10_000_000_000;
/// The same request of others is not passed on again within this time.
pub const PASS_ON_AGAIN_NS: u64 = 50_000_000;
/// A router that has a way but no backup, where a newer number would give it one, asks for it after this.
pub const BACKUP_AFTER_NS: u64 = 1_000_000_000;
/// A destination makes a new sequence number at most this often.
pub const RENUMBER_NS: u64 = 20_000_000;
/// So many for requests that come one after another, and then one a [`RENUMBER_PAUSE_NS`]: each is told to
/// the whole mesh, and anybody may ask.
pub const RENUMBER_BURST: u32 = 16;
/// See [`RENUMBER_BURST`].
pub const RENUMBER_PAUSE_NS: u64 = 1_000_000_000;
/// Metrics of one destination that are told one after another by the same announcement, or ways that are told
/// again after they were taken back: each may be told on through the whole mesh.
pub const SWINGS_BURST: u32 = 16;
/// And then one each.
pub const SWING_PAUSE_NS: u64 = 500_000_000;
/// A way that got so much longer that somebody may have to do without it is told as it was for so long at most, until
/// the newer number has come that is asked for: there and back over a dozen hops of busy machines, and the
/// destination's pause.
pub const RISE_HELD_NS: u64 = 10 * RENUMBER_PAUSE_NS;
/// Who holds a longer way back asks for no newer number where so many have come one after another, and then one a
/// [`RISE_PAUSE_NS`]: those who have no way at all find some left of what the destination may make.
pub const RISES_BURST: u32 = RENUMBER_BURST / 2;
/// See [`RISES_BURST`].
pub const RISE_PAUSE_NS: u64 = 2 * RENUMBER_PAUSE_NS;
/// Announcements of one destination that are told on, one after another: twice what it may make because others
/// ask for them.
pub const NUMBERS_BURST: u32 = 2 * RENUMBER_BURST;
/// And then one each.
pub const NUMBER_PAUSE_NS: u64 = RENUMBER_PAUSE_NS / 2;
/// Requests of one neighbour that are looked at, all at once; as many as there may be destinations.
pub const ASKED_BURST: u32 = 16_384;
/// One more each. A request costs a verification at most.
pub const ASKED_PAUSE_NS: u64 = 1_000_000;
/// Destinations a neighbour of which it is kept in mind that what was said of them was refused.
pub const REFUSED_MAX: usize = 1_024;
/// How far the wall clock may run from the other one before it counts as set anew.
pub const CLOCK_STEP_S: u64 = 2;
/// The metric of a subnet as a gateway says it that reaches no other node of it: any other gateway is nearer.
pub const ALONE: u32 = 1 << 30;
/// Announcements under a node's own keys that it has not made, after which it takes another node to have them:
/// one is of its own earlier life.
pub const TWINS_MAX: u64 = 3;
/// A destination that has a twin makes a new sequence number at most this often.
pub const TWIN_PAUSE_NS: u64 = 1_000_000_000;
/// For how long an announcement holds.
pub const LIFETIME_S: u64 = 3_600;
/// A destination signs a new one after this.
pub const RENEW_NS: u64 = LIFETIME_S * 1_000_000_000 / 2;
/// By how much nodes' clocks may differ.
pub const SKEW_S: u64 = 300;
/// By how much a subnet's number, as milliseconds of Unix time, may be above the time: its gateways share
/// it, so that one of them could otherwise take it to an end that the others cannot exceed. As far as nodes
/// take such numbers, gateways follow them, also those of one that is no member any more: who has told one can
/// go by a lower one only after a while.
pub const AHEAD_S: u64 = SKEW_S;
/// A router that has led nowhere for so long, and told nobody otherwise, forgets what it told before: by then
/// all have heard it, or their streams have ended.
pub const FORGET_NS: u64 = 180_000_000_000;
/// A router asks for a backup so often, and then no more until it lacks another one.
pub const BACKUP_TRIES_MAX: usize = 4;
/// How often it is looked for what has ended.
pub const SWEEP_NS: u64 = 10_000_000_000;

const _: () = assert!(ANNOUNCEMENT_BYTES + 5 <= MESSAGE_BYTES_MAX);
const _: () = assert!(COST_MAX < UNREACHABLE / 2);
const _: () = assert!(ALONE < UNREACHABLE / 2 && ALONE >= COST_MAX * HOPS_MAX as u32);
const _: () = assert!(ASKED_BURST as usize >= DESTINATIONS_MAX);
const _: () = assert!(ASK_AGAIN_NS > TICK_NS && PASS_ON_AGAIN_NS < ASK_AGAIN_NS);
const _: () = assert!(RENEW_NS + SKEW_S * 1_000_000_000 < LIFETIME_S * 1_000_000_000);
const _: () = assert!(RISE_HELD_NS > RENUMBER_PAUSE_NS + SWING_PAUSE_NS);
const _: () = assert!(RISE_PAUSE_NS > RENUMBER_PAUSE_NS && RISES_BURST < RENUMBER_BURST);
const _: () = assert!(RISE_HELD_NS > 2 * RISE_PAUSE_NS);
const _: () = assert!(NEIGHBOURS_MAX <= 1 << 16);
