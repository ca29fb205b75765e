//! The loss check: is every event there that the server promised to keep, and once?

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::{Method, Uri};
use postgres::Client;
use postgres::types::Type;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::cli::client::{Connection, Target};
use crate::cli::progress::Progress;

/// How often a batch that is not committed yet is asked for again, and the table counted again.
const POLL: Duration = Duration::from_millis(200);

/// Where events are.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub(super) struct There {
    /// In `events`.
    pub inserted: u64,
    /// In `events` before.
    pub duplicates: u64,
    /// In `dead_letter_events`.
    pub dead_lettered: u64,
    /// With the server, not committed when the time was up.
    #[serde(default)]
    pub waiting: u64,
}

/// What the check found; counts are events.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Found {
    /// Promised.
    pub expected: u64,
    /// Found.
    #[serde(flatten)]
    pub there: There,
    /// Nowhere.
    pub lost: u64,
    /// There more often than promised.
    pub surplus: u64,
}

impl Found {
    fn add(&mut self, expected: u64, there: There) {
        let all = there.inserted + there.duplicates + there.dead_lettered + there.waiting;
        self.expected += expected;
        self.there.inserted += there.inserted;
        self.there.duplicates += there.duplicates;
        self.there.dead_lettered += there.dead_lettered;
        self.there.waiting += there.waiting;
        self.lost += expected.saturating_sub(all);
        self.surplus += all.saturating_sub(expected);
    }
}

#[derive(Deserialize)]
struct Status {
    events: u64,
    completed_at: Option<String>,
    #[serde(flatten)]
    there: There,
}

/// Asks the server for the status of every batch, over `connections` connections, until all are committed or `wait_max`
/// is over.
pub(super) async fn by_status(
    kept: HashMap<String, u64>,
    target: &Rc<Target>,
    connections: usize,
    wait_max: Duration,
    progress: Progress,
) -> Result<Found, String> {
    let deadline = Instant::now() + wait_max;
    let (all, progress) = (kept.len() as u64, Rc::new(RefCell::new((0, progress))));
    let left = Rc::new(RefCell::new(kept.into_iter()));
    let found = Rc::new(RefCell::new(Found::default()));
    let mut tasks = JoinSet::<Result<(), String>>::new();
    for _ in 0..connections {
        let (left, found, mut connection) = (Rc::clone(&left), Rc::clone(&found), Connection::new(target));
        let progress = Rc::clone(&progress);
        tasks.spawn_local(async move {
            loop {
                let Some((batch_id, expected)) = left.borrow_mut().next() else { return Ok(()) };
                let there = wait_for(&mut connection, &batch_id, deadline).await?;
                found.borrow_mut().add(expected, there);
                let (checked, progress) = &mut *progress.borrow_mut();
                *checked += 1;
                progress.show(*checked, all);
            }
        });
    }
    for done in tasks.join_all().await {
        done?;
    }
    Ok(found.take())
}

/// Where a batch is once it is committed, or when the time is up.
async fn wait_for(connection: &mut Connection, batch_id: &str, deadline: Instant) -> Result<There, String> {
    let path: Uri = format!("/v1/batch/{batch_id}/status").parse().map_err(|_| format!("bad batch id {batch_id:?}"))?;
    loop {
        let answer = connection.send(Method::GET, &path, Bytes::new()).await;
        let (code, body) = answer.map_err(|no_answer| no_answer.why)?;
        if code == 404 {
            return Ok(There::default());
        }
        if code != 200 {
            return Err(format!("GET {path} returned {code}"));
        }
        let status: Status = serde_json::from_slice(&body).map_err(|error| format!("GET {path}: {error}"))?;
        if status.completed_at.is_some() {
            return Ok(status.there);
        }
        if Instant::now() >= deadline {
            return Ok(There { waiting: status.events, ..There::default() });
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Counts the rows of every batch in the tables, until all are there or `wait_max` is over; `run` is what the ids of its
/// events begin with.
pub(super) fn by_table(
    kept: &HashMap<String, u64>,
    client: &mut Client,
    run: &str,
    wait_max: Duration,
) -> Result<Found, postgres::Error> {
    let deadline = Instant::now() + wait_max;
    loop {
        let inserted = count(client, "events", run)?;
        let dead_lettered = count(client, "dead_letter_events", run)?;
        let mut found = Found::default();
        for (batch_id, expected) in kept {
            let of = |counts: &HashMap<String, u64>| counts.get(batch_id).copied().unwrap_or(0);
            found.add(
                *expected,
                There { inserted: of(&inserted), dead_lettered: of(&dead_lettered), ..There::default() },
            );
        }
        if found.lost == 0 || Instant::now() >= deadline {
            return Ok(found);
        }
        std::thread::sleep(POLL);
    }
}

/// Rows by batch. Ids of events are compared as bytes, where `.` follows the `-` that stands behind the run.
fn count(client: &mut Client, table: &str, run: &str) -> Result<HashMap<String, u64>, postgres::Error> {
    let query = format!(
        "SELECT batch_id, count(*) FROM {table} \
         WHERE event_id COLLATE \"C\" >= $1 || '-' AND event_id COLLATE \"C\" < $1 || '.' GROUP BY batch_id"
    );
    let rows = client.query_typed(&query, &[(&run, Type::TEXT)])?;
    Ok(rows.iter().map(|row| (row.get(0), row.get::<_, i64>(1).unsigned_abs())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_lost_and_what_is_too_much_is_told() {
        let mut found = Found::default();
        found.add(10, There { inserted: 7, duplicates: 1, dead_lettered: 2, waiting: 0 });
        found.add(10, There { inserted: 9, ..There::default() });
        found.add(10, There { inserted: 11, ..There::default() });
        found.add(10, There { waiting: 10, ..There::default() });
        assert_eq!((found.expected, found.lost, found.surplus, found.there.waiting), (40, 1, 1, 10));
    }
}
