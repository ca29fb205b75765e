//! Promise: batches of any size go through a journal that is small, never make it larger than its cap, and land once,
//! while PostgreSQL comes and goes and the server is killed.

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use support::announce;
use support::load::{Load, LoadOptions, Random, seed, wait_until_committed};
use support::postgres::{TestPostgres, connect};
use support::server::Ingestd;
use support::{WAIT_MAX, free_port};

/// Caps of the journal: the larger one holds a dozen of the largest batches, the smaller one hardly two.
const CAPS_MB: [u64; 2] = [4, 24];
/// Bytes of a batch, 10 and a little more to 2 MB.
const BYTES: std::ops::RangeInclusive<u64> = 10..=2_000_000;
const FAULTS: u64 = 30;
/// Longest time from one fault to the next, and for which PostgreSQL is away.
const PAUSE_MAX: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(5);

/// Bytes of all files in `folder`; those that go meanwhile count nothing.
fn bytes_of(folder: &Path) -> u64 {
    let files = std::fs::read_dir(folder).expect("the journal is there").flatten();
    files.filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum()
}

/// Waits up to [`PAUSE_MAX`]; the most that the journal had meanwhile.
fn watch(server: &Ingestd, random: &mut Random) -> u64 {
    let (folder, until) = (server.folder().join("journal"), Instant::now() + random.duration(PAUSE_MAX));
    let mut most = 0;
    while Instant::now() < until {
        most = most.max(bytes_of(&folder));
        std::thread::sleep(POLL);
    }
    most
}

fn soak(cap_mb: u64) {
    let seed = seed("soak_journal_sizes");
    let mut random = Random::new(seed);
    let mut postgres = TestPostgres::start_private(&[]);
    let database = postgres.create_database();
    let address = format!("127.0.0.1:{}", free_port());
    let builder = Ingestd::builder().database(&database).env("JOURNAL_MAX_MB", cap_mb).env("LISTEN_ADDR", address);
    let mut server = builder.start();
    let options = LoadOptions { clients: 6, events: u64::MAX, seed, priority_max: 10, pause: Duration::from_millis(2) };
    let load = Load::start_with_bytes(&server, BYTES, options);
    let (mut most, mut kills, mut outages) = (0, 0, 0);
    for _ in 0..FAULTS {
        most = most.max(watch(&server, &mut random));
        let (takes_server, takes_postgres) = match random.within(0..=2) {
            0 => (true, false),
            1 => (false, true),
            _ => (true, true),
        };
        if takes_postgres {
            postgres.kill9();
            most = most.max(watch(&server, &mut random));
            outages += 1;
        }
        if takes_server {
            server.kill9();
            if takes_postgres && random.within(0..=1) == 0 {
                // It comes back first.
                postgres.start();
            }
            server.begin_restart();
            kills += 1;
        }
        postgres.start();
        if takes_server {
            server.wait_until_ready();
        }
    }
    let outcome = load.stop();
    wait_until_committed(&server, WAIT_MAX);
    let tally = outcome.assert_exactly_once(&mut connect(&database.url));
    let cap = cap_mb << 20;
    announce(&format!(
        "soak_journal_sizes: cap={cap} most={most} kills={kills} outages={outages} {tally} lost=0 duplicated=0"
    ));
    assert!(most <= cap, "the journal had {most} bytes of {cap}");
    assert!(most > cap / 2, "the journal had only {most} bytes of {cap}: the cap was not tried");
}

#[test]
#[ignore = "long: `make soak` runs it"]
fn batches_of_any_size_land_once_through_small_journals() {
    CAPS_MB.into_iter().for_each(soak);
}
