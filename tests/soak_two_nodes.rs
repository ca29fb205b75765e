//! Promise: a batch that is sent to two nodes at once lands once, whatever is killed meanwhile, also where one of the nodes
//! leaves the flushing of its commits to PostgreSQL (`SYNCHRONOUS_COMMIT=off`).

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use postgres::{Client, NoTls};
use rustix::process::{Pid, Signal, kill_process};
use support::announce;
use support::load::{Load, LoadOptions, Random, seed, wait_until_committed};
use support::postgres::{TestPostgres, connect};
use support::proxy::Proxy;
use support::server::Ingestd;
use support::{WAIT_MAX, free_port, wait_until};

const FAULTS: u64 = 60;
/// Longest time from one fault to the next.
const PEACE_MAX: Duration = Duration::from_secs(2);

/// Two nodes on one PostgreSQL, the first one with `SYNCHRONOUS_COMMIT=off`.
struct World {
    url: String,
    proxy: Proxy,
    nodes: [Ingestd; 2],
    random: Random,
}

impl World {
    fn either(&mut self) -> usize {
        self.random.within(0..=1) as usize
    }

    /// Kills one process of PostgreSQL that serves a node: it then ends all sessions, forgets what was not flushed, and
    /// recovers.
    fn kill_backend(&self) {
        let query =
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'ingestd' ORDER BY state <> 'idle' DESC LIMIT 1";
        let mut client = connect(&self.url);
        let row = client.query_opt(query, &[]).expect("sessions can be seen");
        let Some(pid) = row.and_then(|row| Pid::from_raw(row.get(0))) else { return };
        // One that has ended meanwhile takes nothing with it.
        if kill_process(pid, Signal::KILL).is_ok() {
            wait_until("PostgreSQL notices", WAIT_MAX, || client.batch_execute("").is_err());
        }
        wait_until("PostgreSQL has recovered", WAIT_MAX, || Client::connect(&self.url, NoTls).is_ok());
    }

    fn fault(&mut self) -> &'static str {
        match self.random.within(0..=5) {
            0 | 1 => {
                self.kill_backend();
                "backend killed"
            }
            2 | 3 => {
                let node = self.either();
                self.nodes[node].restart();
                "node killed"
            }
            4 => {
                let node = self.either();
                let status = self.nodes[node].terminate();
                assert_eq!(status.code(), Some(0), "{}", self.nodes[node].log());
                self.nodes[node].restart();
                "node terminated"
            }
            _ => {
                self.proxy.cut();
                "connections cut"
            }
        }
    }
}

#[test]
#[ignore = "long: `make soak` runs it"]
fn batches_sent_to_two_nodes_at_once_land_once() {
    let seed = seed("soak_two_nodes");
    let postgres = TestPostgres::start_private(&[]);
    let database = postgres.create_database();
    let proxy = Proxy::start(postgres.port());
    let node = |name: &str, commits: &str| {
        let address = format!("127.0.0.1:{}", free_port());
        let builder =
            Ingestd::builder().env("DATABASE_URL", database.url_through(proxy.port())).env("LISTEN_ADDR", address);
        builder.env("NODE_ID", name).env("SYNCHRONOUS_COMMIT", commits).start()
    };
    let nodes = [node("quick", "off"), node("careful", "on")];
    let pause = Duration::from_millis(20);
    let options = LoadOptions { clients: 4, events: u64::MAX, seed, priority_max: 10, pause };
    let load = Load::start_to_both(&nodes[0], &nodes[1], options);
    let mut world = World { url: database.url.clone(), proxy, nodes, random: Random::new(seed) };
    let mut faults: BTreeMap<&str, u64> = BTreeMap::new();
    for _ in 0..FAULTS {
        let peace = world.random.duration(PEACE_MAX);
        std::thread::sleep(peace);
        *faults.entry(world.fault()).or_default() += 1;
    }
    let outcome = load.stop();
    world.nodes.iter().for_each(|node| wait_until_committed(node, WAIT_MAX));
    let tally = outcome.assert_exactly_once(&mut connect(&world.url));
    assert_eq!(tally.unknown, 0, "each batch has an id: {tally}");
    announce(&format!("soak_two_nodes: {faults:?} {tally} lost=0 duplicated=0"));
}
