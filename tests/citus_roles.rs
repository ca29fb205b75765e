//! Promise: a server over a Citus cluster needs no superuser, and no right that it does not need without a cluster.
//!
//! These tests need a Citus cluster, as those of `citus.rs`.
#![cfg_attr(not(ingestd_citus), allow(dead_code, unused_imports))]

mod support;

use std::process::Command;

use ingestd::pg::citus::layout::arrange;
use ingestd::pg::migrate::migrate;
use ingestd::sharding::Sharding;
use postgres::Client;

use support::citus;
use support::contract::{batch_at, send};
use support::postgres::{TestDatabase, connect, psql};
use support::server::Ingestd;

/// A role on all nodes, dropped with the value.
struct Role {
    database: TestDatabase,
    name: String,
}

impl Role {
    fn on(database: TestDatabase, prefix: &str) -> Self {
        let name = format!("{prefix}_{}", database.name);
        Self { database, name }
    }

    fn url(&self) -> String {
        self.database.url.replacen("://postgres@", &format!("://{}@", self.name), 1)
    }

    /// All that a server does, as this role: months that are missing, duplicates, the same batch again.
    fn assert_serves(&self) {
        let url = self.url();
        let settings = [("DATABASE_URL", url.as_str()), ("SHARDING", "citus")];
        let checked = Ingestd::run_to_exit(&["check-config", "--connect"], &settings);
        assert_eq!(checked.code, Some(0), "{}", checked.stderr);
        let server = Ingestd::builder().env("DATABASE_URL", &url).env("SHARDING", "citus").start();
        let commit = |body: &serde_json::Value| {
            let reply = send(&server, "ack=commit", body.to_string().as_bytes());
            assert_eq!(reply.status, 200, "{}", reply.text());
            ["inserted", "duplicates", "dead_lettered"].map(|count| reply.json()[count].as_u64())
        };
        let mut late = batch_at("late", 5, "2024-02-03T04:05:06Z");
        assert_eq!(commit(&late), [Some(5), Some(0), Some(0)]);
        assert_eq!(commit(&late), [Some(5), Some(0), Some(0)], "the same batch");
        late["batch_id"] = "twice".into();
        late["events"][1] = late["events"][0].clone();
        assert_eq!(commit(&late), [Some(4), Some(1), Some(0)]);
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        if let Ok(mut client) = Client::connect(&self.database.url, postgres::NoTls) {
            let _ = client.batch_execute(&format!("DROP OWNED BY {0}", self.name));
            let _ = client.batch_execute(&format!("DROP ROLE {0}", self.name));
        }
    }
}

#[test]
#[cfg_attr(not(ingestd_citus), ignore = "INGESTD_TEST_CITUS_URL names no Citus cluster")]
fn a_role_that_owns_the_tables_serves() {
    let role = Role::on(citus::create_database(), "owner_of");
    role.database.connect().batch_execute(&format!("CREATE ROLE {} LOGIN", role.name)).expect("a role");
    for url in std::iter::once(role.database.url.clone()).chain(citus::worker_urls(&role.database)) {
        let grant = format!("GRANT ALL ON SCHEMA public TO {}", role.name);
        connect(&url).batch_execute(&grant).expect("granted");
    }
    role.assert_serves();
}

#[test]
#[cfg_attr(not(ingestd_citus), ignore = "INGESTD_TEST_CITUS_URL names no Citus cluster")]
fn the_role_of_least_privilege_serves() {
    let role = Role::on(citus::create_database(), "server_of");
    let mut owner = role.database.connect();
    migrate(&mut owner).expect("migrated");
    assert!(arrange(&mut owner, Sharding::Citus).expect("spread"));
    let mut script = Command::new(psql());
    script.args(["-X", "-q", &role.database.url, "-v", &format!("role={}", role.name), "-f"]);
    script.arg(support::checkout().join("sql/roles/least_privilege.sql")).env("INGESTD_ROLE_PASSWORD", "any");
    let made = script.output().expect("psql runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    role.assert_serves();
}
