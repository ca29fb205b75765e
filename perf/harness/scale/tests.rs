//! The model by hand-made numbers, and the files that are shipped.

use super::check::compare;
use super::inputs::{self, Citus, Machines};
use super::model::{Count, Layout, Model, Resource, Tier};
use super::{RATES, lines, table};
use crate::cluster::report::{Measured, Run};
use crate::load;

/// One event: 1 + 10 + 0.25 + 0.05 + 0.7 = 12 µs, so two cores commit 166,667 a second.
fn run(nodes: usize, events_per_second: f64) -> Run {
    Run {
        nodes,
        apart: None,
        events_per_second,
        ack_ms: [1.0, 2.0],
        commit_ms: [100.0, 200.0],
        node_micros: 1.0,
        database_micros: 10.0,
        balancer_micros: 0.25,
        redis_micros: 0.05,
        load_micros: 0.7,
        busy_share: 1.0,
        others_shares: [0.0; 2],
        wal_bytes: 700.0,
        journal_bytes: 400.0,
        stored_bytes: 600.0,
        request_bytes: 420.0,
        fsyncs_per_second: 100.0,
        copy_rows: 1000.0,
        redis_commands_per_batch: 3.0,
        redis_bytes_per_batch: 500.0,
    }
}

fn measured(runs: Vec<Run>) -> Measured {
    let load = load::Options { seconds: 1, connections: 1, events: 1000 };
    Measured { machine: "a machine".to_owned(), cores: 2, load, ack_rate: 1, runs, faults: None }
}

fn shipped() -> (Machines, Citus) {
    inputs::read().expect("the shipped files can be read")
}

fn model() -> Model {
    let (mut machines, citus) = shipped();
    machines.headroom = 0.5;
    Model::new(&run(1, 0.0), &machines, &citus)
}

fn carries(tier: &Tier, name: &str) -> f64 {
    tier.resources.iter().find(|resource| resource.name == name).expect("it has one").carries
}

#[test]
fn a_tier_takes_as_many_machines_as_its_scarcest_resource_says() {
    let tier = Tier { resources: vec![Resource::new("a", 100.0, 1.0), Resource::new("b", 100.0, 4.0)], least: 2 };
    assert_eq!(tier.binding().name, "b");
    assert_eq!(tier.machines(10.0), Count { machines: 2, bound_by: "availability" });
    assert_eq!(tier.machines(50.0), Count { machines: 2, bound_by: "b" });
    assert_eq!(tier.machines(50.1), Count { machines: 3, bound_by: "b" });
}

#[test]
fn resources_carry_what_a_hand_computes() {
    let (model, (machines, citus)) = (model(), shipped());
    let near = |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 1e-9, "{found} is not {expected}");
    near(carries(&model.node, "CPU"), machines.node.cores * 1e6 * 0.5);
    near(carries(&model.node, "journal thread"), 1e6 * 0.5 / machines.node.journal_thread_share);
    near(carries(&model.node, "journal disk"), machines.node.journal_megabytes * 1e6 * 0.5 / 400.0);
    near(carries(&model.node, "network"), machines.node.network_gigabits * 1e9 / 8.0 * 0.5 / 420.0);
    near(carries(&model.single, "CPU"), machines.database.cores * 1e6 * 0.5 / 10.0);
    near(carries(&model.single, "WAL"), machines.database.wal_megabytes * 1e6 * 0.5 / 700.0);
    near(carries(&model.single, "WAL flushes"), machines.database.flushes_per_second * 0.5 * 1000.0);
    let forwarding = 1e6 / citus.rows_per_second_and_core;
    near(carries(&model.coordinator, "CPU"), machines.database.cores * 1e6 * 0.5 / forwarding);
    near(carries(&model.forwarding_worker, "CPU"), machines.database.cores * 1e6 * 0.5 / (10.0 + forwarding));
    // 3 commands a batch of 1000, and 500 bytes for as long as a status is kept.
    near(carries(&model.redis, "commands"), machines.redis.commands_per_second * 0.5 / 0.003);
    let batches = machines.redis.memory_gigabytes * 1e9 * 0.5 / (500.0 * machines.status_ttl_seconds);
    near(carries(&model.redis, "memory"), batches * 1000.0);
}

#[test]
fn storage_grows_from_one_postgresql_over_a_coordinator_to_all_workers() {
    let model = model();
    let (single, coordinator) = (model.single.binding().carries, model.coordinator.binding().carries);
    assert!(single < coordinator, "a coordinator that carries less than a PostgreSQL is of no use");
    assert_eq!(model.layout(single), Layout::Single);
    assert_eq!(model.layout(single * 1.01), Layout::Coordinator);
    assert_eq!(model.layout(coordinator * 1.01), Layout::AnyWorker);
    let deployment = model.deployment(single * 1.01);
    // Each with a standby: two or more workers, and the coordinator.
    assert!(deployment.databases.machines >= 2, "{deployment:?}");
    assert_eq!(deployment.database_machines, (deployment.databases.machines + 1) * 2);
    // 600 bytes for a day, half of each disk.
    let day = single * 1.01 * 600.0 * 86_400.0;
    let data_disks = (day / (shipped().0.database.data_terabytes * 1e12 * 0.5)).ceil() as u64;
    let (nodes, servers) = (deployment.nodes.machines, deployment.databases.machines);
    assert_eq!(deployment.disks, nodes + 2 * (data_disks + servers + 1));
}

#[test]
fn a_higher_rate_never_takes_fewer_machines() {
    let model = model();
    let deployments = RATES.map(|rate| model.deployment(rate));
    for pair in deployments.windows(2) {
        let of = |index: usize| {
            let deployment = &pair[index];
            [deployment.balancers.machines, deployment.nodes.machines, deployment.database_machines, deployment.disks]
        };
        assert!(of(0).iter().zip(of(1)).all(|(lower, higher)| *lower <= higher), "{pair:?}");
    }
    assert!(lines(&model).iter().all(|line| line.points.windows(2).all(|pair| pair[0].1 <= pair[1].1)));
}

#[test]
fn the_check_holds_for_what_the_costs_say_and_fails_for_what_they_do_not() {
    let right = 2e6 / 12.0;
    let verdicts = |runs| {
        let comparisons = compare(&measured(runs)).expect("there is a run with one node");
        let rates = comparisons.iter().filter(|comparison| comparison.what == "events/s");
        rates.map(|comparison| comparison.holds()).collect::<Vec<bool>>()
    };
    assert_eq!(verdicts(vec![run(1, right), run(2, right * 0.85), run(3, right * 1.15)]), [true, true, true]);
    assert_eq!(verdicts(vec![run(1, right), run(2, right * 0.74), run(3, right * 1.26)]), [true, false, false]);
    // A fifth of the machine was another program's: then a fifth less is what the model expects.
    let disturbed = Run { others_shares: [0.2; 2], ..run(2, right * 0.65) };
    assert_eq!(verdicts(vec![run(1, right), disturbed]), [true, true]);
    let idle = run(1, right * 0.7);
    assert_eq!(verdicts(vec![idle]), [false], "a machine that was not busy is not bound by CPU");
    assert!(compare(&measured(vec![run(2, right)])).is_err(), "without one node there are no costs");
}

#[test]
fn where_postgresql_is_apart_the_scarcer_of_the_two_decides() {
    let verdict = |one: Run, events_per_second| {
        let apart = Run { apart: Some([1, 1]), ..run(3, events_per_second) };
        let comparisons = compare(&measured(vec![one, apart])).expect("there is a run with one node");
        comparisons.iter().find(|comparison| comparison.run.contains("apart")).expect("it is compared").holds()
    };
    // 10 µs of PostgreSQL on a core of its own, 2 µs of all others on the other.
    assert!(verdict(run(1, 2e6 / 12.0), 100_000.0));
    assert!(!verdict(run(1, 2e6 / 12.0), 2e6 / 12.0), "what they would reach together is too much");
    // Where all others cost 20 µs it is they who decide.
    let dear = Run { node_micros: 19.0, ..run(1, 2e6 / 30.0) };
    assert!(verdict(dear.clone(), 50_000.0) && !verdict(dear, 100_000.0));
}

#[test]
fn bytes_that_grow_with_the_nodes_fail_the_check() {
    let right = 2e6 / 12.0;
    let more = Run { wal_bytes: 800.0, ..run(3, right) };
    let comparisons = compare(&measured(vec![run(1, right), more])).expect("there is a run with one node");
    let wrong: Vec<_> = comparisons.iter().filter(|comparison| !comparison.holds()).collect();
    assert_eq!(wrong.len(), 1, "{wrong:?}");
    assert_eq!((&*wrong[0].run, wrong[0].what), ("3", "WAL bytes a row"));
}

#[test]
fn the_table_has_every_rate_and_says_what_binds() {
    let (machines, citus) = shipped();
    let all = measured(vec![run(1, 2e6 / 12.0)]);
    let comparisons = compare(&all).expect("there is a run with one node");
    let text = table::all(&all, &all.runs[0], &model(), &machines, &citus, &comparisons);
    for rate in ["100,000", "1,000,000", "100,000,000"] {
        assert!(text.contains(&format!("| {rate} |")), "{text}");
    }
    assert!(text.contains("**WAL ") && text.contains(&citus.source) && text.contains("within ± 25 %"), "{text}");
}

#[test]
fn what_is_written_can_be_read_again() {
    let folder = tempfile::tempdir().expect("a folder");
    measured(vec![run(1, 1.0), run(2, 3.0), run(2, 5.0), run(2, 4.0)]).write(folder.path()).expect("it can be written");
    let read = Measured::read(folder.path()).expect("it can be read");
    assert_eq!(read.kinds(), [(1, None), (2, None)]);
    assert_eq!(read.medians(2, None).map(|run| run.events_per_second), Some(4.0));
    assert!(read.medians(2, Some([1, 1])).is_none());
}
