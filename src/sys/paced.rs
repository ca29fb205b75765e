//! Something that is told now and then while it goes on.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Says when it is time to tell it again.
#[derive(Debug)]
pub struct Paced {
    every: Duration,
    told_at: Mutex<Option<Instant>>,
}

impl Paced {
    /// To be told once in `every` at most.
    pub const fn new(every: Duration) -> Self {
        Self { every, told_at: Mutex::new(None) }
    }

    /// True when it is to be told at `now`, which counts as told.
    pub fn is_due(&self, now: Instant) -> bool {
        let mut told_at = self.told_at.lock();
        let is_due = told_at.is_none_or(|told_at| now.saturating_duration_since(told_at) >= self.every);
        if is_due {
            *told_at = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_at_once_and_then_at_its_pace() {
        let (every, start) = (Duration::from_secs(30), Instant::now());
        let paced = Paced::new(every);
        let told = [0, 10, 29, 30, 31, 61].map(|seconds| paced.is_due(start + Duration::from_secs(seconds)));
        assert_eq!(told, [true, false, false, true, false, true]);
    }
}
