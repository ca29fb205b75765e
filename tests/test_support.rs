//! Promise: what the other tests stand on does what it says.

mod support;

use std::time::Duration;

use support::postgres::{TestPostgres, connect};
use support::redis::TestRedis;
use support::server::Ingestd;
use support::{WAIT_MAX, wait_until};

#[test]
fn each_test_has_a_database_of_its_own_that_goes_with_it() {
    let (first, second) =
        (support::postgres::shared().create_database(), support::postgres::shared().create_database());
    first.connect().batch_execute("CREATE TABLE mine (n int)").expect("a table");
    assert!(second.connect().batch_execute("SELECT FROM mine").is_err(), "databases are apart");
    connect(&first.url).batch_execute("SELECT FROM mine").expect("the port leads to the same database");
    let mut held_open = first.connect();
    let name = first.name.clone();
    drop(first);
    assert!(held_open.batch_execute("SELECT 1").is_err(), "dropped although in use");
    let known = "SELECT FROM pg_database WHERE datname = $1";
    assert!(second.connect().query_opt(known, &[&name]).expect("a query").is_none());
}

#[test]
fn a_private_postgresql_can_be_killed_stopped_and_paused() {
    let mut private = TestPostgres::start_private(&[("max_connections", "20")]);
    let database = private.create_database();
    database.connect().batch_execute("CREATE TABLE kept (n int)").expect("a table");
    private.kill9();
    assert!(postgres::Client::connect(&database.url, postgres::NoTls).is_err(), "it stays down");
    private.start();
    database.connect().batch_execute("SELECT n FROM kept").expect("kept over kill -9");
    private.stop();
    private.start();

    let mut client = connect(&database.url);
    let paused = private.pause();
    let asked = std::thread::spawn(move || client.batch_execute("SELECT n FROM kept").is_ok());
    // Nothing can be awaited here: the point is that nothing comes.
    std::thread::sleep(Duration::from_millis(200));
    assert!(!asked.is_finished(), "a paused server answers nothing");
    drop(paused);
    assert!(asked.join().expect("it does not panic"), "and answers once it goes on");
}

#[test]
fn redis_keeps_its_port_over_a_restart_and_loses_its_keys() {
    let mut server = TestRedis::start();
    let url = server.url();
    let set = |server: &TestRedis| {
        redis::cmd("SET").arg("key").arg("value").exec(&mut server.connect()).expect("Redis takes it");
    };
    set(&server);
    server.stop();
    assert!(redis::Client::open(url.as_str()).expect("a URL").get_connection().is_err(), "it is down");
    server.restart();
    assert_eq!(server.url(), url);
    let found: Option<String> = redis::cmd("GET").arg("key").query(&mut server.connect()).expect("Redis answers");
    assert_eq!(found, None);
    set(&server);
}

#[test]
fn a_command_is_run_to_its_exit_without_the_callers_settings() {
    let finished = Ingestd::run_to_exit(&["--version"], &[]);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
}

#[test]
fn a_wait_in_vain_says_what_it_waited_for() {
    let outcome = std::panic::catch_unwind(|| wait_until("the moon", Duration::ZERO, || false));
    let message = outcome.expect_err("it cannot succeed").downcast::<String>().expect("a message");
    assert!(message.contains("the moon"), "{message}");
    wait_until("now", WAIT_MAX, || true);
}
