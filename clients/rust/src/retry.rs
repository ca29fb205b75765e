//! When to try again: full jitter (a random part of a bound that doubles), never before `Retry-After`.

use std::time::{Duration, SystemTime};

/// How often, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct RetryPolicy {
    /// Attempts in all; 1 is no retry.
    pub attempts_max: u32,
    /// Time for all attempts and the waits between them. No attempt begins after it.
    pub total_max: Duration,
    /// Bound of the first wait.
    pub wait_first: Duration,
    /// Bound of every wait but for `Retry-After`.
    pub wait_max: Duration,
}

impl Default for RetryPolicy {
    /// Ten attempts in two minutes, which outlasts a restart of the server.
    fn default() -> Self {
        Self {
            attempts_max: 10,
            total_max: Duration::from_secs(120),
            wait_first: Duration::from_millis(100),
            wait_max: Duration::from_secs(10),
        }
    }
}

impl RetryPolicy {
    /// No second attempt.
    pub const fn none() -> Self {
        Self { attempts_max: 1, total_max: Duration::MAX, wait_first: Duration::ZERO, wait_max: Duration::ZERO }
    }

    /// How long to wait after `attempts` attempts of which the first began `elapsed` ago; `None` to give up. With
    /// `Retry-After` the jitter comes on top, so that clients who were told the same do not come back together.
    pub(crate) fn wait(&self, attempts: u32, elapsed: Duration, retry_after: Option<Duration>) -> Option<Duration> {
        if attempts >= self.attempts_max {
            return None;
        }
        let doubled = self.wait_first.saturating_mul(1 << attempts.saturating_sub(1).min(20));
        let jitter = doubled.min(self.wait_max).mul_f64(fastrand::f64());
        let wait = retry_after.unwrap_or_default().saturating_add(jitter);
        (elapsed.saturating_add(wait) < self.total_max).then_some(wait)
    }
}

/// Reads `Retry-After`: seconds, or a date (RFC 9110, 10.2.3).
pub(crate) fn parse_retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(text).ok()?;
    Some(at.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: RetryPolicy = RetryPolicy {
        attempts_max: 5,
        total_max: Duration::from_secs(60),
        wait_first: Duration::from_millis(100),
        wait_max: Duration::from_millis(300),
    };

    #[test]
    fn waits_are_random_below_a_bound_that_doubles_up_to_the_greatest() {
        for (attempts, bound_ms) in [(1, 100), (2, 200), (3, 300), (4, 300)] {
            let waits: Vec<_> =
                (0..200).map(|_| POLICY.wait(attempts, Duration::ZERO, None).expect("a wait").as_millis()).collect();
            assert!(waits.iter().all(|wait| *wait <= bound_ms), "{attempts}: {waits:?}");
            assert!(waits.iter().max() > Some(&(bound_ms / 2)), "{attempts}: {waits:?}");
            assert!(waits.iter().min() < Some(&(bound_ms / 2)), "{attempts}: {waits:?}");
        }
    }

    #[test]
    fn what_the_server_asks_for_is_waited_at_least() {
        let asked = Duration::from_secs(7);
        let wait = POLICY.wait(1, Duration::ZERO, Some(asked)).expect("a wait");
        assert!(wait >= asked && wait <= asked + Duration::from_millis(100), "{wait:?}");
    }

    #[test]
    fn attempts_and_time_are_bounded() {
        assert_eq!(POLICY.wait(5, Duration::ZERO, None), None);
        assert_eq!(POLICY.wait(1, Duration::from_secs(60), None), None);
        assert_eq!(POLICY.wait(1, Duration::from_secs(1), Some(Duration::from_secs(59))), None);
        assert_eq!(RetryPolicy::none().wait(1, Duration::ZERO, None), None);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:30 GMT").expect("a date");
        assert_eq!(parse_retry_after(" 3 ", now), Some(Duration::from_secs(3)));
        assert_eq!(parse_retry_after("Sun, 06 Nov 1994 08:49:37 GMT", now), Some(Duration::from_secs(7)));
        assert_eq!(parse_retry_after("Sun, 06 Nov 1994 08:49:07 GMT", now), Some(Duration::ZERO));
        assert_eq!(parse_retry_after("soon", now), None);
    }
}
