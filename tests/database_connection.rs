//! A connection that cannot be is explained in one line; `sslmode` means what it means to libpq.

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use ingestd::config::DatabaseUrl;
use ingestd::pg::connect::{Connector, StartFault};
use postgres::Client;
use support::postgres::shared;
use support::server::Ingestd;
use support::tls::{Certificates, Greeting};

fn connect(url: &str) -> Result<Client, StartFault> {
    Connector::new(&DatabaseUrl::parse(url).expect("a valid URL"))?.connect()
}

/// The message of a fault that waiting does not cure.
fn configuration_fault(url: &str) -> String {
    match connect(url) {
        Err(StartFault::Configuration(message)) => one_line(message),
        Err(StartFault::Transient(message)) => panic!("said to be transient: {message}"),
        Ok(_) => panic!("connected"),
    }
}

fn one_line(message: String) -> String {
    assert!(!message.contains('\n') && !message.contains("geheim"), "{message}");
    message
}

/// `url` with the password "geheim", another user, address or database, and parameters.
fn changed(url: &str, change: impl Fn(&mut Parts)) -> String {
    let driver: postgres::Config = url.parse().expect("a valid URL");
    let postgres::config::Host::Tcp(host) = &driver.get_hosts()[0] else { panic!("tests reach PostgreSQL over TCP") };
    let port = driver.get_ports().first().copied().unwrap_or(5432);
    let mut parts = Parts {
        user: driver.get_user().unwrap_or("postgres").into(),
        password: driver.get_password().map_or("geheim".into(), |text| String::from_utf8_lossy(text).into_owned()),
        host: host.clone(),
        port,
        database: driver.get_dbname().unwrap_or("postgres").into(),
        parameters: String::new(),
    };
    change(&mut parts);
    let Parts { user, password, host, port, database, parameters } = parts;
    format!("postgresql://{user}:{password}@{host}:{port}/{database}?{parameters}")
}

struct Parts {
    user: String,
    password: String,
    host: String,
    port: u16,
    database: String,
    parameters: String,
}

#[test]
fn a_connection_carries_the_products_name() {
    let database = shared().create_database();
    let mut client = connect(&database.url).expect("connected");
    let name: String = client.query_one("SELECT current_setting('application_name')", &[]).expect("asked").get(0);
    assert_eq!(name, "ingestd");
    let named = changed(&database.url, |parts| parts.parameters = "application_name=mine".into());
    let mut client = connect(&named).expect("connected");
    let name: String = client.query_one("SELECT current_setting('application_name')", &[]).expect("asked").get(0);
    assert_eq!(name, "mine");
}

#[test]
fn an_unknown_database_or_user_is_a_fault_of_the_configuration() {
    let database = shared().create_database();
    let message = configuration_fault(&changed(&database.url, |parts| parts.database = "no_such_database".into()));
    assert!(message.contains("\"no_such_database\" does not exist (SQLSTATE 3D000); create the database"), "{message}");
    let message = configuration_fault(&changed(&database.url, |parts| parts.user = "no_such_user".into()));
    assert!(message.contains("SQLSTATE 28") && message.contains("DATABASE_URL"), "{message}");
}

#[test]
fn a_server_that_does_not_listen_may_come_back() {
    let database = shared().create_database();
    let closed = support::ClosedPort::take();
    let port = closed.address().port();
    let url = changed(&database.url, |parts| (parts.host, parts.port) = ("127.0.0.1".into(), port));
    let Err(StartFault::Transient(message)) = connect(&url) else { panic!("must be transient") };
    let message = one_line(message);
    assert!(message.starts_with(&format!("PostgreSQL at 127.0.0.1:{port}: ")), "{message}");
    assert!(message.contains("onnection refused") && message.contains("is it running"), "{message}");
}

#[test]
fn a_server_that_accepts_and_says_nothing_does_not_hold_up_a_command_for_ever() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let url = format!("postgresql://u:geheim@{}/d", silent.local_addr().expect("address"));
    let connector = Connector::new(&DatabaseUrl::parse(&url).expect("valid")).expect("a connector");
    let Err(StartFault::Transient(message)) = connector.connect_within(Duration::from_millis(50)) else {
        panic!("must be transient")
    };
    assert!(one_line(message).contains("no response within"));
}

fn upstream(url: &str) -> SocketAddr {
    let driver: postgres::Config = url.parse().expect("a valid URL");
    let postgres::config::Host::Tcp(host) = &driver.get_hosts()[0] else { panic!("tests reach PostgreSQL over TCP") };
    let ip = if host == "localhost" { "127.0.0.1" } else { host };
    SocketAddr::new(ip.parse().expect("an address"), driver.get_ports().first().copied().unwrap_or(5432))
}

#[test]
fn a_server_without_tls_serves_prefer_and_is_refused_by_require() {
    let database = shared().create_database();
    let mut client =
        connect(&changed(&database.url, |parts| parts.parameters = "sslmode=prefer".into())).expect("connected");
    let has_tls: String = client.query_one("SHOW ssl", &[]).expect("asked").get(0);
    if has_tls == "on" {
        let test = "database_connection::a_server_without_tls_serves_prefer_and_is_refused_by_require";
        support::not_run(test, "this PostgreSQL was set up with TLS (ssl = on)");
        return;
    }
    let message = configuration_fault(&changed(&database.url, |parts| parts.parameters = "sslmode=require".into()));
    assert!(message.contains("server does not support TLS; correct sslmode"), "{message}");
}

#[test]
fn sslmode_decides_how_much_of_the_certificate_must_be_right() {
    let database = shared().create_database();
    let certificates = Certificates::signed("localhost");
    let port = certificates.serve(upstream(&database.url), Greeting::Postgres);
    let path = |name| certificates.path(name).display().to_string();
    let (ca, other) = (path("ca.pem"), path("other.pem"));
    let url = |host: &str, parameters: String| {
        changed(&database.url, |parts| {
            (parts.host, parts.port, parts.parameters) = (host.into(), port, parameters.clone());
        })
    };
    for (host, parameters) in [
        ("127.0.0.1", "sslmode=disable".to_owned()),
        ("127.0.0.1", "sslmode=allow".to_owned()),
        ("127.0.0.1", "sslmode=prefer".to_owned()),
        ("127.0.0.1", format!("sslmode=prefer&sslrootcert={other}")),
        ("127.0.0.1", "sslmode=require".to_owned()),
        ("127.0.0.1", format!("sslmode=require&sslrootcert={ca}")),
        ("127.0.0.1", format!("sslmode=verify-ca&sslrootcert={ca}")),
        ("localhost", format!("sslmode=verify-full&sslrootcert={ca}")),
    ] {
        let connected = connect(&url(host, parameters.clone()));
        assert!(connected.is_ok(), "{parameters}: {:?}", connected.err());
    }
    for (host, parameters, reason) in [
        ("127.0.0.1", format!("sslmode=verify-full&sslrootcert={ca}"), "not valid for name"),
        ("localhost", format!("sslmode=verify-full&sslrootcert={other}"), "certificate"),
        ("localhost", format!("sslmode=verify-ca&sslrootcert={other}"), "certificate"),
        ("localhost", format!("sslmode=require&sslrootcert={other}"), "certificate"),
    ] {
        let message = configuration_fault(&url(host, parameters.clone()));
        assert!(message.contains(reason) && message.contains("sslrootcert"), "{parameters}: {message}");
    }
}

#[test]
fn the_verifying_modes_trust_the_systems_authorities_where_no_file_is_named() {
    let database = shared().create_database();
    let certificates = Certificates::signed("localhost");
    let port = certificates.serve(upstream(&database.url), Greeting::Postgres);
    for (parameters, authorities, code) in [
        ("sslmode=verify-full", "ca.pem", 0),
        ("sslmode=verify-full&sslrootcert=system", "ca.pem", 0),
        ("sslmode=verify-ca", "ca.pem", 0),
        ("sslmode=verify-full", "other.pem", 2),
        ("sslmode=verify-full&sslrootcert=system", "other.pem", 2),
        ("sslmode=verify-ca", "other.pem", 2),
    ] {
        let url = changed(&database.url, |parts| {
            (parts.host, parts.port, parts.parameters) = ("localhost".into(), port, parameters.into());
        });
        // The system's authorities are those of this variable where it is set.
        let authorities = certificates.path(authorities).display().to_string();
        let settings = [("DATABASE_URL", &*url), ("SSL_CERT_FILE", &*authorities)];
        let finished = Ingestd::run_to_exit(&["migrate"], &settings);
        assert_eq!(finished.code, Some(code), "{parameters} {authorities}: {}", finished.stderr);
        assert!(code == 0 || finished.stderr.contains("certificate"), "{}", finished.stderr);
    }
}

#[test]
fn a_self_signed_certificate_is_trusted_where_it_is_named() {
    let database = shared().create_database();
    let certificates = Certificates::self_signed("localhost");
    let port = certificates.serve(upstream(&database.url), Greeting::Postgres);
    let ca = certificates.path("ca.pem").display().to_string();
    let url = |host: &str| {
        changed(&database.url, |parts| {
            parts.parameters = format!("sslmode=verify-full&sslrootcert={ca}");
            (parts.host, parts.port) = (host.into(), port);
        })
    };
    let connected = connect(&url("localhost"));
    assert!(connected.is_ok(), "{:?}", connected.err());
    assert!(configuration_fault(&url("127.0.0.1")).contains("not valid for name"));
}

#[test]
fn a_root_certificate_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let empty = folder.path().join("empty.pem");
    std::fs::write(&empty, "").expect("written");
    for (path, reason) in [(folder.path().join("none.pem"), "cannot be read"), (empty, "contains no PEM certificate")] {
        let url = format!("postgresql://u:geheim@h/d?sslmode=verify-full&sslrootcert={}", path.display());
        let message = configuration_fault(&url);
        assert!(message.contains(reason) && message.contains("DATABASE_URL="), "{message}");
    }
}
