//! What time it is.

use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds since 1970, 0 before.
#[must_use]
pub fn now_unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}
