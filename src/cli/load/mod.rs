//! `ingestd load`: an open-loop load with latencies and a loss check.
//!
//! ```text
//!  pace (a thread) ─ a permit for each request that is due ─▶ connections ─▶ server
//!                                        events ─ a body ─────────▲  │ answer
//!                                                                    ▼
//!                                    check ◀─ batches kept ─ tally ─▶ report
//! ```
//!
//! Open loop: when requests are sent does not depend on answers, and a latency counts from when its request was due. A
//! server that stalls for a second therefore shows in every request that was due in that second (Gil Tene's
//! "coordinated omission").

mod check;
mod clients;
mod events;
mod pace;
mod report;
mod tally;

use std::cell::{Cell, RefCell};
use std::io::{Write, stdout};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgMatches, Command, ValueHint, value_parser};
use hyper::Uri;
use hyper::header::HeaderValue;
use tokio::sync::Semaphore;
use tokio::task::LocalSet;

use self::clients::Run;
use self::events::{EVENT_BYTES_MAX, EVENT_BYTES_MIN, Events};
use self::pace::Schedule;
use self::report::{Asked, Report};
use self::tally::Tally;
use super::client::{self, Target};
use super::failure::Failure;
use super::help::with_examples;
use super::progress::{self, Progress};
use super::{database, settings};
use crate::config::settings::Key;
use crate::sys::open_files;
use crate::types::PRIORITY_MAX;

/// Priorities of `--priority mixed`: mostly bulk, some of everything else.
const PRIORITIES_MIXED: [u8; 8] = [0, 0, 5, 0, 8, 0, 3, 10];
/// More than any server takes in one request, and bodies that still fit into memory.
const BATCH_EVENTS_MAX: u64 = 100_000;
/// Local ports that a client has for one address, about.
const CONNECTIONS_MAX: u64 = 28_000;
/// How long requests that are late may still be sent after the end.
const GIVE_UP_AFTER: Duration = Duration::from_secs(10);
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// Batches whose ids are remembered for the loss check at most.
const CHECKED_REQUESTS_MAX: u64 = 5_000_000;

pub(super) fn command() -> Command {
    let option = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    let number = |name, fallback, max, help| {
        option(name, "N", help).default_value(fallback).value_parser(value_parser!(u64).range(1..=max))
    };
    let acks = PossibleValuesParser::new(["memory", "journal", "commit"]);
    let checks = PossibleValuesParser::new(["status", "table", "none"]);
    let command = Command::new("load")
        .about("Generate an open-loop load, report latencies, and check that nothing is lost")
        .long_about(
            "Send batches on a fixed schedule, regardless of whether earlier ones were answered; report latencies from \
             when each request was due; then query the status of every accepted batch. Exit code 1 if an accepted \
             event is lost or stored twice, if a response was neither an acceptance nor a refusal (429, 503), or if \
             nothing was accepted.",
        )
        .args([
            option("url", "URL", "URL of the server").default_value("http://127.0.0.1:8000"),
            number("rate", "10000", 1_000_000_000, "events per second"),
            option("duration", "TIME", "duration of the load, such as 300 (seconds) or 5m")
                .default_value("10s")
                .value_parser(parse_duration),
            number("batch", "1000", BATCH_EVENTS_MAX, "events per request"),
            number("connections", "16", CONNECTIONS_MAX, "connections"),
            option("priority", "0..10|mixed", "priority of the batches")
                .default_value("mixed")
                .value_parser(parse_priority),
            option("ack", "LEVEL", "ack level; default: that of the server").value_parser(acks),
            option(
                "event-bytes",
                "N|N..N",
                "size of an event in bytes; with two bounds, sizes are spread between \
                them, most near the lower one",
            )
            .default_value("300..20000")
            .value_parser(parse_bytes),
            option("timeout", "TIME", "maximum wait for a response").default_value("60s").value_parser(parse_duration),
            option("seed", "N", "seed for the contents of the events")
                .default_value("1")
                .value_parser(value_parser!(u64)),
            option(
                "check",
                "WAY",
                "loss check: query the server for every batch, count rows in the tables of \
                DATABASE_URL, or none",
            )
            .default_value("status")
            .value_parser(checks),
            option("check-wait", "TIME", "maximum wait until accepted batches are committed")
                .default_value("60s")
                .value_parser(parse_duration),
            client::api_key_file("the scopes ingest and read"),
            option("json", "FILE", "also write the report as JSON")
                .value_parser(value_parser!(PathBuf))
                .value_hint(ValueHint::FilePath),
        ]);
    let command = settings::with_settings(command, &[Key::DatabaseUrl, Key::DatabaseUrlFile]);
    with_examples(
        command,
        &[
            ("ten seconds against the server on this machine", "ingestd load"),
            ("measure until events are committed", "ingestd load --rate 2000 --duration 5s --batch 100 --ack commit"),
            (
                "also write a report for programs",
                "ingestd load --rate 2000 --duration 5s --priority 10 --json report.json",
            ),
            (
                "another server, with a key, counting rows in its tables",
                "DATABASE_URL=postgresql://ingestd:secret@db/events ingestd load --url https://ingest.example:8000 \\\n\
                 --api-key-file load.key --check table",
            ),
        ],
    )
}

/// A duration in units, such as `5m` or `500ms`; a bare number counts seconds.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let seconds = || text.parse::<u64>().ok().map(Duration::from_secs);
    let in_units = || text.parse::<jiff::SignedDuration>().ok().and_then(|duration| Duration::try_from(duration).ok());
    let parsed = seconds().or_else(in_units).filter(|duration| !duration.is_zero());
    parsed.ok_or_else(|| "must be a duration, such as 300 (seconds), 300s, 5m or 500ms".to_owned())
}

fn parse_priority(text: &str) -> Result<Vec<u8>, String> {
    if text == "mixed" {
        return Ok(PRIORITIES_MIXED.to_vec());
    }
    let priority = text.parse().ok().filter(|priority| *priority <= PRIORITY_MAX);
    priority
        .map(|priority| vec![priority])
        .ok_or_else(|| format!("must be a number from 0 to {PRIORITY_MAX}, or 'mixed'"))
}

fn parse_bytes(text: &str) -> Result<RangeInclusive<usize>, String> {
    let (from, to) = text.split_once("..").unwrap_or((text, text));
    let allowed = |text: &str| text.parse().ok().filter(|bytes| (EVENT_BYTES_MIN..=EVENT_BYTES_MAX).contains(bytes));
    match (allowed(from), allowed(to)) {
        (Some(from), Some(to)) if from <= to => Ok(from..=to),
        _ => Err(format!("must be a number from {EVENT_BYTES_MIN} to {EVENT_BYTES_MAX}, or two such as 300..20000")),
    }
}

fn get<T: Clone + Send + Sync + 'static>(matches: &ArgMatches, name: &str) -> T {
    matches.get_one::<T>(name).cloned().expect("clap has a default")
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let plan = Plan::of(matches)?;
    open_files::raise_limit();
    // Found out before the load, not after it.
    let mut client = match plan.check.as_str() {
        "table" => Some(database::connect(&settings::config(matches)?)?),
        _ => None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::runtime(format!("cannot start: {error}")))?;
    let (mut report, kept, target) = LocalSet::new().block_on(&runtime, plan.send())?;
    let found = match (plan.check.as_str(), &mut client) {
        ("status", _) => {
            let checking = Progress::of_count("loss check", plan.is_progress_wanted);
            let checking = check::by_status(kept, &target, plan.asked.connections, plan.check_wait, checking);
            Some(LocalSet::new().block_on(&runtime, checking).map_err(|why| Failure::runtime(cannot_check(&why)))?)
        }
        (_, Some(client)) => {
            let checked = check::by_table(&kept, client, &plan.asked.run, plan.check_wait);
            Some(checked.map_err(|error| Failure::runtime(cannot_check(&error.to_string())))?)
        }
        _ => None,
    };
    report.loss_check = found;
    writeln!(stdout(), "{report}")?;
    if let Some(file) = &plan.json {
        let text = serde_json::to_string_pretty(&report).unwrap_or_default();
        std::fs::write(file, text + "\n")
            .map_err(|error| Failure::runtime(format!("cannot write {}: {error}", file.display())))?;
    }
    report.failure().map_or(Ok(()), |why| Err(Failure::runtime(why)))
}

fn cannot_check(why: &str) -> String {
    format!("the loss check failed to run: {why}")
}

/// The arguments.
struct Plan {
    asked: Asked,
    duration: Duration,
    requests: u64,
    priorities: Vec<u8>,
    event_bytes: RangeInclusive<usize>,
    timeout: Duration,
    check: String,
    check_wait: Duration,
    authorization: Option<HeaderValue>,
    json: Option<PathBuf>,
    /// A person looks on.
    is_progress_wanted: bool,
}

type Sent = (Report, std::collections::HashMap<String, u64>, Rc<Target>);

impl Plan {
    fn of(matches: &ArgMatches) -> Result<Self, Failure> {
        let (url, rate): (String, u64) = (get(matches, "url"), get(matches, "rate"));
        let (duration, batch): (Duration, u64) = (get(matches, "duration"), get(matches, "batch"));
        let event_bytes: RangeInclusive<usize> = get(matches, "event-bytes");
        let requests = (rate as f64 * duration.as_secs_f64() / batch as f64).round().max(1.0) as u64;
        let check: String = get(matches, "check");
        if check != "none" && requests > CHECKED_REQUESTS_MAX {
            return Err(Failure::usage(format!(
                "{requests} requests are more than the loss check can track ({CHECKED_REQUESTS_MAX}): use larger \
                 batches, a shorter duration, or --check none"
            )));
        }
        let asked = Asked {
            url,
            events_per_second: rate,
            seconds: duration.as_secs_f64(),
            batch_events: batch as usize,
            connections: get::<u64>(matches, "connections") as usize,
            ack: matches.get_one::<String>("ack").cloned(),
            event_bytes: [*event_bytes.start(), *event_bytes.end()],
            seed: get(matches, "seed"),
            run: format!("{:016x}", uuid::Uuid::now_v7().as_u128() as u64),
        };
        Ok(Self {
            duration,
            requests,
            priorities: get(matches, "priority"),
            event_bytes,
            timeout: get(matches, "timeout"),
            check,
            check_wait: get(matches, "check-wait"),
            authorization: matches
                .get_one::<PathBuf>("api-key-file")
                .map(|path| client::authorization(path))
                .transpose()?,
            json: matches.get_one::<PathBuf>("json").cloned(),
            is_progress_wanted: progress::is_wanted(matches),
            asked,
        })
    }

    /// Sends it all.
    async fn send(&self) -> Result<Sent, Failure> {
        let query = self.asked.ack.as_ref().map_or_else(String::new, |ack| format!("?ack={ack}"));
        let path: Uri = format!("/v1/ingest/batch{query}").parse().map_err(Failure::runtime)?;
        let (authority, secure) = client::address(&self.asked.url)?;
        let target =
            Rc::new(Target { authority, secure, authorization: self.authorization.clone(), timeout: self.timeout });
        // The bodies' templates are made before the clock runs.
        let events = Events::new(&self.asked.run, &self.event_bytes, self.asked.seed);
        let schedule = Schedule { start: Instant::now(), requests: self.requests, duration: self.duration };
        let due = Arc::new(Semaphore::new(0));
        let cpu_before = cpu_seconds();
        let pacing = pace::start(schedule, Arc::clone(&due), self.asked.connections)?;
        let run = Rc::new(Run {
            target: Rc::clone(&target),
            path,
            schedule,
            due,
            taken: Cell::new(0),
            give_up_at: schedule.start + self.duration + GIVE_UP_AFTER,
            batch: self.asked.batch_events,
            priorities: self.priorities.clone(),
            turn: Cell::new(0),
            events: RefCell::new(events),
            tally: RefCell::new(Tally::new()),
        });
        let progress = tokio::task::spawn_local(tell(Rc::clone(&run), self.is_progress_wanted));
        run.send_all(self.asked.connections).await;
        progress.abort();
        // Its bar goes with it.
        progress.await.ok();
        let seconds = schedule.start.elapsed().as_secs_f64();
        let unsent = self.requests - run.taken.get();
        let cpu = cpu_seconds() - cpu_before;
        if pacing.join().is_err() {
            return Err(Failure::runtime("the thread that paces the load panicked"));
        }
        let mut tally = run.tally.borrow_mut();
        let report = Report::new(self.asked.clone(), seconds, &tally, unsent, cpu);
        Ok((report, std::mem::take(&mut tally.kept), target))
    }
}

/// Once a second on stderr, while it runs: a bar where a person looks on, else a line.
async fn tell(run: Rc<Run>, is_progress_wanted: bool) {
    let mut accepted_before = 0;
    let mut progress = Progress::of_time("load", is_progress_wanted);
    let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let mut tally = run.tally.borrow_mut();
        let recent = tally.take_recent();
        let elapsed = run.schedule.start.elapsed();
        let figures = format!(
            "{:>9} events/s accepted  p50 {:.2} ms  p99 {:.2} ms  {} refused  {} failed",
            tally.events_accepted - accepted_before,
            recent.p50,
            recent.p99,
            tally.requests_refused,
            tally.requests_failed + tally.requests_unexpected,
        );
        if is_progress_wanted {
            // Late requests are sent after the end: the bar stays until they are.
            let all = run.schedule.duration.max(elapsed + PROGRESS_INTERVAL);
            progress.tell(elapsed.as_millis() as u64, all.as_millis() as u64, figures);
        } else {
            eprintln!("{:5.0} s  {figures}", elapsed.as_secs_f64());
        }
        accepted_before = tally.events_accepted;
    }
}

/// Processor time of this process so far.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_or_refused_with_what_would_do() {
        assert_eq!(parse_duration("300s"), Ok(Duration::from_secs(300)));
        assert_eq!(parse_duration("300"), Ok(Duration::from_secs(300)), "a bare number counts seconds");
        assert_eq!(parse_duration("5m"), Ok(Duration::from_secs(300)));
        assert!(parse_duration("0").is_err() && parse_duration("1e3").is_err() && parse_duration("").is_err());
        assert!(parse_duration("0s").is_err() && parse_duration("-1s").is_err() && parse_duration("soon").is_err());
        assert_eq!(parse_priority("10"), Ok(vec![10]));
        assert!(parse_priority("11").is_err());
        assert_eq!(parse_bytes("400"), Ok(400..=400));
        assert_eq!(parse_bytes("300..20000"), Ok(300..=20_000));
        assert!(parse_bytes("100").is_err() && parse_bytes("500..400").is_err());
    }
}
