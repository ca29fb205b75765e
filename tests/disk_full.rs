//! Promise: a disk that fills up, the journal's or PostgreSQL's, costs nothing that was acknowledged, and is said. On
//! real file systems; the journal's storage seam has the other faults of disks (`journal_faults`).

mod support;

use support::disk::SmallDisk;
use support::load::{body, wait_until_committed};
use support::postgres::{TestPostgres, connect};
use support::server::{Ingestd, get, post};
use support::{WAIT_MAX, wait_until};

const EVENTS: u64 = 500;

#[test]
fn a_full_disk_refuses_batches_until_there_is_room_and_loses_nothing() {
    let Some(disk) = SmallDisk::mount("24m") else {
        support::not_run(
            "disk_full::a_full_disk_refuses_batches_until_there_is_room_and_loses_nothing",
            "only root may mount a small disk",
        );
        return;
    };
    let mut postgres = TestPostgres::start_private(&[]);
    let database = postgres.create_database();
    let journal = disk.path().join("journal");
    let server =
        Ingestd::builder().database(&database).env("JOURNAL_DIR", journal.display()).env("JOURNAL_MAX_MB", 64).start();
    postgres.kill9();
    let send = |server: &Ingestd, number: u64| {
        let tag = format!("fill-{number}");
        post(&server.url("/v1/ingest/batch"), &[], body(&tag, Some(&tag), 0, EVENTS).as_bytes())
    };
    let taken = (0..1000).find(|&number| {
        let reply = send(&server, number);
        assert!([202, 503].contains(&reply.status), "{}", reply.text());
        if reply.status == 503 {
            assert_eq!(reply.json()["code"], "journal_unavailable", "{}", reply.text());
            assert!(!reply.header("retry-after").is_empty());
        }
        reply.status == 503
    });
    let taken = taken.expect("24 MB hold less than 1000 batches");
    assert!(taken > 50, "{taken} batches fit");
    assert_eq!(send(&server, taken + 1).status, 503, "the disk is full still");
    assert_eq!(get(&server.url("/readyz")).status, 503);
    let health = get(&server.url("/v1/health"));
    assert_eq!((health.status, health.json()["status"].as_str()), (200, Some("degraded")), "{}", health.text());
    let reason = health.json()["checks"]["journal"]["reason"].to_string();
    assert!(reason.contains("no space"), "{reason}");
    let log = server.log();
    let errors: Vec<_> = log.lines().filter(|line| line.contains("ERROR")).collect();
    assert!(matches!(errors[..], [one] if one.contains("is refused until")), "one error: {log}");

    disk.grow("96m");
    wait_until("the node is ready again by itself", WAIT_MAX, || get(&server.url("/readyz")).status == 200);
    postgres.start();
    assert_eq!(send(&server, taken).status, 202, "what was refused is taken now");
    wait_until_committed(&server, WAIT_MAX);
    let counts = "SELECT count(*), count(DISTINCT event_id) FROM events";
    let row = connect(&database.url).query_one(counts, &[]).expect("counts");
    let all = ((taken + 1) * EVENTS).cast_signed();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (all, all));
}

#[test]
fn a_postgresql_whose_disk_is_full_is_waited_for() {
    let Some(disk) = SmallDisk::mount("180m") else {
        support::not_run(
            "disk_full::a_postgresql_whose_disk_is_full_is_waited_for",
            "only root may mount a small disk",
        );
        return;
    };
    // Rows fill the disk before the WAL does, whose end PostgreSQL does not survive.
    let settings = [("max_wal_size", "48MB"), ("min_wal_size", "32MB"), ("wal_keep_size", "0")];
    let postgres = TestPostgres::start_private_in(disk.path(), &settings);
    let database = postgres.create_database();
    let server = Ingestd::builder().database(&database).start();
    let ballast = disk.path().join("ballast");
    let free = rustix::fs::statvfs(disk.path()).map(|found| found.f_bavail * found.f_frsize).expect("figures");
    std::fs::write(&ballast, vec![b'x'; free.saturating_sub(6 << 20) as usize]).expect("room for that much");
    let mut sent = 0;
    wait_until("PostgreSQL has no room left", WAIT_MAX, || {
        let tag = format!("fill-{sent}");
        let reply = post(&server.url("/v1/ingest/batch"), &[], body(&tag, Some(&tag), 0, EVENTS).as_bytes());
        assert_eq!(reply.status, 202, "ingestion goes on: {}", reply.text());
        sent += 1;
        let check = get(&server.url("/v1/health")).json()["checks"]["database"].clone();
        check["status"] == "failing"
    });
    assert_eq!(get(&server.url("/readyz")).status, 200);
    std::fs::remove_file(&ballast).expect("ours");
    wait_until_committed(&server, WAIT_MAX);
    let rows: i64 = connect(&database.url).query_one("SELECT count(*) FROM events", &[]).expect("a count").get(0);
    assert_eq!(rows, (sent * EVENTS).cast_signed());
    wait_until("all is well", WAIT_MAX, || get(&server.url("/v1/health")).json()["status"] == "healthy");
}
