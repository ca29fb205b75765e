//! `ingestd journal`: look into the write-ahead journal, empty it, set parts of it aside.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Arg, ArgMatches, Command, ValueHint, value_parser};

use super::failure::Failure;
use super::help::with_examples;
use super::log::{self, printable};
use super::progress::{self, Progress};
use super::{database, load, settings};
use crate::config::settings::Key;
use crate::server::drain::{self, Drained, End};
use crate::sys::open_files;

/// Settings that a drain takes as flags; the others, such as `MAX_BATCH_MEMORY_MB`, from environment and file.
const DRAIN: &[Key] = &[
    Key::DatabaseUrl,
    Key::DatabaseUrlFile,
    Key::MigrateDatabaseUrl,
    Key::MigrateDatabaseUrlFile,
    Key::RedisUrl,
    Key::RedisUrlFile,
    Key::DbPoolMinSize,
    Key::DbPoolMaxSize,
    Key::NodeId,
    Key::DataDir,
    Key::JournalDir,
    Key::LogFormat,
    Key::LogLevel,
];

pub(super) fn command() -> Command {
    let dir = Arg::new("dir")
        .long("dir")
        .value_name("PATH")
        .value_parser(value_parser!(PathBuf))
        .value_hint(ValueHint::DirPath)
        .help("journal directory, instead of JOURNAL_DIR");
    let inspect = Command::new("inspect")
        .about("Print segments, frames, what is not yet committed, and damage")
        .long_about(
            "Print segments, frames, what is not yet committed, and damage. Read-only: it is safe while a server is \
             running.",
        )
        .arg(dir.clone());
    let inspect = with_examples(
        inspect,
        &[
            ("the journal of a server that was started in this directory", "ingestd journal inspect"),
            ("any other journal", "ingestd journal inspect --dir /var/lib/ingestd/journal"),
        ],
    );
    let segment = Arg::new("segment")
        .long("segment")
        .value_name("N")
        .required(true)
        .value_parser(value_parser!(u64).range(1..))
        .help("segment number, as shown by inspect, the log or an error");
    let set_aside = Command::new("set-aside")
        .about("Save the readable part of a segment, then move the segment out of the way")
        .long_about(
            "Save the readable batches of a segment that are not known to be committed, then move the segment to the \
             directory 'set-aside' inside the journal directory. Use it when a journal does not open because of a \
             segment, and for damaged segments that were kept. No server may be using the journal.",
        )
        .args([dir.clone(), segment]);
    let set_aside = with_examples(
        set_aside,
        &[
            ("saves the batches to data/journal/set-aside", "ingestd journal set-aside --segment 7"),
            (
                "send them again; each is stored once",
                "while IFS= read -r batch; do printf %s \"$batch\" | \\\n\
                 curl -H 'Content-Type: application/json' --data-binary @- URL/v1/ingest/batch; done < FILE",
            ),
        ],
    );
    let [inspect, set_aside] = [inspect, set_aside].map(|command| settings::with_settings(command, &[Key::JournalDir]));
    Command::new("journal")
        .about("Inspect the write-ahead journal, commit what a dead node left in it, and set damaged segments aside")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([inspect, drain_command(dir), set_aside])
}

fn drain_command(dir: Arg) -> Command {
    let give_up_after = Arg::new("give-up-after")
        .long("give-up-after")
        .value_name("TIME")
        .default_value("2m")
        .value_parser(load::parse_duration)
        .help("give up when nothing could be committed for this long, for example because PostgreSQL is unavailable");
    let drain = Command::new("drain")
        .about("Commit the batches of a node that will not come back, from any machine")
        .long_about(
            "Commit the batches left in the journal of a node that will not come back. The journal may be mounted or \
             copied, on any machine. Each batch is stored once, however often and wherever this runs, because the \
             ledger records what is committed. No server may be using the journal. Prints what was committed, what was \
             already committed, and what is damaged.\n\nExit code 0 if nothing is left and nothing is damaged; \
             otherwise 1, or 2 if a setting is wrong. SIGTERM and SIGINT end it after the current COPY; after that, or \
             after a kill, run it again.",
        )
        .args([dir, give_up_after]);
    let drain = settings::with_settings(drain, DRAIN);
    with_examples(
        drain,
        &[
            (
                "the journal of another machine's server, mounted or copied here",
                "DATABASE_URL=postgresql://ingestd:secret@db/events ingestd journal drain --dir /mnt/node-3/journal",
            ),
            (
                "also publish the status of its batches to the other nodes, and wait through a long failover",
                "DATABASE_URL=postgresql://ingestd:secret@db/events REDIS_URL=redis://cache \\\n\
                 ingestd journal drain --dir /mnt/node-3/journal --give-up-after 15m",
            ),
        ],
    )
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let Some((name, matches)) = matches.subcommand() else { unreachable!("clap requires a command") };
    let dir = match matches.get_one::<PathBuf>("dir") {
        Some(dir) => dir.clone(),
        None => settings::config(matches)?.journal_dir,
    };
    let mut out = std::io::stdout().lock();
    match name {
        "inspect" => inspect(&dir, progress::is_wanted(matches), &mut out),
        "drain" => drain_journal(&dir, matches, &mut out),
        _ => set_aside(&dir, matches.get_one("segment").copied().expect("clap requires it"), &mut out),
    }
}

fn drain_journal(dir: &Path, matches: &ArgMatches, out: &mut impl Write) -> Result<(), Failure> {
    let config = settings::config(matches)?;
    let database = database::connector(&config)?;
    log::start(&config);
    open_files::raise_limit();
    let is_progress_wanted = progress::is_wanted(matches);
    let patience = *matches.get_one::<Duration>("give-up-after").expect("it has a default");
    let order = drain::Order { dir, database, patience };
    let mut reading = Progress::of_bytes("reading the journal", is_progress_wanted);
    let mut landing = Progress::of_count("committing", is_progress_wanted);
    let drained = drain::run(&config, order, &mut |read, of| reading.show(read, of), &mut |landed, of| {
        landing.show(landed, of);
    })?;
    drop((reading, landing));
    report(&drained, out)?;
    verdict(&drained, dir)
}

fn report(drained: &Drained, out: &mut impl Write) -> Result<(), Failure> {
    let Drained { found, landed, before, rows, duplicates, dead_letters, .. } = drained;
    if !drained.nodes.is_empty() {
        writeln!(out, "journal of {}", printable(&drained.nodes.join(", ")))?;
    }
    if found.batches == 0 {
        writeln!(out, "found nothing uncommitted; the database is unchanged")?;
    } else {
        writeln!(out, "found {} batches, {} events that may not be committed", found.batches, found.events)?;
        writeln!(
            out,
            "committed {} batches: {rows} rows, {duplicates} duplicates, {dead_letters} dead letters",
            landed.batches
        )?;
        writeln!(out, "already committed and skipped: {} batches, {} events", before.batches, before.events)?;
    }
    writeln!(out, "left in the journal: {} batches", drained.left)?;
    for damage in &drained.damage {
        writeln!(out, "damage: {}", printable(damage))?;
    }
    if drained.damage.is_empty() { Ok(writeln!(out, "damage: none")?) } else { Ok(()) }
}

/// Exit code 0 only where a person may delete the journal.
fn verdict(drained: &Drained, dir: &Path) -> Result<(), Failure> {
    let left = drained.left;
    // A COMMIT may be under way whose answer nobody waits for any more.
    let again =
        format!("{left} batches stay in the journal, and some of them may be committed already: run this again");
    let why = match &drained.end {
        End::GaveUp(reason) => format!("gave up: nothing could be committed for too long ({reason}); {again}"),
        End::Interrupted if left > 0 => format!("interrupted; {again}"),
        End::Refused(reason) => {
            format!("{left} batches cannot be committed ({reason}): fix the cause, then run this again")
        }
        End::Done | End::Interrupted if left > 0 || !drained.damage.is_empty() => format!(
            "the journal is damaged: acknowledged batches may be lost; all others are committed. See 'ingestd journal \
             inspect --dir {}'; 'ingestd journal set-aside' moves a segment out of the way",
            dir.display()
        ),
        End::Done | End::Interrupted => return Ok(()),
    };
    Err(Failure::runtime(why))
}

fn set_aside(dir: &Path, segment: u64, out: &mut impl Write) -> Result<(), Failure> {
    let done = crate::journal::set_aside(dir, segment).map_err(Failure::runtime)?;
    if let Some(saved) = &done.saved {
        writeln!(out, "saved {} batches, {} events: {}", done.batches, done.events, saved.display())?;
    } else {
        writeln!(out, "nothing to save: the segment has no readable uncommitted batch")?;
    }
    if done.unreadable > 0 {
        writeln!(out, "unreadable: {} places", done.unreadable)?;
    }
    Ok(writeln!(out, "moved to {}", done.segment.display())?)
}

fn inspect(dir: &Path, is_progress_wanted: bool, out: &mut impl Write) -> Result<(), Failure> {
    let mut progress = Progress::of_bytes("reading", is_progress_wanted);
    let report = crate::journal::inspect_telling(dir, &mut |read, of| progress.show(read, of));
    drop(progress);
    let report = report.map_err(Failure::runtime)?;
    write!(out, "{report}").map_err(Failure::runtime)
}
