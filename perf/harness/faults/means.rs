//! How faults begin, go on and end.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use postgres::Client;

use super::scene::Scene;
use crate::Failure;

const POLL: Duration = Duration::from_millis(5);
/// Connections that others may have at most.
const HOGS_MAX: usize = 1000;

/// How a fault begins and ends.
pub enum Means {
    /// By statements.
    Sql { begin: String, end: String },
    /// A transaction that holds what this statement locks.
    Held(String),
    /// DETACH PARTITION CONCURRENTLY that waits for a reader; `end` after it has come through.
    Detaching { end: String },
    /// Something strikes again and again.
    Again { strike: Strike, every: Duration },
    /// Every connection that PostgreSQL has is taken, and sessions are terminated.
    NoConnections,
    /// A file fills the small disk.
    FullDisk,
}

/// What strikes.
#[derive(Clone, Copy, Debug)]
pub enum Strike {
    /// One session of a server is terminated, one that is at work if there is one.
    Terminate,
    /// A COPY is cancelled.
    Cancel,
    /// Another session holds the old month's partition, and wants the ledger row of a batch that waits for it.
    Deadlock,
}

/// A fault that is there.
pub enum Active {
    Sql { end: String },
    Held(Client),
    Detaching { reader: Client, detach: JoinHandle<Result<(), postgres::Error>>, end: String },
    Again(Strikes),
    NoConnections { hogs: Vec<Client>, strikes: Strikes },
    FullDisk(PathBuf),
}

impl Means {
    /// Has it begin.
    pub fn begin(&self, scene: &mut Scene) -> Result<Active, Failure> {
        Ok(match self {
            Self::Sql { begin, end } => {
                scene.execute(begin)?;
                Active::Sql { end: end.clone() }
            }
            Self::Held(statement) => {
                let mut client = scene.connect()?;
                client.batch_execute(&format!("BEGIN; {}", scene.fill(statement)))?;
                Active::Held(client)
            }
            Self::Detaching { end } => {
                let mut reader = scene.connect()?;
                reader.batch_execute("BEGIN; LOCK TABLE events IN ACCESS SHARE MODE")?;
                let (mut client, name) = (scene.connect()?, scene.fill("{part}"));
                let detach = format!("ALTER TABLE events DETACH PARTITION {name} CONCURRENTLY");
                let detach = thread::spawn(move || client.batch_execute(&detach));
                scene.wait_for("SELECT FROM pg_inherits WHERE inhrelid = '{part}'::regclass AND inhdetachpending")?;
                Active::Detaching { reader, detach, end: end.clone() }
            }
            Self::Again { strike, every } => Active::Again(Strikes::start(*strike, *every, scene)?),
            Self::NoConnections => {
                let strikes = Strikes::start(Strike::Terminate, Duration::from_secs(2), scene)?;
                let hogs = (0..HOGS_MAX).map_while(|_| scene.connect().ok()).collect();
                Active::NoConnections { hogs, strikes }
            }
            Self::FullDisk => {
                let path = scene.place()?.join("filler");
                let (mut file, chunk) = (File::create(&path)?, vec![0; 64 * 1024]);
                while file.write_all(&chunk).is_ok() {}
                Active::FullDisk(path)
            }
        })
    }
}

impl Active {
    /// Has it end; how often it struck.
    pub fn end(self, scene: &mut Scene) -> Result<Option<u64>, Failure> {
        match self {
            Self::Sql { end } => scene.execute(&end)?,
            Self::Held(mut client) => client.batch_execute("ROLLBACK")?,
            Self::Detaching { mut reader, detach, end } => {
                reader.batch_execute("ROLLBACK")?;
                detach.join().map_err(|_| "the thread that detaches panicked")??;
                scene.execute(&end)?;
            }
            Self::Again(strikes) => return Ok(Some(strikes.end()?)),
            Self::NoConnections { hogs, strikes } => {
                drop(hogs);
                return Ok(Some(strikes.end()?));
            }
            Self::FullDisk(path) => std::fs::remove_file(path)?,
        }
        Ok(None)
    }
}

/// A thread that strikes.
pub struct Strikes {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<(), postgres::Error>>>,
}

impl Strikes {
    fn start(strike: Strike, every: Duration, scene: &Scene) -> Result<Self, Failure> {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        // Where all connections are taken it is too late to connect.
        let mut clients = [scene.connect()?, scene.connect()?];
        let (part, stopped, counted) = (scene.fill("{part}"), Arc::clone(&stop), Arc::clone(&count));
        let thread = thread::spawn(move || {
            let stopped = || stopped.load(Ordering::Relaxed);
            while !stopped() {
                let until = Instant::now() + every;
                while !stopped() && Instant::now() < until {
                    if strike.once(&mut clients, &part, &stopped)? {
                        counted.fetch_add(1, Ordering::Relaxed);
                        break;
                    }
                    thread::sleep(POLL);
                }
                while !stopped() && Instant::now() < until {
                    thread::sleep(POLL);
                }
            }
            Ok(())
        });
        Ok(Self { stop, count, thread: Some(thread) })
    }

    fn end(mut self) -> Result<u64, Failure> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().ok_or("it has ended already")?;
        thread.join().map_err(|_| "the thread that strikes panicked")??;
        Ok(self.count.load(Ordering::Relaxed))
    }
}

impl Drop for Strikes {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Strike {
    /// True when it has struck; false when there was nothing to strike.
    fn once(self, clients: &mut [Client; 2], part: &str, stopped: &dyn Fn() -> bool) -> Result<bool, postgres::Error> {
        let [client, watcher] = clients;
        let servers = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'ingestd'";
        let struck = |client: &mut Client, query: &str| Ok(client.query_opt(query, &[])?.is_some_and(|row| row.get(0)));
        match self {
            Self::Terminate => struck(
                client,
                &format!("SELECT pg_terminate_backend(pid) {servers} ORDER BY state <> 'idle' DESC, random() LIMIT 1"),
            ),
            Self::Cancel => struck(
                client,
                &format!(
                    "SELECT pg_cancel_backend(pid) {servers} AND state = 'active' AND query ILIKE 'COPY%' LIMIT 1"
                ),
            ),
            Self::Deadlock => {
                client.batch_execute(&format!("BEGIN; LOCK TABLE {part} IN SHARE MODE"))?;
                let waits = format!("SELECT FROM pg_locks WHERE relation = '{part}'::regclass AND NOT granted");
                let until = Instant::now() + Duration::from_secs(2);
                while watcher.query_opt(&format!("{waits} LIMIT 1"), &[])?.is_none() {
                    if stopped() || Instant::now() > until {
                        client.batch_execute("ROLLBACK")?;
                        return Ok(false);
                    }
                    thread::sleep(POLL);
                }
                // The one that waits has the ledger row of its batch.
                let wanted =
                    "INSERT INTO ingest_batches (owner, batch_id, body_digest, priority, events, inserted, duplicates,
                                                          dead_lettered, received_at, node)
                              SELECT '', 'faulty-' || lpad(n::text, 6, '0'), '', 0, 0, 0, 0, 0, now(), 'other'
                              FROM generate_series(0, 9999) n ON CONFLICT DO NOTHING";
                // Either of the two is the victim.
                let _ = client.batch_execute(wanted);
                client.batch_execute("ROLLBACK")?;
                Ok(true)
            }
        }
    }
}

/// A small file system in memory; gone with the value.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts it on `folder`, which `like` 's owner then owns; an error where this user may not.
    pub fn mount(folder: PathBuf, like: &Path) -> Result<Self, Failure> {
        use std::os::unix::fs::{MetadataExt, chown};
        std::fs::create_dir_all(&folder)?;
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=24m,mode=0700", "tmpfs"]).arg(&folder).output();
        let mounted = mounted.map_err(|error| format!("mount: {error}"))?;
        if !mounted.status.success() {
            return Err(format!("no small disk: {}", String::from_utf8_lossy(&mounted.stderr).trim()).into());
        }
        let disk = Self(folder);
        // PostgreSQL wants an empty directory of its own; the file that fills the disk lies beside it.
        let place = disk.tablespace();
        std::fs::create_dir(&place)?;
        let owner = std::fs::metadata(like)?;
        chown(&disk.0, Some(owner.uid()), Some(owner.gid()))?;
        chown(&place, Some(owner.uid()), Some(owner.gid()))?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The directory for a tablespace on it.
    pub fn tablespace(&self) -> PathBuf {
        self.0.join("tablespace")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a run that failed may have left a file open.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}
