//! What a run with a fault is held to beside its control run, and the table. No I/O.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

/// No batch may take longer; whoever has one that does has waited.
pub const WAIT_MAX: Duration = Duration::from_secs(2);
/// Batches that may be in the queue beyond the share of the control: what the streams send in the 50 ms and 20 ms by which
/// their latencies may exceed theirs.
const QUEUE_MARGIN: f64 = 5.0;

/// What one stream saw.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Latency {
    /// 99 of 100 batches took at most this.
    pub p99_ms: f64,
    /// The longest one.
    pub max_ms: f64,
}

impl Latency {
    /// Of what single batches took.
    pub fn of(took: impl Iterator<Item = Duration>) -> Self {
        let mut ms: Vec<f64> = took.map(|took| took.as_secs_f64() * 1e3).collect();
        ms.sort_by(f64::total_cmp);
        let at = |share: f64| ms.get(((ms.len() as f64 * share).ceil() as usize).saturating_sub(1)).copied();
        Self { p99_ms: at(0.99).unwrap_or(f64::NAN), max_ms: at(1.0).unwrap_or(f64::NAN) }
    }

    fn has_waited(&self) -> bool {
        self.max_ms > WAIT_MAX.as_secs_f64() * 1e3
    }
}

/// Figures of one run, with or without the fault. Batches that the fault explains are not in them.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Figures {
    /// 100 events, `ack=commit`, priority 0.
    pub healthy: Latency,
    /// 10 events, `ack=commit`, priority 9.
    pub urgent: Latency,
    /// Mean of the batches in the queue.
    pub queue_batches: f64,
    /// Mean size of the journal's files.
    pub journal_mib: f64,
    /// Answers 429 and 503 to the two streams.
    pub refused: u64,
}

/// What became of the batches that hit the fault.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Faulty {
    /// Acknowledged.
    pub batches: u64,
    /// Settled while the fault was there.
    pub landed_meanwhile: u64,
    /// From received to committed, the longest.
    pub longest_ms: f64,
    /// How often the fault struck, where it does so again and again.
    pub strikes: Option<u64>,
}

/// Everything about one fault.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Its name.
    pub fault: &'static str,
    /// What it is.
    pub what: &'static str,
    /// False where it is a reference that is held to nothing.
    pub is_judged: bool,
    /// Without it.
    pub control: Figures,
    /// With it.
    pub with: Figures,
    /// Its own batches.
    pub faulty: Faulty,
    /// What `/v1/health` said right before it ended.
    pub health: String,
    /// What is not there exactly once in the end, or another fault of the run.
    pub faults: Vec<String>,
}

impl Row {
    /// Everything that is missed, in words; nothing when the row passes.
    pub fn misses(&self) -> Vec<String> {
        let mut misses = self.faults.clone();
        let mut hold = |what: &str, measured: f64, most: f64, unit: &str| {
            // NaN does not hold, either.
            let holds = measured <= most;
            if !holds {
                misses.push(format!("{what} {measured:.0} {unit}, at most {most:.0}"));
            }
        };
        let (control, with) = (&self.control, &self.with);
        let longest_ms = WAIT_MAX.as_secs_f64() * 1e3;
        if self.is_judged {
            hold("healthy P99", with.healthy.p99_ms, 2.0 * control.healthy.p99_ms + 50.0, "ms");
            hold("urgent P99", with.urgent.p99_ms, 1.5 * control.urgent.p99_ms + 20.0, "ms");
            hold("longest healthy", with.healthy.max_ms, longest_ms, "ms");
            hold("longest urgent", with.urgent.max_ms, longest_ms, "ms");
            hold("queue", with.queue_batches, 1.5 * control.queue_batches + QUEUE_MARGIN, "batches");
            hold("journal", with.journal_mib, 1.5 * control.journal_mib, "MiB");
        }
        misses
    }

    fn who_waited(&self) -> String {
        let faulty = Latency { max_ms: self.faulty.longest_ms, ..Latency::default() };
        let streams = [("healthy", &self.with.healthy), ("urgent", &self.with.urgent), ("its batches", &faulty)];
        let waited = streams.iter().filter(|(_, latency)| latency.has_waited());
        let names: Vec<String> =
            waited.map(|(name, latency)| format!("{name} ({:.1} s)", latency.max_ms / 1e3)).collect();
        if names.is_empty() { "nobody".to_owned() } else { names.join(", ") }
    }

    fn result(&self) -> String {
        match (self.misses(), self.is_judged) {
            (misses, _) if !misses.is_empty() => format!("**FAIL**: {}", misses.join("; ")),
            (_, false) => "reference".to_owned(),
            (_, true) => "PASS".to_owned(),
        }
    }

    fn cells(&self) -> String {
        let (control, with, faulty) = (&self.control, &self.with, &self.faulty);
        let p99 = |of: fn(&Figures) -> f64| format!("{:.0} → {:.0} ms", of(control), of(with));
        let strikes = faulty.strikes.map_or(String::new(), |strikes| format!("{strikes} strikes"));
        let batches = (faulty.batches > 0).then(|| format!("{} of {}", faulty.landed_meanwhile, faulty.batches));
        let landed: Vec<String> = batches.into_iter().chain(Some(strikes).filter(|text| !text.is_empty())).collect();
        [
            format!("`{}`: {}", self.fault, self.what),
            self.who_waited(),
            p99(|figures| figures.healthy.p99_ms),
            p99(|figures| figures.urgent.p99_ms),
            format!("{:.0} ms", with.healthy.max_ms.max(with.urgent.max_ms)),
            format!("{:.1} → {:.1}", control.queue_batches, with.queue_batches),
            format!("{:.0} → {:.0} MiB", control.journal_mib, with.journal_mib),
            landed.join(", "),
            self.health.clone(),
            self.result(),
        ]
        .iter()
        .fold("|".to_owned(), |line, cell| format!("{line} {cell} |"))
    }
}

/// All rows, in Markdown.
pub fn table(machine: &str, seconds: u64, rows: &[Row], skipped: &[(&str, String)]) -> String {
    let mut text = format!(
        "{machine}\n5,000 events/s in batches of 100 and a batch of 10 at priority 9 every 50 ms, all with ack=commit; each fault \
         for {seconds} s, after a control run of the same length\n\n\
         | fault | who waited | healthy P99 | urgent P99 | longest | queue, batches | journal | its batches that landed meanwhile | \
         health | result |\n|---|---|---|---|---|---|---|---|---|---|\n"
    );
    for row in rows {
        let _ = writeln!(text, "{}", row.cells());
    }
    for (fault, reason) in skipped {
        let _ = writeln!(text, "\nNot run: `{fault}`: {reason}");
    }
    let judged = rows.iter().filter(|row| row.is_judged).count();
    let passed = rows.iter().filter(|row| row.is_judged && row.misses().is_empty()).count();
    let _ = writeln!(text, "\n{passed} of {judged} faults stay alone.");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(healthy: f64, urgent: f64) -> Figures {
        let latency = |ms| Latency { p99_ms: ms, max_ms: ms };
        Figures { healthy: latency(healthy), urgent: latency(urgent), queue_batches: 1.0, journal_mib: 8.0, refused: 0 }
    }

    fn row(with: Figures) -> Row {
        let (control, faulty) = (figures(20.0, 10.0), Faulty { longest_ms: 9000.0, ..Faulty::default() });
        let (health, faults) = (String::new(), Vec::new());
        Row { fault: "a", what: "b", is_judged: true, control, with, faulty, health, faults }
    }

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let latency = Latency::of((1..=200).map(Duration::from_millis));
        assert_eq!((latency.p99_ms, latency.max_ms), (198.0, 200.0));
        assert!(Latency::of(std::iter::empty()).p99_ms.is_nan());
    }

    #[test]
    fn each_limit_counts_by_itself() {
        assert_eq!(row(figures(90.0, 35.0)).misses(), Vec::<String>::new());
        assert_eq!(row(figures(90.1, 35.0)).misses().len(), 1);
        assert_eq!(row(figures(90.0, 35.1)).misses().len(), 1);
        let mut slow = figures(20.0, 10.0);
        slow.urgent.max_ms = 2001.0;
        assert_eq!(row(slow).misses(), ["longest urgent 2001 ms, at most 2000"]);
        let larger = Figures { queue_batches: 6.6, journal_mib: 12.1, ..figures(20.0, 10.0) };
        assert_eq!(row(larger).misses().len(), 2);
        let nothing = Figures { healthy: Latency::of(std::iter::empty()), ..figures(20.0, 10.0) };
        assert_eq!(row(nothing).misses().len(), 2, "a stream that measured nothing fails");
    }

    #[test]
    fn a_reference_is_held_only_to_what_it_counts() {
        let mut reference = Row { is_judged: false, ..row(figures(9000.0, 9000.0)) };
        assert_eq!(reference.misses(), Vec::<String>::new());
        reference.faults.push("lost".to_owned());
        assert_eq!(reference.misses(), ["lost"]);
    }

    #[test]
    fn only_streams_with_a_batch_over_the_limit_have_waited() {
        assert_eq!(row(figures(20.0, 10.0)).who_waited(), "its batches (9.0 s)");
        assert_eq!(row(figures(2500.0, 10.0)).who_waited(), "healthy (2.5 s), its batches (9.0 s)");
        let mut quick = row(figures(20.0, 10.0));
        quick.faulty.longest_ms = 1999.0;
        assert_eq!(quick.who_waited(), "nobody");
    }
}
