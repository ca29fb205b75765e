//! The schedule of an open loop: request number n is due n intervals after the start, whatever became of those before.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

/// Requests that are due within this time are let go together: waking for each would cost more than it tells.
const GRAIN: Duration = Duration::from_micros(100);

/// When requests are due.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    /// When the first one is.
    pub start: Instant,
    /// How many there are.
    pub requests: u64,
    /// Time from the first to the end.
    pub duration: Duration,
}

impl Schedule {
    /// When request `number` (from 0) is due.
    pub(super) fn due(&self, number: u64) -> Instant {
        self.start + self.duration.mul_f64(number as f64 / self.requests as f64)
    }

    /// How many are due `elapsed` after the start.
    fn due_after(&self, elapsed: Duration) -> u64 {
        let share = elapsed.as_secs_f64() / self.duration.as_secs_f64();
        ((share * self.requests as f64) as u64 + 1).min(self.requests)
    }
}

/// Gives `due` a permit for each request when its time has come, and in the end one for each of `connections`. A thread
/// of its own, because the runtime's timers are a millisecond wide.
pub(super) fn start(schedule: Schedule, due: Arc<Semaphore>, connections: usize) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("pace".to_owned()).spawn(move || {
        let mut given = 0;
        while given < schedule.requests {
            let now = Instant::now();
            let until = schedule.due_after(now.saturating_duration_since(schedule.start));
            due.add_permits((until - given) as usize);
            given = until;
            std::thread::sleep(schedule.due(given).saturating_duration_since(now).max(GRAIN));
        }
        due.add_permits(connections);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_is_due_once_and_evenly() {
        let schedule = Schedule { start: Instant::now(), requests: 40, duration: Duration::from_secs(10) };
        assert_eq!(schedule.due(0), schedule.start);
        assert_eq!(schedule.due(20) - schedule.start, Duration::from_secs(5));
        assert_eq!(schedule.due_after(Duration::ZERO), 1);
        assert_eq!(schedule.due_after(Duration::from_millis(5_100)), 21);
        assert_eq!(schedule.due_after(Duration::from_secs(60)), 40);
    }
}
