//! Every number of the carriers, each with the invariant it must keep.

use std::time::Duration;
use virga_ebpf::limits::HEADER_BYTES;

/// Largest frame: the largest datagram that a node sends or opens, what UDP over IPv4 carries.
pub const FRAME_BYTES_MAX: usize = 65_507;
/// Connections at once that have not proven who they are: with one more, the oldest of the source with most ends.
pub const UNPROVEN_MAX: usize = 64;
/// How long a connection may take to prove who it is, TLS and WebSocket included.
pub const HELLO_TIME: Duration = Duration::from_secs(5);
/// How long TCP may take to connect.
pub const CONNECT_TIME: Duration = Duration::from_secs(5);
/// A connection on which nothing was sent for this long sends an empty frame.
pub const KEEPALIVE_EVERY: Duration = Duration::from_secs(4);
/// A connection on which nothing came for this long is broken.
pub const SILENCE_MAX: Duration = Duration::from_secs(12);
/// Bytes that wait for a connection; what comes then is dropped, as a router's full queue would.
pub const QUEUE_BYTES_MAX: usize = 1024 * 1024;
/// Frames that do.
pub const QUEUE_FRAMES_MAX: usize = 4_096;
/// Frames a second that one connection may bring; those beyond are dropped.
pub const FRAMES_PER_SECOND: u32 = 250_000;
/// How long the last packets may take through loopback when a connection ends.
pub const FAREWELL: Duration = Duration::from_millis(30);
/// Shortest wait between two attempts to connect,
pub const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// and longest.
pub const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// A connection without a session is given up after this long, and UDP gets its turn.
pub const SESSION_TIME: Duration = Duration::from_secs(20);
/// When the system takes no connection, it is asked again after this.
pub const BREATH: Duration = Duration::from_millis(100);

const _: () = assert!(
    FRAME_BYTES_MAX <= u16::MAX as usize,
    "two bytes hold its length"
);
const _: () = assert!(HEADER_BYTES > 1, "a command is no packet");
const _: () = assert!(FRAME_BYTES_MAX <= QUEUE_BYTES_MAX);
const _: () = assert!(2 * KEEPALIVE_EVERY.as_millis() < SILENCE_MAX.as_millis());
