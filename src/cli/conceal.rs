//! Passwords leave the command line, which every user of the machine can read in `/proc/PID/cmdline`.
//!
//! When a flag holds a URL with a password, the program replaces itself, in the same process, by itself with the URL in
//! the environment and without the flag. [`GIVEN_AS_FLAG`] then says which variables were flags: nothing that was given
//! changes its precedence or its origin. Between its start and this, some milliseconds, the command line is as it was
//! given: a file (`DATABASE_URL_FILE`) has no such moment.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use clap::ArgMatches;

use super::settings;
use crate::config::redact;
use crate::config::settings::{Key, SETTINGS, Setting};

/// The program, whatever has become of the file that it was started from.
const SELF: &str = "/proc/self/exe";
/// The variable with the names of those that were flags, separated by commas.
const GIVEN_AS_FLAG: &str = "INGESTD_GIVEN_AS_FLAG";

/// Does not return where `arguments`, with which this process was started, hold a password: it begins anew. Unless the
/// system refuses; then that is told, and the command runs all the same.
pub fn passwords(arguments: &[OsString]) {
    // What clap refuses is told later, by whoever wants to run it.
    let Ok(matches) = super::command().try_get_matches_from(arguments) else { return };
    let Some((_, command)) = innermost(&matches) else { return };
    let flags = settings::flags(command);
    let secret = flags.iter().filter(|(key, text)| key.setting().is_secret() && redact::url(text) != **text);
    let secret: BTreeMap<Key, &String> = secret.map(|(key, text)| (*key, text)).collect();
    let (Some(name), false) = (arguments.first(), secret.is_empty()) else { return };
    let names: Vec<_> = secret.keys().map(|key| key.name()).collect();
    let error = Command::new(SELF)
        .arg0(name)
        .args(without(&arguments[1..], secret.keys().map(|key| key.setting())))
        .envs(secret.iter().map(|(key, text)| (key.name(), text)))
        .env(GIVEN_AS_FLAG, names.join(","))
        .exec();
    let flags: Vec<_> = secret.keys().map(|key| format!("--{}", key.setting().flag())).collect();
    eprintln!("ingestd: the password in {} is visible to every user of this machine: {error}", flags.join(", "));
}

/// Flags of ours that [`passwords`] moved to the environment.
pub(super) fn moved() -> impl Iterator<Item = (Key, String)> {
    let names = env::var(GIVEN_AS_FLAG).unwrap_or_default();
    let was_flag = move |setting: &&Setting| names.split(',').any(|name| name == setting.name);
    let secrets = SETTINGS.iter().filter(|setting| setting.is_secret());
    secrets.filter(was_flag).filter_map(|setting| Some((setting.key, env::var(setting.name).ok()?)))
}

/// The command that was asked for, below all others.
fn innermost(matches: &ArgMatches) -> Option<(&str, &ArgMatches)> {
    let (name, command) = matches.subcommand()?;
    Some(innermost(command).unwrap_or((name, command)))
}

/// `arguments` without the flags of `settings` and their values, in both forms. No value can look like such a flag: clap
/// has accepted them.
fn without<'a>(arguments: &[OsString], settings: impl Iterator<Item = &'a Setting>) -> Vec<OsString> {
    let flags: Vec<OsString> = settings.map(|setting| format!("--{}", setting.flag()).into()).collect();
    let mut rest = arguments.iter();
    let mut kept = Vec::new();
    while let Some(argument) = rest.next() {
        if flags.contains(argument) {
            rest.next();
        } else if !flags.iter().any(|flag| has_value(argument, flag)) {
            kept.push(argument.clone());
        }
    }
    kept
}

/// True for `--flag=value`.
fn has_value(argument: &OsStr, flag: &OsStr) -> bool {
    argument.as_bytes().strip_prefix(flag.as_bytes()).is_some_and(|rest| rest.first() == Some(&b'='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_flag_go_and_nothing_else() {
        let arguments: Vec<OsString> =
            ["serve", "--database-url", "x", "--redis-url=y", "--database-url-file", "z", "--redis-urls=w"]
                .map(Into::into)
                .into();
        let settings = [Key::DatabaseUrl, Key::RedisUrl].map(Key::setting);
        let kept = without(&arguments, settings.into_iter());
        assert_eq!(kept, ["serve", "--database-url-file", "z", "--redis-urls=w"]);
    }
}
