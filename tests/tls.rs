//! Promise: HTTPS is served with the certificate of the files, which SIGHUP reads again; clients' certificates are verified
//! where that is asked for; and whoever does not shake hands properly is let go in time.

mod support;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use ingestd::auth::key::Fingerprint;
use rustix::process::Signal;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, ProtocolVersion, RootCertStore, StreamOwned, SupportedProtocolVersion};
use serde_json::json;
use support::WAIT_MAX;
use support::contract::{event, rows_of};
use support::flood::allow_connections;
use support::measure::resident_bytes;
use support::postgres::TestDatabase;
use support::raw::Raw;
use support::server::{Builder, Ingestd};
use support::tls::{Certificates, Identity};

const NAME: &str = "events.example";
/// For settings: longer than anything that a test waits for.
const NEVER_SECONDS: u64 = 3600;

struct Service {
    server: Ingestd,
    database: TestDatabase,
    certificates: Certificates,
}

fn start(configure: impl FnOnce(Builder, &Certificates) -> Builder) -> Service {
    let database = support::postgres::shared().create_database();
    let certificates = Certificates::signed(NAME);
    let builder = Ingestd::builder()
        .database(&database)
        .env("TLS_CERT_FILE", certificates.path("server.pem").display())
        .env("TLS_KEY_FILE", certificates.path("server-key.pem").display());
    let server = configure(builder, &certificates).start();
    Service { server, database, certificates }
}

// --- Clients -------------------------------------------------------------------------------------

/// What a client offers.
#[derive(Default)]
struct Offer {
    version: Option<&'static SupportedProtocolVersion>,
    protocols: &'static [&'static [u8]],
    identity: Option<Identity>,
}

fn client_config(certificates: &Certificates, offer: Offer) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificates.path("ca.pem")).expect("a certificate")).expect("usable");
    let versions = offer.version.map_or(vec![&TLS12, &TLS13], |version| vec![version]);
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&versions)
        .expect("versions")
        .with_root_certificates(roots);
    let mut config = match offer.identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).expect("they fit"),
    };
    config.alpn_protocols = offer.protocols.iter().map(|protocol| protocol.to_vec()).collect();
    config
}

/// A connection that has shaken hands.
struct Https(StreamOwned<ClientConnection, TcpStream>);

impl Https {
    fn connect(server: &Ingestd, certificates: &Certificates, offer: Offer) -> io::Result<Self> {
        let mut stream = TcpStream::connect(server.address())?;
        stream.set_read_timeout(Some(WAIT_MAX))?;
        stream.set_write_timeout(Some(WAIT_MAX))?;
        let name = ServerName::try_from(NAME).expect("a name");
        let config = Arc::new(client_config(certificates, offer));
        let mut session = ClientConnection::new(config, name).map_err(io::Error::other)?;
        while session.is_handshaking() {
            session.complete_io(&mut stream)?;
        }
        Ok(Self(StreamOwned::new(session, stream)))
    }

    /// Sends `request`; status and body of the answer.
    fn ask(&mut self, request: &str) -> io::Result<(u16, String)> {
        self.0.write_all(request.as_bytes())?;
        self.answer()
    }

    fn answer(&mut self) -> io::Result<(u16, String)> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            self.0.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = support::raw::head_of(&head);
        let mut body = vec![0; head.header("content-length").parse().expect("a length")];
        self.0.read_exact(&mut body)?;
        Ok((head.status, String::from_utf8(body).expect("UTF-8")))
    }

    fn is_alive(&mut self) -> bool {
        self.ask("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").is_ok_and(|(status, _)| status == 200)
    }

    fn post(&mut self, id: &str) -> (u16, String) {
        let body = batch(id);
        let request = format!(
            "POST /v1/ingest/batch?ack=commit HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.ask(&request).expect("an answer")
    }

    /// The server's certificate.
    fn certificate(&self) -> CertificateDer<'static> {
        self.0.conn.peer_certificates().expect("it shows one")[0].clone().into_owned()
    }

    fn is_closed(&mut self) -> bool {
        match self.0.read(&mut [0]) {
            Ok(bytes) => bytes == 0,
            Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
        }
    }
}

fn batch(id: &str) -> String {
    json!({"batch_id": id, "events": [event(id)]}).to_string()
}

fn server_certificate(certificates: &Certificates) -> CertificateDer<'static> {
    certificates.identity("server").0.remove(0)
}

// --- Handshakes ----------------------------------------------------------------------------------

#[test]
fn https_is_served_by_tls_1_2_and_1_3() {
    let Service { server, database, certificates } = start(|builder, _| builder);
    assert!(server.url("").starts_with("https://"), "the log says so: {}", server.log());
    for (id, version, expected) in
        [("by-1-2", &TLS12, ProtocolVersion::TLSv1_2), ("by-1-3", &TLS13, ProtocolVersion::TLSv1_3)]
    {
        let offer = Offer { version: Some(version), ..Offer::default() };
        let mut client = Https::connect(&server, &certificates, offer).expect("a handshake");
        assert_eq!(client.0.conn.protocol_version(), Some(expected));
        assert_eq!(client.post(id).0, 200);
        assert!(client.is_alive(), "the connection is kept");
        assert_eq!(rows_of(&database, id), 1);
    }
}

#[test]
fn http_2_is_agreed_on_in_the_handshake() {
    let Service { server, database, certificates } = start(|builder, _| builder);
    let agreed = |protocols: &'static [&'static [u8]]| {
        let offer = Offer { protocols, ..Offer::default() };
        let client = Https::connect(&server, &certificates, offer).expect("a handshake");
        client.0.conn.alpn_protocol().map(<[u8]>::to_vec)
    };
    assert_eq!(agreed(&[b"http/1.1", b"h2"]).as_deref(), Some(&b"h2"[..]), "the server's choice");
    assert_eq!(agreed(&[b"http/1.1"]).as_deref(), Some(&b"http/1.1"[..]));
    assert_eq!(agreed(&[]), None);
    let mut old = Https::connect(&server, &certificates, Offer::default()).expect("a handshake");
    assert!(old.is_alive(), "a client without ALPN is served by HTTP/1");

    let config = client_config(&certificates, Offer { protocols: &[b"h2"], ..Offer::default() });
    let address: SocketAddr = server.address().parse().expect("an address");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let exchanged = async {
        let stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = connector.connect(ServerName::try_from(NAME).expect("a name"), stream).await.expect("a handshake");
        let (client, connection) = h2::client::handshake(stream).await.expect("it speaks HTTP/2");
        tokio::spawn(connection);
        let request = ureq::http::Request::post("https://localhost/v1/ingest/batch?ack=commit");
        let mut client = client.ready().await.expect("a stream");
        let (response, mut body) = client.send_request(request.body(()).expect("a request"), false).expect("a stream");
        body.send_data(Bytes::from(batch("by-http-2")), true).expect("sent");
        response.await.expect("an answer").status().as_u16()
    };
    let status = runtime.block_on(async { tokio::time::timeout(WAIT_MAX, exchanged).await.expect("in time") });
    assert_eq!(status, 200);
    assert_eq!(rows_of(&database, "by-http-2"), 1);
}

#[test]
fn plain_http_is_told_to_use_https() {
    let Service { server, certificates, .. } = start(|builder, _| builder);
    let mut raw = Raw::connect(&server);
    raw.send(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let reply = raw.answer();
    assert_eq!((reply.status, reply.json()["code"].as_str()), (400, Some("https_required")));
    raw.finish_sending();
    assert!(raw.is_closed());
    for garbage in
        [&b"\x16\x03\x01\x00\x05hello"[..], b"\x16\x03\x01", b"\0\0\0\0", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
    {
        let mut raw = Raw::connect(&server);
        raw.send(garbage);
        raw.finish_sending();
        raw.rest();
    }
    assert!(Https::connect(&server, &certificates, Offer::default()).expect("a handshake").is_alive());
}

#[test]
fn slow_handshakes_and_idle_connections_are_closed_at_their_times() {
    // With the other time out of reach it shows that each is closed at its own.
    let times = |head: u64, idle: u64| {
        start(|builder, _| builder.env("HEADER_TIMEOUT_SECONDS", head).env("KEEP_ALIVE_SECONDS", idle))
    };
    let (hasty, patient) = (times(2, NEVER_SECONDS), times(NEVER_SECONDS, 4));
    let connect = |service: &Service| {
        Https::connect(&service.server, &service.certificates, Offer::default()).expect("a handshake")
    };
    let began = Instant::now();
    let mut silent = Raw::connect(&hasty.server);
    let mut half = Raw::connect(&hasty.server);
    half.send(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]);
    let mut without_request = connect(&hasty);
    let mut idle = connect(&patient);
    assert!(idle.is_alive());
    let closed_at = |closed: bool| {
        assert!(closed);
        began.elapsed()
    };
    let heads = [closed_at(silent.is_closed()), closed_at(half.is_closed()), closed_at(without_request.is_closed())];
    assert!(heads.iter().all(|at| at.as_millis() >= 1900), "{heads:?}");
    let kept = closed_at(idle.is_closed());
    assert!(kept.as_millis() >= 3900, "{kept:?}");
}

#[test]
fn a_client_that_is_answered_early_gets_its_answer() {
    let Service { server, certificates, .. } = start(|builder, _| builder.env("MAX_BODY_MB", 1));
    let mut client = Https::connect(&server, &certificates, Offer::default()).expect("a handshake");
    let head = "POST /v1/ingest/batch HTTP/1.1\r\nHost: localhost\r\nContent-Length: 8000000\r\n\r\n";
    client.0.write_all(head.as_bytes()).expect("sent");
    for _ in 0..80 {
        client.0.write_all(&[b' '; 100_000]).expect("the server reads on after its answer");
    }
    assert_eq!(client.answer().expect("an answer").0, 413);
}

#[test]
fn idle_connections_hold_little() {
    const IDLE: usize = 1000;
    allow_connections();
    let Service { server, certificates, .. } = start(|builder, _| builder);
    let connect = || {
        let mut client = Https::connect(&server, &certificates, Offer::default()).expect("a handshake");
        assert!(client.is_alive());
        client
    };
    drop(connect());
    let before = resident_bytes(&server);
    let idle: Vec<_> = (0..IDLE).map(|_| connect()).collect();
    let a_connection = resident_bytes(&server).saturating_sub(before) / idle.len() as u64;
    eprintln!("{a_connection} bytes a connection");
    assert!(a_connection < 48 * 1024, "{a_connection} bytes a connection");
}

// --- Certificates --------------------------------------------------------------------------------

fn copy(from: &Certificates, to: &Certificates, name: &str) {
    std::fs::copy(from.path(name), to.path(name)).expect("copied");
}

#[test]
fn sighup_serves_the_new_certificate_to_new_connections_and_old_ones_go_on() {
    let Service { server, certificates, .. } = start(|builder, _| builder);
    let mut old = Https::connect(&server, &certificates, Offer::default()).expect("a handshake");
    assert!(old.is_alive());
    let first = server_certificate(&certificates);
    assert_eq!(old.certificate(), first);

    // A bad pair changes nothing.
    let renewed = Certificates::signed(NAME);
    copy(&renewed, &certificates, "server.pem");
    server.signal(Signal::HUP);
    server.wait_for_log("could not reload TLS certificates", WAIT_MAX);
    assert!(server.log().contains("is not the key of the first certificate"), "{}", server.log());
    let again = Https::connect(&server, &certificates, Offer::default()).expect("the old certificate");
    assert_eq!(again.certificate(), first);

    copy(&renewed, &certificates, "server-key.pem");
    server.signal(Signal::HUP);
    server.wait_for_log("reloaded TLS certificates", WAIT_MAX);
    let mut new = Https::connect(&server, &renewed, Offer::default()).expect("the new certificate");
    assert_eq!(new.certificate(), server_certificate(&renewed));
    assert!(new.is_alive() && old.is_alive());

    std::fs::remove_file(certificates.path("server.pem")).expect("it is there");
    server.signal(Signal::HUP);
    server.wait_for_log("cannot be read", WAIT_MAX);
    let mut last = Https::connect(&server, &renewed, Offer::default()).expect("the certificate in force");
    assert!(last.is_alive() && new.is_alive() && old.is_alive());
}

#[test]
fn clients_may_show_a_certificate_and_a_wrong_one_is_refused() {
    let Service { server, certificates, .. } =
        start(|builder, certificates| builder.env("TLS_CLIENT_CA_FILE", certificates.path("ca.pem").display()));
    for version in [&TLS12, &TLS13] {
        // With TLS 1.3 a client learns of it only after its own part of the handshake.
        let is_served = |identity: Option<&str>| {
            let identity = identity.map(|name| certificates.identity(name));
            let offer = Offer { version: Some(version), identity, ..Offer::default() };
            Https::connect(&server, &certificates, offer).is_ok_and(|mut client| client.is_alive())
        };
        assert!(is_served(None));
        assert!(is_served(Some("client")));
        assert!(!is_served(Some("stranger")), "{version:?}");
        assert!(is_served(Some("client")));
    }
}

#[test]
fn files_that_do_not_fit_stop_the_start_with_a_line_that_says_what_to_do() {
    let certificates = Certificates::signed(NAME);
    let other = Certificates::signed(NAME);
    let file = |name: &str| certificates.path(name).display().to_string();
    std::fs::write(certificates.path("empty.pem"), "nothing\n").expect("written");
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    std::fs::write(certificates.path("broken.pem"), broken).expect("written");
    let other_key = other.path("server-key.pem").display().to_string();
    let cases = [
        (file("missing.pem"), file("server-key.pem"), "cannot be read"),
        (file("empty.pem"), file("server-key.pem"), "contains no PEM certificate"),
        (file("server-key.pem"), file("server-key.pem"), "contains no PEM certificate"),
        (file("broken.pem"), file("server-key.pem"), "cannot be used"),
        (file("server.pem"), file("missing.pem"), "cannot be read"),
        (file("server.pem"), file("empty.pem"), "contains no unencrypted PEM private key"),
        (file("server.pem"), file("server.pem"), "contains no unencrypted PEM private key"),
        (file("server.pem"), other_key, "is not the key of the first certificate"),
    ];
    for (certificate, key, expected) in &cases {
        for command in ["serve", "check-config"] {
            let settings = [("TLS_CERT_FILE", certificate.as_str()), ("TLS_KEY_FILE", key)];
            let ended = Ingestd::run_to_exit(&[command], &settings);
            assert_eq!(ended.code, Some(2), "{expected}: {}", ended.stderr);
            assert!(ended.stderr.contains(expected), "{}", ended.stderr);
            assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
        }
    }
    let (certificate, key) = (file("server.pem"), file("server-key.pem"));
    let authorities = file("empty.pem");
    let mut settings = vec![("TLS_CERT_FILE", &*certificate), ("TLS_KEY_FILE", &*key)];
    assert_eq!(Ingestd::run_to_exit(&["check-config"], &settings).code, Some(0));
    settings.push(("TLS_CLIENT_CA_FILE", &authorities));
    let ended = Ingestd::run_to_exit(&["check-config"], &settings);
    assert!(ended.code == Some(2) && ended.stderr.contains("TLS_CLIENT_CA_FILE="), "{}", ended.stderr);
}

#[test]
fn an_expired_certificate_is_told() {
    let certificates = Certificates::expired(NAME);
    let file = |name: &str| certificates.path(name).display().to_string();
    let (certificate, key) = (file("server.pem"), file("server-key.pem"));
    let ended = Ingestd::run_to_exit(&["check-config"], &[("TLS_CERT_FILE", &certificate), ("TLS_KEY_FILE", &key)]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("has expired"), "{}", ended.stdout);
}

#[test]
fn healthcheck_asks_by_https() {
    let Service { server, certificates, .. } = start(|builder, _| builder);
    let check = |folder: &Path| {
        let [certificate, key] = ["server.pem", "server-key.pem"].map(|name| folder.join(name).display().to_string());
        let settings = [("LISTEN_ADDR", server.address()), ("TLS_CERT_FILE", &*certificate), ("TLS_KEY_FILE", &*key)];
        support::wait_until("it is ready", WAIT_MAX, || {
            Ingestd::run_to_exit(&["healthcheck"], &settings).code == Some(0)
        });
    };
    let folder = certificates.path("server.pem");
    check(folder.parent().expect("a folder"));
    let plain = Ingestd::run_to_exit(&["healthcheck"], &[("LISTEN_ADDR", server.address())]);
    assert!(plain.code == Some(1) && plain.stderr.contains("returned 400"), "{}", plain.stderr);
}

#[test]
fn batches_are_listed_by_https_at_the_local_address() {
    let Service { server, certificates, .. } = start(|builder, _| builder);
    let [certificate, key] = ["server.pem", "server-key.pem"].map(|name| certificates.path(name).display().to_string());
    let settings = [("LISTEN_ADDR", server.address()), ("TLS_CERT_FILE", &*certificate), ("TLS_KEY_FILE", &*key)];
    let listed = Ingestd::run_to_exit(&["batches", "list"], &settings);
    assert_eq!((listed.code, &*listed.stdout), (Some(0), "no batch is waiting\n"), "{}", listed.stderr);
    // At a URL the certificate must be one that is trusted.
    let url = format!("https://{}", server.address());
    let refused = Ingestd::run_to_exit(&["batches", "list", "--url", &url], &[]);
    assert!(refused.code == Some(1) && refused.stderr.contains("certificate"), "{}", refused.stderr);
}

#[test]
fn a_clients_certificate_counts_as_the_key_that_names_it() {
    let folder = support::folder();
    let keys = folder.path().join("keys.toml");
    let keys = keys.to_str().expect("UTF-8");
    let certificates = Certificates::signed(NAME);
    let fingerprint = Fingerprint::of(&certificates.identity("client").0[0]).to_string().to_uppercase();
    // As OpenSSL prints it.
    let spelt: Vec<_> = (0..fingerprint.len()).step_by(2).map(|at| &fingerprint[at..at + 2]).collect();
    let made = Ingestd::run_to_exit(
        &[
            "keys",
            "new",
            "--api-keys-file",
            keys,
            "--name",
            "c",
            "--scope",
            "ingest",
            "--certificate-sha256",
            &spelt.join(":"),
        ],
        &[],
    );
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    let database = support::postgres::shared().create_database();
    let server = Ingestd::builder()
        .database(&database)
        .env("TLS_CERT_FILE", certificates.path("server.pem").display())
        .env("TLS_KEY_FILE", certificates.path("server-key.pem").display())
        .env("TLS_CLIENT_CA_FILE", certificates.path("ca.pem").display())
        .env("API_KEYS_FILE", keys)
        .start();
    let connect = |identity| {
        let offer = Offer { identity, ..Offer::default() };
        Https::connect(&server, &certificates, offer).expect("a connection")
    };
    let (status, answer) = connect(Some(certificates.identity("client"))).post("by-certificate");
    assert_eq!(status, 200, "{answer}");
    let owner: String =
        database.connect().query_one("SELECT owner FROM ingest_batches", &[]).expect("one batch").get(0);
    assert_eq!(owner, made.stdout.split('_').nth(1).expect("an id"), "its batches are the key's");
    // Signed by the same authority, but no key names it.
    let (status, answer) = connect(Some(certificates.identity("server"))).post("other");
    assert!(status == 401 && answer.contains("key_missing"), "{status} {answer}");
    let (status, answer) = connect(None).post("none");
    assert!(status == 401 && answer.contains("key_missing"), "{status} {answer}");
}
