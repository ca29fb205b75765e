//! What is wrong right now, in words: for who looks at the page and does not know the server.
//!
//! [`Facts`] are gathered from what the page shows anyway; [`judged`] makes sentences of them, the worst first. Each says
//! what it means for events, and what to do.

use serde::Serialize;

use crate::http::app::{App, JournalRoom};
use crate::http::health::{Health, UNHEALTHY};
use crate::limits::{CONCERN_JOURNAL_SHARE, CONCERN_OPEN_FILES_SHARE, CONCERN_WINDOW};
use crate::metrics::history::Sample;
use crate::metrics::report::Report;
use crate::pg::health::Doubt;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Events are refused, or soon will be.
    Critical,
    /// Events are taken, and somebody should look.
    Warning,
    /// Worth knowing.
    Notice,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Concern {
    severity: Severity,
    /// What is wrong.
    title: &'static str,
    /// The figures, and what it means for events.
    detail: String,
    /// What to do.
    advice: &'static str,
}

/// What is judged. Counts are of the last [`CONCERN_WINDOW`].
#[derive(Debug, Default)]
struct Facts {
    is_draining: bool,
    is_unhealthy: bool,
    journal_reason: Option<String>,
    journal_refuses: bool,
    journal_is_damaged: bool,
    journal_room: JournalRoom,
    journal_bytes: u64,
    journal_bytes_max: u64,
    /// Bytes a second that the journal grew by.
    journal_growth: f64,
    database_works: bool,
    database_reason: Option<String>,
    stuck_batches: Option<usize>,
    queue_events: u64,
    redis_reason: Option<String>,
    maintenance_reason: Option<String>,
    migration_reason: Option<String>,
    refused_requests: u64,
    failed_requests: u64,
    accepted: u64,
    rejected: u64,
    dead_lettered: u64,
    open_fds: u64,
    max_fds: u64,
}

/// What is wrong with `app`, the worst first.
pub fn of(app: &App, health: &Health, metrics: &Report, history: &[Sample]) -> Vec<Concern> {
    judged(&gather(app, health, metrics, history))
}

fn gather(app: &App, health: &Health, metrics: &Report, history: &[Sample]) -> Facts {
    let checks = &health.checks;
    let mut facts = Facts {
        is_draining: app.is_draining(),
        is_unhealthy: health.status == UNHEALTHY,
        journal_reason: checks.journal.reason.clone(),
        journal_refuses: app.journal_health.is_refusing(),
        journal_is_damaged: !app.journal_health.damage().is_empty(),
        journal_room: app.journal_room(),
        journal_bytes: checks.journal.uncommitted_bytes,
        journal_bytes_max: checks.journal.bytes_max,
        database_works: app.database.is_working(),
        database_reason: checks.database.reason.clone(),
        stuck_batches: checks.database.stuck_batches,
        queue_events: metrics.queue.events,
        redis_reason: checks.redis.reason.clone(),
        maintenance_reason: app.database.reason_of(Doubt::Maintenance),
        migration_reason: app.database.reason_of(Doubt::Migration),
        open_fds: metrics.process.open_fds.unwrap_or(0),
        max_fds: metrics.process.max_fds.unwrap_or(0),
        ..Facts::default()
    };
    if let Some((begin, end, seconds)) = window(history, metrics.uptime_seconds) {
        let difference = |count: fn(&Sample) -> u64| count(end).saturating_sub(count(&begin));
        facts.refused_requests = difference(|sample| sample.refused_requests);
        facts.failed_requests = difference(|sample| sample.failed_requests);
        facts.accepted = difference(|sample| sample.accepted);
        facts.rejected = difference(|sample| sample.rejected);
        facts.dead_lettered = difference(|sample| sample.dead_lettered);
        facts.journal_growth = difference(|sample| sample.queue_bytes) as f64 / seconds;
    }
    facts
}

/// First and last sample of the last [`CONCERN_WINDOW`], and the seconds between them. A server that is younger begins
/// with nothing.
fn window(history: &[Sample], uptime_seconds: f64) -> Option<(Sample, &Sample, f64)> {
    let end = history.last()?;
    if uptime_seconds < CONCERN_WINDOW.as_secs_f64() {
        return Some((Sample::default(), end, uptime_seconds.max(1.0)));
    }
    let age_ms = |sample: &Sample| end.at_ms - sample.at_ms;
    let begin = history.iter().find(|sample| age_ms(sample) <= CONCERN_WINDOW.as_millis() as i64)?;
    (age_ms(begin) > 0).then(|| (begin.clone(), end, age_ms(begin) as f64 / 1000.0))
}

fn judged(facts: &Facts) -> Vec<Concern> {
    let mut concerns: Vec<Concern> = [
        shutdown(facts),
        journal(facts),
        filling(facts),
        database(facts),
        redis(facts),
        maintenance(facts),
        migration(facts),
        refusals(facts),
        faults(facts),
    ]
    .into_iter()
    .chain([dead_letters(facts), rejections(facts), open_files(facts)])
    .flatten()
    .collect();
    concerns.sort_by_key(|concern| concern.severity);
    concerns
}

fn shutdown(facts: &Facts) -> Option<Concern> {
    facts.is_draining.then(|| Concern {
        severity: Severity::Critical,
        title: "This node is shutting down",
        detail: format!("It accepts no new events. {} waiting for PostgreSQL.", events(facts.queue_events)),
        advice: "No action needed: uncommitted events stay in the journal and are committed after the next start.",
    })
}

fn journal(facts: &Facts) -> Option<Concern> {
    let reason = facts.journal_reason.as_ref()?;
    Some(if facts.is_unhealthy {
        Concern {
            severity: Severity::Critical,
            title: "The journal accepts no events",
            detail: format!("{}. Clients get 503 and must retry.", capital(reason)),
            advice: "Free space on the journal's disk or replace the disk, and check that PostgreSQL catches up; see \
                the log for details.",
        }
    } else if facts.journal_refuses {
        Concern {
            severity: Severity::Critical,
            title: "The journal refuses events",
            detail: format!("{}. Clients get 503 and must retry.", capital(reason)),
            advice: "Remove the cause, such as a full disk or a lack of file descriptors: this node then continues by \
                itself.",
        }
    } else if facts.journal_room == JournalRoom::UrgentOnly {
        Concern {
            severity: Severity::Warning,
            title: "The journal accepts urgent events only",
            detail: format!("{}. Other clients get 503 and must retry.", capital(reason)),
            advice: "Find out why PostgreSQL commits less than arrives, or raise JOURNAL_MAX_MB.",
        }
    } else if !facts.journal_is_damaged {
        Concern {
            severity: Severity::Warning,
            title: "The journal cannot remove its files",
            detail: format!("{}. Events are accepted as long as it has room.", capital(reason)),
            advice: "Remove the cause, such as missing rights or a lack of file descriptors: this node then continues by \
                itself.",
        }
    } else {
        Concern {
            severity: Severity::Warning,
            title: "The journal is damaged",
            detail: format!("{}.", capital(reason)),
            advice: "Run 'ingestd journal inspect' on this node; damaged segments are set aside, not deleted.",
        }
    })
}

fn filling(facts: &Facts) -> Option<Concern> {
    let share = facts.journal_bytes as f64 / facts.journal_bytes_max.max(1) as f64;
    if facts.is_unhealthy || share < CONCERN_JOURNAL_SHARE {
        return None;
    }
    let left = facts.journal_bytes_max.saturating_sub(facts.journal_bytes) as f64;
    let when = if facts.journal_growth > 0.0 {
        format!(" At the rate of the last minute, it will be full in {}.", duration(left / facts.journal_growth))
    } else {
        " It is not growing right now.".to_owned()
    };
    Some(Concern {
        severity: Severity::Warning,
        title: "The journal is filling",
        detail: format!("Uncommitted events take up {:.0} % of it.{when}", share * 100.0),
        advice: "Find out why PostgreSQL commits less than arrives, or raise JOURNAL_MAX_MB; once the journal is full, \
            clients get 503.",
    })
}

fn database(facts: &Facts) -> Option<Concern> {
    let reason = facts.database_reason.as_ref()?;
    let waiting = events(facts.queue_events);
    Some(if facts.stuck_batches.is_some() {
        Concern {
            severity: Severity::Warning,
            title: "Some batches cannot be committed",
            detail: format!("{}. They stay in the journal and are retried.", capital(reason)),
            advice: "Fix what PostgreSQL reports; clients do not need to resend anything.",
        }
    } else if facts.database_works {
        Concern {
            severity: Severity::Warning,
            title: "PostgreSQL is degraded",
            detail: format!("{}.", capital(reason)),
            advice: "Fix the reported problem; 'ingestd migrate' upgrades the schema.",
        }
    } else {
        Concern {
            severity: Severity::Warning,
            title: "PostgreSQL is unavailable",
            detail: format!(
                "{}. Events are still accepted and safe in the journal; {waiting} waiting for PostgreSQL.",
                capital(reason)
            ),
            advice: "Restore PostgreSQL or check DATABASE_URL; this node retries automatically.",
        }
    })
}

fn redis(facts: &Facts) -> Option<Concern> {
    let reason = facts.redis_reason.as_ref()?;
    Some(Concern {
        severity: Severity::Warning,
        title: "Redis is unavailable",
        detail: format!(
            "{}. Events are still committed; other nodes see the status of this node's batches only after the commit.",
            capital(reason)
        ),
        advice: "Restore Redis or check REDIS_URL; this node retries automatically.",
    })
}

fn maintenance(facts: &Facts) -> Option<Concern> {
    let reason = facts.maintenance_reason.as_ref()?;
    Some(Concern {
        severity: Severity::Warning,
        title: "Maintenance fails",
        detail: format!("{}.", capital(reason)),
        advice: "Remove the cause in PostgreSQL; partitions are neither created ahead nor dropped until then.",
    })
}

fn migration(facts: &Facts) -> Option<Concern> {
    let reason = facts.migration_reason.as_ref()?;
    Some(Concern {
        severity: Severity::Notice,
        title: "A change of the schema waits",
        detail: format!("{}.", capital(reason)),
        advice: "Run it when you like: events are committed meanwhile.",
    })
}

fn refusals(facts: &Facts) -> Option<Concern> {
    (facts.refused_requests > 0).then(|| Concern {
        severity: Severity::Warning,
        title: "Requests are being refused",
        detail: format!(
            "{} in the last minute got 429 or 503 with Retry-After; clients must retry.",
            plural(facts.refused_requests, "request", "requests")
        ),
        advice: "If this continues, more arrives than PostgreSQL can commit or than a rate limit allows: add capacity \
            or send less.",
    })
}

fn faults(facts: &Facts) -> Option<Concern> {
    (facts.failed_requests > 0).then(|| Concern {
        severity: Severity::Warning,
        title: "The server failed to process requests",
        detail: format!(
            "{} in the last minute got 500; clients can safely retry their batches.",
            plural(facts.failed_requests, "request", "requests")
        ),
        advice: "This is a bug in ingestd: please report it together with the log.",
    })
}

fn dead_letters(facts: &Facts) -> Option<Concern> {
    (facts.dead_lettered > 0).then(|| Concern {
        severity: Severity::Warning,
        title: "PostgreSQL is rejecting events",
        detail: format!(
            "{} of the last minute became dead letters; the reasons are listed below.",
            events(facts.dead_lettered)
        ),
        advice: "Fix the cause, then run 'ingestd dead-letter replay'.",
    })
}

fn rejections(facts: &Facts) -> Option<Concern> {
    (facts.rejected > 0).then(|| Concern {
        severity: Severity::Notice,
        title: "Clients are sending invalid events",
        detail: format!(
            "{} of the last minute failed validation, {} were accepted.",
            events(facts.rejected),
            events(facts.accepted)
        ),
        advice: "The senders received the reason for each event; the codes are listed below.",
    })
}

fn open_files(facts: &Facts) -> Option<Concern> {
    let share = facts.open_fds as f64 / facts.max_fds.max(1) as f64;
    (facts.max_fds > 0 && share >= CONCERN_OPEN_FILES_SHARE).then(|| Concern {
        severity: Severity::Warning,
        title: "Open files are running short",
        detail: format!(
            "{} of {} are open; when none are left, no connection can be accepted.",
            facts.open_fds, facts.max_fds
        ),
        advice: "Raise the open-file limit (ulimit -n, LimitNOFILE=), or have clients keep fewer connections.",
    })
}

fn events(count: u64) -> String {
    plural(count, "event", "events")
}

fn plural(count: u64, one: &str, several: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { several })
}

/// `text` as the beginning of a sentence.
fn capital(text: &str) -> String {
    let text = text.trim_end_matches('.');
    let mut rest = text.chars();
    rest.next().map_or_else(String::new, |first| first.to_uppercase().chain(rest).collect())
}

/// `seconds` as somebody would say it.
fn duration(seconds: f64) -> String {
    match seconds as u64 {
        0..120 => plural(seconds.max(1.0) as u64, "second", "seconds"),
        120..7200 => format!("{} minutes", seconds as u64 / 60),
        7200..172_800 => format!("{} hours", seconds as u64 / 3600),
        _ => "more than two days".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy() -> Facts {
        Facts { database_works: true, journal_bytes_max: 1000, max_fds: 1000, accepted: 5, ..Facts::default() }
    }

    fn titles(facts: &Facts) -> Vec<&'static str> {
        judged(facts).iter().map(|concern| concern.title).collect()
    }

    #[test]
    fn a_healthy_server_has_nothing_wrong() {
        assert_eq!(titles(&healthy()), [""; 0]);
    }

    #[test]
    fn the_worst_comes_first() {
        let facts = Facts {
            rejected: 1,
            redis_reason: Some("connection refused".to_owned()),
            is_unhealthy: true,
            journal_reason: Some("no space left on device".to_owned()),
            ..healthy()
        };
        assert_eq!(
            titles(&facts),
            ["The journal accepts no events", "Redis is unavailable", "Clients are sending invalid events"]
        );
        let sentences = judged(&facts)[0].detail.clone();
        assert_eq!(sentences, "No space left on device. Clients get 503 and must retry.");
    }

    #[test]
    fn what_is_wrong_with_the_journal_is_told_apart() {
        let title = |refuses, is_damaged| {
            let reason = Some("creating 7.new: too many open files".to_owned());
            let facts =
                Facts { journal_reason: reason, journal_refuses: refuses, journal_is_damaged: is_damaged, ..healthy() };
            titles(&facts)[0]
        };
        assert_eq!(title(true, true), "The journal refuses events");
        assert_eq!(title(false, true), "The journal is damaged");
        assert_eq!(title(false, false), "The journal cannot remove its files");
    }

    #[test]
    fn an_outage_says_that_events_are_safe_and_when_the_journal_is_full() {
        let facts = Facts {
            database_works: false,
            database_reason: Some("connection refused".to_owned()),
            queue_events: 1,
            journal_bytes: 700,
            journal_growth: 2.5,
            ..healthy()
        };
        let concerns = judged(&facts);
        assert_eq!(
            concerns.iter().map(|concern| concern.title).collect::<Vec<_>>(),
            ["The journal is filling", "PostgreSQL is unavailable"]
        );
        assert!(
            concerns[0].detail.ends_with("will be full in 120 seconds.")
                || concerns[0].detail.ends_with("in 2 minutes.")
        );
        assert!(concerns[1].detail.contains("safe in the journal; 1 event waiting"), "{}", concerns[1].detail);
    }

    #[test]
    fn the_window_is_the_last_minute_of_the_history() {
        let history: Vec<_> = (0..100).map(|second| Sample { at_ms: second * 1000, ..Sample::default() }).collect();
        let (begin, end, seconds) = window(&history, 100.0).expect("a minute and more");
        assert_eq!((begin.at_ms, end.at_ms, seconds), (39_000, 99_000, 60.0));
        assert!(window(&history[..1], 100.0).is_none() && window(&[], 100.0).is_none());
        let young = [Sample { at_ms: 5_000, dead_lettered: 1, ..Sample::default() }];
        let (begin, end, seconds) = window(&young, 2.0).expect("the first seconds");
        assert_eq!((begin.dead_lettered, end.dead_lettered, seconds), (0, 1, 2.0), "what the first sample has is new");
    }

    #[test]
    fn times_are_said_as_people_say_them() {
        let said = [0.2, 1.0, 90.0, 150.0, 7300.0, 1e9].map(duration);
        assert_eq!(said, ["1 second", "1 second", "90 seconds", "2 minutes", "2 hours", "more than two days"]);
    }
}
