//! How many machines a rate takes.
//!
//! ```text
//!  balancers ─▶ nodes ─▶ one PostgreSQL                           while it carries the rate
//!                        coordinator ─▶ workers                   Citus, while one coordinator carries it
//!                        workers, each a coordinator, too         Citus with metadata on all workers
//! ```
//!
//! Each kind of machine has resources. A resource carries `supply × headroom ÷ demand of an event` events a second; the one
//! that carries least binds, and a rate takes as many machines as that one says. All costs are linear in events: the measured
//! ones are of a system under full load, where groups and COPYs are as large as they get.

use super::inputs::{Citus, Machines};
use crate::cluster::report::Run;

const MEGA: f64 = 1e6;
const GIGA: f64 = 1e9;
const TERA: f64 = 1e12;
const DAY_SECONDS: f64 = 86_400.0;

/// Something that a machine has only so much of.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// What.
    pub name: &'static str,
    /// Events a second that it carries.
    pub carries: f64,
}

impl Resource {
    /// `supply` a second, of which an event takes `demand`.
    pub fn new(name: &'static str, supply: f64, demand: f64) -> Self {
        Self { name, carries: supply / demand }
    }
}

/// A kind of machine.
#[derive(Clone, Debug)]
pub struct Tier {
    /// In the order of the table.
    pub resources: Vec<Resource>,
    /// Machines, however small the rate.
    pub least: u64,
}

impl Tier {
    /// What gives out first.
    pub fn binding(&self) -> &Resource {
        let least = self.resources.iter().min_by(|one, other| one.carries.total_cmp(&other.carries));
        least.expect("a tier has resources")
    }

    /// Machines for `rate` events a second.
    pub fn machines(&self, rate: f64) -> Count {
        let needed = (rate / self.binding().carries).ceil() as u64;
        if needed < self.least {
            return Count { machines: self.least, bound_by: "availability" };
        }
        Count { machines: needed, bound_by: self.binding().name }
    }

    fn carries(&self, rate: f64) -> bool {
        self.binding().carries >= rate
    }
}

/// So many, because of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// How many.
    pub machines: u64,
    /// What binds.
    pub bound_by: &'static str,
}

/// Where rows go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One PostgreSQL.
    Single,
    /// Citus, through its coordinator.
    Coordinator,
    /// Citus, through whichever worker.
    AnyWorker,
}

/// All kinds of machines.
#[derive(Clone, Debug)]
pub struct Model {
    /// nginx.
    pub balancer: Tier,
    /// ingestd.
    pub node: Tier,
    /// One PostgreSQL for everything.
    pub single: Tier,
    /// A coordinator of Citus.
    pub coordinator: Tier,
    /// A worker that gets its rows from a coordinator.
    pub worker: Tier,
    /// A worker that also forwards as many rows as it keeps.
    pub forwarding_worker: Tier,
    /// Redis.
    pub redis: Tier,
    /// One disk for tables and indexes.
    pub data_disk: Tier,
    standbys: u64,
    request_bytes: f64,
    stored_bytes: f64,
}

/// What a rate takes.
#[derive(Clone, Debug)]
pub struct Deployment {
    /// nginx.
    pub balancers: Count,
    /// ingestd, each with a disk for its journal.
    pub nodes: Count,
    /// Where rows go.
    pub layout: Layout,
    /// PostgreSQL servers that keep rows, standbys not counted.
    pub databases: Count,
    /// All of PostgreSQL's machines: those, the coordinator, and everybody's standbys.
    pub database_machines: u64,
    /// Disks of nodes and of PostgreSQL's machines.
    pub disks: u64,
    /// Redis.
    pub redis: Count,
    /// Bits a second from clients.
    pub gigabits: f64,
    /// Rows and indexes of a day, without standbys.
    pub terabytes_a_day: f64,
}

impl Model {
    /// Of machines for events that cost what `measured` says.
    pub fn new(measured: &Run, machines: &Machines, citus: &Citus) -> Self {
        let headroom = machines.headroom;
        let usable = |name, supply: f64, demand| Resource::new(name, supply * headroom, demand);
        let cpu = |cores: f64, micros: f64| usable("CPU", cores * MEGA, micros);
        let network = |gigabits: f64, bytes: f64| usable("network", gigabits * GIGA / 8.0, bytes);
        let node = &machines.node;
        let balancer = &machines.balancer;
        let forwarding_micros = MEGA / citus.rows_per_second_and_core;
        // A row goes to PostgreSQL as it went to the journal.
        let row_bytes = measured.journal_bytes;
        let batches = 1.0 / machines.events_per_batch;
        let redis_bytes = measured.redis_bytes_per_batch * batches * machines.status_ttl_seconds;
        let worker = |micros, flushes| database(measured, machines, micros, flushes);
        Self {
            balancer: Tier {
                resources: vec![
                    cpu(balancer.cores, measured.balancer_micros),
                    network(balancer.network_gigabits, measured.request_bytes),
                ],
                least: balancer.least,
            },
            node: Tier {
                resources: vec![
                    cpu(node.cores, measured.node_micros),
                    usable("journal thread", MEGA, measured.node_micros * node.journal_thread_share),
                    // In and out are each other's equal, and a network does both at once.
                    network(node.network_gigabits, measured.request_bytes.max(row_bytes)),
                    usable("journal disk", node.journal_megabytes * MEGA, measured.journal_bytes),
                ],
                least: node.least,
            },
            single: worker(measured.database_micros, 1.0),
            coordinator: Tier {
                resources: vec![
                    cpu(machines.database.cores, forwarding_micros),
                    network(machines.database.network_gigabits, row_bytes),
                    // The record of each two-phase commit.
                    usable("WAL flushes", machines.database.flushes_per_second, 1.0 / measured.copy_rows),
                ],
                least: 1,
            },
            worker: worker(measured.database_micros, citus.flushes_per_copy - 1.0),
            forwarding_worker: worker(measured.database_micros + forwarding_micros, citus.flushes_per_copy),
            redis: Tier {
                resources: vec![
                    usable("commands", machines.redis.commands_per_second, measured.redis_commands_per_batch * batches),
                    usable("memory", machines.redis.memory_gigabytes * GIGA, redis_bytes),
                ],
                least: 1,
            },
            standbys: machines.database.standbys,
            data_disk: Tier { resources: data_disks(measured, machines, 1.0).to_vec(), least: 1 },
            request_bytes: measured.request_bytes,
            stored_bytes: measured.stored_bytes,
        }
    }

    /// What `rate` takes, with the simplest layout that carries it.
    pub fn deployment(&self, rate: f64) -> Deployment {
        let layout = self.layout(rate);
        let (databases, coordinators) = match layout {
            Layout::Single => (self.single.machines(rate), 0),
            Layout::Coordinator => (self.worker.machines(rate), 1),
            Layout::AnyWorker => (self.forwarding_worker.machines(rate), 1),
        };
        let nodes = self.node.machines(rate);
        let copies = 1 + self.standbys;
        // One at least in each server; and whoever has a WAL has a disk for it, the coordinator, too.
        let data_disks = self.data_disk.machines(rate).machines.max(databases.machines);
        Deployment {
            balancers: self.balancer.machines(rate),
            nodes,
            layout,
            databases,
            database_machines: (databases.machines + coordinators) * copies,
            disks: nodes.machines + (data_disks + databases.machines + coordinators) * copies,
            redis: self.redis.machines(rate),
            gigabits: rate * self.request_bytes * 8.0 / GIGA,
            terabytes_a_day: rate * self.stored_bytes * DAY_SECONDS / TERA,
        }
    }

    /// The simplest layout that carries `rate`.
    pub fn layout(&self, rate: f64) -> Layout {
        if self.single.carries(rate) {
            Layout::Single
        } else if self.coordinator.carries(rate) {
            Layout::Coordinator
        } else {
            Layout::AnyWorker
        }
    }
}

/// A PostgreSQL that takes `micros` of CPU a row and flushes its WAL `flushes` times a COPY.
fn database(measured: &Run, machines: &Machines, micros: f64, flushes: f64) -> Tier {
    let machine = &machines.database;
    let usable = |name, supply: f64, demand| Resource::new(name, supply * machines.headroom, demand);
    // In comes the row; out goes the WAL, to each standby.
    let network_bytes = measured.journal_bytes.max(measured.wal_bytes * machine.standbys as f64);
    let mut resources = vec![
        usable("CPU", machine.cores * MEGA, micros),
        usable("network", machine.network_gigabits * GIGA / 8.0, network_bytes),
        usable("WAL", machine.wal_megabytes * MEGA, measured.wal_bytes),
        usable("WAL flushes", machine.flushes_per_second, flushes / measured.copy_rows),
    ];
    resources.extend(data_disks(measured, machines, machine.data_disks));
    Tier { resources, least: 1 }
}

/// Of `disks` for tables and indexes.
fn data_disks(measured: &Run, machines: &Machines, disks: f64) -> [Resource; 2] {
    let (machine, supply) = (&machines.database, disks * machines.headroom);
    let kept_bytes = measured.stored_bytes * machines.retention_days * DAY_SECONDS;
    let written_bytes = measured.stored_bytes * machine.times_written;
    [
        Resource::new("data disks", supply * machine.data_megabytes * MEGA, written_bytes),
        Resource::new("room", supply * machine.data_terabytes * TERA, kept_bytes),
    ]
}
