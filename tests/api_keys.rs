//! Who may do what: API keys, their scopes, services and batches, and how they are changed while the server runs.

mod support;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use support::contract::{batch, event};
use support::postgres::{self, TestDatabase};
use support::server::{Ingestd, Reply, get, get_with, post, try_post};
use support::{OnDrop, WAIT_MAX, wait_until};

/// A file of keys in a folder of its own.
struct Keys {
    folder: TempDir,
}

impl Keys {
    fn new() -> Self {
        Self { folder: support::folder() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("keys.toml")
    }

    /// Makes a key with `arguments`; its token.
    fn make(&self, arguments: &[&str]) -> String {
        let path = self.path();
        let mut all = vec!["keys", "new", "--api-keys-file", path.to_str().expect("UTF-8")];
        all.extend_from_slice(arguments);
        let done = Ingestd::run_to_exit_in(self.folder.path(), &all, &[]);
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        assert_eq!(done.stdout.lines().count(), 1, "the key alone, for scripts: {}", done.stdout);
        assert!(done.stderr.contains("cannot be shown again"), "{}", done.stderr);
        done.stdout.trim().to_owned()
    }

    fn with_scope(&self, scope: &str) -> String {
        self.make(&["--name", "test", "--scope", scope])
    }

    fn run(&self, arguments: &[&str]) -> support::server::Finished {
        let path = self.path();
        let settings = [("API_KEYS_FILE", path.to_str().expect("UTF-8"))];
        Ingestd::run_to_exit_in(self.folder.path(), arguments, &settings)
    }

    fn server(&self, database: &TestDatabase) -> Ingestd {
        Ingestd::builder().database(database).env("API_KEYS_FILE", self.path().display()).start()
    }
}

/// The id in `token`.
fn id(token: &str) -> &str {
    token.split('_').nth(1).expect("a token has an id")
}

fn send(server: &Ingestd, token: &str, query: &str, body: &Value) -> Reply {
    let headers = [("Content-Type", "application/json"), ("X-API-Key", token)];
    post(&server.url(&format!("/v1/ingest/batch?{query}")), &headers, body.to_string().as_bytes())
}

fn read(server: &Ingestd, token: &str, path: &str) -> Reply {
    get_with(&server.url(path), &[("Authorization", &format!("Bearer {token}"))])
}

/// The answer about `batch`, once PostgreSQL could be asked in time.
fn status(server: &Ingestd, token: &str, batch: &str) -> Reply {
    let ask = || Some(read(server, token, &format!("/v1/batch/{batch}/status"))).filter(|reply| reply.status != 503);
    let mut reply = ask();
    wait_until("the ledger answers in time", WAIT_MAX, || {
        reply = reply.take().or_else(ask);
        reply.is_some()
    });
    reply.expect("just seen")
}

#[test]
fn every_resource_asks_for_its_scope_and_probes_ask_for_nothing() {
    let keys = Keys::new();
    let tokens = ["ingest", "read", "metrics", "admin"].map(|scope| (scope, keys.with_scope(scope)));
    let database = postgres::shared().create_database();
    let server = keys.server(&database);
    let allowed = [("ingest", &["ingest"][..]), ("read", &["read", "admin"]), ("metrics", &["metrics", "admin"])];
    for (needed, scopes) in allowed {
        for (scope, token) in &tokens {
            let reply = match needed {
                "ingest" => send(&server, token, "", &batch(&format!("by-{scope}"), 1)),
                "read" => status(&server, token, "nobody-has-this"),
                _ => read(&server, token, "/v1/metrics"),
            };
            if scopes.contains(scope) {
                assert_eq!(
                    reply.status,
                    if needed == "ingest" {
                        202
                    } else if needed == "read" {
                        404
                    } else {
                        200
                    }
                );
                continue;
            }
            assert_eq!(reply.status, 403, "{scope} for {needed}: {}", reply.text());
            let problem = reply.json();
            assert_eq!(problem["code"], "scope_missing");
            assert!(problem["detail"].as_str().expect("text").contains(&format!("'{needed}'")), "{problem}");
            assert!(reply.header("www-authenticate").contains(&format!("scope=\"{needed}\"")));
        }
    }
    for path in ["/livez", "/readyz"] {
        assert_eq!(get(&server.url(path)).status, 200);
    }
    let (brief, whole) = (get(&server.url("/v1/health")).json(), read(&server, &tokens[2].1, "/v1/health").json());
    assert_eq!(brief, json!({"status": "healthy"}), "figures are not for everybody");
    assert!(whole["checks"]["database"]["connections"].is_object(), "{whole}");
}

#[test]
fn without_a_right_key_the_answer_is_401_and_nothing_is_taken() {
    let keys = Keys::new();
    let token = keys.with_scope("ingest,read");
    let database = postgres::shared().create_database();
    let server = keys.server(&database);
    let body = batch("never", 1).to_string();
    let url = server.url("/v1/ingest/batch");
    let mut wrong = token.clone();
    let last = wrong.pop().expect("not empty");
    wrong.push(if last == '0' { '1' } else { '0' });
    let bearer = format!("Bearer {wrong}");
    for (headers, code) in [
        (&[("Content-Type", "application/json")][..], "key_missing"),
        (&[("X-API-Key", &*wrong)], "key_invalid"),
        (&[("Authorization", &*bearer)], "key_invalid"),
        (&[("Authorization", "Basic dXNlcjpwYXNz")], "key_invalid"),
    ] {
        let reply = post(&url, headers, body.as_bytes());
        assert_eq!((reply.status, &reply.json()["code"]), (401, &json!(code)), "{}", reply.text());
        assert!(reply.header("www-authenticate").starts_with("Bearer realm=\"ingestd\""));
        assert!(!reply.text().contains(&wrong) && !server.log().contains(&wrong), "tokens are never repeated");
    }
    assert_eq!(get(&server.url("/v1/metrics")).status, 401);
    assert_eq!(get(&server.url("/v1/batch/x/status")).status, 401);
    assert_eq!(status(&server, &token, "never").status, 404);
    assert_eq!(send(&server, &token, "ack=commit", &batch("never", 1)).status, 200);
}

#[test]
fn a_batch_belongs_to_its_key_and_admins_see_all() {
    let keys = Keys::new();
    let (one, two) = (keys.with_scope("ingest,read"), keys.with_scope("ingest,read"));
    let admin = keys.with_scope("admin");
    let database = postgres::shared().create_database();
    let mut server = keys.server(&database);
    let bodies =
        [json!({"batch_id": "same", "events": [event("a")]}), json!({"batch_id": "same", "events": [event("b")]})];
    for (token, body) in [&one, &two].into_iter().zip(&bodies) {
        assert_eq!(send(&server, token, "ack=commit", body).status, 200, "two keys may use the same id");
        let again = send(&server, token, "ack=commit", body);
        assert_eq!((again.status, &again.json()["duplicate"]), (200, &json!(true)));
    }
    assert_eq!(send(&server, &one, "", &bodies[1]).status, 409);
    assert_eq!(send(&server, &one, "ack=commit", &batch("mine", 2)).status, 200);
    // First from memory; then, started anew, from the ledger.
    for round in 0..2 {
        assert_eq!(status(&server, &one, "mine").json()["inserted"], 2);
        assert_eq!(status(&server, &two, "mine").status, 404, "another key's batch does not exist");
        assert_eq!(status(&server, &admin, "mine").json()["inserted"], 2);
        let ambiguous = status(&server, &admin, "same");
        assert_eq!((ambiguous.status, &ambiguous.json()["code"]), (409, &json!("batch_ambiguous")));
        let detail = ambiguous.json()["detail"].to_string();
        assert!(detail.contains(id(&one)) && detail.contains(id(&two)), "{detail}");
        let of_two = format!("/v1/batch/same/status?owner={}", id(&two));
        assert_eq!(read(&server, &admin, &of_two).json()["status"], "completed");
        assert_eq!(read(&server, &two, &of_two).json()["status"], "completed");
        let refused = read(&server, &one, &of_two);
        assert_eq!((refused.status, &refused.json()["code"]), (403, &json!("scope_missing")));
        if round == 0 {
            server.restart();
            // What the journal still had is landed again first.
            wait_until("it is finished", WAIT_MAX, || status(&server, &one, "mine").json()["inserted"] == 2);
        }
    }
    let owners = database.connect().query("SELECT DISTINCT owner FROM ingest_batches ORDER BY 1", &[]).expect("rows");
    let mut expected = [id(&one), id(&two)];
    expected.sort_unstable();
    assert_eq!(owners.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>(), expected);
}

#[test]
fn a_key_may_be_bound_to_services() {
    let keys = Keys::new();
    let token = keys.make(&["--name", "checkout", "--scope", "ingest", "--service", "user-*,cart"]);
    let database = postgres::shared().create_database();
    let server = keys.server(&database);
    let of = |id: &str, service: &str| {
        let mut event = event(id);
        event["service_name"] = json!(service);
        event
    };
    assert_eq!(send(&server, &token, "", &json!([of("a", "user-service"), of("b", "cart")])).status, 202);
    let foreign = send(&server, &token, "", &json!([of("c", "user-x"), of("d", "cart2"), of("e", "payment")]));
    assert_eq!((foreign.status, &foreign.json()["code"]), (403, &json!("service_not_allowed")), "{}", foreign.text());
    let verdicts = foreign.json()["errors"].clone();
    assert_eq!((&verdicts[0]["pointer"], &verdicts[0]["event_id"]), (&json!("/1/service_name"), &json!("d")));
    assert_eq!((&verdicts[1]["index"], &verdicts[1]["code"]), (&json!(2), &json!("service_not_allowed")));
    let mixed = json!({"events": [json!(7), of("f", "other"), of("g", "cart"), json!({})]});
    assert_eq!(send(&server, &token, "", &mixed).status, 422);
    let reply = send(&server, &token, "invalid=skip", &mixed);
    assert_eq!((reply.status, &reply.json()["accepted"]), (202, &json!(1)), "{}", reply.text());
    let answer = reply.json();
    let verdicts = answer["errors"].as_array().expect("verdicts");
    let codes: Vec<_> = verdicts.iter().map(|verdict| (verdict["index"].as_u64(), verdict["code"].as_str())).collect();
    let expected = [(0, "event_not_object"), (1, "service_not_allowed"), (3, "member_missing")];
    assert_eq!(codes, expected.map(|(index, code)| (Some(index), Some(code))));
}

#[test]
fn sighup_reads_keys_again_and_drops_no_request() {
    let keys = Keys::new();
    let (old, stays) = (keys.with_scope("read"), keys.with_scope("ingest,read"));
    let database = postgres::shared().create_database();
    let server = keys.server(&database);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let _end = OnDrop(|| done.store(true, Ordering::Relaxed));
        let load = scope.spawn(|| {
            let mut sent = 0;
            while !done.load(Ordering::Relaxed) {
                let headers = [("X-API-Key", &*stays)];
                let body = batch(&format!("load-{sent}"), 1).to_string();
                let reply = try_post(&server.url("/v1/ingest/batch"), &headers, body.as_bytes())
                    .expect("no request is dropped");
                assert_eq!(reply.status, 202, "{}", reply.text());
                sent += 1;
            }
            sent
        });
        let new = keys.with_scope("read");
        assert_eq!(status(&server, &new, "x").status, 401, "not read yet");
        assert_eq!(keys.run(&["keys", "revoke", id(&old)]).code, Some(0));
        assert_eq!(status(&server, &old, "x").status, 404, "not read yet");
        server.signal(Signal::HUP);
        wait_until("the new key is taken", WAIT_MAX, || status(&server, &new, "x").status == 404);
        assert_eq!(status(&server, &old, "x").status, 401, "revoked");
        std::fs::write(keys.path(), "[[key]]\nid = 'broken'\n").expect("written");
        server.signal(Signal::HUP);
        server.wait_for_log("the previous keys stay in force", WAIT_MAX);
        assert_eq!(status(&server, &new, "x").status, 404);
        done.store(true, Ordering::Relaxed);
        assert!(load.join().expect("the load does not fail") > 0);
    });
}

#[test]
fn wrong_keys_are_counted_and_slowed_and_right_ones_are_not() {
    const AT_ONCE: u64 = 10;
    const MORE: u64 = 40;
    const DELAY: Duration = Duration::from_secs(1);
    let keys = Keys::new();
    let token = keys.with_scope("read,metrics");
    let database = postgres::shared().create_database();
    let server = keys.server(&database);
    let time = |token: &str, expected: u16| {
        let begun = Instant::now();
        assert_eq!(read(&server, token, "/v1/metrics").status, expected);
        begun.elapsed()
    };
    // Those that were answered at once, and those that had to wait.
    let wrong_keys = || {
        let metrics = read(&server, &token, "/v1/metrics").text();
        ["key_invalid", "too_many_failed_attempts"].map(|reason| {
            let name = format!("ingestd_auth_failures_total{{reason=\"{reason}\"}} ");
            let line = metrics.lines().find_map(|line| line.strip_prefix(&name)).expect("the counter is there");
            line.parse::<u64>().expect("a number")
        })
    };
    let begun = Instant::now();
    for _ in 0..AT_ONCE {
        time("guess", 401);
    }
    assert_eq!(wrong_keys(), [AT_ONCE, 0], "typing errors are answered at once");

    let took: Vec<Duration> = thread::scope(|scope| {
        let guesses: Vec<_> = (0..MORE).map(|_| scope.spawn(|| time("guess", 401))).collect();
        guesses.into_iter().map(|guess| guess.join().expect("an answer")).collect()
    });
    let [at_once, slowed] = wrong_keys();
    let may = AT_ONCE + begun.elapsed().as_secs() + 1;
    assert!(at_once <= may, "ten, and one a second: {at_once}, not {may}");
    assert_eq!(at_once + slowed, AT_ONCE + MORE);
    let slow = took.iter().filter(|took| **took >= DELAY).count() as u64;
    assert!(slowed > 0 && slow >= slowed, "{slowed} had to wait for a second each, of which {slow} did: {took:?}");

    // While others go on guessing from the same address.
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let _end = OnDrop(|| done.store(true, Ordering::Relaxed));
        for _ in 0..4 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    time("guess", 401);
                }
            });
        }
        wait_until("they are slowed", WAIT_MAX, || wrong_keys()[1] >= slowed + 4);
        wait_until("a right key does not wait", WAIT_MAX, || time(&token, 200) < DELAY);
    });
}

#[test]
fn the_file_holds_no_key_and_its_commands_say_what_they_do() {
    let keys = Keys::new();
    let token =
        keys.make(&["--name", "first key", "--scope", "ingest", "--events-per-second", "5", "--events-burst", "9"]);
    let secret = token.rsplit('_').next().expect("a secret");
    assert_eq!(secret.len(), 64, "256 bits");
    let text = std::fs::read_to_string(keys.path()).expect("the file");
    assert!(!text.contains(secret), "only a hash is stored");
    let list = keys.run(&["keys", "list"]);
    assert!(list.stdout.contains(id(&token)) && list.stdout.contains("first key"), "{}", list.stdout);
    assert!(list.stdout.contains("5 events/s (burst 9)") && !list.stdout.contains(secret), "{}", list.stdout);
    for (arguments, expected) in [
        (&["keys", "revoke", "nobody"][..], "there is no key 'nobody'"),
        (&["keys", "new", "--name", "x", "--scope", "root"], "unknown scope 'root'; the scopes are ingest,read"),
        (&["keys", "new", "--name", "", "--scope", "read"], "--name must be"),
        (&["keys", "new", "--name", "x", "--scope", "read", "--certificate-sha256", "12"], "64 hexadecimal digits"),
        (&["keys", "new", "--name", "x", "--scope", "read", "--events-burst", "5"], "--events-per-second"),
    ] {
        let done = keys.run(arguments);
        assert_eq!(done.code, Some(2), "{arguments:?}: {}", done.stderr);
        assert!(done.stderr.contains(expected), "{arguments:?}: {}", done.stderr);
    }
    let nowhere = Ingestd::run_to_exit(&["keys", "list"], &[]);
    assert!(nowhere.code == Some(2) && nowhere.stderr.contains("--api-keys-file"), "{}", nowhere.stderr);
}

#[test]
fn a_file_that_cannot_be_used_stops_the_start() {
    let folder = support::folder();
    let path = folder.path().join("keys.toml");
    let shown = path.to_str().expect("UTF-8");
    let start = |text: Option<&str>| {
        if let Some(text) = text {
            std::fs::write(Path::new(shown), text).expect("written");
        }
        for command in ["serve", "check-config"] {
            let settings = [("API_KEYS_FILE", shown), ("LISTEN_ADDR", "0.0.0.0:0")];
            let done = Ingestd::run_to_exit(&[command], &settings);
            assert_eq!(done.code, Some(2), "{}", done.stderr);
            assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
            assert!(done.stderr.contains(shown), "{}", done.stderr);
            if text.is_none() {
                assert!(done.stderr.contains("ingestd keys new"), "{}", done.stderr);
            }
        }
    };
    start(None);
    start(Some("not toml"));
    start(Some("[[key]]\nid = 'a'\nname = 'a'\nsha256 = 'x'\nscopes = ['read']\n"));
}

#[test]
fn another_node_tells_of_a_batch_to_its_key_only() {
    let keys = Keys::new();
    let (sender, other) = (keys.with_scope("ingest,read"), keys.with_scope("read"));
    let database = postgres::shared().create_database();
    let (first, second) = (keys.server(&database), keys.server(&database));
    assert_eq!(send(&first, &sender, "ack=commit", &batch("elsewhere", 3)).status, 200);
    wait_until("the other node knows it", WAIT_MAX, || status(&second, &sender, "elsewhere").status == 200);
    assert_eq!(status(&second, &other, "elsewhere").status, 404);
}

#[test]
fn a_batch_of_services_that_its_key_may_no_longer_send_is_answered_as_the_repeat_that_it_is() {
    let keys = Keys::new();
    let token = keys.make(&["--name", "checkout", "--scope", "ingest"]);
    let database = postgres::shared().create_database();
    let server = keys.server(&database);
    let body = |id: &str| json!({ "batch_id": id, "events": [event("a")] });
    assert_eq!(send(&server, &token, "ack=commit", &body("before")).status, 200);
    let file = std::fs::read_to_string(keys.path()).expect("the file of keys");
    std::fs::write(keys.path(), format!("{file}\nservices = [\"other-*\"]\n")).expect("written");
    server.signal(Signal::HUP);
    wait_until("the key is narrowed", WAIT_MAX, || send(&server, &token, "", &json!([event("new")])).status == 403);
    let again = send(&server, &token, "", &body("before"));
    assert_eq!((again.status, &again.json()["duplicate"]), (200, &json!(true)), "{}", again.text());
    assert_eq!(send(&server, &token, "ack=commit", &body("before")).json()["inserted"], 1);
}
