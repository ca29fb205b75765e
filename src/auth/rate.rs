//! Token buckets for events and requests, and how a client is told where it stands.
//!
//! The headers are those of draft-ietf-httpapi-ratelimit-headers-10: `RateLimit-Policy` says what is allowed (`q`
//! units in `w` seconds), `RateLimit` what is left (`r` units, all of them back in `t` seconds).

use std::cell::Cell;
use std::fmt::Write as _;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use governor::clock::{Clock, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

/// So many a second, and so many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Units that come back each second.
    pub per_second: NonZeroU32,
    /// Units that may be used at once.
    pub burst: NonZeroU32,
}

impl RateLimit {
    /// `per_second` with `burst`; without a burst, what comes back within a second.
    pub fn new(per_second: NonZeroU32, burst: Option<NonZeroU32>) -> Self {
        Self { per_second, burst: burst.unwrap_or(per_second) }
    }

    /// Seconds in which `units` come back, rounded up.
    fn seconds(self, units: u32) -> u32 {
        units.div_ceil(self.per_second.get())
    }
}

/// The limits of one client; `None`: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Of events.
    pub events: Option<RateLimit>,
    /// Of requests.
    pub requests: Option<RateLimit>,
}

impl RateLimits {
    /// These limits; where there is none, `other`'s.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self { events: self.events.or(other.events), requests: self.requests.or(other.requests) }
    }

    /// True when nothing is limited.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Events of accepted batches.
    Events,
    /// Requests.
    Requests,
}

impl Unit {
    /// Its name in the headers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Requests => "requests",
        }
    }
}

/// Why nothing was taken from a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exceeded {
    /// There will be enough after this time.
    Wait(Duration),
    /// There will never be: more was asked for than the bucket holds.
    Never(RateLimit),
}

const NANOS_A_SECOND: u64 = 1_000_000_000;

/// A token bucket (the generic cell rate algorithm, one atomic word).
struct Bucket {
    limit: RateLimit,
    /// When the bucket is full again, in nanoseconds since `made_at`: what it was asked for last may be refused without a word of
    /// how much is there.
    full_at: AtomicU64,
    made_at: Instant,
    limiter: RateLimiter<NotKeyed, InMemoryState, DefaultClock, StateInformationMiddleware>,
}

impl Bucket {
    fn new(limit: RateLimit) -> Self {
        let quota = Quota::per_second(limit.per_second).allow_burst(limit.burst);
        let limiter = RateLimiter::direct(quota).with_middleware();
        Self { limit, full_at: AtomicU64::new(0), made_at: Instant::now(), limiter }
    }

    /// Nanoseconds in which `units` come back, rounded up.
    fn nanos(&self, units: u32) -> u64 {
        (u64::from(units) * NANOS_A_SECOND).div_ceil(u64::from(self.limit.per_second.get()))
    }

    /// Units of `of` that are there when the rest comes back within `nanos`.
    fn there(&self, of: u32, nanos: u64) -> u32 {
        let missing =
            (u128::from(nanos) * u128::from(self.limit.per_second.get())).div_ceil(u128::from(NANOS_A_SECOND));
        of.saturating_sub(u32::try_from(missing).unwrap_or(u32::MAX))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.made_at.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Units that are there.
    fn left(&self) -> u32 {
        // Relaxed: a figure for people, which another request may change at once.
        self.there(self.limit.burst.get(), self.full_at.load(Ordering::Relaxed).saturating_sub(self.now()))
    }

    /// Takes `units`, all or none; gives back what is left.
    fn take(&self, units: NonZeroU32) -> Result<u32, Exceeded> {
        match self.limiter.check_n(units) {
            Ok(Ok(snapshot)) => {
                let left = snapshot.remaining_burst_capacity();
                let full_at = self.now() + self.nanos(self.limit.burst.get().saturating_sub(left));
                // The latest is that of the last one who took something.
                self.full_at.fetch_max(full_at, Ordering::Relaxed);
                Ok(left)
            }
            Ok(Err(until)) => Err(Exceeded::Wait(until.wait_time_from(self.limiter.clock().now()))),
            Err(_) => Err(Exceeded::Never(self.limit)),
        }
    }
}

/// The buckets of one client, shared by all its requests.
pub struct Rates {
    limits: RateLimits,
    events: Option<Bucket>,
    requests: Option<Bucket>,
}

impl Rates {
    /// Full buckets for `limits`.
    pub fn new(limits: RateLimits) -> Self {
        Self { limits, events: limits.events.map(Bucket::new), requests: limits.requests.map(Bucket::new) }
    }

    /// What is allowed.
    pub fn limits(&self) -> RateLimits {
        self.limits
    }

    fn bucket(&self, unit: Unit) -> Option<&Bucket> {
        match unit {
            Unit::Events => self.events.as_ref(),
            Unit::Requests => self.requests.as_ref(),
        }
    }

    /// Takes `units`, all or none, and notes in `standing` what is left.
    ///
    /// # Errors
    /// When there are not so many.
    pub fn take(&self, unit: Unit, units: u32, standing: &Standing) -> Result<(), Exceeded> {
        let (Some(bucket), Some(units)) = (self.bucket(unit), NonZeroU32::new(units)) else { return Ok(()) };
        let taken = bucket.take(units);
        let left = match taken {
            Ok(left) => left,
            Err(Exceeded::Wait(wait)) => bucket.there(units.get(), u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX)),
            Err(Exceeded::Never(_)) => bucket.left(),
        };
        let back_seconds = bucket.limit.seconds(bucket.limit.burst.get().saturating_sub(left));
        standing.of(unit).set(Some(Left { units: left, back_seconds }));
        taken.map(drop)
    }

    /// The values of `RateLimit-Policy` and `RateLimit`; `None` when nothing is limited, or nothing was taken.
    pub fn headers(&self, standing: &Standing) -> Option<(String, String)> {
        let (mut policy, mut state) = (String::new(), String::new());
        for unit in [Unit::Events, Unit::Requests] {
            let Some(bucket) = self.bucket(unit) else { continue };
            let burst = bucket.limit.burst.get();
            separate(&mut policy);
            // Writing into a String does not fail.
            let _ = write!(policy, "\"{}\";q={burst};w={}", unit.name(), bucket.limit.seconds(burst));
            if let Some(left) = standing.of(unit).get() {
                separate(&mut state);
                let _ = write!(state, "\"{}\";r={};t={}", unit.name(), left.units, left.back_seconds);
            }
        }
        (!state.is_empty()).then_some((policy, state))
    }
}

fn separate(list: &mut String) {
    if !list.is_empty() {
        list.push_str(", ");
    }
}

/// `wait` as whole seconds, at least one: what `Retry-After` can say.
pub fn whole_seconds(wait: Duration) -> u32 {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    u32::try_from(seconds).unwrap_or(u32::MAX).max(1)
}

#[derive(Clone, Copy, Debug)]
struct Left {
    units: u32,
    back_seconds: u32,
}

/// What one request has learnt of its client's buckets.
#[derive(Debug, Default)]
pub struct Standing {
    events: Cell<Option<Left>>,
    requests: Cell<Option<Left>>,
}

impl Standing {
    fn of(&self, unit: Unit) -> &Cell<Option<Left>> {
        match unit {
            Unit::Events => &self.events,
            Unit::Requests => &self.requests,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(per_second: u32, burst: u32) -> RateLimit {
        let number = |value| NonZeroU32::new(value).expect("not zero");
        RateLimit::new(number(per_second), Some(number(burst)))
    }

    #[test]
    fn all_or_nothing_is_taken() {
        let rates = Rates::new(RateLimits { events: Some(limit(1, 10)), requests: None });
        let standing = Standing::default();
        assert_eq!(rates.take(Unit::Requests, 1_000_000, &standing), Ok(()));
        assert_eq!(rates.take(Unit::Events, 7, &standing), Ok(()));
        assert!(matches!(rates.take(Unit::Events, 4, &standing), Err(Exceeded::Wait(wait)) if wait.as_secs() <= 1));
        // The four that were refused have taken nothing.
        assert_eq!(rates.take(Unit::Events, 3, &standing), Ok(()));
        assert_eq!(rates.take(Unit::Events, 11, &standing), Err(Exceeded::Never(limit(1, 10))));
    }

    #[test]
    fn headers_tell_policy_and_what_is_left() {
        let rates = Rates::new(RateLimits { events: Some(limit(10, 100)), requests: Some(limit(5, 5)) });
        let standing = Standing::default();
        assert_eq!(rates.headers(&standing), None);
        rates.take(Unit::Requests, 1, &standing).expect("enough");
        let (policy, state) = rates.headers(&standing).expect("limited");
        assert_eq!(policy, "\"events\";q=100;w=10, \"requests\";q=5;w=1");
        assert_eq!(state, "\"requests\";r=4;t=1");
        rates.take(Unit::Events, 60, &standing).expect("enough");
        assert_eq!(rates.headers(&standing).expect("limited").1, "\"events\";r=40;t=6, \"requests\";r=4;t=1");
        rates.take(Unit::Events, 60, &standing).expect_err("too much");
        assert!(
            rates.headers(&standing).expect("limited").1.starts_with("\"events\";r=40;t=6"),
            "they are still there"
        );
        let standing = Standing::default();
        rates.take(Unit::Events, 101, &standing).expect_err("more than there may be");
        assert_eq!(rates.headers(&standing).expect("limited").1, "\"events\";r=40;t=6");
    }

    #[test]
    fn a_limit_without_burst_allows_a_seconds_worth_at_once() {
        let number = |value| NonZeroU32::new(value).expect("not zero");
        assert_eq!(RateLimit::new(number(7), None), limit(7, 7));
        assert_eq!(whole_seconds(Duration::from_millis(1)), 1);
        assert_eq!(whole_seconds(Duration::from_millis(1001)), 2);
        assert_eq!(whole_seconds(Duration::ZERO), 1);
    }
}
