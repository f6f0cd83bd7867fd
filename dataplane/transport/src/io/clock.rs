//! The clock that every `now_ns` comes from, and the system's randomness.

use std::time::{Duration, Instant};

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
