//! Is the model right about what was measured?
//!
//! The machine that measured is a deployment, too: one kind of machine, whose cores nodes, PostgreSQL, nginx, Redis and the load
//! share. From what an event costs with **one** node the model says what one, two and three nodes commit there. It is wrong if
//! CPU is not what binds, if a part of the cost was not seen, or if nodes make each other's events dearer. Cores that other
//! programs of the machine had meanwhile are taken off its supply, in each run what that run saw.

use super::model::{Resource, Tier};
use crate::Failure;
use crate::cluster::report::{Measured, Run};

/// How far measurement and model may differ: rounds of the same thing differ by 15 % on two shared cores.
const RATE_TOLERANCE: f64 = 0.20;
/// Bytes do not depend on who else is there, but rows differ, and a checkpoint may fall into a run or not.
const BYTES_TOLERANCE: f64 = 0.10;

/// One comparison.
#[derive(Debug)]
pub struct Comparison {
    /// Nodes.
    pub nodes: usize,
    /// Of what.
    pub what: &'static str,
    /// As it was.
    pub measured: f64,
    /// As the model has it.
    pub predicted: f64,
    /// Largest difference that is fine, as a share.
    pub tolerance: f64,
}

impl Comparison {
    /// Measured ÷ predicted.
    pub fn ratio(&self) -> f64 {
        self.measured / self.predicted
    }

    /// Near enough.
    pub fn holds(&self) -> bool {
        (self.ratio() - 1.0).abs() <= self.tolerance
    }
}

/// Everything that can be compared.
pub fn compare(measured: &Measured) -> Result<Vec<Comparison>, Failure> {
    let one = measured.medians(1).ok_or("no run with one node: the model takes its costs from there")?;
    let mut comparisons = Vec::new();
    for nodes in measured.counts() {
        let run = measured.medians(nodes).ok_or("a number of nodes without runs")?;
        let mut add = |what, measured, predicted, tolerance| {
            comparisons.push(Comparison { nodes, what, measured, predicted, tolerance });
        };
        let rate = shared_machine(measured.cores, &one, run.others_share).binding().carries;
        add("events/s", run.events_per_second, rate, RATE_TOLERANCE);
        if nodes > 1 {
            add("WAL bytes a row", run.wal_bytes, one.wal_bytes, BYTES_TOLERANCE);
            add("journal bytes a row", run.journal_bytes, one.journal_bytes, BYTES_TOLERANCE);
            add("stored bytes a row", run.stored_bytes, one.stored_bytes, BYTES_TOLERANCE);
        }
    }
    Ok(comparisons)
}

/// Everything on one machine, of which `others_share` is not there for it.
fn shared_machine(cores: usize, costs: &Run, others_share: f64) -> Tier {
    let micros =
        costs.node_micros + costs.database_micros + costs.balancer_micros + costs.redis_micros + costs.load_micros;
    let supply = cores as f64 * (1.0 - others_share) * 1e6;
    Tier { resources: vec![Resource::new("CPU", supply, micros)], least: 1 }
}
