//! `perf/cluster.sh`: one, two and three nodes behind nginx on one PostgreSQL and one Redis, all on this machine.
//!
//! ```text
//!  wrk, ingestd load ─▶ nginx (deploy/nginx) ─▶ 1, 2 or 3 nodes ─▶ PostgreSQL       [`measure`], medians of `ROUNDS`
//!  clients with ids  ─▶ nginx                ─▶ 1 to 3 nodes that are killed, rolled, added, taken away     [`faults`]
//! ```
//!
//! What was measured is kept as `cluster.json`, from which `perf/scale_model` computes, and as tables for people.

mod apart;
mod clients;
mod faults;
mod measure;
mod nodes;
pub mod report;

use std::path::Path;

use crate::database::Database;
use crate::{Failure, Plan, process};
use report::Measured;

/// Nodes at most.
const NODES: usize = 3;

/// Measures, breaks, and writes down what came of it.
pub fn run(plan: &Plan, work: &Path) -> Result<(), Failure> {
    let mut database = Database::start_warm(plan, work)?;
    let redis = nodes::Redis::start(work)?;
    let mut measured = Measured::new(process::machine(database.version()), plan.load);
    for round in 1..=plan.rounds {
        // The last one with PostgreSQL apart.
        for (count, apart) in (1..=NODES).map(|count| (count, false)).chain([(NODES, true)]) {
            if let Some(run) = measure::run(plan, work, &mut database, &redis, count, apart)? {
                eprintln!("round {round}: {}", report::row(&run));
                measured.runs.push(run);
            }
        }
    }
    let faults = faults::run(plan, work, &mut database, &redis)?;
    let kept = faults.kept();
    measured.faults = Some(faults);
    redis.stop()?;
    database.stop()?;
    measured.write(&plan.folder)?;
    print!("{}", measured.table());
    if kept { Ok(()) } else { Err("a promise was broken: see the last line".into()) }
}
