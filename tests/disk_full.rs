//! Promise: a disk that fills up costs nothing that was acknowledged, and is said with what to do. On a real file
//! system of its own; the journal's storage seam has the other faults of disks (`journal_faults`).

mod support;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use support::announce;
use support::load::{body, wait_until_committed};
use support::postgres::{TestPostgres, connect};
use support::server::{Ingestd, get, post};

const WAIT_MAX: Duration = Duration::from_secs(90);
const EVENTS: u64 = 500;

/// A small file system in memory, gone with the value.
struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    /// `None` for users who may not mount.
    fn mount(size: &str) -> Option<Self> {
        let folder = support::folder();
        let options = format!("size={size},mode=0755");
        let mounted = run(&["mount", "-t", "tmpfs", "-o", &options, "tmpfs"], folder.path());
        mounted.then_some(Self { folder })
    }

    fn grow(&self, size: &str) {
        assert!(run(&["mount", "-o", &format!("remount,size={size}")], self.folder.path()), "it can be remounted");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a server that a failed test left may still hold a file.
        run(&["umount", "--lazy"], self.folder.path());
    }
}

fn run(command: &[&str], folder: &Path) -> bool {
    let output = Command::new(command[0]).args(&command[1..]).arg(folder).output();
    output.is_ok_and(|output| output.status.success())
}

#[test]
fn a_full_disk_ends_acknowledgements_and_a_restart_with_room_loses_nothing() {
    let Some(disk) = SmallDisk::mount("24m") else {
        announce("NOTE: a real full disk needs root to mount one: a_full_disk_ends_acknowledgements was not run");
        return;
    };
    let mut postgres = TestPostgres::start_private(&[]);
    let database = postgres.create_database();
    let journal = disk.folder.path().join("journal");
    let mut server =
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
    assert_eq!(send(&server, taken + 1).status, 503, "the first fault is the last word");
    assert_eq!(get(&server.url("/readyz")).status, 503);
    let health = get(&server.url("/v1/health"));
    assert_eq!((health.status, health.json()["status"].as_str()), (503, Some("unhealthy")), "{}", health.text());
    let reason = health.json()["checks"]["journal"]["reason"].to_string();
    assert!(reason.contains("no space"), "{reason}");
    assert!(server.log().contains("free or repair the disk under JOURNAL_DIR, then restart"), "{}", server.log());

    disk.grow("96m");
    server.kill9();
    postgres.start();
    server.restart();
    assert_eq!(send(&server, taken).status, 202, "what was refused is taken now");
    wait_until_committed(&server, WAIT_MAX);
    let counts = "SELECT count(*), count(DISTINCT event_id) FROM events";
    let row = connect(&database.url).query_one(counts, &[]).expect("counts");
    let all = ((taken + 1) * EVENTS).cast_signed();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (all, all));
}
