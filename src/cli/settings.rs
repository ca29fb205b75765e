//! Flags for settings, made from the table of settings, and the way back from flags to a [`Config`].

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use clap::error::Error;
use clap::{Arg, ArgAction, ArgMatches, Command, ValueHint, value_parser};

use super::conceal;
use super::failure::Failure;
use crate::config::Config;
use crate::config::raw::{Raw, Sources};
use crate::config::settings::{Fallback, Group, Key, Kind, SETTINGS, Setting};

/// Settings that every command which talks to the database takes.
pub(super) const DATABASE: &[Key] = &[Key::DatabaseUrl, Key::DatabaseUrlFile, Key::DataDir];

/// The same for commands that change the schema or partitions.
pub(super) const OWNER: &[Key] =
    &[Key::DatabaseUrl, Key::DatabaseUrlFile, Key::MigrateDatabaseUrl, Key::MigrateDatabaseUrlFile, Key::DataDir];

const HEADING: &str = "Settings (flag > environment > file > default)";

/// `command` with `--config` and flags for `keys`, under one heading.
pub(super) fn with_settings(command: Command, keys: &[Key]) -> Command {
    let config = Arg::new("config")
        .long("config")
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .value_hint(ValueHint::FilePath)
        .help("TOML file with settings, names in lower case")
        .help_heading(HEADING);
    command.arg(config).args(keys.iter().map(|key| flag(key.setting()).help_heading(HEADING)))
}

/// `command` with `--config`, `--embedded` and flags for all settings, by group. Its short help has the essential ones.
pub(super) fn with_all_settings(command: Command) -> Command {
    let grouped = Group::ALL.into_iter().flat_map(|group| SETTINGS.iter().filter(move |s| s.key.group() == group));
    let flags = grouped.map(|setting| {
        let key = setting.key;
        flag(setting).help_heading(key.group().heading()).hide_short_help(!key.is_essential())
    });
    let embedded = Arg::new("embedded")
        .long("embedded")
        .action(ArgAction::SetTrue)
        .conflicts_with_all([Key::DatabaseUrl.name(), Key::DatabaseUrlFile.name()])
        .help("use the private PostgreSQL even if DATABASE_URL is set in the environment or a file");
    with_settings(command.arg(embedded), &[]).args(flags)
}

fn flag(setting: &'static Setting) -> Arg {
    let fallback = match setting.fallback {
        Fallback::Value(text) => format!("default: {text}"),
        Fallback::Unset(text) => format!("unset: {text}"),
    };
    Arg::new(setting.name)
        .long(setting.flag())
        .value_name(setting.kind.placeholder())
        .value_hint(hint(setting.key))
        .value_parser(Suggested(if let Kind::Choice(words) = setting.kind { words } else { &[] }))
        .hide_possible_values(true)
        .allow_negative_numbers(true)
        .help(format!("{} [{}; {fallback}]", setting.help, setting.name))
}

/// What a shell may complete.
fn hint(key: Key) -> ValueHint {
    match key.setting().kind {
        Kind::Path if matches!(key, Key::JournalDir | Key::DataDir | Key::IngestdPgBin) => ValueHint::DirPath,
        Kind::Path => ValueHint::FilePath,
        Kind::PostgresUrl | Kind::RedisUrl => ValueHint::Url,
        _ => ValueHint::Other,
    }
}

/// Any text, and words that a shell may complete: values are judged with those of environment and file, not here.
#[derive(Clone)]
struct Suggested(&'static [&'static str]);

impl TypedValueParser for Suggested {
    type Value = String;

    fn parse_ref(&self, command: &Command, argument: Option<&Arg>, value: &std::ffi::OsStr) -> Result<String, Error> {
        StringValueParser::new().parse_ref(command, argument, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        (!self.0.is_empty()).then(|| Box::new(self.0.iter().map(PossibleValue::new)) as _)
    }
}

/// The flags in `matches`.
pub(super) fn flags(matches: &ArgMatches) -> BTreeMap<Key, String> {
    let text = |key: Key| matches.try_get_one::<String>(key.name()).ok().flatten();
    SETTINGS.iter().filter_map(|setting| Some((setting.key, text(setting.key)?.clone()))).collect()
}

/// All settings as given, from the flags in `matches`, the environment and the file.
pub(super) fn raw(matches: &ArgMatches) -> Raw {
    let mut flags = flags(matches);
    flags.extend(conceal::moved());
    let embedded = matches.try_get_one::<bool>("embedded").ok().flatten().copied().unwrap_or(false);
    let file = matches.get_one::<PathBuf>("config");
    let environment = |name: &str| std::env::var_os(name);
    Raw::gather(Sources { flags, embedded, environment: Some(&environment), file: file.map(PathBuf::as_path) })
}

/// The valid settings.
pub(super) fn config(matches: &ArgMatches) -> Result<Config, Failure> {
    Ok(Config::from_raw(&raw(matches))?)
}
