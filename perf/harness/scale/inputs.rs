//! What the model is given: assumptions about machines, and what Citus costs.

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::Failure;

/// `perf/scale/machines.toml`, which says what each is.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machines {
    pub headroom: f64,
    pub events_per_batch: f64,
    pub status_ttl_seconds: f64,
    pub retention_days: f64,
    pub node: NodeMachine,
    pub balancer: BalancerMachine,
    pub database: DatabaseMachine,
    pub redis: RedisMachine,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeMachine {
    pub least: u64,
    pub cores: f64,
    pub network_gigabits: f64,
    pub journal_megabytes: f64,
    pub journal_thread_share: f64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalancerMachine {
    pub least: u64,
    pub cores: f64,
    pub network_gigabits: f64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseMachine {
    pub cores: f64,
    pub network_gigabits: f64,
    pub wal_megabytes: f64,
    pub flushes_per_second: f64,
    pub data_disks: f64,
    pub data_megabytes: f64,
    pub data_terabytes: f64,
    pub times_written: f64,
    pub standbys: u64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedisMachine {
    pub commands_per_second: f64,
    pub memory_gigabytes: f64,
}

/// `perf/scale/citus.toml`, which says what each is.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Citus {
    pub source: String,
    pub rows_per_second_and_core: f64,
    pub flushes_per_copy: f64,
}

/// Both, as they are in the checkout.
pub fn read() -> Result<(Machines, Citus), Failure> {
    Ok((read_file("machines.toml")?, read_file("citus.toml")?))
}

fn read_file<T: DeserializeOwned>(name: &str) -> Result<T, Failure> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("perf/scale").join(name);
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(toml::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?)
}
