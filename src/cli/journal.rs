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
        .help("folder of the journal, instead of JOURNAL_DIR");
    let inspect = Command::new("inspect")
        .about("Print segments, frames, what is not yet committed, and damage")
        .long_about(
            "Print segments, frames, what is not yet committed, and damage. Reads only: it may run beside a server.",
        )
        .arg(dir.clone());
    let inspect = with_examples(
        inspect,
        &[
            ("the journal of a server that was started in this folder", "ingestd journal inspect"),
            ("any other", "ingestd journal inspect --dir /var/lib/ingestd/journal"),
        ],
    );
    let segment = Arg::new("segment")
        .long("segment")
        .value_name("N")
        .required(true)
        .value_parser(value_parser!(u64).range(1..))
        .help("number of the segment, as inspect, the log or an error names it");
    let set_aside = Command::new("set-aside")
        .about("Save what can be read of a segment, then move it out of the way")
        .long_about(
            "Save what can be read of a segment and is not known to be committed, then move it to the folder 'set-aside' \
             in the journal's. For a journal that does not open because of that segment, and for damaged segments that \
             were kept. No server may run on the journal.",
        )
        .args([dir.clone(), segment]);
    let set_aside = with_examples(
        set_aside,
        &[
            ("the saved batches lie in data/journal/set-aside", "ingestd journal set-aside --segment 7"),
            (
                "send them again, each lands once",
                "while IFS= read -r batch; do printf %s \"$batch\" | \\\n\
                 curl -H 'Content-Type: application/json' --data-binary @- URL/v1/ingest/batch; done < FILE",
            ),
        ],
    );
    let [inspect, set_aside] = [inspect, set_aside].map(|command| settings::with_settings(command, &[Key::JournalDir]));
    Command::new("journal")
        .about("Look into the write-ahead journal, land what a dead node left in it, and set damaged parts aside")
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
        .help("end when nothing has landed for so long, because PostgreSQL is away, say");
    let drain = Command::new("drain")
        .about("Land the batches of a node that will not come back, from any machine")
        .long_about(
            "Land the batches that are in the journal of a node that will not come back: mounted or copied, from any machine. \
             Each lands once, however often and wherever this runs, because the ledger tells what is committed. No server \
             may run on the journal. Prints what was landed, what was committed before, and what is damaged.\n\n\
             Exit code 0 when nothing is left and nothing is damaged; else 1, or 2 where a setting is wrong. SIGTERM and \
             SIGINT end it after the COPY in hand; then, and after a kill, run it again.",
        )
        .args([dir, give_up_after]);
    let drain = settings::with_settings(drain, DRAIN);
    with_examples(
        drain,
        &[
            (
                "the folder of another machine's server, mounted or copied here",
                "DATABASE_URL=postgresql://ingestd:secret@db/events ingestd journal drain --dir /mnt/node-3/journal",
            ),
            (
                "with the status of its batches for the other nodes, and patience for a long failover",
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
        writeln!(out, "found nothing that is not committed; the database is as it was")?;
    } else {
        writeln!(out, "found {} batches, {} events that may not be committed", found.batches, found.events)?;
        writeln!(
            out,
            "committed {} batches: {rows} rows, {duplicates} duplicates, {dead_letters} dead letters",
            landed.batches
        )?;
        writeln!(out, "committed before, and left alone: {} batches, {} events", before.batches, before.events)?;
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
    let again = format!("{left} batches stay in the journal: run this again");
    let why = match &drained.end {
        End::GaveUp(reason) => format!("gave up, nothing has landed for too long ({reason}); {again}"),
        End::Interrupted if left > 0 => format!("interrupted; {again}"),
        End::Refused(reason) => format!("{left} batches cannot land ({reason}): put that right, then run this again"),
        End::Done | End::Interrupted if left > 0 || !drained.damage.is_empty() => format!(
            "the journal is damaged, acknowledged batches may be lost; all others have landed. See 'ingestd journal inspect \
             --dir {}'; 'ingestd journal set-aside' puts a segment out of the way",
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
        writeln!(out, "nothing to save: no readable batch in it is uncommitted")?;
    }
    if done.unreadable > 0 {
        writeln!(out, "could not read: {} places", done.unreadable)?;
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
