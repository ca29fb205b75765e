//! How a Citus cluster is: its workers, what its nodes' settings lack, and transactions that nobody has decided.

use std::collections::HashMap;

use postgres::types::Type;
use postgres::{Client, GenericClient};

use crate::limits::{IN_DOUBT_AFTER, RECOVERY_INTERVAL_ADVISED};

/// A worker as its coordinator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    /// `host:port`.
    pub address: String,
    /// The coordinator could connect to it.
    pub is_reachable: bool,
}

/// The state of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// Every active worker.
    pub workers: Vec<Worker>,
    /// Transactions that a worker has prepared and nobody has decided for [`IN_DOUBT_AFTER`]: they hold their locks.
    pub in_doubt: u64,
}

impl Cluster {
    /// What is not as it should be, for health; `None` when nothing is.
    pub fn doubt(&self) -> Option<String> {
        let away: Vec<&str> =
            self.workers.iter().filter(|worker| !worker.is_reachable).map(|worker| &*worker.address).collect();
        if !away.is_empty() {
            return Some(format!(
                "unreachable Citus workers: {}; batches of their shards are waiting",
                away.join(", ")
            ));
        }
        (self.in_doubt > 0).then(|| {
            format!(
                "{} transactions have been prepared on Citus workers and undecided for more than {} s: they hold locks \
                 until the coordinator's recovery resolves them (citus.recover_2pc_interval), or call \
                 recover_prepared_transactions()",
                self.in_doubt,
                IN_DOUBT_AFTER.as_secs()
            )
        })
    }
}

/// Asks the coordinator how its cluster is: a worker that is away takes a second or two of it. `client` is used for nothing
/// else, as one that has landed rows may keep a connection to a worker that is silent, and wait on it for ever.
pub fn look(client: &mut Client) -> Result<Cluster, postgres::Error> {
    let mut transaction = client.transaction()?;
    transaction.batch_execute(ASKING_LIMITS)?;
    let cluster = look_within(&mut transaction)?;
    transaction.commit()?;
    Ok(cluster)
}

/// A worker that does not take connections is away after a second, none of them is kept, and nothing takes long.
const ASKING_LIMITS: &str = "SET LOCAL citus.node_connection_timeout = '1s'; \
     SET LOCAL citus.max_cached_conns_per_worker = 0; SET LOCAL statement_timeout = '10s'";

fn look_within(client: &mut impl GenericClient) -> Result<Cluster, postgres::Error> {
    let workers = client.query(
        "SELECT nodename || ':' || nodeport, coalesce(citus_check_connection_to_node(nodename, nodeport), false) \
         FROM pg_dist_node WHERE isactive AND groupid <> 0 ORDER BY 1",
        &[],
    )?;
    let workers: Vec<Worker> =
        workers.iter().map(|row| Worker { address: row.get(0), is_reachable: row.get(1) }).collect();
    let in_doubt = in_doubt(client)?;
    Ok(Cluster { workers, in_doubt })
}

fn in_doubt(client: &mut impl GenericClient) -> Result<u64, postgres::Error> {
    let count = format!(
        "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database() AND gid ^@ 'citus_' \
         AND prepared < now() - interval '{} seconds'",
        IN_DOUBT_AFTER.as_secs()
    );
    let rows = client.query("SELECT success, result FROM run_command_on_workers($1)", &[&count])?;
    let counted =
        rows.iter().filter(|row| row.get(0)).filter_map(|row| row.get::<_, Option<&str>>(1)?.parse::<u64>().ok());
    Ok(counted.sum())
}

/// Settings of a node that ingestd depends on.
struct NodeSettings {
    address: String,
    prepared_transactions_max: u32,
    connections_max: u32,
    is_synchronous: bool,
}

/// As a row of text, so that the coordinator and its workers are asked alike.
const NODE_SETTINGS: &str = "SELECT concat_ws(' ', current_setting('max_prepared_transactions'), \
     current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int, \
     current_setting('synchronous_commit'))";

/// What the database of `client` lacks to have tables spread over it, each with advice; for nodes whose pools have
/// `connections` together, where that is known. `client` as for [`look`].
pub fn lacks(client: &mut Client, connections: Option<u32>) -> Result<Vec<String>, postgres::Error> {
    let installed = client.query_typed_opt("SELECT extversion FROM pg_extension WHERE extname = 'citus'", &[])?;
    if installed.is_none() {
        let missing = "the extension citus is not installed in this database: add it to shared_preload_libraries on \
            the coordinator and the workers and run CREATE EXTENSION citus on each, or correct DATABASE_URL";
        return Ok(vec![missing.to_owned()]);
    }
    let asked = "SELECT citus_is_coordinator(), EXISTS (SELECT FROM pg_dist_node)";
    let row = client.query_typed_one(asked, &[])?;
    match (row.get(0), row.get(1)) {
        (true, _) => {}
        (false, true) => {
            let wrong = "this node is not the coordinator of the cluster: correct DATABASE_URL";
            return Ok(vec![wrong.to_owned()]);
        }
        (false, false) => {
            let alone = "this node knows of no cluster: if it is the coordinator, register it and the workers \
                (citus_set_coordinator_host(), citus_add_node(), or deploy/postgresql/citus/add-workers.sh); if not, \
                correct DATABASE_URL";
            return Ok(vec![alone.to_owned()]);
        }
    }
    let mut transaction = client.transaction()?;
    transaction.batch_execute(ASKING_LIMITS)?;
    let lacks = lacks_of_cluster(&mut transaction, connections)?;
    transaction.commit()?;
    Ok(lacks)
}

fn lacks_of_cluster(client: &mut impl GenericClient, connections: Option<u32>) -> Result<Vec<String>, postgres::Error> {
    let mut lacks = Vec::new();
    let cluster = look_within(client)?;
    if cluster.workers.is_empty() {
        lacks.push("the cluster has no active worker: add some with citus_add_node() on the coordinator".to_owned());
    }
    for worker in cluster.workers.iter().filter(|worker| !worker.is_reachable) {
        lacks.push(format!(
            "the coordinator cannot connect to worker {}: start it, or check pg_hba.conf and citus.node_conninfo",
            worker.address
        ));
    }
    for node in node_settings(client)? {
        node.tell_lacks(connections, &mut lacks);
    }
    if recovery_interval_ms(client)? < 0 {
        lacks.push(
            "citus.recover_2pc_interval is -1 on the coordinator: transactions left undecided by a crash would hold \
             their locks forever; set it to 10s"
                .to_owned(),
        );
    }
    Ok(lacks)
}

/// What is worth changing in the cluster although it works, as far as the role of `client` may see its settings.
pub fn advice(client: &mut Client) -> Result<Vec<String>, postgres::Error> {
    let mut advice = Vec::new();
    let interval_ms = recovery_interval_ms(client)?;
    if interval_ms > RECOVERY_INTERVAL_ADVISED.as_millis() as i64 {
        advice.push(format!(
            "citus.recover_2pc_interval is {} s on the coordinator: for this long after a worker crash, committed \
             batches may be invisible and their retries blocked; set it to {} s",
            interval_ms / 1000,
            RECOVERY_INTERVAL_ADVISED.as_secs()
        ));
    }
    // Of the roles that are no superuser, only members of pg_read_all_settings see it.
    let conninfo = client.query_typed_opt("SELECT setting FROM pg_settings WHERE name = 'citus.node_conninfo'", &[])?;
    if conninfo.is_some_and(|row| !row.get::<_, &str>(0).contains("tcp_user_timeout")) {
        advice.push(
            "citus.node_conninfo has no tcp_user_timeout on the coordinator: a worker whose machine vanishes would \
             block its COPYs for 15 minutes; add 'tcp_user_timeout=10000 keepalives_idle=5 keepalives_interval=5 \
             keepalives_count=2'"
                .to_owned(),
        );
    }
    Ok(advice)
}

/// Negative: never.
fn recovery_interval_ms(client: &mut impl GenericClient) -> Result<i64, postgres::Error> {
    let query = "SELECT setting::bigint FROM pg_settings WHERE name = 'citus.recover_2pc_interval'";
    Ok(client.query_typed_one(query, &[])?.get(0))
}

fn node_settings(client: &mut impl GenericClient) -> Result<Vec<NodeSettings>, postgres::Error> {
    let coordinator: String = client.query_one(NODE_SETTINGS, &[])?.get(0);
    let workers = client.query(
        "SELECT 'worker ' || nodename || ':' || nodeport, result FROM run_command_on_workers($1) WHERE success",
        &[&NODE_SETTINGS],
    )?;
    let workers = workers.iter().map(|row| (row.get::<_, String>(0), row.get::<_, String>(1)));
    let nodes = std::iter::once(("the coordinator".to_owned(), coordinator)).chain(workers);
    Ok(nodes.filter_map(|(address, settings)| NodeSettings::parse(address, &settings)).collect())
}

impl NodeSettings {
    fn parse(address: String, settings: &str) -> Option<Self> {
        let mut words = settings.split(' ');
        Some(Self {
            address,
            prepared_transactions_max: words.next()?.parse().ok()?,
            connections_max: words.next()?.parse().ok()?,
            is_synchronous: words.next()? != "off",
        })
    }

    fn tell_lacks(&self, connections: Option<u32>, lacks: &mut Vec<String>) {
        let Self { address, prepared_transactions_max, connections_max, is_synchronous } = self;
        if *prepared_transactions_max == 0 {
            lacks.push(format!(
                "max_prepared_transactions is 0 on {address}: a COMMIT across several nodes requires it; set it to \
                 max_connections or more, and restart that node"
            ));
        } else if let Some(connections) = connections.filter(|connections| prepared_transactions_max < connections) {
            lacks.push(format!(
                "max_prepared_transactions is {prepared_transactions_max} on {address}, less than the {connections} \
                 connections of the pools: raise it, and restart that node"
            ));
        }
        if let Some(connections) = connections.filter(|connections| connections_max < connections) {
            lacks.push(format!(
                "{address} allows {connections_max} connections, less than the {connections} of the pools: raise \
                 max_connections, or lower DB_POOL_MAX_SIZE"
            ));
        }
        if !is_synchronous {
            lacks.push(format!(
                "synchronous_commit is off on {address}: a crash would lose batches reported as committed; set it to on"
            ));
        }
    }
}

/// Rows (by the workers' statistics) and bytes on disk of distributed tables, by name as `regclass` prints it.
pub fn table_sizes(client: &mut impl GenericClient) -> Result<HashMap<String, (u64, u64)>, postgres::Error> {
    let per_worker = "SELECT coalesce(string_agg(concat_ws(' ', rows, bytes, name), E'\\n'), '') FROM ( \
         SELECT s.logicalrelid::regclass::text AS name, sum(greatest(c.reltuples, 0))::bigint AS rows, \
                sum(pg_total_relation_size(c.oid))::bigint AS bytes \
         FROM pg_dist_shard s JOIN pg_class c ON c.oid = to_regclass(shard_name(s.logicalrelid, s.shardid)) \
         WHERE c.relkind = 'r' GROUP BY 1) AS sizes";
    let rows = client
        .query_typed("SELECT result FROM run_command_on_workers($1) WHERE success", &[(&per_worker, Type::TEXT)])?;
    let mut sizes: HashMap<String, (u64, u64)> = HashMap::new();
    for line in rows.iter().flat_map(|row| row.get::<_, &str>(0).lines()) {
        let mut words = line.splitn(3, ' ');
        let [rows, bytes] = [(); 2].map(|()| words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0));
        if let Some(name) = words.next() {
            let size = sizes.entry(name.to_owned()).or_default();
            (size.0, size.1) = (size.0 + rows, size.1 + bytes);
        }
    }
    Ok(sizes)
}
