//! A long run of random faults under load: `make soak`, bounded by `SOAK_MINUTES`. Processes are killed and connections
//! break; tables are locked, in the way, or refuse rows. Each round ends with a count of what was promised against what is
//! in the tables, and the last line says the sum: `lost=0 duplicated=0`, or the run fails.

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ingestd::pg::partitions::Month;
use ingestd::status::model::rfc3339;
use ingestd::sys::clock::wall_now;
use postgres::Client;
use support::announce;
use support::load::{Load, LoadOptions, Outcome, Random, Sent, Tally, body, seed, wait_until_committed};
use support::postgres::{TestPostgres, connect, empty_tables};
use support::proxy::{Mode, Proxy};
use support::redis::TestRedis;
use support::server::{Ingestd, post};

/// One round: a load, this many faults, a count.
const FAULTS_PER_ROUND: u64 = 5;
/// Longest time between two faults.
const PEACE_MAX: Duration = Duration::from_secs(3);
/// Longest time for which a fault lasts.
const FAULT_MAX: Duration = Duration::from_secs(4);
const WAIT_MAX: Duration = Duration::from_secs(180);
/// Events of a batch that a fault sends by itself.
const BATCH_EVENTS: u64 = 200;
/// Months whose partitions are made in the course of a run, the last of them this long ago.
const OLD_MONTHS: i32 = 90;
const OLDEST_MONTHS_AGO: i32 = 100;

/// What the servers of one run are.
struct World {
    postgres: TestPostgres,
    redis: TestRedis,
    proxy: Proxy,
    server: Ingestd,
    /// How to reach PostgreSQL past the proxy.
    url: String,
    /// Batches that faults have sent in this round, of which each event is to be a row.
    landing: Vec<Sent>,
    /// Events that faults have sent in this round, which are to be dead letters.
    refused_events: u64,
    /// Batches that faults have sent in all rounds; makes their ids differ.
    sent: u64,
    /// Months of which a batch was sent.
    old_months: i32,
    random: Random,
    faults: BTreeMap<&'static str, u64>,
}

impl World {
    fn pause(&mut self, max: Duration) {
        let pause = self.random.duration(max);
        std::thread::sleep(pause);
    }

    /// Does one thing that goes wrong in production, and puts it right again.
    fn fault(&mut self, load: &Load) {
        let name = match self.random.within(0..=13) {
            0..=2 => {
                self.server.kill9();
                self.server.restart();
                load.follow(&self.server);
                "server killed"
            }
            3 => {
                self.server.begin_restart();
                self.pause(Duration::from_millis(200));
                self.server.kill9();
                self.server.restart();
                load.follow(&self.server);
                "server killed in recovery"
            }
            4 => {
                let status = self.server.terminate();
                assert_eq!(status.code(), Some(0), "{}", self.server.log());
                self.server.restart();
                load.follow(&self.server);
                "server terminated"
            }
            5 => {
                self.postgres.kill9();
                self.pause(FAULT_MAX);
                self.postgres.start();
                "postgresql killed"
            }
            6 => {
                self.proxy.cut_after_reply_to(b"COMMIT\0");
                self.pause(FAULT_MAX);
                "commit without answer"
            }
            7 => {
                self.proxy.set_mode(Mode::Stall);
                self.pause(FAULT_MAX);
                self.proxy.set_mode(Mode::Forward);
                self.proxy.cut();
                "connections stalled and cut"
            }
            8 => self.partition_locked(load),
            9 => self.name_taken(load),
            10 => self.trigger_broken(load),
            11 => self.copies_cancelled(),
            12 => self.rows_refused(),
            _ => {
                self.redis.stop();
                self.pause(FAULT_MAX);
                self.redis.restart();
                "redis killed"
            }
        };
        *self.faults.entry(name).or_default() += 1;
    }

    fn client(&self) -> Client {
        connect(&self.url)
    }

    /// Sends a batch with an id that begins with `kind`; its events happened at `at`, or now.
    fn send(&mut self, kind: &str, at: Option<&str>) -> Sent {
        self.sent += 1;
        let tag = format!("{kind}-{}", self.sent);
        let mut text = body(&tag, Some(&tag), 0, BATCH_EVENTS);
        if let Some(at) = at {
            text = text.replace(r#""payload":{"#, &format!(r#""timestamp":"{at}","payload":{{"#));
        }
        let taken = || {
            let status = post(&self.server.url("/v1/ingest/batch"), &[], text.as_bytes()).status;
            assert!([200, 202, 429, 503].contains(&status), "answer {status}");
            status < 300
        };
        support::wait_until("a batch is taken", WAIT_MAX, taken);
        Sent { batch_id: Some(tag.clone()), tag, events: BATCH_EVENTS, acked: true }
    }

    /// Lets a fault last; sometimes the server is killed meanwhile, and starts while the fault is there.
    fn pause_or_kill(&mut self, load: &Load) {
        self.pause(FAULT_MAX);
        if self.random.within(0..=2) == 0 {
            self.server.kill9();
            self.server.restart();
            load.follow(&self.server);
            self.pause(FAULT_MAX);
            *self.faults.entry("server killed meanwhile").or_default() += 1;
        }
    }

    /// Nothing of this month lands, as while an index is built.
    fn partition_locked(&mut self, load: &Load) -> &'static str {
        let mut client = self.client();
        let partition = Month::of(wall_now()).partition_name();
        let lock = format!("BEGIN; LOCK TABLE {partition} IN SHARE MODE");
        client.batch_execute(&lock).expect("the partition is there");
        self.pause_or_kill(load);
        "partition locked"
    }

    /// A month's partition cannot be made while a table has its name.
    fn name_taken(&mut self, load: &Load) -> &'static str {
        if self.old_months == OLD_MONTHS {
            return self.partition_locked(load);
        }
        let month = Month::of(wall_now()).plus(self.old_months - OLDEST_MONTHS_AGO);
        self.old_months += 1;
        let (mut client, name) = (self.client(), month.partition_name());
        client.batch_execute(&format!("CREATE TABLE {name} (elsewhere int)")).expect("nothing has its name");
        let sent = self.send("late", Some(&rfc3339(month.start())));
        self.landing.push(sent);
        self.pause_or_kill(load);
        client.batch_execute(&format!("DROP TABLE {name}")).expect("it is there");
        "name taken"
    }

    /// A user's trigger fails for one batch, or for all.
    fn trigger_broken(&mut self, load: &Load) -> &'static str {
        let mut client = self.client();
        let rows = if self.random.within(0..=1) == 0 { "WHEN (NEW.event_id LIKE 'triggers-%')" } else { "" };
        let trigger = format!(
            "CREATE OR REPLACE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS
                 $$BEGIN PERFORM * FROM no_such_table; RETURN NEW; END$$;
             CREATE TRIGGER broken BEFORE INSERT ON events FOR EACH ROW {rows} EXECUTE FUNCTION broken()"
        );
        client.batch_execute(&trigger).expect("a trigger");
        let sent = self.send("triggers", None);
        self.landing.push(sent);
        self.pause_or_kill(load);
        client.batch_execute("DROP TRIGGER broken ON events").expect("it is there");
        "trigger broken"
    }

    fn copies_cancelled(&mut self) -> &'static str {
        let (mut client, until) = (self.client(), Instant::now() + self.random.duration(FAULT_MAX));
        let cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity
                      WHERE datname = current_database() AND application_name = 'ingestd' AND query ILIKE 'COPY%'";
        while Instant::now() < until {
            client.batch_execute(cancel).expect("a superuser may");
            std::thread::sleep(Duration::from_millis(5));
        }
        "copies cancelled"
    }

    /// A CHECK refuses all rows of a batch, see [`soak`].
    fn rows_refused(&mut self) -> &'static str {
        self.refused_events += self.send("refused", None).events;
        "rows refused"
    }

    /// What is in the tables is what was promised, nothing twice.
    fn count(&mut self, mut outcome: Outcome) -> Tally {
        outcome.batches.append(&mut self.landing);
        let mut client = self.client();
        let tally = outcome.assert_exactly_once(&mut client);
        let dead = client.query_one("SELECT count(*) FROM dead_letter_events", &[]).expect("dead letters");
        assert_eq!(dead.get::<_, i64>(0).unsigned_abs(), std::mem::take(&mut self.refused_events), "refused rows");
        empty_tables(&mut client);
        tally
    }
}

#[test]
#[ignore = "long: `make soak` runs it"]
fn soak() {
    let minutes = std::env::var("SOAK_MINUTES").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    let until = Instant::now() + Duration::from_secs(60 * minutes);
    let seed = seed("soak");
    let postgres = TestPostgres::start_private(&[]);
    let database = postgres.create_database();
    let (redis, proxy) = (TestRedis::start(), Proxy::start(postgres.port()));
    let server = Ingestd::builder()
        .database(&database)
        .redis(&redis)
        .env("DATABASE_URL", database.url_through(proxy.port()))
        .env("MEMORY_LIMIT_MB", 16)
        .start();
    let check = "ALTER TABLE events ADD CONSTRAINT refuses CHECK (event_id NOT LIKE 'refused-%')";
    connect(&database.url).batch_execute(check).expect("a constraint");
    let mut world = World {
        postgres,
        redis,
        proxy,
        server,
        url: database.url.clone(),
        landing: Vec::new(),
        refused_events: 0,
        sent: 0,
        old_months: 0,
        random: Random::new(seed),
        faults: BTreeMap::new(),
    };
    let (mut rounds, mut acked, mut committed, mut unknown, mut retries) = (0, 0, 0, 0, 0);
    while Instant::now() < until {
        let options = LoadOptions {
            clients: 4,
            events: u64::MAX,
            seed: seed + rounds,
            priority_max: 10,
            pause: Duration::from_millis(50),
        };
        let load = Load::start(&world.server, options);
        for _ in 0..FAULTS_PER_ROUND {
            world.pause(PEACE_MAX);
            world.fault(&load);
        }
        let outcome = load.stop();
        wait_until_committed(&world.server, WAIT_MAX);
        let tally = world.count(outcome);
        rounds += 1;
        (acked, committed) = (acked + tally.acked, committed + tally.committed);
        (unknown, retries) = (unknown + tally.unknown, retries + tally.retries);
    }
    let faults: u64 = world.faults.values().sum();
    announce(&format!(
        "soak: minutes={minutes} rounds={rounds} faults={faults} {:?} acked={acked} committed={committed} \
         unknown={unknown} retries={retries} lost=0 duplicated=0 seed={seed}",
        world.faults
    ));
}
