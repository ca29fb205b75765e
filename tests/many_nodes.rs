//! Promise: nodes that share nothing but PostgreSQL and Redis are one server behind a balancer: what any of them has
//! acknowledged lands once, whichever node is killed, restarted, added or taken away, and each answers for every batch.

mod support;

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use serde_json::{Value, json};
use support::contract::{accept, assert_problem, batch, event, rows_of, send, status_of, wait_until_completed};
use support::deployed::lasting_port;
use support::load::{Load, LoadOptions, Outcome, seed, wait_until_committed};
use support::nginx::TestNginx;
use support::postgres::{TestDatabase, TestPostgres};
use support::redis::TestRedis;
use support::server::{Ingestd, Reply, get, post};
use support::syscalls::Syscalls;
use support::{WAIT_MAX, not_run, wait_until};

const NODES: usize = 3;
/// Events that are to be acknowledged between one change and the next.
const STEP_EVENTS: u64 = 10_000;

/// Nodes on one PostgreSQL and one Redis. Each keeps its port and its journal over restarts.
struct Nodes<'a> {
    database: &'a TestDatabase,
    redis: &'a TestRedis,
    nodes: Vec<Ingestd>,
    ports: Vec<u16>,
}

impl<'a> Nodes<'a> {
    fn start(count: usize, database: &'a TestDatabase, redis: &'a TestRedis) -> Self {
        let mut nodes = Self { database, redis, nodes: Vec::new(), ports: Vec::new() };
        nodes.add(count);
        nodes
    }

    /// Starts `count` more, all at once.
    fn add(&mut self, count: usize) {
        let (first, ports) = (self.nodes.len(), (0..count).map(|_| lasting_port()).collect::<Vec<u16>>());
        let start = |(number, port): (usize, &u16)| {
            let builder = Ingestd::builder().database(self.database).redis(self.redis).env("DB_POOL_MAX_SIZE", 6);
            let name = format!("node-{}", first + number);
            builder.env("NODE_ID", name).env("LISTEN_ADDR", format!("127.0.0.1:{port}")).start()
        };
        let started: Vec<Ingestd> = thread::scope(|scope| {
            let starting: Vec<_> = ports.iter().enumerate().map(|node| scope.spawn(move || start(node))).collect();
            starting.into_iter().map(|node| node.join().expect("the node starts")).collect()
        });
        self.nodes.extend(started);
        self.ports.extend(ports);
    }

    fn wait_until_committed(&self) {
        self.nodes.iter().for_each(|node| wait_until_committed(node, WAIT_MAX));
    }

    /// Every batch that was acknowledged under an id is completed, whole, whichever node is asked.
    fn assert_every_node_knows(&self, outcome: &Outcome) {
        let with_id: Vec<_> = outcome.batches.iter().filter(|batch| batch.acked && batch.batch_id.is_some()).collect();
        assert!(!with_id.is_empty(), "no batch had an id");
        for batch in with_id {
            let id = batch.batch_id.as_deref().expect("it has one");
            for node in &self.nodes {
                let status = status_of(node, id);
                let told = (&status["status"], &status["inserted"], &status["duplicates"]);
                assert_eq!(told, (&json!("completed"), &json!(batch.events), &json!(0)), "{id}: {status}");
            }
        }
    }
}

fn options(seed: u64) -> LoadOptions {
    // About 12,000 events a second: an unoptimised server beside other tests commits them as they come.
    let pause = Duration::from_millis(200);
    LoadOptions { clients: 4, events: u64::MAX, seed, priority_max: 10, pause }
}

/// Lets [`STEP_EVENTS`] more be acknowledged.
fn step(load: &Load) {
    load.wait_for_acked(load.acked_events() + STEP_EVENTS, WAIT_MAX);
}

fn accepted_events(node: &Ingestd) -> u64 {
    get(&node.url("/v1/metrics?format=json")).json()["events"]["accepted"].as_u64().expect("a count")
}

/// Ends a node in good order; it leaves nothing behind. What is queued has a few seconds to be committed then, which on a
/// machine that does much else are enough only for a node that has just caught up.
fn terminate_with_nothing_left(node: &mut Ingestd) {
    let queued = || get(&node.url("/v1/health")).json()["checks"]["database"]["queued_batches"].as_u64();
    wait_until("the node has caught up", WAIT_MAX, || queued().is_some_and(|batches| batches <= 4));
    assert_eq!(node.terminate().code(), Some(0), "{}", node.log());
    assert_eq!(uncommitted_batches(node), 0, "PostgreSQL works, so nothing stays behind");
}

/// Batches in the journal of a node that has ended which PostgreSQL does not have yet.
fn uncommitted_batches(node: &Ingestd) -> u64 {
    ingestd::journal::inspect(&node.folder().join("journal")).expect("the journal can be read").uncommitted.frames
}

#[test]
fn nodes_killed_under_load_lose_and_double_nothing() {
    let seed = seed("nodes_killed_under_load");
    let (database, redis) = (support::postgres::shared().create_database(), TestRedis::start());
    let mut cluster = Nodes::start(NODES, &database, &redis);
    let nginx = TestNginx::start(&cluster.ports);
    let load = Load::start_through(&nginx, options(seed));
    for number in 0..NODES {
        step(&load);
        cluster.nodes[number].kill9();
        // The others go on without it.
        step(&load);
        cluster.nodes[number].begin_restart();
        cluster.nodes[number].wait_until_ready();
    }
    // Two at once, one of them before it has taken anything again.
    step(&load);
    for number in [0, 2] {
        cluster.nodes[number].kill9();
    }
    step(&load);
    for number in [0, 2] {
        cluster.nodes[number].restart();
    }
    step(&load);
    let outcome = load.stop();
    cluster.wait_until_committed();
    let tally = outcome.assert_exactly_once(&mut database.connect());
    assert_eq!(tally.retries, 0, "nginx gives a batch with an id to a node that lives:\n{}", nginx.access_log());
    cluster.assert_every_node_knows(&outcome);
}

#[test]
fn a_restart_rolled_through_all_nodes_is_not_seen_by_clients_with_ids() {
    let seed = seed("a_restart_rolled_through_all_nodes");
    let (database, redis) = (support::postgres::shared().create_database(), TestRedis::start());
    let mut cluster = Nodes::start(NODES, &database, &redis);
    let nginx = TestNginx::start(&cluster.ports);
    let load = Load::start_through(&nginx, options(seed));
    for node in &mut cluster.nodes {
        step(&load);
        terminate_with_nothing_left(node);
        step(&load);
        node.begin_restart();
        node.wait_until_ready();
        wait_until("nginx gives it batches again", WAIT_MAX, || accepted_events(node) > 0);
    }
    let outcome = load.stop();
    cluster.wait_until_committed();
    let tally = outcome.assert_exactly_once(&mut database.connect());
    assert_eq!(tally.retries, 0, "nginx gives a batch with an id to another node by itself:\n{}", nginx.access_log());
    cluster.assert_every_node_knows(&outcome);
}

#[test]
fn nodes_are_added_under_load_and_taken_away_with_nothing_left_in_their_journals() {
    let seed = seed("nodes_are_added_under_load");
    let (database, redis) = (support::postgres::shared().create_database(), TestRedis::start());
    let mut cluster = Nodes::start(1, &database, &redis);
    let nginx = TestNginx::start(&cluster.ports);
    let load = Load::start_through(&nginx, options(seed));
    step(&load);
    cluster.add(NODES - 1);
    nginx.set_nodes(&cluster.ports);
    for node in &cluster.nodes[1..] {
        wait_until("a new node takes its part", WAIT_MAX, || accepted_events(node) > 0);
    }
    step(&load);

    nginx.set_nodes(&cluster.ports[..1]);
    let mut left = cluster.nodes.split_off(1);
    for node in &mut left {
        terminate_with_nothing_left(node);
    }
    step(&load);
    let outcome = load.stop();
    cluster.wait_until_committed();
    let tally = outcome.assert_exactly_once(&mut database.connect());
    assert_eq!((tally.retries, tally.unknown), (0, 0), "a change of nodes is no error:\n{}", nginx.access_log());
    cluster.assert_every_node_knows(&outcome);
}

#[test]
fn one_batch_sent_to_all_nodes_at_once_and_again_lands_once() {
    const ROUNDS: u64 = 10;
    let (database, redis) = (support::postgres::shared().create_database(), TestRedis::start());
    let cluster = Nodes::start(NODES, &database, &redis);
    for round in 0..ROUNDS {
        let id = format!("everywhere-{round}");
        // Without timestamps: the primary key would not see that they are the same.
        let body = support::load::body(&id, Some(&id), 0, 100);
        let statuses = at_once(&cluster.nodes, [&body; NODES], "ack=journal");
        assert!(statuses.iter().all(|status| matches!(status, 200 | 202)), "{statuses:?}");
        for node in &cluster.nodes {
            assert_eq!(wait_until_completed(node, &id)["inserted"], 100);
            let again = send(node, "", body.as_bytes());
            assert_eq!((again.status, &again.json()["duplicate"]), (200, &json!(true)), "{}", again.text());
        }
    }
    cluster.wait_until_committed();
    for round in 0..ROUNDS {
        let id = format!("everywhere-{round}");
        assert_eq!(rows_of(&database, &id), 100);
        let told: Vec<Value> = cluster.nodes.iter().map(|node| status_of(node, &id)).collect();
        // Each names a node that took it, which they all did.
        assert!(told.iter().all(|status| status["inserted"] == 100 && status["duplicates"] == 0), "{told:?}");
    }
    assert_eq!(dead_letters(&database, "everywhere-%"), 0, "the same body is no conflict");
}

#[test]
fn other_bodies_under_one_id_are_refused_or_buried_and_never_silently_lost() {
    const ROUNDS: u64 = 10;
    let (database, redis) = (support::postgres::shared().create_database(), TestRedis::start());
    let cluster = Nodes::start(NODES, &database, &redis);
    for round in 0..ROUNDS {
        let id = format!("contested-{round}");
        let bodies = [0, 1, 2].map(|node| {
            json!({"batch_id": id, "events": [event(&format!("{id}-{node}-a")), event(&format!("{id}-{node}-b"))]})
                .to_string()
        });
        let statuses = at_once(&cluster.nodes, [&bodies[0], &bodies[1], &bodies[2]], "ack=journal");
        assert!(statuses.iter().all(|status| matches!(status, 202 | 409)), "{statuses:?}");
        let taken = statuses.iter().filter(|status| **status == 202).count() as i64;
        assert!(taken >= 1, "{statuses:?}");
        cluster.wait_until_committed();
        assert_eq!(rows_of(&database, &id), 2, "one of them landed, whole");
        assert_eq!(
            dead_letters(&database, &id),
            2 * (taken - 1),
            "{statuses:?}: what was taken and cannot land is kept"
        );
        let late = json!({"batch_id": id, "events": [event("late")]}).to_string();
        for node in &cluster.nodes {
            assert_problem(&send(node, "", late.as_bytes()), 409, "batch_id_conflict");
        }
    }
}

#[test]
fn what_a_dead_node_holds_is_known_to_the_others_and_lands_when_it_is_back() {
    let postgres = TestPostgres::start_private(&[]);
    let (database, redis) = (postgres.create_database(), TestRedis::start());
    let mut cluster = Nodes::start(NODES, &database, &redis);
    let paused = postgres.pause();
    let held = batch("held", 3);
    accept(&cluster.nodes[0], "", &held);
    let others = 1..NODES;
    for number in others.clone() {
        let node = &cluster.nodes[number];
        let is_told = || get(&node.url("/v1/batch/held/status")).status == 200;
        wait_until("Redis tells the others", WAIT_MAX, is_told);
    }
    cluster.nodes[0].kill9();
    let other = json!({"batch_id": "held", "events": [event("other")]}).to_string();
    for number in others.clone() {
        let node = &cluster.nodes[number];
        let status = status_of(node, "held");
        assert_eq!((&status["status"], &status["node"]), (&json!("queued"), &json!("node-0")), "{status}");
        // At a level that promises more it is taken here, too: `acks_mean_their_level`.
        let again = send(node, "ack=memory", held.to_string().as_bytes());
        assert_eq!((again.status, &again.json()["duplicate"]), (200, &json!(true)), "{}", again.text());
        assert_problem(&send(node, "", other.as_bytes()), 409, "batch_id_conflict");
    }
    drop(paused);
    cluster.nodes[0].restart();
    for number in others {
        assert_eq!(wait_until_completed(&cluster.nodes[number], "held")["inserted"], 3);
    }
    assert_eq!(rows_of(&database, "held"), 3);
}

/// Sends a body to each node at the same moment; the statuses of the answers.
fn at_once(nodes: &[Ingestd], bodies: [&String; NODES], query: &str) -> Vec<u16> {
    let start = Barrier::new(nodes.len());
    let send_together = |(node, body): (&Ingestd, &String)| {
        start.wait();
        send(node, query, body.as_bytes()).status
    };
    thread::scope(|scope| {
        let sending: Vec<_> = nodes.iter().zip(bodies).map(|pair| scope.spawn(move || send_together(pair))).collect();
        sending.into_iter().map(|sent| sent.join().expect("no panic")).collect()
    })
}

fn dead_letters(database: &TestDatabase, batch_id: &str) -> i64 {
    let query = "SELECT count(*) FROM dead_letter_events WHERE batch_id LIKE $1 AND message LIKE '%different body%'";
    database.connect().query_one(query, &[&batch_id]).expect("dead letters can be counted").get(0)
}

/// Sends `body` without an id in sight, as a client of the balancer.
fn send_through(nginx: &TestNginx, body: &Value) -> Reply {
    post(&nginx.url("/v1/ingest/batch"), &[("Content-Type", "application/json")], body.to_string().as_bytes())
}

#[test]
fn a_batch_whose_outcome_is_unknown_is_given_to_no_other_node() {
    let (database, journals) = (support::postgres::shared().create_database(), [Syscalls::new(), Syscalls::new()]);
    if !journals[0].is_supported() {
        not_run("many_nodes", "this kernel cannot hand system calls to a program (seccomp)");
        return;
    }
    let ports = [lasting_port(), lasting_port()];
    let mut nodes: Vec<Ingestd> = (0..2)
        .map(|number| {
            let builder = Ingestd::builder().database(&database).env("NODE_ID", format!("node-{number}"));
            let builder = builder.env("LISTEN_ADDR", format!("127.0.0.1:{}", ports[number]));
            journals[number].watch(builder, "fdatasync", ".journal").start()
        })
        .collect();
    let nginx = TestNginx::start(&ports);
    journals.iter().for_each(|journal| journal.fail(Errno::IO));
    let events = json!({ "events": [event("unknown")] });
    let reply = send_through(&nginx, &events);
    let problem = assert_problem(&reply, 503, "outcome_unknown");
    let batch_id = problem["batch_id"].as_str().expect("the id to send it again with").to_owned();
    assert!(!reply.header("retry-after").is_empty());
    let struck = journals.iter().map(Syscalls::struck).collect::<Vec<_>>();
    let (failed, other) = if struck[0] > 0 { (0, 1) } else { (1, 0) };
    assert_eq!((struck[failed], struck[other]), (1, 0), "the other node has not seen it");
    assert_eq!(nodes[failed].wait_for_exit(WAIT_MAX).code(), Some(1));

    journals.iter().for_each(Syscalls::heal);
    nodes[failed].restart();
    let headers = [("Content-Type", "application/json"), ("Idempotency-Key", batch_id.as_str())];
    let again = post(&nginx.url("/v1/ingest/batch"), &headers, events.to_string().as_bytes());
    assert!([200, 202].contains(&again.status), "{}", again.text());
    nodes.iter().for_each(|node| wait_until_committed(node, WAIT_MAX));
    assert_eq!(rows_of(&database, &batch_id), 1);
}
