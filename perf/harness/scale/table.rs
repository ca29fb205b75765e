//! The model in words and tables, so that what binds can be seen and checked by hand.

use super::RATES;
use super::check::Comparison;
use super::inputs::{Citus, Machines};
use super::model::{Count, Deployment, Layout, Model, Tier};
use crate::cluster::report::{Measured, Run};

/// Costs, what a machine of each kind carries, what each rate takes, and the check.
pub fn all(
    measured: &Measured,
    one: &Run,
    model: &Model,
    machines: &Machines,
    citus: &Citus,
    comparisons: &[Comparison],
) -> String {
    let mut text = costs(measured, one, citus);
    text += &carried(model, machines);
    text += &deployments(model, machines);
    text + &check(measured, comparisons)
}

fn costs(measured: &Measured, one: &Run, citus: &Citus) -> String {
    format!(
        "What an event costs, measured with one node on {}:\n\
         nginx {:.2} µs, ingestd {:.2} µs, PostgreSQL {:.2} µs of a core; {:.0} B of request, {:.0} B of journal, {:.0} B of \
         WAL, {:.0} B of table and indexes; a COPY has {:.0} rows; a batch costs Redis {:.1} commands and {:.0} B.\n\
         Forwarding a row takes {:.1} µs of a coordinator ({}).\n\n",
        measured.machine,
        one.balancer_micros,
        one.node_micros,
        one.database_micros,
        one.request_bytes,
        one.journal_bytes,
        one.wal_bytes,
        one.stored_bytes,
        one.copy_rows,
        one.redis_commands_per_batch,
        one.redis_bytes_per_batch,
        1e6 / citus.rows_per_second_and_core,
        citus.source,
    )
}

/// Events a second of one machine of each kind, resource by resource.
fn carried(model: &Model, machines: &Machines) -> String {
    let mut text = format!(
        "Events a second that one machine carries at {:.0} % of each resource; the bold one binds:\n\n| machine | |\n|---|---|\n",
        machines.headroom * 100.0
    );
    let tiers: [(&str, &Tier); 7] = [
        ("nginx", &model.balancer),
        ("ingestd", &model.node),
        ("one PostgreSQL", &model.single),
        ("Citus, the coordinator", &model.coordinator),
        ("Citus, a worker behind it", &model.worker),
        ("Citus, a worker that forwards", &model.forwarding_worker),
        ("Redis", &model.redis),
    ];
    for (name, tier) in tiers {
        let cells = tier.resources.iter().map(|resource| {
            let cell = format!("{} {}", resource.name, short(resource.carries));
            if resource == tier.binding() { format!("**{cell}**") } else { cell }
        });
        text += &format!("| {name} | {} |\n", cells.collect::<Vec<_>>().join(", "));
    }
    text + "\n"
}

fn deployments(model: &Model, machines: &Machines) -> String {
    let mut text = format!(
        "What a rate takes, with what binds, {} standby for each PostgreSQL, and room for {} day(s) of events:\n\n\
         | events/s | from clients | nginx | ingestd | PostgreSQL | its machines | disks | Redis | a day |\n\
         |---|---|---|---|---|---|---|---|---|\n",
        machines.database.standbys, machines.retention_days,
    );
    for rate in RATES {
        let Deployment {
            balancers,
            nodes,
            layout,
            databases,
            database_machines,
            disks,
            redis,
            gigabits,
            terabytes_a_day,
            ..
        } = model.deployment(rate);
        let kept = match layout {
            Layout::Single => "one".to_owned(),
            Layout::Coordinator => format!("{} behind a coordinator", count(databases)),
            Layout::AnyWorker => format!("{}, rows to any of them", count(databases)),
        };
        text += &format!(
            "| {} | {gigabits:.1} Gbit/s | {} | {} | {kept} | {database_machines} | {disks} | {} | {terabytes_a_day:.1} TB |\n",
            grouped(rate),
            count(balancers),
            count(nodes),
            count(redis),
        );
    }
    text + "\nPostgreSQL's servers are without standbys, its machines with them and the coordinator; disks are those of journals, WALs \
            and tables. ingestd speaks to one Redis: \
            where more are asked for, batches must be larger.\n\n"
}

fn check(measured: &Measured, comparisons: &[Comparison]) -> String {
    let mut text = format!(
        "The check: from what an event costs with one node, what {} cores that everybody shares commit, less those that other \
         programs had:\n\n| nodes | | measured | model | ratio | |\n|---|---|---|---|---|---|\n",
        measured.cores
    );
    for comparison in comparisons {
        let Comparison { run, what, measured, predicted, tolerance } = comparison;
        let verdict = if comparison.holds() { "within" } else { "**outside**" };
        text += &format!(
            "| {run} | {what} | {measured:.0} | {predicted:.0} | {:.2} | {verdict} ± {:.0} % |\n",
            comparison.ratio(),
            tolerance * 100.0,
        );
    }
    text
}

fn count(Count { machines, bound_by }: Count) -> String {
    format!("{machines} ({bound_by})")
}

/// `1.5 M` and so on.
fn short(rate: f64) -> String {
    match rate {
        rate if rate >= 1e9 => format!("{:.1} G", rate / 1e9),
        rate if rate >= 1e6 => format!("{:.1} M", rate / 1e6),
        rate => format!("{:.0} k", rate / 1e3),
    }
}

/// `1,000,000` and so on.
fn grouped(rate: f64) -> String {
    let digits = format!("{rate:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
