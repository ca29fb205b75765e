//! `ingestd batches`: batches that wait on a running server, and what to do with those that are stuck.

use std::io::{BufWriter, Write, stdout};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use hyper::{Method, Uri};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rustls::pki_types::ServerName;
use serde::Deserialize;
use serde_json::Value;
use tokio::task::LocalSet;
use tokio_rustls::TlsConnector;

use super::client::{self, Answer, Connection, Secure, Target};
use super::failure::Failure;
use super::help::with_examples;
use super::log::printable;
use super::{local, settings};
use crate::config::settings::Key;
use crate::limits::WAITING_LISTED_MAX;
use crate::types::batch_id_is_valid;

/// Longest wait for the answer: a list of everything looks at everything.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// Settings that say where the server on this machine is.
const LOCAL: &[Key] = &[Key::ListenAddr, Key::Auth, Key::TlsCertFile, Key::TlsKeyFile, Key::TlsClientCaFile];

pub(super) fn command() -> Command {
    let stuck = Arg::new("stuck")
        .long("stuck")
        .action(ArgAction::SetTrue)
        .help("only batches that cannot be committed although others can");
    let limit = Arg::new("limit")
        .long("limit")
        .value_name("N")
        .value_parser(value_parser!(u64).range(1..=WAITING_LISTED_MAX as u64))
        .default_value("100")
        .help("maximum number to list");
    let json = Arg::new("json").long("json").action(ArgAction::SetTrue).help("print one JSON object per line");
    let list = Command::new("list")
        .about("List the batches that wait, stuck ones first, with PostgreSQL's reasons")
        .long_about(
            "List the batches that were accepted but not committed: stuck ones first, then the others, the oldest first. \
             A batch is stuck if it cannot be committed although others can; the table shows how often it failed, when \
             it is retried, and the last failure. Batches in a COPY are not listed. Control characters are escaped.",
        )
        .args([stuck, limit, json]);
    let list = with_examples(
        list,
        &[
            ("what cannot be committed at present, and why", "ingestd batches list --stuck"),
            ("the same for programs", "ingestd batches list --stuck --json | head -n 1"),
            (
                "another node, with a key that has the scope admin",
                "ingestd batches list --url https://node-2.example:8000 --api-key-file admin.key",
            ),
        ],
    );
    let retry = Command::new("retry")
        .about("Retry a stuck batch now, after fixing the cause")
        .long_about(
            "Retry a stuck batch now, after fixing the cause. Without this the server retries it by itself, after at most \
             30 seconds. If it is committed, stuck batches with the same SQLSTATE follow at once.",
        )
        .args(meant());
    let retry = with_examples(
        retry,
        &[
            ("after the cause is gone", "ingestd batches retry my_batch_001"),
            ("if several keys have a batch with this id", "ingestd batches retry my_batch_001 --owner e215b5e1ee79"),
        ],
    );
    let bury = Command::new("bury")
        .about("Give up a stuck batch: its events become dead letters")
        .long_about(
            "Give up a stuck batch. All its events go to dead_letter_events with the last failure as the reason, in one \
             transaction, and the batch ends with the status 'failed'. Nothing is lost: once the cause is gone, \
             'ingestd dead-letter replay' stores the events. Without this the server tries its rows one by one after \
             STUCK_BATCH_MINUTES.",
        )
        .args(meant());
    let bury = with_examples(
        bury,
        &[
            ("do not wait for STUCK_BATCH_MINUTES", "ingestd batches bury my_batch_001"),
            ("store its events later, when the cause is gone", "ingestd dead-letter replay"),
        ],
    );
    Command::new("batches")
        .about("List, retry and give up batches that are not committed")
        .long_about(
            "List, retry and give up batches that are not committed. These commands talk to a running server: the one at \
             the first address of LISTEN_ADDR, or the one at --url. A batch waits on the node that accepted it.",
        )
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands(
            [list, retry, bury].map(|command| settings::with_settings(command.args(server_arguments()), LOCAL)),
        )
}

fn server_arguments() -> [Arg; 2] {
    let url = Arg::new("url")
        .long("url")
        .value_name("URL")
        .help("URL of the server; default: the server on this machine, at the first address of LISTEN_ADDR");
    [url, client::api_key_file("the scope admin")]
}

/// Which batch is meant.
fn meant() -> [Arg; 2] {
    let id = Arg::new("id").value_name("ID").required(true).help("the batch's id, as shown by 'ingestd batches list'");
    let owner = Arg::new("owner")
        .long("owner")
        .value_name("KEY_ID")
        .help("id of the API key that sent the batch; needed only if several keys have a batch with this id");
    [id, owner]
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    match matches.subcommand() {
        Some(("list", matches)) => list(matches),
        Some(("retry", matches)) => retry(matches),
        Some(("bury", matches)) => bury(matches),
        _ => unreachable!("clap accepts no other command"),
    }
}

#[derive(Deserialize)]
struct Listed {
    total: usize,
    batches: Vec<Value>,
}

/// What the table shows of a batch.
#[derive(Deserialize)]
struct Row {
    batch_id: String,
    owner: String,
    priority: u8,
    events: u32,
    received_at: String,
    stuck: Option<StuckRow>,
}

#[derive(Deserialize)]
struct StuckRow {
    since: Option<String>,
    attempts: u32,
    next_attempt_at: Option<String>,
    reason: String,
    given_up: bool,
}

fn list(matches: &ArgMatches) -> Result<(), Failure> {
    let (only_stuck, limit) = (matches.get_flag("stuck"), matches.get_one::<u64>("limit").copied().unwrap_or_default());
    let body = ask(matches, Method::GET, &format!("/v1/batches?stuck={only_stuck}&limit={limit}"))?;
    let Listed { total, batches } = serde_json::from_slice(&body).map_err(not_ours)?;
    let mut out = BufWriter::new(stdout().lock());
    if matches.get_flag("json") {
        for batch in &batches {
            writeln!(out, "{}", printable(&batch.to_string()))?;
        }
    } else if batches.is_empty() {
        writeln!(out, "{}", if only_stuck { "no batch is stuck" } else { "no batch is waiting" })?;
    } else {
        let rows: Result<Vec<Row>, _> = batches.iter().map(Row::deserialize).collect();
        out.write_all(table(&rows.map_err(not_ours)?).as_bytes())?;
    }
    out.flush()?;
    if batches.len() < total {
        eprintln!("ingestd: only the first {} of {total} batches are listed; raise --limit to see more", batches.len());
    }
    Ok(())
}

const HEADINGS: [&str; 8] =
    ["ID", "OWNER", "PRIORITY", "EVENTS", "WAITING SINCE", "ATTEMPTS", "NEXT ATTEMPT", "REASON"];

/// `rows` under [`HEADINGS`], as wide as what is in them; the reason comes last and may be long.
fn table(rows: &[Row]) -> String {
    let cells: Vec<[String; 8]> = rows.iter().map(cells).collect();
    let width = |column: usize| {
        let widths = cells.iter().map(|cells| cells[column].chars().count());
        widths.max().unwrap_or(0).max(HEADINGS[column].len())
    };
    let widths: [usize; 8] = std::array::from_fn(width);
    let line = |cells: &[String; 8]| {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", padded.collect::<Vec<_>>().join("  ").trim_end())
    };
    std::iter::once(HEADINGS.map(str::to_owned)).chain(cells.iter().cloned()).map(|cells| line(&cells)).collect()
}

fn cells(row: &Row) -> [String; 8] {
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { printable(text).into_owned() };
    let (attempts, next, reason) = match &row.stuck {
        None => (String::new(), String::new(), String::new()),
        Some(stuck) => {
            let next = match (&stuck.next_attempt_at, &stuck.since) {
                (Some(at), _) => to_seconds(at),
                (None, Some(_)) => "now",
                // It waits for its shard.
                (None, None) => "",
            };
            let given_up = if stuck.given_up { "given up; " } else { "" };
            (stuck.attempts.to_string(), next.to_owned(), format!("{given_up}{}", stuck.reason))
        }
    };
    [
        or_dash(&row.batch_id),
        or_dash(&row.owner),
        row.priority.to_string(),
        row.events.to_string(),
        or_dash(to_seconds(&row.received_at)),
        or_dash(&attempts),
        or_dash(&next),
        or_dash(&reason),
    ]
}

/// An RFC 3339 time in UTC without its fraction.
fn to_seconds(time: &str) -> &str {
    time.split(['.', 'Z']).next().unwrap_or(time)
}

/// What is said of a batch that a wish was noted for.
#[derive(Deserialize)]
struct Noted {
    events: u32,
    reason: Option<String>,
}

fn retry(matches: &ArgMatches) -> Result<(), Failure> {
    let (id, noted) = wish(matches, "retry")?;
    let reason = noted.reason.map_or_else(String::new, |reason| format!("; last failure: {}", printable(&reason)));
    Ok(writeln!(stdout(), "batch {id} will be retried now{reason}")?)
}

fn bury(matches: &ArgMatches) -> Result<(), Failure> {
    let (id, noted) = wish(matches, "bury")?;
    writeln!(
        stdout(),
        "batch {id} is given up; its {} events will become dead letters as soon as PostgreSQL takes them",
        noted.events
    )?;
    eprintln!(
        "ingestd: the events go to dead_letter_events, not to events; when the cause is gone, store them with \
         'ingestd dead-letter replay'"
    );
    Ok(())
}

fn wish(matches: &ArgMatches, word: &str) -> Result<(String, Noted), Failure> {
    let id = matches.get_one::<String>("id").cloned().unwrap_or_default();
    if !batch_id_is_valid(&id) {
        return Err(Failure::usage(format!("'{id}' is not a batch id; list the batches with 'ingestd batches list'")));
    }
    let owner = matches.get_one::<String>("owner");
    let owner =
        owner.map_or_else(String::new, |owner| format!("?owner={}", utf8_percent_encode(owner, NON_ALPHANUMERIC)));
    let body = ask(matches, Method::POST, &format!("/v1/batch/{id}/{word}{owner}"))?;
    Ok((id, serde_json::from_slice(&body).map_err(not_ours)?))
}

fn not_ours(error: serde_json::Error) -> Failure {
    Failure::runtime(format!("the response is not that of an ingestd of this version: {error}"))
}

/// The body of the server's answer, if that is a success.
fn ask(matches: &ArgMatches, method: Method, path: &str) -> Result<Bytes, Failure> {
    let target = target(matches)?;
    let authority = target.authority.clone();
    let path: Uri = path.parse().map_err(Failure::runtime)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::runtime(format!("cannot start: {error}")))?;
    let sending = async { Connection::new(&Rc::new(target)).send(method, &path, Bytes::new()).await };
    let answer = LocalSet::new().block_on(&runtime, sending).map_err(|no_answer| {
        let is_running = if no_answer.was_sent { "" } else { "; is the server running?" };
        Failure::runtime(format!("no response from {authority}: {}{is_running}", no_answer.why))
    })?;
    judge(&authority, answer)
}

/// What an answer other than a success means for whoever called.
fn judge(authority: &str, (status, body): Answer) -> Result<Bytes, Failure> {
    if (200..300).contains(&status) {
        return Ok(body);
    }
    let problem: Value = serde_json::from_slice(&body).unwrap_or_default();
    let text = |member: &str| problem[member].as_str().unwrap_or_default().to_owned();
    let detail = text("detail");
    Err(match (status, &*text("code")) {
        (401 | 403, "key_missing" | "key_invalid" | "scope_missing") => Failure::usage(format!(
            "{authority} refused: {detail}; give --api-key-file FILE with a key that has the scope admin"
        )),
        (404, "batch_unknown") => Failure::runtime(format!(
            "{authority} knows no such batch: it may be committed, or wait on another node (--url); list the batches with \
             'ingestd batches list'"
        )),
        (404, "not_found") => Failure::runtime(format!("the server at {authority} is too old for this command")),
        (409, "batch_ambiguous") => Failure::runtime(format!("{}; use --owner", detail.replace("?owner=", "--owner"))),
        _ if !detail.is_empty() => Failure::runtime(detail),
        _ => Failure::runtime(format!("{authority} returned {status}, and no ingestd does so")),
    })
}

/// The server that is meant.
fn target(matches: &ArgMatches) -> Result<Target, Failure> {
    let key = matches.get_one::<PathBuf>("api-key-file");
    let authorization = key.map(|path| client::authorization(path)).transpose()?;
    let (authority, secure) = match matches.get_one::<String>("url") {
        Some(url) => client::address(url)?,
        None => here(matches)?,
    };
    Ok(Target { authority, secure, authorization, timeout: WAIT_MAX })
}

/// The one on this machine.
fn here(matches: &ArgMatches) -> Result<(String, Option<Secure>), Failure> {
    let config = settings::config(matches)?;
    let Some(address) = config.listen.first().map(local::reachable) else { unreachable!("LISTEN_ADDR has an address") };
    if address.port() == 0 {
        return Err(Failure::usage("LISTEN_ADDR has port 0 (any free port): give the server's actual port, or --url"));
    }
    let secure = match &config.tls {
        None => None,
        Some(files) => Some(Secure {
            connector: TlsConnector::from(local::trusted(address, files).map_err(Failure::usage)?),
            name: ServerName::from(address.ip()),
        }),
    };
    Ok((address.to_string(), secure))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_is_as_wide_as_its_cells_and_steers_no_terminal() {
        let rows = [
            Row {
                batch_id: "a".to_owned(),
                owner: String::new(),
                priority: 10,
                events: 3,
                received_at: "2026-11-24T04:03:19.198980Z".to_owned(),
                stuck: Some(StuckRow {
                    since: Some("2026-11-24T04:03:20Z".to_owned()),
                    attempts: 7,
                    next_attempt_at: None,
                    reason: "x\u{1b}[2J\ny".to_owned(),
                    given_up: true,
                }),
            },
            Row {
                batch_id: "a-longer-id".to_owned(),
                owner: "e215b5e1ee79".to_owned(),
                priority: 0,
                events: 100_000,
                received_at: "2026-11-24T04:03:19Z".to_owned(),
                stuck: None,
            },
        ];
        let expected = "\
ID           OWNER         PRIORITY  EVENTS  WAITING SINCE        ATTEMPTS  NEXT ATTEMPT  REASON
a            -             10        3       2026-11-24T04:03:19  7         now           given up; x\\u001b[2J\\ny
a-longer-id  e215b5e1ee79  0         100000  2026-11-24T04:03:19  -         -             -
";
        assert_eq!(table(&rows), expected);
    }

    #[test]
    fn every_refusal_says_what_to_do() {
        let judged = |status: u16, code: &str| {
            let problem = json!({ "code": code, "detail": "the detail" }).to_string();
            match judge("host:1", (status, problem.into())) {
                Err(Failure::Usage(lines)) => (2, lines.join("")),
                Err(Failure::Runtime(line)) => (1, line),
                other => panic!("{other:?}"),
            }
        };
        for (status, code, exit, says) in [
            (401, "key_missing", 2, "--api-key-file"),
            (403, "scope_missing", 2, "scope admin"),
            (404, "batch_unknown", 1, "--url"),
            (404, "not_found", 1, "too old"),
            (409, "batch_ambiguous", 1, "--owner"),
            (409, "batch_not_stuck", 1, "the detail"),
            (502, "", 1, "the detail"),
        ] {
            let (found, line) = judged(status, code);
            assert_eq!(found, exit, "{line}");
            assert!(line.contains(says), "{line}");
        }
        assert!(judge("host:1", (202, Bytes::from_static(b"{}"))).is_ok());
    }
}
