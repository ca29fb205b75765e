//! How long a stop takes is one number, `STOP_WAIT_MAX`, and how long a supervisor waits for it another, `STOP_GRACE`:
//! documents and deployment files have these, and a supervisor starts a server again that exits with code 1.

use ingestd::limits::{POSTGRES_STOP_WAIT_MAX, PRE_STOP_WAIT, STOP_GRACE, STOP_WAIT_MAX};

use super::{assert_none, read};

/// Who says how long a stop takes.
const SAY_HOW_LONG: [&str; 12] = [
    "Dockerfile",
    "deploy/compose/README.md",
    "deploy/prometheus/RUNBOOK.md",
    "deploy/prometheus/rules.yml",
    "deploy/systemd/README.md",
    "deploy/systemd/ingestd.service",
    "docker-compose.yml",
    "docs/deployment.md",
    "docs/getting-started.md",
    "docs/operations.md",
    "docs/settings.md",
    "k8s/README.md",
];
/// Who says how much longer an embedded PostgreSQL takes.
const SAY_HOW_MUCH_LONGER: [&str; 3] =
    ["deploy/systemd/ingestd.service", "docs/getting-started.md", "docs/operations.md"];

/// The lines of `file` that have `name` in them, without it.
fn values(file: &str, name: &str) -> Vec<String> {
    let text = read(file);
    let values = text.lines().filter_map(|line| line.trim().strip_prefix(name));
    values.map(|value| value.trim().to_owned()).collect()
}

#[test]
fn documents_and_files_say_how_long_a_stop_takes() {
    let (stop, postgres) = (STOP_WAIT_MAX.as_secs(), POSTGRES_STOP_WAIT_MAX.as_secs());
    let mut faults = Vec::new();
    for file in SAY_HOW_LONG {
        if !read(file).contains(&format!("{stop} s")) {
            faults.push(format!("{file} does not say {stop} s"));
        }
    }
    for file in SAY_HOW_MUCH_LONGER {
        if !read(file).contains(&format!("{postgres} s")) {
            faults.push(format!("{file} does not say {postgres} s"));
        }
    }
    assert_none(&faults, "files with another time of a stop");
}

#[test]
fn supervisors_wait_longer_than_a_stop_takes_and_start_a_failed_server_again() {
    let grace = STOP_GRACE.as_secs();
    assert_eq!(values("deploy/systemd/ingestd.service", "TimeoutStopSec="), [format!("{grace}s")]);
    assert_eq!(values("deploy/systemd/ingestd.service", "Restart="), ["on-failure"]);
    assert_eq!(values("deploy/systemd/ingestd.service", "RestartPreventExitStatus="), ["2"], "not 1");
    for file in ["k8s/base/statefulset.yaml", "k8s/drain-job.yaml"] {
        assert_eq!(values(file, "terminationGracePeriodSeconds:"), [grace.to_string()], "{file}");
    }
    let pre_stop = format!("[sleep, \"{}\"]", PRE_STOP_WAIT.as_secs());
    assert!(read("k8s/base/statefulset.yaml").contains(&pre_stop), "preStop waits {pre_stop}");
    assert!(!read("k8s/base/statefulset.yaml").contains("restartPolicy"), "Always, as StatefulSets have it");
    // The nodes' own block comes first.
    assert_eq!(values("docker-compose.yml", "stop_grace_period:")[0], format!("{grace}s"));
    assert_eq!(values("docker-compose.yml", "restart:")[0], "unless-stopped");
    for file in ["Dockerfile", "docs/deployment.md"] {
        assert!(read(file).contains(&format!("--stop-timeout {grace}")), "{file}");
    }
}
