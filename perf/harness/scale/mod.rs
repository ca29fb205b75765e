//! `perf/scale_model`: how many machines a rate takes, from what `perf/cluster.sh` has measured.
//!
//! ```text
//!  cluster.json (measured) ┐
//!  machines.toml (assumed) ┼▶ model ─▶ table, drawing ─▶ scale.md, scale.svg beside cluster.json
//!  citus.toml (measured)   ┘     └──▶ check against cluster.json: a failure where they differ
//! ```

mod check;
mod inputs;
mod model;
mod table;

use std::path::Path;

use crate::cluster::report::Measured;
use crate::{Failure, plot};
use model::{Layout, Model, Tier};

/// Events a second: what is asked about.
const RATES: [f64; 10] = [1e5, 2e5, 5e5, 1e6, 2e6, 5e6, 1e7, 2e7, 5e7, 1e8];
/// Points of a line of the drawing, over [`RATES`]: enough for the steps of whole machines to be seen.
const POINTS: usize = 400;

/// Computes from what is in `folder`, writes it there, and fails where the model is wrong about what was measured.
pub fn run(folder: &Path) -> Result<(), Failure> {
    let measured = Measured::read(folder)?;
    let (machines, citus) = inputs::read()?;
    let one = measured.one_node()?;
    let model = Model::new(&one, &machines, &citus);
    let comparisons = check::compare(&measured)?;
    let text = table::all(&measured, &one, &model, &machines, &citus, &comparisons);
    std::fs::write(folder.join("scale.md"), &text)?;
    plot::machines(&folder.join("scale.svg"), &lines(&model))?;
    print!("{text}");
    match comparisons.iter().filter(|comparison| !comparison.holds()).count() {
        0 => Ok(()),
        wrong => {
            Err(format!("the model is wrong about {wrong} of {} figures that were measured", comparisons.len()).into())
        }
    }
}

fn lines(model: &Model) -> Vec<plot::Line> {
    let (low, high) = (RATES[0].ln(), RATES[RATES.len() - 1].ln());
    let rates = (0..=POINTS).map(|point| (low + (high - low) * point as f64 / POINTS as f64).exp());
    let rates: Vec<f64> = rates.collect();
    let line = |name: &str, colour, tier: &Tier, drawn: &dyn Fn(f64) -> bool| {
        let points = rates.iter().filter(|rate| drawn(**rate));
        let points = points.map(|rate| (*rate, tier.machines(*rate).machines as f64)).collect();
        plot::Line { name: name.to_owned(), colour, points }
    };
    let all = |_| true;
    let in_layout = |layout| move |rate| model.layout(rate) == layout;
    [
        line("nginx", 0, &model.balancer, &all),
        line("ingestd", 1, &model.node, &all),
        line("one PostgreSQL", 2, &model.single, &in_layout(Layout::Single)),
        line("Citus workers behind a coordinator", 3, &model.worker, &in_layout(Layout::Coordinator)),
        line("Citus workers, rows to any of them", 4, &model.forwarding_worker, &in_layout(Layout::AnyWorker)),
    ]
    .into_iter()
    .filter(|line| line.points.len() > 1)
    .collect()
}

#[cfg(test)]
mod tests;
