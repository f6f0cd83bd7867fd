//! The clock that every `now_ns` comes from.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Nanoseconds since the clock was made; monotonic, and never 0.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    zero: Instant,
}

impl Clock {
    /// A clock that starts now.
    #[must_use]
    pub fn start() -> Self {
        Self {
            zero: Instant::now(),
        }
    }

    /// The time, for the `now_ns` arguments.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        let elapsed = self.zero.elapsed() + Duration::from_nanos(1);
        u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// What tells a worker the time.
pub trait Now {
    /// Nanoseconds since some moment; never less than before, and never 0.
    fn now_ns(&self) -> u64;
}

impl Now for Clock {
    #[inline]
    fn now_ns(&self) -> u64 {
        Self::now_ns(self)
    }
}

/// The time of the host's clock, in nanoseconds since 1970, for what the kernel tells by it; that clock may be set at
/// any time.
#[must_use]
pub fn unix_ns() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    since_1970.map_or(0, |since| {
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    })
}
