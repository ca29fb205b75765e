//! Events a second over sliding windows, from counters sampled about once a second.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::limits::{THROUGHPUT_SAMPLES_MAX, THROUGHPUT_WINDOWS};

/// The counters as they stood at one instant.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub at: Instant,
    pub events_accepted: u64,
    pub events_committed: u64,
}

/// Events a second over one window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rates {
    pub accepted: f64,
    pub committed: f64,
}

/// The samples of the last minute, oldest first, no more than [`THROUGHPUT_SAMPLES_MAX`].
#[derive(Debug, Default)]
pub(super) struct Samples(VecDeque<Sample>);

impl Samples {
    /// Takes a sample, and drops the oldest one when full.
    pub fn push(&mut self, sample: Sample) {
        if self.0.len() == THROUGHPUT_SAMPLES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(sample);
    }

    /// Rates over each of [`THROUGHPUT_WINDOWS`], ending at the newest sample. While history is shorter than a window,
    /// over what there is; 0 before the second sample.
    pub fn rates(&self) -> [Rates; THROUGHPUT_WINDOWS.len()] {
        THROUGHPUT_WINDOWS.map(|window| self.rates_over(window))
    }

    fn rates_over(&self, window: Duration) -> Rates {
        let Some(newest) = self.0.back() else { return Rates::default() };
        let age = |sample: &Sample| newest.at.saturating_duration_since(sample.at);
        // Ticks jitter, so the sample nearest to the window's beginning stands for it.
        let earlier = self.0.iter().filter(|sample| !age(sample).is_zero());
        let Some(begin) = earlier.min_by_key(|sample| age(sample).abs_diff(window)) else { return Rates::default() };
        let seconds = age(begin).as_secs_f64();
        Rates {
            accepted: newest.events_accepted.saturating_sub(begin.events_accepted) as f64 / seconds,
            committed: newest.events_committed.saturating_sub(begin.events_committed) as f64 / seconds,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `events` a second accepted and half of it committed, one sample a second for `seconds`, ticks late by `jitter`.
    fn steady(samples: &mut Samples, begin: Instant, seconds: std::ops::Range<u64>, events: u64) {
        for second in seconds {
            let jitter = Duration::from_millis(second * 7 % 5);
            let at = begin + Duration::from_secs(second) + jitter;
            let previous = samples.0.back().map_or((0, 0), |sample| (sample.events_accepted, sample.events_committed));
            samples.push(Sample {
                at,
                events_accepted: previous.0 + events,
                events_committed: previous.1 + events / 2,
            });
        }
    }

    fn is_about(rate: f64, expected: f64) -> bool {
        (rate - expected).abs() <= expected * 0.01
    }

    #[test]
    fn there_is_no_rate_before_the_second_sample() {
        let mut samples = Samples::default();
        assert_eq!(samples.rates(), [Rates::default(); 3]);
        steady(&mut samples, Instant::now(), 0..1, 1000);
        assert_eq!(samples.rates(), [Rates::default(); 3]);
    }

    #[test]
    fn a_short_history_is_averaged_over_what_there_is() {
        let mut samples = Samples::default();
        steady(&mut samples, Instant::now(), 0..3, 1000);
        for rates in samples.rates() {
            assert!(is_about(rates.accepted, 1000.0) && is_about(rates.committed, 500.0), "{rates:?}");
        }
    }

    #[test]
    fn each_window_sees_only_its_own_seconds() {
        let (mut samples, begin) = (Samples::default(), Instant::now());
        steady(&mut samples, begin, 0..300, 100_000);
        steady(&mut samples, begin, 300..359, 0);
        steady(&mut samples, begin, 359..360, 600);
        let [second, ten, minute] = samples.rates();
        assert!(is_about(second.accepted, 600.0), "{second:?}");
        assert!(is_about(ten.accepted, 60.0), "{ten:?}");
        assert!(is_about(minute.accepted, 10.0), "{minute:?}");
    }

    #[test]
    fn two_samples_of_one_instant_do_not_divide_by_zero() {
        let (mut samples, now) = (Samples::default(), Instant::now());
        for events in [0, 10] {
            samples.push(Sample { at: now, events_accepted: events, events_committed: events });
        }
        assert_eq!(samples.rates(), [Rates::default(); 3]);
    }
}
