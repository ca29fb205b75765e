//! Counters and gauges: one padded atomic each, and arrays of them by label.
//!
//! Orderings: every access is relaxed and pairs with nothing. A cell guards no other memory; each is a number whose
//! own modification order is all that a scrape needs (a counter never seems to fall).
//!
//! Absent on purpose: per-thread shards. These are touched about once a batch, and one contended addition is little
//! beside a batch's own work.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use crossbeam::utils::CachePadded;

use super::labels::{HttpStatus, Label, Route};

/// A number that only rises.
#[derive(Debug, Default)]
pub struct Counter(CachePadded<AtomicU64>);

impl Counter {
    /// Counts `count` more.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    /// The count since start.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that rises and falls.
///
/// Signed inside: `sub` by one thread may overtake the `add` by another that it answers, which reads as 0 for that
/// moment, not as 2⁶⁴.
#[derive(Debug, Default)]
pub struct Gauge(CachePadded<AtomicI64>);

impl Gauge {
    /// Replaces the value.
    pub fn set(&self, value: u64) {
        self.0.store(value as i64, Relaxed);
    }

    /// Raises the value.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount as i64, Relaxed);
    }

    /// Lowers the value.
    pub fn sub(&self, amount: u64) {
        self.0.fetch_sub(amount as i64, Relaxed);
    }

    /// The value, 0 at least.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed).max(0) as u64
    }
}

/// A [`Counter`] for each value of a label.
#[derive(Debug)]
pub struct Counters<L> {
    cells: Box<[Counter]>,
    label: PhantomData<fn(L)>,
}

impl<L: Label> Counters<L> {
    pub(super) fn new() -> Self {
        Self { cells: L::VALUES.iter().map(|_| Counter::default()).collect(), label: PhantomData }
    }

    /// Counts `count` more under `label`.
    pub fn add(&self, label: L, count: u64) {
        self.cells[label.index()].add(count);
    }

    /// The count under `label` since start.
    pub fn get(&self, label: L) -> u64 {
        self.cells[label.index()].get()
    }

    /// Every label value with its count.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        L::VALUES.iter().zip(&self.cells).map(|(value, cell)| (*value, cell.get()))
    }
}

/// A [`Gauge`] for each value of a label.
#[derive(Debug)]
pub struct Gauges<L> {
    cells: Box<[Gauge]>,
    label: PhantomData<fn(L)>,
}

impl<L: Label> Gauges<L> {
    pub(super) fn new() -> Self {
        Self { cells: L::VALUES.iter().map(|_| Gauge::default()).collect(), label: PhantomData }
    }

    /// The gauge of `label`.
    pub fn of(&self, label: L) -> &Gauge {
        &self.cells[label.index()]
    }

    /// Every label value with its reading.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        L::VALUES.iter().zip(&self.cells).map(|(value, cell)| (*value, cell.get()))
    }

    /// The sum over all label values.
    pub fn sum(&self) -> u64 {
        self.cells.iter().map(Gauge::get).sum()
    }
}

/// A [`Counter`] for each of the names given at start-up.
///
/// For `events_rejected_total{code}`: the codes belong to the station that validates, which stands above this one.
#[derive(Debug)]
pub struct NamedCounters {
    names: &'static [&'static str],
    /// One a name, then one for names that are not listed.
    cells: Box<[Counter]>,
}

impl NamedCounters {
    /// The name under which unlisted names are counted.
    const UNLISTED: &'static str = "other";

    pub(super) fn new(names: &'static [&'static str]) -> Self {
        let is_new = |index: usize| names[index] != Self::UNLISTED && !names[..index].contains(&names[index]);
        assert!((0..names.len()).all(is_new), "a name twice would be a series twice");
        Self { names, cells: (0..=names.len()).map(|_| Counter::default()).collect() }
    }

    /// Counts `count` more under `name`, which should be one of the names given at start-up.
    pub fn add(&self, name: &'static str, count: u64) {
        let index = self.names.iter().position(|listed| *listed == name).unwrap_or(self.names.len());
        self.cells[index].add(count);
    }

    /// Every name with its count, `other` last.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let names = self.names.iter().copied().chain([Self::UNLISTED]);
        names.zip(&self.cells).map(|(name, cell)| (name, cell.get()))
    }

    /// The sum over all names.
    pub fn sum(&self) -> u64 {
        self.cells.iter().map(Counter::get).sum()
    }
}

/// What is told of ingestion although it has not occurred: taken, refused for load, failed.
const ALWAYS_TOLD: [&str; 4] = ["202", "429", "500", "503"];

/// Requests by route and status code.
#[derive(Debug)]
pub struct RequestCounters {
    by_route: Box<[Counters<HttpStatus>]>,
}

impl RequestCounters {
    pub(super) fn new() -> Self {
        Self { by_route: Route::VALUES.iter().map(|_| Counters::new()).collect() }
    }

    /// Counts one answered request.
    pub fn count(&self, route: Route, status: HttpStatus) {
        self.by_route[route.index()].add(status, 1);
    }

    /// Route, status code and count of each pair that has occurred, and of those that alerts ask for: a series that
    /// begins with its first event hides that event from `increase()`. Of the 240 pairs a server meets few; the others are
    /// left out of the exposition.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        let is_always_told =
            |route: &str, status: &str| route == Route::IngestBatch.value() && ALWAYS_TOLD.contains(&status);
        let routes = Route::VALUES.iter().zip(&self.by_route);
        routes
            .flat_map(|(route, counters)| counters.iter().map(|(status, count)| (*route, status, count)))
            .filter(move |(route, status, count)| *count > 0 || is_always_told(route, status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Priority;

    #[test]
    fn counts_are_kept_by_label() {
        let counters = Counters::<Priority>::new();
        let highest = Priority::new(10).expect("10 is a priority");
        counters.add(highest, 3);
        counters.add(Priority::default(), 1);
        counters.add(highest, 4);
        assert_eq!(counters.get(highest), 7);
        assert_eq!(counters.iter().filter(|(_, count)| *count > 0).collect::<Vec<_>>(), [("0", 1), ("10", 7)]);
    }

    #[test]
    fn a_gauge_lowered_too_early_reads_zero_and_recovers() {
        let gauge = Gauge::default();
        gauge.sub(5);
        assert_eq!(gauge.get(), 0);
        gauge.add(7);
        assert_eq!(gauge.get(), 2);
        gauge.set(40);
        assert_eq!(gauge.get(), 40);
    }

    #[test]
    fn names_that_were_not_given_at_start_make_no_series() {
        let counters = NamedCounters::new(&["too_long", "not_an_object"]);
        counters.add("not_an_object", 2);
        counters.add("made_up", 5);
        assert_eq!(counters.iter().collect::<Vec<_>>(), [("too_long", 0), ("not_an_object", 2), ("other", 5)]);
        assert_eq!(counters.sum(), 7);
    }

    #[test]
    fn pairs_of_route_and_code_that_occurred_and_those_for_alerts_are_listed() {
        let requests = RequestCounters::new();
        requests.count(Route::IngestBatch, HttpStatus(202));
        requests.count(Route::IngestBatch, HttpStatus(202));
        requests.count(Route::Other, HttpStatus(404));
        let listed: Vec<_> = requests.iter().collect();
        let of_ingestion = [("202", 2), ("429", 0), ("500", 0), ("503", 0)];
        let expected = of_ingestion.map(|(status, count)| ("/v1/ingest/batch", status, count));
        assert_eq!(listed, [&expected[..], &[("other", "404", 1)]].concat());
    }
}
