//! Promise: an acknowledgement waits for the disk; a fault of the journal's disk that passes is waited out, and nothing of
//! what is refused meanwhile was taken; after one that does not, the answer says that it does not know, and the process
//! ends so that it is started again.

mod support;

use std::sync::mpsc;
use std::thread;

use rustix::io::Errno;
use serde_json::{Value, json};
use support::contract::{assert_problem, ingest_url, send};
use support::load::{body, wait_until_committed};
use support::postgres::{self, TestDatabase};
use support::proxy::{Mode, Proxy};
use support::server::{Builder, Ingestd, Reply, get, post};
use support::syscalls::Syscalls;
use support::{OnDrop, WAIT_MAX, not_run, wait_until};

/// Events of a batch, about 70 kB: few of them fill a segment of 1 MiB.
const EVENTS: u64 = 500;
const JOURNAL_MAX_MB: u64 = 16;

/// The library, where this kernel can hand system calls to a program.
fn syscalls(test: &str) -> Option<Syscalls> {
    let syscalls = Syscalls::new();
    if syscalls.is_supported() {
        return Some(syscalls);
    }
    not_run(&format!("journal_of_a_server::{test}"), "this kernel cannot hand system calls to a program (seccomp)");
    None
}

/// A database that can be made to go away.
struct Away {
    database: TestDatabase,
    proxy: Proxy,
}

impl Away {
    fn new() -> Self {
        let postgres = postgres::shared();
        Self { database: postgres.create_database(), proxy: Proxy::start(postgres.port()) }
    }

    fn builder(&self) -> Builder {
        let url = self.database.url_through(self.proxy.port());
        Ingestd::builder().env("DATABASE_URL", url).env("JOURNAL_MAX_MB", JOURNAL_MAX_MB)
    }

    fn go_away(&self) {
        self.proxy.set_mode(Mode::Refuse);
        self.proxy.cut();
    }

    fn come_back(&self) {
        self.proxy.set_mode(Mode::Forward);
    }

    fn events(&self) -> u64 {
        let rows = self.database.connect().query_one("SELECT count(*) FROM events", &[]).expect("a count");
        rows.get::<_, i64>(0).cast_unsigned()
    }
}

/// Sends a batch without an id.
fn send_batch(server: &Ingestd, query: &str, tag: &str) -> Reply {
    send(server, query, body(tag, None, 0, EVENTS).as_bytes())
}

fn journal_reason(server: &Ingestd) -> Value {
    get(&server.url("/v1/health")).json()["checks"]["journal"]["reason"].clone()
}

/// The errors that the server has logged.
fn errors(server: &Ingestd) -> Vec<String> {
    server.log().lines().filter(|line| line.contains("ERROR")).map(str::to_owned).collect()
}

#[test]
fn an_acknowledgement_waits_for_the_sync_of_its_block() {
    let Some(syscalls) = syscalls("an_acknowledgement_waits_for_the_sync_of_its_block") else { return };
    let database = postgres::shared().create_database();
    let server = syscalls.watch(Ingestd::builder().database(&database), "fdatasync", ".journal").start();
    let _released = OnDrop(|| syscalls.release());
    for level in ["journal", "commit"] {
        let before = syscalls.seen();
        syscalls.hold();
        thread::scope(|scope| {
            let (answers, answered) = mpsc::channel();
            let url = ingest_url(&server, &format!("ack={level}"));
            scope.spawn(move || {
                let reply = post(&url, &[("Content-Type", "application/json")], body(level, None, 0, 1).as_bytes());
                // Nobody waits for it any more where the test has failed.
                let _ = answers.send(reply);
            });
            let _released = OnDrop(|| syscalls.release());
            wait_until("the block is being synced", WAIT_MAX, || syscalls.seen() > before);
            assert_eq!(
                send_batch(&server, "ack=memory", &format!("beside-{level}")).status,
                202,
                "that one waits for nothing"
            );
            assert!(answered.try_recv().is_err(), "ack={level} was answered before its sync was over");
            syscalls.release();
            let reply = answered.recv_timeout(WAIT_MAX).expect("an answer");
            assert!([200, 202].contains(&reply.status), "{}", reply.text());
        });
    }
}

#[test]
fn a_batch_that_shares_its_group_with_one_that_needs_no_sync_is_synced() {
    let Some(syscalls) = syscalls("a_batch_that_shares_its_group_with_one_that_needs_no_sync_is_synced") else {
        return;
    };
    let database = postgres::shared().create_database();
    let builder = Ingestd::builder().database(&database).env("WORKERS", 1);
    let server = syscalls.watch(builder, "fdatasync", ".journal").start();
    let _released = OnDrop(|| syscalls.release());
    let before = syscalls.seen();
    syscalls.hold();
    let post = |tag: &str| send_batch(&server, "ack=journal", tag).status;
    thread::scope(|scope| {
        let first = scope.spawn(|| post("first"));
        let _released = OnDrop(|| syscalls.release());
        wait_until("the first block is being synced", WAIT_MAX, || syscalls.seen() > before);
        // It waits in the ring, and the one worker then takes the next.
        let second = scope.spawn(|| post("second"));
        for number in 0..20 {
            assert_eq!(send_batch(&server, "ack=memory", &format!("beside-{number}")).status, 202);
        }
        syscalls.release();
        assert_eq!([first, second].map(|sent| sent.join().expect("an answer")), [202, 202]);
        assert!(syscalls.seen() >= before + 2, "the second was answered without a sync");
    });
}

/// What fails while the next segment is made: kind of call, part of the path, error.
const WHILE_A_SEGMENT_IS_MADE: [(&str, &str, Errno); 9] = [
    ("open", ".new", Errno::MFILE),
    ("open", ".new", Errno::NFILE),
    ("open", ".new", Errno::NOMEM),
    ("fallocate", ".new", Errno::NOSPC),
    ("fallocate", ".new", Errno::DQUOT),
    ("write", ".new", Errno::IO),
    ("fdatasync", ".new", Errno::IO),
    ("rename", ".new", Errno::IO),
    ("fsync", "journal", Errno::IO),
];

#[test]
fn a_fault_that_passes_refuses_batches_and_the_node_is_ready_again_by_itself() {
    let test = "a_fault_that_passes_refuses_batches_and_the_node_is_ready_again_by_itself";
    let Some(syscalls) = syscalls(test) else { return };
    for (kind, part, errno) in WHILE_A_SEGMENT_IS_MADE {
        let what = format!("{kind} {part} {errno}");
        let away = Away::new();
        let mut server = syscalls.watch(away.builder(), kind, part).start();
        away.go_away();
        syscalls.fail(errno);
        let mut acked = 0;
        let refused = loop {
            let reply = send_batch(&server, "", &format!("fill-{acked}"));
            if reply.status != 202 {
                break reply;
            }
            acked += 1;
            assert!(acked < 100, "{what}: it was never met");
        };
        let problem = assert_problem(&refused, 503, "journal_unavailable");
        assert!(problem["detail"].as_str().expect("text").ends_with("nothing in this batch was accepted"), "{problem}");
        assert!(!refused.header("retry-after").is_empty() && problem["batch_id"].is_null());
        assert_eq!(get(&server.url("/readyz")).status, 503, "{what}: others take its traffic");
        let health = get(&server.url("/v1/health"));
        assert_eq!((health.status, health.json()["status"].as_str()), (200, Some("degraded")), "{what}");
        let reason = journal_reason(&server).to_string();
        assert!(reason.contains("refused until"), "{what}: {reason}");
        // It would wait in memory, which has an end.
        assert_problem(&send_batch(&server, "ack=memory", "memory"), 503, "journal_unavailable");

        syscalls.heal();
        wait_until("the node is ready again by itself", WAIT_MAX, || get(&server.url("/readyz")).status == 200);
        assert_eq!(journal_reason(&server), Value::Null, "{what}");
        assert_eq!(send_batch(&server, "", "again").status, 202, "{what}");
        let errors = errors(&server);
        assert!(matches!(&errors[..], [one] if one.contains("is refused until")), "{what}: {errors:?}");
        away.come_back();
        wait_until_committed(&server, WAIT_MAX);
        assert_eq!(
            away.events(),
            (acked + 1) * EVENTS,
            "{what}: what was acknowledged is there once, and nothing else"
        );
        assert_eq!(server.terminate().code(), Some(0), "{what}");
    }
}

#[test]
fn segments_that_cannot_be_let_go_for_a_while_refuse_nothing() {
    let Some(syscalls) = syscalls("segments_that_cannot_be_let_go_for_a_while_refuse_nothing") else { return };
    for (kind, part, errno) in
        [("open", "absent.new", Errno::MFILE), ("rename", ".spare", Errno::ACCESS), ("unlink", ".journal", Errno::IO)]
    {
        let what = format!("{kind} {part} {errno}");
        let away = Away::new();
        let server = syscalls.watch(away.builder(), kind, part).start();
        away.go_away();
        for number in 0..80 {
            assert_eq!(send_batch(&server, "", &format!("fill-{number}")).status, 202, "{what}");
        }
        syscalls.fail(errno);
        away.come_back();
        wait_until_committed(&server, WAIT_MAX);
        wait_until("the hindrance is told", WAIT_MAX, || journal_reason(&server) != Value::Null);
        assert_eq!(get(&server.url("/readyz")).status, 200, "{what}");
        assert_eq!(get(&server.url("/v1/health")).json()["status"], "degraded", "{what}");
        assert_eq!(send_batch(&server, "", "meanwhile").status, 202, "{what}: nothing is refused for it");
        syscalls.heal();
        wait_until("all is well", WAIT_MAX, || get(&server.url("/v1/health")).json()["status"] == "healthy");
        wait_until_committed(&server, WAIT_MAX);
        assert_eq!((away.events(), errors(&server).len()), (81 * EVENTS, 0), "{what}");
    }
}

#[test]
fn after_a_failed_write_or_fsync_the_outcome_is_said_to_be_unknown_and_the_process_starts_again() {
    let test = "after_a_failed_write_or_fsync_the_outcome_is_said_to_be_unknown_and_the_process_starts_again";
    let Some(syscalls) = syscalls(test) else { return };
    for (kind, errno) in [("fdatasync", Errno::IO), ("write", Errno::IO), ("write", Errno::NOSPC)] {
        let what = format!("{kind} {errno}");
        let database = postgres::shared().create_database();
        // Batches wait for others: what is acknowledged is not committed yet.
        let builder = Ingestd::builder().database(&database).env("BATCH_LINGER_MS", 60_000).env("BATCH_SIZE", 50_000);
        let mut server = syscalls.watch(builder, kind, ".journal").start();
        for number in 0..3 {
            assert_eq!(send_batch(&server, "", &format!("before-{number}")).status, 202, "{what}");
        }
        let before = syscalls.seen();
        assert_eq!(send_batch(&server, "", "before-3").status, 202, "{what}");
        if kind == "write" {
            wait_until("the mark is written that follows in a quiet moment", WAIT_MAX, || {
                syscalls.seen() >= before + 2
            });
        }
        syscalls.fail_once(errno);
        let reply = send_batch(&server, "", "unknown");
        let problem = assert_problem(&reply, 503, "outcome_unknown");
        let detail = problem["detail"].as_str().expect("text");
        assert!(detail.contains("may have been taken, or not") && !detail.contains("nothing"), "{detail}");
        let batch_id = problem["batch_id"].as_str().expect("the generated id").to_owned();
        assert_eq!(reply.header("location"), format!("/v1/batch/{batch_id}/status"));
        assert!(reply.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds > 0));

        assert_eq!(server.wait_for_exit(WAIT_MAX).code(), Some(1), "{what}: a supervisor starts it again");
        let errors = errors(&server);
        assert!(matches!(&errors[..], [one] if one.contains("restarts")), "{what}: {errors:?}");
        let count = |tag: &str| {
            let sql = "SELECT count(*) FROM events WHERE event_id LIKE $1 || '%'";
            database.connect().query_one(sql, &[&tag]).expect("a count").get::<_, i64>(0).cast_unsigned()
        };
        assert_eq!(count("before-"), 4 * EVENTS, "{what}: what was queued is committed before the end");

        syscalls.spare(&mut server);
        server.set_env("BATCH_LINGER_MS", 0);
        server.restart();
        let headers = [("Content-Type", "application/json"), ("Idempotency-Key", batch_id.as_str())];
        let again = post(&ingest_url(&server, ""), &headers, body("unknown", None, 0, EVENTS).as_bytes());
        assert!([200, 202].contains(&again.status), "{what}: {}", again.text());
        assert_eq!(again.json()["batch_id"], json!(batch_id));
        wait_until_committed(&server, WAIT_MAX);
        assert_eq!([count("before-"), count("unknown")], [4 * EVENTS, EVENTS], "{what}: at most once");
    }
}

#[test]
fn what_comes_after_a_failure_was_not_taken() {
    let Some(syscalls) = syscalls("what_comes_after_a_failure_was_not_taken") else { return };
    let database = postgres::shared().create_database();
    let mut server = syscalls.watch(Ingestd::builder().database(&database), "fdatasync", ".journal").start();
    let (before, url) = (syscalls.seen(), ingest_url(&server, ""));
    let _released = OnDrop(|| syscalls.release());
    syscalls.hold();
    thread::scope(|scope| {
        let send = |tag: &'static str| {
            let url = url.clone();
            move || post(&url, &[("Content-Type", "application/json")], body(tag, None, 0, 1).as_bytes())
        };
        let first = scope.spawn(send("first"));
        let _released = OnDrop(|| syscalls.release());
        wait_until("the first block is being synced", WAIT_MAX, || syscalls.seen() > before);
        let second = scope.spawn(send("second"));
        // It is understood and in the ring once this one, which came later, is.
        assert_eq!(send_batch(&server, "ack=memory", "later").status, 202);
        syscalls.fail_once(Errno::IO);
        syscalls.release();
        assert_problem(&first.join().expect("an answer"), 503, "outcome_unknown");
        let second = second.join().expect("an answer");
        let code = second.json()["code"].as_str().map(str::to_owned).expect("a problem");
        assert!(["journal_unavailable", "draining"].contains(&code.as_str()), "{}", second.text());
    });
    assert_eq!(server.wait_for_exit(WAIT_MAX).code(), Some(1));
    let rows = database.connect().query("SELECT DISTINCT event_id FROM events WHERE event_id LIKE 'second%'", &[]);
    assert!(rows.expect("rows").is_empty(), "nothing of it was taken");
}
