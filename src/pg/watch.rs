//! Finds connections that are dead although TCP says otherwise, and closes both of their ends.
//!
//! A proxy, a balancer or a firewall between here and PostgreSQL can swallow what either side sends while it keeps the
//! connections open: then keepalives are answered, and a COPY would wait for ever. How long PostgreSQL may take is
//! nobody's business here (a lock, a slow trigger, a standby that has to confirm a COMMIT), so no timeout can tell. But
//! PostgreSQL itself can, asked over another connection: when a backend waits for its client while the client waits for
//! it, and nothing of that changes for a while, then the way between the two is dead.
//!
//! ```text
//!  somebody waits for SILENCE_MIN ─▶ ask pg_stat_activity ─▶ the backend works ─▶ wait on
//!                                        │ no answer        it awaits its client, or is gone
//!                                        ▼                          │ the same again, SILENCE_MIN later
//!                              PostgreSQL is away: wait on          ▼
//!                                                     shut the socket down, terminate the backend
//! ```
//!
//! The backend has to go as well: its transaction holds the ledger rows of the batches that will be sent again. So has
//! any other backend of ingestd (by user and `application_name`) that is in the way of one of ours and stands still,
//! waiting for its client: what a node leaves behind that lost its power.
//!
//! Behind a pooler a session's backend changes with every transaction: whoever learns of it says so
//! ([`Pulse::served_by`]), and forgets it before it can be somebody else's ([`Pulse::parted`]). Unix sockets need none of this and are left alone.

use std::collections::HashMap;
use std::net::Shutdown;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use postgres::types::Type;
use postgres::{Client, Config};

use crate::limits::{CONNECT_WAIT_MAX, POOLER_WAIT_MAX, SHARDED_STANDSTILL_MIN, SILENCE_MIN, WATCH_INTERVAL};
use crate::pg::backing::{self, Backing};
use crate::pg::connect::{Tls, quiet_notice};
use crate::pg::health::{DatabaseHealth, Doubt};
use crate::pg::sqlstate::{Fault, is_unconfirmed_commit};
use crate::sharding::Sharding;
use crate::state_log::StateLog;
use crate::sys::{socket, vital};

/// Marks begin here when `TCP_USER_TIMEOUT` is to be the system's.
const MARK_BASE_DEFAULT: Duration = Duration::from_secs(24 * 3600);
/// Marks differ by a millisecond each; then they begin again.
const MARKS: u32 = 1000;

/// How the backends `$1` are, and those of ingestd that block them. The third column stands still while nothing arrives
/// there; the fourth names who holds the lock that one waits for.
const LOOK: &str = "\
    WITH asked AS (SELECT unnest($1::int4[]) AS pid), \
         blocking AS (SELECT DISTINCT unnest(pg_blocking_pids(pid)) AS pid FROM asked) \
    SELECT a.pid, coalesce(a.wait_event_type = 'Client' OR a.state LIKE 'idle%', false), \
           concat_ws(' ', a.backend_start, a.query_start, a.state_change, c.bytes_processed), \
           CASE WHEN a.wait_event_type = 'Lock' THEN ( \
             SELECT string_agg(concat(b.pid, ' ', nullif(b.application_name, '')), ', ') \
             FROM pg_stat_activity b WHERE b.pid = ANY (pg_blocking_pids(a.pid))) END \
    FROM pg_stat_activity a LEFT JOIN pg_stat_progress_copy c USING (pid) \
    WHERE a.pid IN (SELECT pid FROM asked) \
       OR a.pid IN (SELECT pid FROM blocking) AND a.usename = current_user \
          AND a.application_name = current_setting('application_name')";

/// Ends the backends `$1`, if they are ingestd's.
const TERMINATE: &str = "\
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
    WHERE pid = ANY ($1) AND usename = current_user AND application_name = current_setting('application_name')";

/// One connection, as the watch sees it.
pub struct Pulse {
    /// Milliseconds of its socket's `TCP_USER_TIMEOUT`: no other socket of this process has it.
    mark: u32,
    /// Process number of the backend; 0 before it is known.
    backend: AtomicI32,
    watch_began: Instant,
    /// A pooler lends it, see [`Backing`].
    is_lent: AtomicBool,
    /// When waiting began, in milliseconds since the watch began, plus one; 0 while nobody waits.
    waits_since: AtomicU64,
    /// A COMMIT did not wait for its standby to the end.
    is_unconfirmed: AtomicBool,
}

/// While it lives, somebody waits for PostgreSQL on a connection.
pub struct Waiting(Arc<Pulse>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.parted();
        self.0.waits_since.store(0, Ordering::Relaxed);
    }
}

impl Pulse {
    /// From now on somebody waits for PostgreSQL, and does little else. One at a time.
    pub fn wait(self: &Arc<Self>) -> Waiting {
        self.waits_since.store(self.watch_began.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
        Waiting(Arc::clone(self))
    }

    /// What is asked now is answered by this backend.
    pub fn served_by(&self, backend: i32) {
        self.backend.store(backend, Ordering::Relaxed);
    }

    /// Whatever served it may serve others from now on, where a pooler lends backends: it must not be ended for what
    /// they do.
    pub fn parted(&self) {
        if self.is_lent() {
            self.served_by(0);
        }
    }

    /// What `commit` gives, which commits over this connection; and whether somebody has cancelled the wait for a synchronous
    /// standby meanwhile: what it committed is on this PostgreSQL's disk then, and perhaps nowhere else.
    pub fn committing<T>(&self, commit: impl FnOnce() -> T) -> (T, bool) {
        // Relaxed: the driver notes it in the thread that waits for the COMMIT.
        self.is_unconfirmed.store(false, Ordering::Relaxed);
        let committed = commit();
        (committed, self.is_unconfirmed.load(Ordering::Relaxed))
    }

    /// True where a pooler lends the backend.
    pub fn is_lent(&self) -> bool {
        self.is_lent.load(Ordering::Relaxed)
    }

    /// How long it may be silent while nobody knows its backend. A pooler may have none to lend for a while.
    fn silence_max(&self) -> Duration {
        if self.is_lent() { POOLER_WAIT_MAX } else { CONNECT_WAIT_MAX }
    }

    fn waits_since(&self) -> Option<Duration> {
        self.waits_since.load(Ordering::Relaxed).checked_sub(1).map(Duration::from_millis)
    }

    fn backend(&self) -> Option<i32> {
        Some(self.backend.load(Ordering::Relaxed)).filter(|backend| *backend != 0)
    }

    fn shut_down(&self) {
        if let Some(stream) = socket::find_by_user_timeout(self.mark) {
            // It may have ended by itself in the meantime.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// All connections of one pool.
pub struct Watch {
    config: Config,
    tls: Tls,
    began: Instant,
    /// For how long a backend must stand still to be taken for dead.
    standstill_min: Duration,
    health: Arc<DatabaseHealth>,
    pulses: Mutex<Vec<Weak<Pulse>>>,
    /// See [`backing::open`].
    token_is_refused: AtomicBool,
}

impl Watch {
    /// Watches connections made with `config`, until the last of them and the value are gone.
    pub fn start(config: Config, tls: Tls, sharding: Sharding, health: Arc<DatabaseHealth>) -> Arc<Self> {
        let standstill_min = match sharding {
            Sharding::None => SILENCE_MIN,
            Sharding::Citus => SHARDED_STANDSTILL_MIN,
        };
        let (began, pulses, token_is_refused) = (Instant::now(), Mutex::default(), AtomicBool::new(false));
        let watch = Arc::new(Self { config, tls, began, standstill_min, health, pulses, token_is_refused });
        let watched = Arc::downgrade(&watch);
        let started = vital::spawn("pg-watch", move || {
            let (standing, dead, log) = (HashMap::new(), Vec::new(), StateLog::default());
            Watcher { watch: watched, asking: None, standing, dead, log }.run();
        });
        if let Err(error) = started {
            tracing::warn!(%error,
                "could not start the connection watchdog thread; dead PostgreSQL connections will not be detected");
        }
        watch
    }

    /// Opens a connection and watches it.
    pub fn connect(self: &Arc<Self>) -> Result<(Client, Arc<Pulse>), Fault> {
        let (mut client, pulse, _waiting) = self.open()?;
        self.health.reached_over(pulse.is_lent());
        pulse.served_by(client.query_typed_one("SELECT pg_backend_pid()", &[])?.get(0));
        Ok((client, pulse))
    }

    /// A connection whose backend is not known yet: it is closed when nothing more is heard for [`CONNECT_WAIT_MAX`].
    fn open(&self) -> Result<(Client, Arc<Pulse>, Waiting), Fault> {
        let base = self.config.get_tcp_user_timeout().copied().filter(|timeout| !timeout.is_zero());
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed) % MARKS;
        let timeout = base.unwrap_or(MARK_BASE_DEFAULT) + Duration::from_millis(u64::from(number));
        let pulse = Arc::new(Pulse {
            mark: u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX),
            backend: AtomicI32::new(0),
            is_lent: AtomicBool::new(false),
            watch_began: self.began,
            waits_since: AtomicU64::new(0),
            is_unconfirmed: AtomicBool::new(false),
        });
        let waiting = pulse.wait();
        let mut pulses = self.pulses.lock();
        pulses.retain(|pulse| pulse.strong_count() > 0);
        pulses.push(Arc::downgrade(&pulse));
        drop(pulses);
        let mut config = self.config.clone();
        config.tcp_user_timeout(timeout);
        let noted = Arc::clone(&pulse);
        config.notice_callback(move |notice| {
            if is_unconfirmed_commit(&notice) {
                noted.is_unconfirmed.store(true, Ordering::Relaxed);
            }
            quiet_notice(&notice);
        });
        // The driver panics when no open file is left for its runtime; r2d2 would think for ever that this attempt is
        // under way.
        let open = AssertUnwindSafe(|| backing::open(&config, &self.tls, &self.token_is_refused));
        let opened = catch_unwind(open);
        let (client, backing) =
            opened.map_err(|_| Fault::lost("no file descriptors left; raise the open-file limit (ulimit -n)"))??;
        pulse.is_lent.store(backing == Backing::Lent, Ordering::Relaxed);
        Ok((client, pulse, waiting))
    }

    /// Terminates `dead` and asks for `backends`, on a connection of its own; the way to PostgreSQL may be dead for that
    /// one as well.
    fn look(&self, dead: &[i32], backends: &[i32]) -> Result<HashMap<i32, Look>, Fault> {
        let (mut client, _pulse, _waiting) = self.open()?;
        if !dead.is_empty() {
            client.execute_typed(TERMINATE, &[(&dead, Type::INT4_ARRAY)])?;
        }
        let rows = client.query_typed(LOOK, &[(&backends, Type::INT4_ARRAY)])?;
        Ok(rows
            .iter()
            .map(|row| (row.get(0), Look { awaits_client: row.get(1), progress: row.get(2), blocked_by: row.get(3) }))
            .collect())
    }

    /// Closes those on which nobody waits: they went the way that is dead. Returns their backends.
    fn close_idle(&self) -> Vec<i32> {
        let pulses: Vec<Arc<Pulse>> = self.pulses.lock().iter().filter_map(Weak::upgrade).collect();
        let idle = pulses.iter().filter(|pulse| pulse.waits_since().is_none());
        let closed: Vec<i32> = idle.inspect(|pulse| pulse.shut_down()).filter_map(|pulse| pulse.backend()).collect();
        tracing::debug!(connections = closed.len(), "also closing idle connections to PostgreSQL");
        closed
    }

    /// Those on which somebody has waited for [`SILENCE_MIN`], with the time since when.
    fn silent(&self) -> Vec<(Arc<Pulse>, Duration)> {
        let now = self.began.elapsed();
        let pulses = self.pulses.lock();
        let waiting = pulses.iter().filter_map(Weak::upgrade).filter_map(|pulse| Some((pulse.waits_since()?, pulse)));
        let silent = waiting.filter(|(since, _)| now.saturating_sub(*since) >= SILENCE_MIN);
        silent.map(|(since, pulse)| (pulse, since)).collect()
    }
}

/// What PostgreSQL says of a backend.
struct Look {
    awaits_client: bool,
    progress: String,
    /// Sessions that hold the lock which it waits for.
    blocked_by: Option<String>,
}

struct Watcher {
    watch: Weak<Watch>,
    asking: Option<JoinHandle<Result<HashMap<i32, Look>, Fault>>>,
    /// By backend: where it stands (`None`: it is gone), and since when.
    standing: HashMap<i32, (Option<String>, Instant)>,
    /// Backends to terminate.
    dead: Vec<i32>,
    /// Dead connections are found one after the other when the way to PostgreSQL is dead.
    log: StateLog,
}

/// A connection of this pool.
const OURS: u8 = 0;
/// A session that an ingestd which is dead left behind.
const LEFT_BEHIND: u8 = 1;

impl Watcher {
    fn run(mut self) {
        loop {
            std::thread::sleep(WATCH_INTERVAL);
            let Some(watch) = self.watch.upgrade() else { return };
            self.round(&watch);
        }
    }

    fn round(&mut self, watch: &Arc<Watch>) {
        let silent = watch.silent();
        for (pulse, since) in &silent {
            if pulse.backend().is_none() && watch.began.elapsed() >= *since + pulse.silence_max() {
                let reason = "the connection was accepted but PostgreSQL never responded";
                self.closing(None, reason);
                pulse.shut_down();
            }
        }
        let by_backend: HashMap<i32, Arc<Pulse>> =
            silent.into_iter().filter_map(|(pulse, _)| Some((pulse.backend()?, pulse))).collect();
        match self.asking.take() {
            Some(asking) if !asking.is_finished() => self.asking = Some(asking),
            Some(asking) => match asking.join() {
                Ok(Ok(found)) => self.judge(watch, &by_backend, found),
                // PostgreSQL is away: whoever waits for it will be told, or served later.
                Ok(Err(_)) | Err(_) => self.standing.clear(),
            },
            None if by_backend.is_empty() && self.dead.is_empty() => {
                self.standing.clear();
                self.log.ends(Instant::now());
                watch.health.doubt(Doubt::Lock, None);
            }
            None => {
                let (watch, dead) = (Arc::clone(watch), std::mem::take(&mut self.dead));
                let backends: Vec<i32> = by_backend.into_keys().collect();
                let thread = std::thread::Builder::new().name("pg-watch-look".to_owned());
                self.asking = thread.spawn(move || watch.look(&dead, &backends)).ok();
            }
        }
    }

    /// Logs that a dead connection is closed, where it is the first of several.
    fn closing(&mut self, backend: Option<i32>, reason: &str) {
        match self.log.holds(OURS, Instant::now()) {
            Some(begun) => {
                let unlogged = begun.unlogged;
                tracing::warn!(backend, reason, unlogged, "closing a dead connection to PostgreSQL");
            }
            None => tracing::debug!(backend, reason, "closing another dead connection to PostgreSQL"),
        }
    }

    /// Closes what has stood still for long enough, and remembers where the others stand.
    fn judge(&mut self, watch: &Watch, silent: &HashMap<i32, Arc<Pulse>>, found: HashMap<i32, Look>) {
        let now = Instant::now();
        let blocked_by = silent.keys().find_map(|backend| found.get(backend)?.blocked_by.as_ref());
        let told =
            blocked_by.map(|holders| format!("batches are waiting for a lock held in PostgreSQL by PID {holders}"));
        watch.health.doubt(Doubt::Lock, told);
        let before = std::mem::take(&mut self.standing);
        let gone: Vec<i32> = silent.keys().filter(|backend| !found.contains_key(backend)).copied().collect();
        let standing = found.into_iter().filter(|(_, look)| look.awaits_client);
        let standing = standing.map(|(backend, look)| (backend, Some(look.progress)));
        for (backend, progress) in standing.chain(gone.into_iter().map(|backend| (backend, None))) {
            let since = match before.get(&backend) {
                Some((earlier, since)) if *earlier == progress => *since,
                _ => now,
            };
            if now - since < watch.standstill_min {
                self.standing.insert(backend, (progress, since));
                continue;
            }
            if let Some(pulse) = silent.get(&backend) {
                let reason = if progress.is_some() {
                    "the backend is idle in ClientRead while we await its reply"
                } else {
                    "the backend no longer exists"
                };
                self.closing(Some(backend), reason);
                pulse.shut_down();
            } else if self.log.holds(LEFT_BEHIND, now).is_some() {
                tracing::warn!(backend, "terminating a PostgreSQL session left behind by a dead ingestd");
            } else {
                tracing::debug!(backend, "terminating another PostgreSQL session left behind by a dead ingestd");
            }
            self.dead.push(backend);
        }
        if self.dead.iter().any(|backend| silent.contains_key(backend)) {
            self.dead.extend(watch.close_idle());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pulse(is_lent: bool) -> Arc<Pulse> {
        Arc::new(Pulse {
            mark: 1,
            backend: AtomicI32::new(0),
            watch_began: Instant::now(),
            is_lent: AtomicBool::new(is_lent),
            waits_since: AtomicU64::new(0),
            is_unconfirmed: AtomicBool::new(false),
        })
    }

    #[test]
    fn a_lent_backend_is_forgotten_before_it_can_serve_others() {
        for (is_lent, kept) in [(true, None), (false, Some(7))] {
            let pulse = pulse(is_lent);
            let waiting = pulse.wait();
            pulse.served_by(7);
            assert_eq!(pulse.backend(), Some(7));
            pulse.parted();
            assert_eq!(pulse.backend(), kept, "between two transactions");
            pulse.served_by(7);
            drop(waiting);
            assert_eq!(pulse.backend(), kept, "when nobody waits");
        }
    }

    #[test]
    fn a_pooler_may_be_silent_for_longer_than_postgresql() {
        assert!(pulse(true).silence_max() > pulse(false).silence_max());
    }
}
