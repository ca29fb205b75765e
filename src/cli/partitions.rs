//! `ingestd partitions`: monthly partitions of `events`.

use std::io::{Write, stdout};

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::failure::Failure;
use super::help::with_examples;
use super::progress::{self, Progress};
use super::{database, settings};
use crate::pg::clock;
use crate::pg::partitions::{self, Month, Partition, PartitionError};
use crate::types::UnixMicros;

const MONTHS_MAX: u32 = 1200;

pub(super) fn command() -> Command {
    let month = Arg::new("month")
        .long("month")
        .value_name("YYYY-MM")
        .required(true)
        .action(ArgAction::Append)
        .value_parser(parse_month)
        .help("month (UTC) to create a partition for; may be given several times");
    let older_than = Arg::new("older-than")
        .long("older-than")
        .value_name("Nmonths")
        .required(true)
        .value_parser(parse_age)
        .help("drop partitions that end before the month this many months ago, such as 3months");
    let dry_run = Arg::new("dry-run")
        .long("dry-run")
        .action(ArgAction::SetTrue)
        .help("print what would be dropped, drop nothing");
    let create = Command::new("create")
        .about("Create the partition of a month, if missing")
        .long_about("Create the partition of a month, if missing. Requires the role that owns the tables.")
        .arg(month);
    let create = with_examples(
        create,
        &[
            ("one month", "ingestd partitions create --month 2026-12"),
            ("two", "ingestd partitions create --month 2027-01 --month 2027-02"),
        ],
    );
    let list = Command::new("list").about("List partitions with bounds, rows (estimated) and size");
    let list = with_examples(list, &[("all partitions", "ingestd partitions list")]);
    let cleanup = Command::new("cleanup")
        .about("Drop whole partitions of old months, with their rows")
        .long_about(
            "Drop whole partitions of old months, with their rows. Waits for running transactions and does not block \
             new ones. Completes an interrupted cleanup.",
        )
        .args([older_than, dry_run]);
    let cleanup = with_examples(
        cleanup,
        &[
            (
                "in December 2026: list the partitions of August 2026 and before",
                "ingestd partitions cleanup --older-than 3months --dry-run",
            ),
            ("drop them", "ingestd partitions cleanup --older-than 3months"),
        ],
    );
    Command::new("partitions")
        .about("Create, list and drop monthly partitions")
        .long_about(
            "Create, list and drop monthly partitions of events. The server creates them ahead of time and on demand; \
             use these commands where it lacks the rights to do so, and to drop old months by hand.",
        )
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([create, list, cleanup].map(|command| settings::with_settings(command, settings::OWNER)))
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    match matches.subcommand() {
        Some(("create", matches)) => create(matches),
        Some(("list", matches)) => list(matches),
        Some(("cleanup", matches)) => cleanup(matches),
        _ => unreachable!("clap accepts no other command"),
    }
}

fn create(matches: &ArgMatches) -> Result<(), Failure> {
    let mut client = database::connect_migrated_as_owner(&settings::config(matches)?)?;
    let months: Vec<Month> = matches.get_many("month").into_iter().flatten().copied().collect();
    let made = partitions::ensure(&mut client, &months).map_err(PartitionError::from)?;
    let mut out = stdout().lock();
    for month in months {
        let did = if made.contains(&month.partition_name()) { "created" } else { "already present:" };
        writeln!(out, "{did} {}", month.partition_name())?;
    }
    Ok(())
}

fn list(matches: &ArgMatches) -> Result<(), Failure> {
    let mut client = database::connect_migrated(&settings::config(matches)?)?;
    let found = partitions::list(&mut client)?;
    let mut out = stdout().lock();
    let width = found.iter().map(|partition| partition.name.len()).max().unwrap_or(0).max("PARTITION".len());
    writeln!(out, "{:width$}  {:20}  {:20}  {:>14}  {:>10}", "PARTITION", "FROM", "TO", "ROWS (EST.)", "SIZE")?;
    for partition in found {
        let Partition { name, start, end, rows_estimate, bytes, detaching, .. } = &partition;
        let (from, to, size) = (instant(*start), instant(*end), size(*bytes));
        let note = if *detaching { "  being detached" } else { "" };
        writeln!(out, "{name:width$}  {from:20}  {to:20}  {rows_estimate:>14}  {size:>10}{note}")?;
    }
    Ok(())
}

fn cleanup(matches: &ArgMatches) -> Result<(), Failure> {
    let mut client = database::connect_migrated_as_owner(&settings::config(matches)?)?;
    let months = matches.get_one::<u32>("older-than").copied().expect("clap requires it");
    let dry_run = matches.get_flag("dry-run");
    let now = clock::agreed_now(&mut client).map_err(PartitionError::from)?;
    let waiting = Progress::of_waiting("waiting for transactions to end", progress::is_wanted(matches));
    let dropped = partitions::cleanup(&mut client, now, months, dry_run);
    drop(waiting);
    let dropped = dropped?;
    let mut out = stdout().lock();
    let did = if dry_run { "would drop" } else { "dropped" };
    for partition in &dropped {
        let (name, rows, size) = (&partition.name, partition.rows_estimate, size(partition.bytes));
        writeln!(out, "{did} {name} (about {rows} rows, {size})")?;
    }
    if dropped.is_empty() {
        writeln!(out, "no partition ends before {}", Month::of(now).plus(-(months as i32)))?;
    }
    Ok(())
}

fn parse_month(text: &str) -> Result<Month, String> {
    Month::parse(text).ok_or_else(|| "must be a year and a month, such as 2026-12".into())
}

/// Reads `3months`, `1month`.
fn parse_age(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix("months").or_else(|| text.strip_suffix("month")).map(str::trim);
    let months = number.and_then(|number| number.parse().ok()).filter(|months| (1..=MONTHS_MAX).contains(months));
    months.ok_or_else(|| format!("must be a number of months from 1 to {MONTHS_MAX}, such as 3months"))
}

fn instant(bound: Option<UnixMicros>) -> String {
    match bound.map(|instant| jiff::Timestamp::from_microsecond(instant.0)) {
        Some(Ok(instant)) => instant.to_string(),
        Some(Err(_)) => "out of range".into(),
        None => "unbounded".into(),
    }
}

fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_numbers_of_months() {
        assert_eq!(parse_age("3months"), Ok(3));
        assert_eq!(parse_age("1month"), Ok(1));
        assert_eq!(parse_age("12 months"), Ok(12));
        for bad in ["3", "0months", "-1months", "1201months", "3days", "months", ""] {
            assert!(parse_age(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(u64::MAX), "16777216.0 TiB");
    }
}
