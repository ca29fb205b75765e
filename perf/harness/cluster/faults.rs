//! Nodes are added, killed, rolled and taken away under a load of batches with ids; then everything is counted.

use std::path::Path;
use std::time::{Duration, Instant};

use super::clients::{self, Clients};
use super::nodes::{Nginx, Node, Redis, Setting, get_json};
use super::report::{Faults, Step};
use crate::database::{Database, Tables};
use crate::{Failure, Plan};

/// How long each state lasts before the next change.
const STATE: Duration = Duration::from_secs(2);
/// Batches whose status is asked of every node.
const ASKED: usize = 300;

/// Runs from one node to three, through kills and a roll, and back to one.
pub fn run(plan: &Plan, work: &Path, database: &mut Database, redis: &Redis) -> Result<Faults, Failure> {
    let mut tables = database.tables_of("ingestd")?;
    tables.empty()?;
    redis.empty()?;
    let (database_url, redis_url) = (tables.url().to_owned(), redis.url());
    let setting = Setting { ingestd: &plan.ingestd, work, database_url, redis_url };
    let mut nodes = vec![Node::start(&setting, 0)?];
    nodes[0].wait_until_ready()?;
    let nginx = Nginx::start(work, &nodes)?;
    let clients = Clients::start(&nginx.url());
    let mut story = Story { clients: &clients, begun: Instant::now(), steps: Vec::new() };

    story.step("one node", || Ok(()))?;
    story.step("two nodes are added", || {
        for number in 1..super::NODES {
            nodes.push(Node::start(&setting, number)?);
        }
        nodes.iter_mut().try_for_each(Node::wait_until_ready)?;
        nginx.set_nodes(&nodes)
    })?;
    for (number, node) in nodes.iter_mut().enumerate() {
        story.step(&format!("node {number} is killed with -9"), || node.kill9())?;
        story.step(&format!("node {number} is back, on its journal"), || start_again(node, &setting))?;
    }
    story.step("nodes 0 and 2 are killed with -9 at once", || {
        nodes[0].kill9()?;
        nodes[2].kill9()
    })?;
    story.step("both are back", || {
        start_again(&mut nodes[0], &setting)?;
        start_again(&mut nodes[2], &setting)
    })?;
    for (number, node) in nodes.iter_mut().enumerate() {
        story.step(&format!("roll: node {number} is stopped and started"), || {
            node.stop()?;
            start_again(node, &setting)
        })?;
    }
    let mut left = Vec::new();
    story.step("two nodes are taken away", || {
        left = nodes.split_off(1);
        nginx.set_nodes(&nodes)?;
        left.iter_mut().try_for_each(Node::stop)
    })?;
    let (steps, retries) = (story.steps, clients.retries());
    let batches = clients.stop()?;
    nodes.iter().try_for_each(Node::wait_until_committed)?;
    let left_in_journals: u64 = left.iter().map(Node::uncommitted_batches).sum::<Result<_, _>>()?;
    let mut faults = count(&mut tables, &batches)?;
    for node in &mut left {
        start_again(node, &setting)?;
    }
    nodes.extend(left);
    faults.statuses_wrong = statuses_wrong(&nodes, &batches)?;
    faults.left_in_journals = left_in_journals;
    (faults.steps, faults.retries) = (steps, retries);
    nodes.iter_mut().try_for_each(Node::stop)?;
    nginx.stop()?;
    Ok(faults)
}

fn start_again(node: &mut Node, setting: &Setting<'_>) -> Result<(), Failure> {
    node.start_again(setting)?;
    node.wait_until_ready()
}

struct Story<'a> {
    clients: &'a Clients,
    begun: Instant,
    steps: Vec<Step>,
}

impl Story<'_> {
    /// Makes a change, lets it last, and notes what clients saw meanwhile.
    fn step(&mut self, what: &str, change: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
        let (begun, acked, retries) = (Instant::now(), self.clients.acked_events(), self.clients.retries());
        self.clients.longest();
        change()?;
        std::thread::sleep(STATE);
        let step = Step {
            at_seconds: (begun - self.begun).as_secs_f64(),
            what: what.to_owned(),
            events_per_second: (self.clients.acked_events() - acked) as f64 / begun.elapsed().as_secs_f64(),
            retries: self.clients.retries() - retries,
            longest_ms: self.clients.longest().as_secs_f64() * 1e3,
        };
        eprintln!("{:5.1} s: {what}", step.at_seconds);
        self.steps.push(step);
        Ok(())
    }
}

/// Rows against promises. Every batch was acknowledged in the end, so what is there of others is too much as well.
fn count(tables: &mut Tables, batches: &[String]) -> Result<Faults, Failure> {
    let rows = tables.rows_by_batch()?;
    let promised = batches.len() as u64 * clients::EVENTS;
    let mut faults = Faults { acked: promised, rows: rows.values().map(|(rows, _)| rows).sum(), ..Faults::default() };
    faults.unasked = rows.len() as u64;
    for id in batches {
        faults.unasked -= u64::from(rows.contains_key(id));
        let (rows, events) = rows.get(id).copied().unwrap_or_default();
        faults.lost += clients::EVENTS.saturating_sub(events);
        faults.doubled += rows - events;
    }
    faults.doubled += tables.duplicates()?;
    faults.dead_letters = tables.dead_letters()?;
    Ok(faults)
}

/// Answers about a sample of the batches, over all nodes, that are not `completed` with all events.
fn statuses_wrong(nodes: &[Node], batches: &[String]) -> Result<u64, Failure> {
    let every = (batches.len() / ASKED).max(1);
    let mut wrong = 0;
    for id in batches.iter().step_by(every) {
        for node in nodes {
            let status = get_json(&format!("{}/v1/batch/{id}/status", node.url()))?;
            wrong += u64::from(status["status"] != "completed" || status["inserted"] != clients::EVENTS);
        }
    }
    Ok(wrong)
}
