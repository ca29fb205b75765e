//! The wall clock, for people and for PostgreSQL; nothing else.
//!
//! Ages, lingers and timeouts use [`std::time::Instant`] only, which never goes backward, so a jump of the wall
//! clock (NTP, an operator) changes the `received_at` of later batches and nothing else. In particular order never
//! comes from it: [`crate::types::Sequence`] does.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::types::UnixMicros;

/// The wall clock's time. It may go backward from one call to the next.
pub fn wall_now() -> UnixMicros {
    unix_micros(SystemTime::now())
}

/// `time` in microseconds since 1970, rounded towards it; at the ends of the type's range when beyond.
pub fn unix_micros(time: SystemTime) -> UnixMicros {
    UnixMicros(match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |micros| -micros),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn instants_on_both_sides_of_1970_are_converted() {
        assert_eq!(unix_micros(UNIX_EPOCH), UnixMicros(0));
        assert_eq!(unix_micros(UNIX_EPOCH + Duration::from_nanos(1_000_001_999)), UnixMicros(1_000_001));
        assert_eq!(unix_micros(UNIX_EPOCH - Duration::from_secs(2)), UnixMicros(-2_000_000));
    }

    #[test]
    fn the_wall_clock_is_past_2020() {
        assert!(wall_now() > UnixMicros(1_577_836_800_000_000));
    }
}
