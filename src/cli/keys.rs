//! `ingestd keys`: API keys.

use std::io::{Write, stderr, stdout};
use std::num::NonZeroU32;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::failure::Failure;
use super::help::with_examples;
use super::settings;
use crate::auth::file::{self, KeysError, KeysFile, Record};
use crate::auth::key::{Fingerprint, Token};
use crate::auth::scope::Scopes;
use crate::config::Problems;
use crate::config::settings::Key;
use crate::status::model::rfc3339;
use crate::sys::clock::wall_now;

const NAME_CHARS_MAX: usize = 100;

pub(super) fn command() -> Command {
    let new = Command::new("new")
        .about("Create a key and print it once")
        .long_about(
            "Create a key, add it to API_KEYS_FILE and print it. It cannot be shown again: only its hash is stored. \
             Send SIGHUP to a running server to load it.",
        )
        .args(new_arguments());
    let new = with_examples(
        new,
        &[
            (
                "a key that sends batches and reads their status",
                "ingestd keys new --api-keys-file keys.toml --name checkout --scope ingest,read",
            ),
            (
                "a key for some services, with its own rate limits",
                "ingestd keys new --api-keys-file keys.toml --name shop --scope ingest --service 'shop-*' \\\n\
                 --events-per-second 5000 --events-burst 20000",
            ),
            (
                "a key for Prometheus, saved to a file",
                "ingestd keys new --api-keys-file keys.toml --name prometheus --scope metrics > prometheus.key",
            ),
        ],
    );
    let list = Command::new("list").about("List the keys: id, scopes, limits, name");
    let list = with_examples(list, &[("the keys in a file", "ingestd keys list --api-keys-file keys.toml")]);
    let revoke = Command::new("revoke")
        .about("Remove a key from the file")
        .long_about(
            "Remove a key from the file. A running server rejects it after SIGHUP. Its batches stay; their status is \
             then visible only to keys with the scope 'admin', which select the key with ?owner=ID.",
        )
        .arg(Arg::new("id").value_name("ID").required(true).help("the key's id, as shown by 'ingestd keys list'"));
    let revoke =
        with_examples(revoke, &[("revoke this key", "ingestd keys revoke --api-keys-file keys.toml 0123456789ab")]);
    Command::new("keys")
        .about("Create, list and revoke API keys")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([new, list, revoke].map(|command| settings::with_settings(command, &[Key::ApiKeysFile])))
}

fn new_arguments() -> [Arg; 8] {
    let number = |id: &'static str, help: &'static str| {
        Arg::new(id).long(id).value_name("N").value_parser(value_parser!(NonZeroU32)).help(help)
    };
    [
        Arg::new("name")
            .long("name")
            .value_name("NAME")
            .required(true)
            .help("descriptive name, such as the service that uses the key"),
        Arg::new("scope")
            .long("scope")
            .value_name("SCOPE")
            .required(true)
            .value_delimiter(',')
            .action(ArgAction::Append)
            .help(
                "what the key may do: ingest (send batches), read (status of its own batches), metrics (metrics and \
                 details of health), admin (status of all batches, retrying and burying stuck ones, and metrics)",
            ),
        Arg::new("service")
            .long("service")
            .value_name("PATTERN")
            .value_delimiter(',')
            .action(ArgAction::Append)
            .help("service names whose events the key may send, such as 'checkout-*'; default: all"),
        number("events-per-second", "limit for this key, instead of RATE_LIMIT_EVENTS_PER_SECOND"),
        number("events-burst", "events that the key may send at once").requires("events-per-second"),
        number("requests-per-second", "limit for this key, instead of RATE_LIMIT_REQUESTS_PER_SECOND"),
        number("requests-burst", "requests that the key may send at once").requires("requests-per-second"),
        Arg::new("certificate-sha256").long("certificate-sha256").value_name("HEX").help(
            "SHA-256 fingerprint of a client certificate that is accepted as this key, as printed by 'openssl \
                x509 -fingerprint -sha256'",
        ),
    ]
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    match matches.subcommand() {
        Some(("new", matches)) => new(matches),
        Some(("list", matches)) => list(matches),
        Some(("revoke", matches)) => revoke(matches),
        _ => unreachable!("clap accepts no other command"),
    }
}

fn keys_file(matches: &ArgMatches) -> Result<KeysFile, Failure> {
    let raw = settings::raw(matches);
    if !raw.problems.is_empty() {
        return Err(Problems(raw.problems).into());
    }
    match raw.get(Key::ApiKeysFile).text.as_deref().map(str::trim) {
        Some(path) if !path.is_empty() => Ok(KeysFile::at(path.as_ref())),
        _ => Err(Failure::usage("no key file: give --api-keys-file FILE or set API_KEYS_FILE")),
    }
}

impl From<KeysError> for Failure {
    fn from(error: KeysError) -> Self {
        Self::usage(error.to_string())
    }
}

fn new(matches: &ArgMatches) -> Result<(), Failure> {
    let file = keys_file(matches)?;
    let texts = |id: &str| matches.get_many::<String>(id).unwrap_or_default().cloned().collect::<Vec<_>>();
    let number = |id: &str| matches.get_one::<NonZeroU32>(id).copied();
    let name = matches.get_one::<String>("name").cloned().unwrap_or_default();
    if name.trim().is_empty() || name.chars().count() > NAME_CHARS_MAX || name.chars().any(char::is_control) {
        return Err(Failure::usage(format!("--name must be 1 to {NAME_CHARS_MAX} printable characters")));
    }
    let scopes: Scopes = file::scopes(&texts("scope")).map_err(|why| Failure::usage(format!("--scope: {why}")))?;
    let certificate = match matches.get_one::<String>("certificate-sha256") {
        None => None,
        Some(text) => Some(Fingerprint::parse(text).ok_or_else(|| {
            Failure::usage("--certificate-sha256 must be 64 hexadecimal digits, with or without colons")
        })?),
    };
    let token = Token::random()
        .map_err(|error| Failure::runtime(format!("cannot get random numbers from the system: {error}")))?;
    file.add(&Record {
        id: token.id.clone(),
        name,
        sha256: Fingerprint::of(token.text.as_bytes()).to_string(),
        scopes: scopes.names().into_iter().map(str::to_owned).collect(),
        services: texts("service"),
        events_per_second: number("events-per-second"),
        events_burst: number("events-burst"),
        requests_per_second: number("requests-per-second"),
        requests_burst: number("requests-burst"),
        certificate_sha256: certificate.map(|certificate| certificate.to_string()),
        created_at: Some(rfc3339(wall_now())),
    })?;
    // What goes to stdout is the key alone, for scripts; the rest is for people.
    writeln!(stdout(), "{}", token.text)?;
    writeln!(
        stderr(),
        "created key {}; it cannot be shown again. Send SIGHUP to a running server to load it.",
        token.id
    )?;
    Ok(())
}

fn list(matches: &ArgMatches) -> Result<(), Failure> {
    let file = keys_file(matches)?;
    file.keys()?;
    let mut out = stdout().lock();
    for record in file.records()? {
        let mut line = format!("{}  {}", record.id, record.scopes.join(","));
        if !record.services.is_empty() {
            line.push_str(&format!("  services {}", record.services.join(",")));
        }
        let limits = [
            (record.events_per_second, record.events_burst, "events/s"),
            (record.requests_per_second, record.requests_burst, "requests/s"),
        ];
        for (per_second, burst, unit) in limits {
            let Some(per_second) = per_second else { continue };
            line.push_str(&format!("  {per_second} {unit}"));
            if let Some(burst) = burst {
                line.push_str(&format!(" (burst {burst})"));
            }
        }
        if record.certificate_sha256.is_some() {
            line.push_str("  certificate");
        }
        let name = record.name.escape_debug();
        writeln!(out, "{line}  created {}  {name}", record.created_at.as_deref().unwrap_or("by hand"))?;
    }
    Ok(())
}

fn revoke(matches: &ArgMatches) -> Result<(), Failure> {
    let id = matches.get_one::<String>("id").cloned().unwrap_or_default();
    if keys_file(matches)?.remove(&id)? {
        writeln!(stdout(), "revoked key {id}; send SIGHUP to a running server to apply this")?;
        return Ok(());
    }
    Err(Failure::usage(format!("there is no key '{}'; list the keys with 'ingestd keys list'", id.escape_debug())))
}
