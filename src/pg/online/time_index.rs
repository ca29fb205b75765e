//! The index of `events` for queries by time alone (`TIME_INDEX`): the key begins with service and type, and does not help them.
//!
//! It is made with a fresh schema, by the server that starts; everything else is for `ingestd migrate`. An index of the
//! user's own on `"timestamp"` serves as well, and is never dropped.

use std::time::Instant;

use postgres::{Client, GenericClient, IsolationLevel};

use super::build::{How, IndexSpec};
use super::{
    Changed, Held, Hold, OnlineError, Outcome, Patience, attempt_at_start, begin_calmly, hold, is_quick, owns_events,
    run,
};
use crate::config::TimeIndex;
use crate::limits::{LOCKED_BUILD_BYTES_MAX, TIME_INDEX_PAGES_PER_RANGE};
use crate::pg::backing::Backing;
use crate::pg::citus::cluster::table_sizes;
use crate::pg::citus::layout::layout_of;
use crate::pg::connect::Connector;
use crate::sharding::Sharding;

/// What to do on a Citus cluster with tables that are not small.
const SHARDED_ADVICE: &str = "CREATE INDEX on events while nothing is ingested, or DROP INDEX (docs/citus.md)";

/// Indexes on `"timestamp"` alone that are there, whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Found {
    /// Methods, such as `brin`, of all of them.
    methods: Vec<String>,
    /// Names of those that ingestd made.
    own: Vec<String>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Plan {
    make: Option<IndexKind>,
    /// Names of indexes of events.
    drop: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IndexKind {
    Brin,
    Btree,
}

impl IndexKind {
    const ALL: [Self; 2] = [Self::Brin, Self::Btree];

    fn of(wanted: TimeIndex) -> Option<Self> {
        match wanted {
            TimeIndex::Brin => Some(Self::Brin),
            TimeIndex::Btree => Some(Self::Btree),
            TimeIndex::None => None,
        }
    }

    fn method(self) -> &'static str {
        match self {
            Self::Brin => "brin",
            Self::Btree => "btree",
        }
    }

    fn spec(self) -> IndexSpec {
        let (suffix, definition) = match self {
            Self::Brin => (
                "timestamp_brin",
                format!("brin (\"timestamp\") WITH (pages_per_range = {TIME_INDEX_PAGES_PER_RANGE})"),
            ),
            Self::Btree => ("timestamp_btree", "btree (\"timestamp\")".to_owned()),
        };
        IndexSpec { suffix, is_unique: false, definition }
    }

    /// The name of the index of `events`.
    fn name(self) -> String {
        format!("events_{}", self.spec().suffix)
    }
}

const FIND: &str = "\
    SELECT m.amname::text, c.relname::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam \
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] \
    WHERE i.indrelid = to_regclass('events') AND i.indnkeyatts = 1 AND a.attname = 'timestamp' AND i.indisvalid \
      AND i.indpred IS NULL AND i.indexprs IS NULL";

fn found(client: &mut impl GenericClient) -> Result<Found, postgres::Error> {
    let rows = client.query_typed(FIND, &[])?;
    let all: Vec<(String, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let is_own = |name: &String| IndexKind::ALL.iter().any(|kind| kind.name() == *name);
    let (methods, names): (Vec<_>, Vec<_>) = all.into_iter().unzip();
    Ok(Found { methods, own: names.into_iter().filter(is_own).collect() })
}

/// `None` where all is as it should be.
fn plan(found: &Found, wanted: TimeIndex) -> Option<Plan> {
    let kind = IndexKind::of(wanted);
    let make = kind.filter(|kind| !found.methods.iter().any(|method| method == kind.method()));
    let drop = found.own.iter().filter(|name| kind.is_none_or(|kind| kind.name() != **name)).cloned().collect();
    let plan = Plan { make, drop };
    (plan != Plan { make: None, drop: Vec::new() }).then_some(plan)
}

/// Where the index is not as `wanted`, what to do about it.
pub fn advice(client: &mut impl GenericClient, wanted: TimeIndex) -> Result<Option<String>, postgres::Error> {
    let (found, sharding) = (found(client)?, layout_of(client)?);
    Ok(plan(&found, wanted).map(|_| told(&found, wanted, sharding)))
}

fn told(found: &Found, wanted: TimeIndex, sharding: Sharding) -> String {
    let there = match found.methods.as_slice() {
        [] => "none".to_owned(),
        methods => methods.join(" and "),
    };
    let remedy = match sharding {
        Sharding::None => "run 'ingestd migrate', while nodes run",
        Sharding::Citus => SHARDED_ADVICE,
    };
    format!("TIME_INDEX={}, but the index of events on \"timestamp\" is {there}: {remedy}", wanted.name())
}

/// Makes the index where none is there yet and that takes a moment. Otherwise tells what [`advice`] does.
pub fn arrange_at_start(
    client: &mut Client,
    owner: Option<&Connector>,
    wanted: TimeIndex,
) -> Result<Option<String>, OnlineError> {
    let Some(advice) = advice(client, wanted)? else { return Ok(None) };
    let is_first = found(client)?.methods.is_empty();
    if !is_first || !is_quick(client)? {
        return Ok(Some(advice));
    }
    let mut owners = match owner {
        Some(owner) => Some(owner.connect().map_err(|fault| OnlineError::Unreachable(fault.to_string()))?),
        None => None,
    };
    let client = owners.as_mut().unwrap_or(client);
    if !owns_events(client)? {
        return Ok(Some(advice));
    }
    match attempt_at_start(client, &mut |client, patience| attempt(client, wanted, patience)) {
        Ok(Outcome::Done(_) | Outcome::ByAnother) => Ok(None),
        Ok(Outcome::Unready(_) | Outcome::Busy(_)) | Err(OnlineError::Sharded(_)) => Ok(Some(advice)),
        Err(error) => Err(error),
    }
}

/// Makes the index as `wanted`, while nodes run; `None` where it is.
pub fn arrange(client: &mut Client, backing: Backing, wanted: TimeIndex) -> Result<Option<Changed>, OnlineError> {
    if plan(&found(client)?, wanted).is_none() {
        return Ok(None);
    }
    if !owns_events(client)? {
        return Err(OnlineError::NotOwner);
    }
    let mut exchange = |client: &mut Client, patience| attempt(client, wanted, patience);
    // Small tables need no session of their own.
    if is_quick(client)?
        && let Outcome::Done(locked) = attempt_at_start(client, &mut exchange)?
    {
        return Ok(Some(Changed { locked, ..Changed::default() }));
    }
    let spec = IndexKind::of(wanted).map_or_else(|| IndexKind::Brin.spec(), IndexKind::spec);
    run(client, backing, &spec, &mut exchange)
}

fn attempt(client: &mut Client, wanted: TimeIndex, patience: Patience) -> Result<Outcome, OnlineError> {
    let begin = client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).read_only(false);
    let mut transaction = begin.start()?;
    begin_calmly(&mut transaction, patience)?;
    if layout_of(&mut transaction)? == Sharding::Citus {
        let began = Instant::now();
        let bytes: u64 = table_sizes(&mut transaction)?.values().map(|(_, bytes)| bytes).sum();
        if bytes > LOCKED_BUILD_BYTES_MAX.unsigned_abs() {
            return Err(OnlineError::Sharded(SHARDED_ADVICE));
        }
        for statement in sharded_statements(plan(&found(&mut transaction)?, wanted)) {
            transaction.batch_execute(&statement).map_err(failed)?;
        }
        transaction.commit()?;
        return Ok(Outcome::Done(began.elapsed()));
    }
    let Some(Plan { make: kind, .. }) = plan(&found(&mut transaction)?, wanted) else { return Ok(Outcome::ByAnother) };
    let held = match hold(&mut transaction, kind.map(IndexKind::spec).as_ref(), patience)? {
        Hold::Held(held) => held,
        Hold::Not(outcome) => return Ok(outcome),
    };
    // Another one may have done it while this one waited.
    let statements = plan(&found(&mut transaction)?, wanted).map(|plan| statements(&held, &plan)).unwrap_or_default();
    transaction.batch_execute(&statements.join("; ")).map_err(failed)?;
    transaction.commit()?;
    Ok(Outcome::Done(held.since.elapsed()))
}

fn failed(error: postgres::Error) -> OnlineError {
    OnlineError::Failed { what: "changing the index of events on \"timestamp\"".to_owned(), error }
}

/// On the table alone: Citus passes them on.
fn sharded_statements(plan: Option<Plan>) -> Vec<String> {
    let Some(Plan { make, drop }) = plan else { return Vec::new() };
    let make = make.map(|kind| format!("CREATE INDEX {} ON events USING {}", kind.name(), kind.spec().definition));
    make.into_iter().chain(drop.into_iter().map(|name| format!("DROP INDEX {name}"))).collect()
}

fn statements(held: &Held, plan: &Plan) -> Vec<String> {
    let Held { tree, unready, .. } = held;
    let Some(root) = tree.root() else { return Vec::new() };
    let mut statements = Vec::new();
    if let Some(kind) = plan.make {
        let spec = kind.spec();
        for table in unready {
            // What an interrupted run left.
            statements.push(format!("DROP INDEX IF EXISTS {}", table.beside(&spec.name_on(table))));
            statements.push(spec.sql(table, How::Locked));
        }
        statements.push(spec.sql(root, How::Locked));
        for (table, above) in tree.partitions() {
            if !table.is_leaf {
                statements.push(spec.sql(table, How::Locked));
            }
            let (above, name) = (above.beside(&spec.name_on(above)), table.beside(&spec.name_on(table)));
            statements.push(format!("ALTER INDEX {above} ATTACH PARTITION {name}"));
        }
    }
    statements.extend(plan.drop.iter().map(|name| format!("DROP INDEX {}", root.beside(name))));
    statements
}

#[cfg(test)]
mod tests {
    use super::super::tree::example;
    use super::*;

    fn found(methods: &[&str], own: &[&str]) -> Found {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Found { methods: owned(methods), own: owned(own) }
    }

    #[test]
    fn what_is_there_is_kept_and_what_ingestd_made_goes_when_another_is_wanted() {
        let (none, brin) = (found(&[], &[]), found(&["brin"], &["events_timestamp_brin"]));
        let users = found(&["btree"], &[]);
        let made = |kind| Some(Plan { make: Some(kind), drop: Vec::new() });
        assert_eq!(plan(&none, TimeIndex::None), None);
        assert_eq!(plan(&none, TimeIndex::Brin), made(IndexKind::Brin));
        assert_eq!(plan(&brin, TimeIndex::Brin), None);
        assert_eq!(plan(&users, TimeIndex::Btree), None, "the user's own serves");
        assert_eq!(plan(&users, TimeIndex::None), None, "and stays");
        assert_eq!(plan(&users, TimeIndex::Brin), made(IndexKind::Brin));
        let drop = vec!["events_timestamp_brin".to_owned()];
        assert_eq!(plan(&brin, TimeIndex::None), Some(Plan { make: None, drop: drop.clone() }));
        assert_eq!(plan(&brin, TimeIndex::Btree), Some(Plan { make: Some(IndexKind::Btree), drop }));
    }

    #[test]
    fn partitions_of_partitions_get_it_too() {
        let tree = example();
        let unready = vec![tree.0[1].clone()];
        let held = Held { tree, unready, since: Instant::now() };
        let plan = Plan { make: Some(IndexKind::Btree), drop: vec!["events_timestamp_brin".to_owned()] };
        let statements = statements(&held, &plan);
        assert_eq!(
            statements[2],
            r#"CREATE INDEX "events_timestamp_btree" ON ONLY "public"."events" USING btree ("timestamp")"#
        );
        let attached = statements.iter().filter(|statement| statement.starts_with("ALTER INDEX")).count();
        assert_eq!((attached, statements.len()), (3, 8));
        assert_eq!(statements.last().map(String::as_str), Some(r#"DROP INDEX "public"."events_timestamp_brin""#));
    }
}
