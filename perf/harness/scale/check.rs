//! Is the model right about what was measured?
//!
//! The machine that measured is a deployment, too. In most runs it is one kind of machine, whose cores nodes, PostgreSQL, nginx,
//! Redis and the load share; in one it is two, PostgreSQL's and all others'. From what an event costs with **one** node the
//! model says what each commits. It is wrong if CPU is not what binds, if nodes make each other's events dearer, or if it is
//! not the scarcest kind of machine that decides. Cores that others had meanwhile are taken off the supply, in each run what
//! that run saw: other programs, but also what the kernel does for no process in particular, which thus is not tested.

use super::model::{Resource, Tier};
use crate::Failure;
use crate::cluster::report::{self, Measured, Run};

/// How far measurement and model may differ: rounds of the same thing differ by 15 % on two shared cores, and three nodes that
/// have a third each of the batches under way make smaller COPYs, which cost PostgreSQL a seventh more.
const RATE_TOLERANCE: f64 = 0.25;
/// Bytes do not depend on who else is there, but rows differ, and a checkpoint may fall into a run or not.
const BYTES_TOLERANCE: f64 = 0.10;

/// One comparison.
#[derive(Debug)]
pub struct Comparison {
    /// The run.
    pub run: String,
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
    let one = measured.one_node()?;
    let mut comparisons = Vec::new();
    for (nodes, apart) in measured.kinds() {
        let run = measured.medians(nodes, apart).ok_or("a kind of run without runs")?;
        let mut add = |what, measured, predicted, tolerance| {
            let run = report::name(nodes, apart);
            comparisons.push(Comparison { run, what, measured, predicted, tolerance });
        };
        add("events/s", run.events_per_second, committed(measured.cores, &one, &run), RATE_TOLERANCE);
        if nodes > 1 {
            add("WAL bytes a row", run.wal_bytes, one.wal_bytes, BYTES_TOLERANCE);
            add("journal bytes a row", run.journal_bytes, one.journal_bytes, BYTES_TOLERANCE);
            add("stored bytes a row", run.stored_bytes, one.stored_bytes, BYTES_TOLERANCE);
        }
    }
    Ok(comparisons)
}

/// Events a second of `run` by what an event costs in `costs`.
fn committed(cores: usize, costs: &Run, run: &Run) -> f64 {
    let others = costs.node_micros + costs.balancer_micros + costs.redis_micros + costs.load_micros;
    let [database_share, beside_share] = run.others_shares.map(|share| 1.0 - share);
    let tier = |cores: usize, share: f64, micros: f64| {
        let supply = cores as f64 * share * 1e6;
        Tier { resources: vec![Resource::new("CPU", supply, micros)], least: 1 }
    };
    let tiers = match run.apart {
        None => vec![tier(cores, database_share, costs.database_micros + others)],
        Some([database_cores, other_cores]) => {
            vec![tier(database_cores, database_share, costs.database_micros), tier(other_cores, beside_share, others)]
        }
    };
    tiers.iter().map(|tier| tier.binding().carries).fold(f64::INFINITY, f64::min)
}
