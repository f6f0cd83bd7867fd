//! Every number.

use std::time::Duration;

/// How long a mapping is asked for: what a killed node leaves behind is gone by then.
pub const LEASE: Duration = Duration::from_secs(3_600);
/// A shorter one is no use: it would be renewed all the time.
pub const LEASE_MIN: Duration = Duration::from_secs(60);
/// A longer one is taken for this.
pub const LEASE_MAX: Duration = Duration::from_secs(86_400);
/// How often a router is asked for its time, which begins anew when it has forgotten its mappings.
pub const CHECK: Duration = Duration::from_secs(15);
/// How often it is asked for the mapping where it tells no time.
pub const CHECK_UPNP: Duration = Duration::from_secs(60);
/// What could not be renewed is tried again so soon.
pub const RENEW_AGAIN: Duration = Duration::from_secs(15);
/// After a search in vain, and twice as long after each further one.
pub const SEARCH_AGAIN: Duration = Duration::from_secs(15);
/// But no longer.
pub const SEARCH_AGAIN_MAX: Duration = Duration::from_secs(1_800);
/// And no longer than this where the router has given a mapping before, or may be another one since.
pub const SEARCH_AGAIN_HELD: Duration = Duration::from_secs(120);
/// A router that does not answer so often, one time after the other, is searched for anew.
pub const SILENT_MAX: u32 = 4;
/// So many ports in a row that the router gave to another host are asked for anew at once.
pub const TAKEN_MAX: u32 = 4;
/// How long after a panic what was being done is begun again, and twice as long after each further one.
pub const PANIC_AGAIN: Duration = Duration::from_secs(1);
/// But no longer.
pub const PANIC_AGAIN_MAX: Duration = Duration::from_secs(300);
/// So long without a panic, and the next one is a first one.
pub const PANIC_FORGOTTEN: Duration = Duration::from_secs(1_800);
/// A mapping over which there were so many is left, and made anew.
pub const PANICS_MAX: u32 = 5;
/// How long a search may take, all protocols together, or one request for a mapping that there was.
pub const SEARCH_ALL: Duration = Duration::from_secs(30);
/// How long a router is given to take its mappings back.
pub const GIVE_BACK: Duration = Duration::from_secs(5);
/// Mappings that a router may still have, and that are not this node's any more.
pub const LEFT_MAX: usize = 4;
/// Lines of the table of routes: default routes stand first.
pub const ROUTES_MAX: usize = 1_024;
/// How often it is looked which router the default route leads to.
pub const LOOK: Duration = Duration::from_secs(5);

/// The first datagram to a router is followed by another one after this, the next after twice that.
pub const DATAGRAM_FIRST: Duration = Duration::from_millis(250);
/// Further datagrams.
pub const DATAGRAMS_MORE: usize = 3;
/// Answers that cannot be read are passed over, so many in one exchange.
pub const MALFORMED_MAX: usize = 16;
/// Bytes of an answer by datagram; of a longer one the rest is not read.
pub const DATAGRAM_BYTES_MAX: usize = 1_536;

/// How long it is listened for routers that speak UPnP.
pub const SEARCH: Duration = Duration::from_secs(3);
/// How long after the first answer that will do.
pub const SEARCH_MORE: Duration = Duration::from_millis(300);
/// Answers of the router's that are looked at.
pub const ANSWERS_MAX: usize = 64;
/// Of them addresses that are asked.
pub const ROUTERS_MAX: usize = 4;
/// Bytes of an address.
pub const URL_BYTES_MAX: usize = 512;
/// How long one request to a router may take by HTTP, with its answer.
pub const HTTP: Duration = Duration::from_secs(4);
/// Bytes of the head of its answer, and of its body.
pub const HEAD_BYTES_MAX: usize = 16 * 1_024;
/// See [`HEAD_BYTES_MAX`].
pub const BODY_BYTES_MAX: usize = 64 * 1_024;
/// Levels of a document.
pub const XML_DEPTH_MAX: usize = 24;
/// Bytes of what an element says.
pub const XML_TEXT_BYTES_MAX: usize = 1_024;
/// Services of a router that are looked at.
pub const SERVICES_MAX: usize = 16;
/// Ports that a router is asked for, one after the other, where others have them.
pub const PORTS_MAX: usize = 4;
/// Mappings of a router that are looked through for this node's own.
pub const ENTRIES_MAX: u16 = 16;
/// How long that may take.
pub const ENTRIES: Duration = Duration::from_secs(5);

const _: () =
    assert!(CHECK.as_secs() < LEASE_MIN.as_secs() && LEASE.as_secs() < LEASE_MAX.as_secs());
const _: () = assert!(
    SEARCH_AGAIN.as_secs() < SEARCH_AGAIN_HELD.as_secs()
        && SEARCH_AGAIN_HELD.as_secs() < SEARCH_AGAIN_MAX.as_secs()
);
const _: () = assert!(PANIC_AGAIN_MAX.as_secs() < PANIC_FORGOTTEN.as_secs());
// Of datagrams there are four, each waited for twice as long.
const _: () = assert!(
    GIVE_BACK.as_millis() > HTTP.as_millis()
        && GIVE_BACK.as_millis() > DATAGRAM_FIRST.as_millis() * ((2 << DATAGRAMS_MORE) - 1)
);
const _: () = assert!(ROUTERS_MAX < ANSWERS_MAX && XML_TEXT_BYTES_MAX > URL_BYTES_MAX);
