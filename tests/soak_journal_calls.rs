//! Promise: whatever call of the operating system a journal's server is killed at, or which one fails, nothing that was
//! acknowledged is lost or doubled. One journal, many lives, each with a kill or EIO at a random call; real files. In some
//! lives PostgreSQL is away, so that the next one finds its batches in the journal only.

mod support;

use std::collections::BTreeMap;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use support::announce;
use support::load::{Load, LoadOptions, Random, seed, wait_until_committed};
use support::postgres::{TestPostgres, connect};
use support::proxy::{Mode, Proxy};
use support::server::{Ingestd, get, try_get};
use support::syscalls::{KINDS, Strike, Syscalls};
use support::{WAIT_MAX, free_port, not_run};

/// Lives of the journal.
const LIVES: u64 = 350;
/// How long a life lasts in which the call does not come.
const LIFE_MAX: Duration = Duration::from_secs(2);
/// How long a server goes on after a call of it has failed.
const AFTER_STRIKE: Duration = Duration::from_millis(200);
const POLL: Duration = Duration::from_millis(5);
/// Segments of 1 MiB, so that files come and go all the time.
const JOURNAL_MAX_MB: u64 = 16;

/// How lives ended.
#[derive(Debug, Default)]
struct Ends {
    /// By the kill at a call, by kind.
    killed_at: BTreeMap<&'static str, u64>,
    /// A call failed, by kind.
    failed: BTreeMap<&'static str, u64>,
    /// Of those servers, such as ended by themselves.
    by_itself: u64,
    /// The call never came.
    unstruck: u64,
}

/// Calls of a kind in one life, about: groups are synced all the time, files come and go once for each MiB.
fn number(random: &mut Random, kind: &str) -> u64 {
    match kind {
        "write" | "fdatasync" => random.within(1..=60),
        _ => random.within(1..=4),
    }
}

/// The server of a journal, and what happens to it.
struct World {
    server: Ingestd,
    /// Stays, so that clients find the next life.
    address: String,
    syscalls: Syscalls,
    proxy: Proxy,
    random: Random,
}

impl World {
    /// One life, from its start to its end; how the server ended, if by itself.
    fn live(&mut self) -> Option<ExitStatus> {
        // A server waits for PostgreSQL before it listens.
        self.proxy.set_mode(Mode::Forward);
        let mut goes_away = self.random.within(0..=2) == 0;
        self.server.begin_restart();
        let (mut ended, mut until) = (None, Instant::now() + LIFE_MAX);
        let mut has_struck = false;
        while ended.is_none() && Instant::now() < until {
            if goes_away && self.answers("/readyz") {
                self.proxy.set_mode(Mode::Refuse);
                self.proxy.cut();
                goes_away = false;
            }
            std::thread::sleep(POLL);
            ended = self.server.has_ended();
            if !has_struck && self.syscalls.has_struck() {
                (has_struck, until) = (true, Instant::now() + AFTER_STRIKE);
            }
        }
        // One that still starts does not hear SIGTERM yet.
        if ended.is_none() && self.answers("/livez") && self.random.within(0..=2) == 0 {
            // Without PostgreSQL its end would take half a minute.
            self.proxy.set_mode(Mode::Forward);
            self.server.terminate();
        } else {
            self.server.kill9();
        }
        ended
    }

    fn answers(&self, path: &str) -> bool {
        try_get(&format!("http://{}{path}", self.address)).is_some_and(|reply| reply.status == 200)
    }
}

#[test]
#[ignore = "long: `make soak` runs it"]
fn a_journal_whose_calls_fail_or_are_the_last_loses_nothing() {
    let seed = seed("soak_journal_calls");
    let (postgres, syscalls) = (TestPostgres::start_private(&[]), Syscalls::new());
    let (database, proxy) = (postgres.create_database(), Proxy::start(postgres.port()));
    let address = format!("127.0.0.1:{}", free_port());
    let builder = Ingestd::builder().env("DATABASE_URL", database.url_through(proxy.port()));
    let builder = builder.env("JOURNAL_MAX_MB", JOURNAL_MAX_MB).env("LISTEN_ADDR", &address);
    let server = syscalls.of(builder.env("TEST_SYSCALL", "")).start();
    let pause = Duration::from_millis(10);
    let load = Load::start(&server, LoadOptions { clients: 3, events: u64::MAX, seed, priority_max: 10, pause });
    let mut world = World { server, address, syscalls, proxy, random: Random::new(seed) };
    let mut ends = Ends::default();
    for _ in 0..LIVES {
        let kind = KINDS[world.random.within(0..=KINDS.len() as u64 - 1) as usize];
        let strike = if world.random.within(0..=1) == 0 { Strike::Kill } else { Strike::Eio };
        let number = number(&mut world.random, kind);
        world.syscalls.strike(&mut world.server, kind, number, strike);
        let ended = world.live();
        if ended.is_some_and(|status| Syscalls::is_missing(status.code())) {
            not_run("soak_journal_calls", "this kernel cannot hand system calls to a program (seccomp)");
            return;
        }
        let log = world.server.log();
        assert!(!log.contains("damage"), "nothing that happens here damages a journal:\n{log}");
        match (world.syscalls.has_struck(), strike) {
            (false, _) => {
                assert!(ended.is_none(), "a server ended ({ended:?}) though nothing had struck:\n{log}");
                ends.unstruck += 1;
            }
            (true, Strike::Kill) => *ends.killed_at.entry(kind).or_default() += 1,
            (true, Strike::Eio) => {
                *ends.failed.entry(kind).or_default() += 1;
                ends.by_itself += u64::from(ended.is_some());
            }
        }
    }
    world.proxy.set_mode(Mode::Forward);
    world.syscalls.spare(&mut world.server);
    world.server.restart();
    let outcome = load.stop();
    wait_until_committed(&world.server, WAIT_MAX);
    let health = get(&world.server.url("/v1/health")).json();
    assert_eq!(health["status"], "healthy", "{health}");
    let tally = outcome.assert_exactly_once(&mut connect(&database.url));
    announce(&format!("soak_journal_calls: lives={LIVES} {ends:?} {tally} lost=0 duplicated=0"));
    for kind in KINDS {
        assert!(ends.killed_at.contains_key(kind) && ends.failed.contains_key(kind), "no {kind} was struck: {ends:?}");
    }
}
