//! What was measured, as a table for people and as JSON for programs.

use std::fmt::{self, Display};
use std::path::Path;

use serde::Serialize;

use crate::{Failure, load, plot};

const WINDOW_SECONDS: f64 = 1.0;

/// Figures of one run, or medians of several. What a subject does not have is `None`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    /// Rows in the table.
    pub rows: u64,
    /// From the first request until everything was committed.
    pub rows_per_second: Option<f64>,
    /// While the load ran.
    pub rows_per_second_during_load: Option<f64>,
    /// Against raw COPY of the same round.
    pub ratio: Option<f64>,
    /// CPU of the server for a row, with its children.
    pub server_cpu_micros: Option<f64>,
    /// CPU of all of PostgreSQL for a row.
    pub postgres_cpu_micros: Option<f64>,
    /// P50, P95 and P99 of the answers as the load saw them.
    pub ack_ms: Option<[f64; 3]>,
    /// P50, P95 and P99 from accepted to committed, as the server tells.
    pub batch_ms: Option<[f64; 3]>,
    /// Most memory of the server.
    pub resident_mib: Option<f64>,
    /// WAL for a row.
    pub wal_bytes_per_row: Option<f64>,
}

/// One run of one subject.
#[derive(Debug, Serialize)]
pub struct Run {
    /// Its name.
    pub subject: String,
    /// What was measured.
    pub figures: Figures,
    /// Seconds since the start, and the rows committed until then.
    pub samples: Vec<(f64, u64)>,
    /// Percentiles of the answers' latency.
    pub percentiles_ms: Vec<(f64, f64)>,
}

impl Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| {} {}", self.subject, cells(&self.figures))
    }
}

/// All runs.
#[derive(Debug, Serialize)]
pub struct Runs {
    machine: String,
    load: load::Options,
    runs: Vec<Run>,
}

impl Runs {
    /// None yet, on `machine`.
    pub fn new(machine: String, load: load::Options) -> Self {
        Self { machine, load, runs: Vec::new() }
    }

    /// Adds one, in the order in which they were made.
    pub fn add(&mut self, run: Run) {
        self.runs.push(run);
        self.set_ratios();
    }

    /// Each run against the raw COPY of its round: the one nearest to it.
    fn set_ratios(&mut self) {
        let raw: Vec<(usize, f64)> = (self.runs.iter().enumerate())
            .filter(|(_, run)| run.subject == "raw COPY")
            .filter_map(|(at, run)| Some((at, run.figures.rows_per_second?)))
            .collect();
        for (at, run) in self.runs.iter_mut().enumerate().filter(|(_, run)| run.figures.server_cpu_micros.is_some()) {
            let nearest = raw.iter().min_by_key(|(raw_at, _)| raw_at.abs_diff(at));
            run.figures.ratio = nearest.and_then(|(_, limit)| Some(run.figures.rows_per_second? / limit));
        }
    }

    /// Names in the order in which they came first.
    fn subjects(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for run in &self.runs {
            if !names.contains(&&*run.subject) {
                names.push(&run.subject);
            }
        }
        names
    }

    fn of(&self, subject: &str) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(move |run| run.subject == subject)
    }

    fn medians(&self, subject: &str) -> Figures {
        let runs: Vec<&Figures> = self.of(subject).map(|run| &run.figures).collect();
        let one = |get: fn(&Figures) -> Option<f64>| median(runs.iter().filter_map(|figures| get(figures)).collect());
        let three = |get: fn(&Figures) -> Option<[f64; 3]>| {
            let all: Vec<[f64; 3]> = runs.iter().filter_map(|figures| get(figures)).collect();
            let at = |index: usize| median(all.iter().map(|quantiles| quantiles[index]).collect());
            Some([at(0)?, at(1)?, at(2)?])
        };
        Figures {
            rows: median(runs.iter().map(|figures| figures.rows as f64).collect()).unwrap_or(0.0) as u64,
            rows_per_second: one(|figures| figures.rows_per_second),
            rows_per_second_during_load: one(|figures| figures.rows_per_second_during_load),
            ratio: one(|figures| figures.ratio),
            server_cpu_micros: one(|figures| figures.server_cpu_micros),
            postgres_cpu_micros: one(|figures| figures.postgres_cpu_micros),
            ack_ms: three(|figures| figures.ack_ms),
            batch_ms: three(|figures| figures.batch_ms),
            resident_mib: one(|figures| figures.resident_mib),
            wal_bytes_per_row: one(|figures| figures.wal_bytes_per_row),
        }
    }

    /// The medians, in Markdown.
    pub fn table(&self) -> String {
        let load::Options { seconds, connections, events } = self.load;
        let mut text = format!(
            "{}\n{connections} connections, {events} events of about 400 bytes a request, {seconds} s, medians of {}\n\n\
             | | rows/s | while the load ran | of raw COPY | CPU, server | CPU, PostgreSQL | ack P50 / P95 / P99 | \
             batch P50 / P95 / P99 | resident | WAL a row |\n|---|---|---|---|---|---|---|---|---|---|\n",
            self.machine,
            self.of("raw COPY").count(),
        );
        for subject in self.subjects() {
            text += &format!("| {subject} {}\n", cells(&self.medians(subject)));
        }
        text
    }

    /// Writes raw figures, table and plots into `folder`.
    pub fn write(&self, folder: &Path) -> Result<(), Failure> {
        std::fs::write(folder.join("compare.json"), serde_json::to_string_pretty(self)? + "\n")?;
        std::fs::write(folder.join("compare.md"), self.table())?;
        let subjects = self.subjects();
        let lines = |of: fn(&Run) -> Vec<(f64, f64)>| -> Vec<plot::Line> {
            let all = subjects.iter().enumerate().flat_map(|(colour, subject)| {
                self.of(subject).map(move |run| plot::Line { name: (*subject).to_owned(), colour, points: of(run) })
            });
            all.filter(|line| line.points.len() > 1).collect()
        };
        plot::latency(&folder.join("latency.svg"), &lines(|run| run.percentiles_ms.clone()))?;
        plot::throughput(&folder.join("throughput.svg"), &lines(rates))
    }
}

/// Rows a second, each over at least [`WINDOW_SECONDS`]: commits come in large steps.
fn rates(run: &Run) -> Vec<(f64, f64)> {
    let (mut from, mut rates) = ((0.0, 0), Vec::new());
    for &(seconds, rows) in &run.samples {
        if seconds - from.0 >= WINDOW_SECONDS {
            rates.push((seconds, (rows - from.1) as f64 / (seconds - from.0)));
            from = (seconds, rows);
        }
    }
    rates
}

/// The lower median; `None` of nothing.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied()
}

fn cells(figures: &Figures) -> String {
    let whole = |value: Option<f64>, unit: &str| value.map_or("–".to_owned(), |value| format!("{value:.0}{unit}"));
    let fine = |value: Option<f64>, unit: &str| value.map_or("–".to_owned(), |value| format!("{value:.2}{unit}"));
    let three = |values: Option<[f64; 3]>| match values {
        Some([p50, p95, p99]) if p99 < 20.0 => format!("{p50:.2} / {p95:.2} / {p99:.2} ms"),
        Some([p50, p95, p99]) => format!("{p50:.0} / {p95:.0} / {p99:.0} ms"),
        None => "–".to_owned(),
    };
    [
        whole(figures.rows_per_second, ""),
        whole(figures.rows_per_second_during_load, ""),
        fine(figures.ratio, ""),
        fine(figures.server_cpu_micros, " µs"),
        fine(figures.postgres_cpu_micros, " µs"),
        three(figures.ack_ms),
        three(figures.batch_ms),
        whole(figures.resident_mib, " MiB"),
        whole(figures.wal_bytes_per_row, " B"),
    ]
    .iter()
    .fold("|".to_owned(), |line, cell| format!("{line} {cell} |"))
}
