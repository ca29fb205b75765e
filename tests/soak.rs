//! A long run of random faults under load: `make soak`, bounded by `SOAK_MINUTES`. Each round ends with a count of what
//! was promised against what is in the table, and the last line says the sum: `lost=0 duplicated=0`, or the run fails.

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use support::announce;
use support::load::{Load, LoadOptions, Random, seed, wait_until_committed};
use support::postgres::{TestPostgres, connect, empty_tables};
use support::proxy::{Mode, Proxy};
use support::redis::TestRedis;
use support::server::Ingestd;

/// One round: a load, this many faults, a count.
const FAULTS_PER_ROUND: u64 = 5;
/// Longest time between two faults.
const PEACE_MAX: Duration = Duration::from_secs(3);
/// Longest time for which a fault lasts.
const FAULT_MAX: Duration = Duration::from_secs(4);
const WAIT_MAX: Duration = Duration::from_secs(180);

/// What the servers of one run are.
struct World {
    postgres: TestPostgres,
    redis: TestRedis,
    proxy: Proxy,
    server: Ingestd,
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
        let name = match self.random.within(0..=8) {
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
            _ => {
                self.redis.stop();
                self.pause(FAULT_MAX);
                self.redis.restart();
                "redis killed"
            }
        };
        *self.faults.entry(name).or_default() += 1;
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
    let mut world = World { postgres, redis, proxy, server, random: Random::new(seed), faults: BTreeMap::new() };
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
        let mut client = connect(&database.url);
        let tally = outcome.assert_exactly_once(&mut client);
        empty_tables(&mut client);
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
