//! Histories of acks: batches are sent and sent again, at any level, to either of two nodes or to both at once, while nodes are
//! killed, lose their power, Redis is emptied or goes back in time, PostgreSQL is away, or is restored from an earlier copy.
//! What the answers said is held against what is there.
//!
//! | answer | holds |
//! |---|---|
//! | 200 or 202 to `ack=journal` or `ack=commit` | the batch is there in the end |
//! | counts of a commit, also in a status | the batch is there at that moment |
//! | anything | the batch is there once, whole, or not at all |
//!
//! A restore takes with it what had been committed since its copy was made, and the promises for that: whoever restores knows
//! that. It does not take what is still in a journal.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::thread;
use std::time::Duration;

use postgres::Client;
use redis::Commands;
use serde_json::{Value, json};

use super::load::{Random, wait_until_committed};
use super::postgres::{TestDatabase, TestPostgres};
use super::proxy::{Mode, Proxy};
use super::redis::TestRedis;
use super::server::{self, Ingestd, Reply};
use super::syscalls::Syscalls;
use super::{WAIT_MAX, free_port};

const EVENTS_MAX: u64 = 20;
/// Segments of 1 MiB.
const JOURNAL_MAX_MB: u64 = 16;
const LEVELS: [&str; 3] = ["memory", "journal", "commit"];

/// A batch and what its clients were promised.
struct Batch {
    id: String,
    events: u64,
    body: String,
    is_promised: bool,
}

/// What a history has found out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Findings {
    /// Batches sent.
    pub batches: u64,
    /// Answers.
    pub answers: u64,
    /// Answers that were a promise or told of a commit.
    pub promises: u64,
    /// Promised batches that are not there.
    pub lost: u64,
    /// Batches that are there more than once, or in part.
    pub doubled: u64,
    /// Answers that told of a commit which was not there.
    pub lied: u64,
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { batches, answers, promises, lost, doubled, lied } = self;
        write!(f, "batches={batches} answers={answers} promises={promises} lost={lost} doubled={doubled} lied={lied}")
    }
}

/// Two nodes on one PostgreSQL and one Redis.
pub struct World {
    random: Random,
    nodes: [(Ingestd, Syscalls); 2],
    proxy: Proxy,
    redis: TestRedis,
    /// Keys and values that Redis had at some time.
    redis_before: HashMap<String, String>,
    batches: Vec<Batch>,
    postgres_is_away: bool,
    has_copy: bool,
    client: Client,
    /// Steps by kind.
    steps: BTreeMap<&'static str, u64>,
    findings: Findings,
    /// The last lies, for the log.
    lies: Vec<String>,
    // Dropped last.
    _database: TestDatabase,
    _postgres: TestPostgres,
}

impl World {
    /// A world whose steps `seed` decides; `None` where this kernel cannot hand system calls to a program.
    pub fn start(seed: u64) -> Option<Self> {
        let postgres = TestPostgres::start_private(&[]);
        let (database, redis) = (postgres.create_database(), TestRedis::start());
        let proxy = Proxy::start(postgres.port());
        if !Syscalls::new().is_supported() {
            return None;
        }
        let start = |name: &str| {
            let syscalls = Syscalls::new();
            let address = format!("127.0.0.1:{}", free_port());
            let builder = Ingestd::builder().env("DATABASE_URL", database.url_through(proxy.port())).redis(&redis);
            let builder = builder.env("NODE_ID", name).env("LISTEN_ADDR", address).env("WORKERS", 1);
            let builder = syscalls.of_powered(builder.env("JOURNAL_MAX_MB", JOURNAL_MAX_MB));
            (builder.start(), syscalls)
        };
        let nodes = [start("a"), start("b")];
        let client = database.connect();
        Some(Self {
            random: Random::new(seed),
            nodes,
            proxy,
            redis,
            redis_before: HashMap::new(),
            batches: Vec::new(),
            postgres_is_away: false,
            has_copy: false,
            client,
            steps: BTreeMap::new(),
            findings: Findings::default(),
            lies: Vec::new(),
            _database: database,
            _postgres: postgres,
        })
    }

    /// Does one thing.
    pub fn step(&mut self) {
        let name = match self.random.within(0..=99) {
            0..=39 => self.submit(),
            40..=79 => self.repeat(),
            80..=86 => self.ask_status(),
            87..=88 => self.kill(),
            89..=90 => self.cut_power(),
            91..=92 => self.empty_redis(),
            93..=94 => self.take_redis_back(),
            95..=96 => self.take_postgres_away_or_back(),
            97 => self.copy_database(),
            _ => self.restore_database(),
        };
        *self.steps.entry(name).or_default() += 1;
    }

    /// Lets everything come to rest, and compares.
    pub fn finish(mut self) -> Findings {
        self.bring_postgres_back();
        for (node, _) in &self.nodes {
            wait_until_committed(node, WAIT_MAX);
        }
        let query = "SELECT batch_id, count(*), count(DISTINCT event_id) FROM events GROUP BY 1";
        let rows = self.client.query(query, &[]).expect("the events can be counted");
        let found: HashMap<String, (i64, i64)> =
            rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect();
        for batch in &self.batches {
            let all = batch.events.cast_signed();
            let (rows, events) = found.get(&batch.id).copied().unwrap_or_default();
            self.findings.lost += u64::from(batch.is_promised && events < all);
            self.findings.doubled += u64::from(rows != 0 && (rows, events) != (all, all));
        }
        self.findings.batches = self.batches.len() as u64;
        super::announce(&format!("{:?} {}", self.steps, self.findings));
        self.lies.iter().for_each(|lie| super::announce(lie));
        self.findings
    }

    fn either(&mut self) -> usize {
        self.random.within(0..=1) as usize
    }

    fn level(&mut self) -> &'static str {
        // Without PostgreSQL it would wait for half a minute.
        let last = if self.postgres_is_away { 1 } else { 2 };
        LEVELS[self.random.within(0..=last) as usize]
    }

    fn submit(&mut self) -> &'static str {
        let events = self.random.within(1..=EVENTS_MAX);
        let id = format!("batch-{}", self.batches.len());
        let events_of = |number: u64| json!({"event_id": format!("{id}/{number}"), "service_name": "s", "event_type": "t", "payload": {"n": number}});
        let body = json!({ "batch_id": id, "events": (0..events).map(events_of).collect::<Vec<_>>() }).to_string();
        self.batches.push(Batch { id, events, body, is_promised: false });
        self.send(self.batches.len() - 1);
        "submit"
    }

    fn repeat(&mut self) -> &'static str {
        let Some(last) = self.batches.len().checked_sub(1) else { return self.submit() };
        // Mostly one of the latest: it is on its way.
        let back = if self.random.within(0..=2) == 0 { last as u64 } else { 5.min(last as u64) };
        let number = last - self.random.within(0..=back) as usize;
        self.send(number);
        "repeat"
    }

    /// Sends a batch to one node, or to both at once.
    fn send(&mut self, number: usize) {
        let (first, levels) = (self.either(), [self.level(), self.level()]);
        let to_both = self.random.within(0..=4) == 0;
        let body = &self.batches[number].body;
        let post = |node: usize, level: &str| {
            let url = self.nodes[node].0.url(&format!("/v1/ingest/batch?ack={level}"));
            server::try_post(&url, &[("Content-Type", "application/json")], body.as_bytes()).ok()
        };
        let replies = thread::scope(|scope| {
            let other = to_both.then(|| scope.spawn(|| post(1 - first, levels[1])));
            let reply = post(first, levels[0]);
            [reply, other.and_then(|other| other.join().expect("no panic"))]
        });
        for (reply, level) in replies.into_iter().zip(levels) {
            if let Some(reply) = reply {
                self.judge(number, level, &reply);
            }
        }
    }

    fn judge(&mut self, number: usize, level: &str, reply: &Reply) {
        self.findings.answers += 1;
        match reply.status {
            200 | 202 => {
                let answer = reply.json();
                let promises = level != "memory";
                self.batches[number].is_promised |= promises;
                self.findings.promises += u64::from(promises || is_committed(&answer));
                self.hold_commit(number, &answer);
            }
            // Nothing is said of the batch: the journal is full or busy.
            429 | 503 => {}
            _ => panic!("{} at ack={level}: {}", self.batches[number].id, reply.text()),
        }
    }

    /// What tells of a commit has to be true.
    fn hold_commit(&mut self, number: usize, answer: &Value) {
        let batch = &self.batches[number];
        if !is_committed(answer) {
            return;
        }
        let query = "SELECT (SELECT count(*) FROM events WHERE batch_id = $1), \
                            (SELECT count(*) FROM ingest_batches WHERE batch_id = $1)";
        let row = self.client.query_one(query, &[&batch.id]).expect("counted");
        let found: (i64, i64) = (row.get(0), row.get(1));
        if found != (batch.events.cast_signed(), 1) || answer["inserted"] != batch.events {
            self.findings.lied += 1;
            self.lies.push(format!("rows and ledger rows {found:?}, but {answer}"));
        }
    }

    fn ask_status(&mut self) -> &'static str {
        let Some(last) = self.batches.len().checked_sub(1) else { return "status" };
        let (number, node) = (self.random.within(0..=last as u64) as usize, self.either());
        // Without PostgreSQL a node tells what it remembers.
        if !self.postgres_is_away {
            let path = format!("/v1/batch/{}/status", self.batches[number].id);
            if let Some(reply) = server::try_get(&self.nodes[node].0.url(&path)).filter(|reply| reply.status == 200) {
                self.findings.answers += 1;
                self.hold_commit(number, &reply.json());
            }
        }
        "status"
    }

    fn kill(&mut self) -> &'static str {
        let node = self.either();
        self.nodes[node].0.restart();
        "kill"
    }

    fn cut_power(&mut self) -> &'static str {
        let node = self.either();
        let (server, syscalls) = &mut self.nodes[node];
        server.kill9();
        syscalls.cut_power(&server.folder().join("journal"));
        server.restart();
        "power cut"
    }

    fn empty_redis(&mut self) -> &'static str {
        redis::cmd("FLUSHALL").exec(&mut self.redis.connect()).expect("Redis answers");
        "redis emptied"
    }

    /// Redis has what it had at an earlier time, and nothing else; the next time it is as now.
    fn take_redis_back(&mut self) -> &'static str {
        let mut connection = self.redis.connect();
        let keys: Vec<String> = connection.keys("*").expect("Redis answers");
        let read = |key: String| {
            let value: Option<String> = self.redis.connect().get(&key).expect("Redis answers");
            Some((key, value?))
        };
        let now: HashMap<String, String> = keys.into_iter().filter_map(read).collect();
        redis::cmd("FLUSHALL").exec(&mut connection).expect("Redis answers");
        for (key, value) in std::mem::replace(&mut self.redis_before, now) {
            let () = connection.set(key, value).expect("Redis answers");
        }
        "redis taken back"
    }

    fn take_postgres_away_or_back(&mut self) -> &'static str {
        if self.postgres_is_away {
            self.bring_postgres_back();
        } else {
            self.proxy.set_mode(Mode::Refuse);
            self.proxy.cut();
            self.postgres_is_away = true;
        }
        "postgres away or back"
    }

    fn bring_postgres_back(&mut self) {
        self.proxy.set_mode(Mode::Forward);
        self.postgres_is_away = false;
    }

    fn copy_database(&mut self) -> &'static str {
        let copy = "BEGIN ISOLATION LEVEL REPEATABLE READ; \
             DROP TABLE IF EXISTS events_copy, batches_copy; \
             CREATE TABLE events_copy AS TABLE events; CREATE TABLE batches_copy AS TABLE ingest_batches; COMMIT";
        self.client.batch_execute(copy).expect("a copy");
        self.has_copy = true;
        "database copied"
    }

    fn restore_database(&mut self) -> &'static str {
        if !self.has_copy {
            return self.copy_database();
        }
        let mut transaction = self.client.transaction().expect("a transaction");
        transaction.batch_execute("LOCK TABLE events, ingest_batches").expect("nobody writes");
        let taken = "SELECT batch_id FROM ingest_batches EXCEPT SELECT batch_id FROM batches_copy";
        let taken = transaction.query(taken, &[]).expect("what it takes");
        let taken: HashSet<String> = taken.iter().map(|row| row.get(0)).collect();
        let restore = "TRUNCATE events, ingest_batches; INSERT INTO events SELECT * FROM events_copy; \
             INSERT INTO ingest_batches SELECT * FROM batches_copy";
        transaction.batch_execute(restore).expect("restored");
        transaction.commit().expect("restored");
        for batch in self.batches.iter_mut().filter(|batch| taken.contains(&batch.id)) {
            batch.is_promised = false;
        }
        "database restored"
    }
}

fn is_committed(answer: &Value) -> bool {
    ["completed", "partial", "failed"].iter().any(|status| answer["status"] == *status)
}

/// Runs histories of `steps` steps each for `lasts`, at least one; what they have found together.
pub fn run(seed: u64, steps: u64, lasts: Duration) -> Option<Findings> {
    let (begun, mut all) = (std::time::Instant::now(), Findings::default());
    for history in 0.. {
        let mut world = World::start(seed.wrapping_add(history))?;
        (0..steps).for_each(|_| world.step());
        let found = world.finish();
        all.batches += found.batches;
        all.answers += found.answers;
        all.promises += found.promises;
        all.lost += found.lost;
        all.doubled += found.doubled;
        all.lied += found.lied;
        if (found.lost, found.doubled, found.lied) != (0, 0, 0) || begun.elapsed() >= lasts {
            super::announce(&format!("histories={} seed={seed} {all}", history + 1));
            break;
        }
    }
    Some(all)
}
