//! `ingestd journal`: look into the write-ahead journal.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, Command, ValueHint, value_parser};

use super::failure::Failure;
use super::help::with_examples;
use super::progress::{self, Progress};
use super::settings;
use crate::config::settings::Key;

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
        .args([dir, segment]);
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
    Command::new("journal")
        .about("Look into the write-ahead journal, and set damaged parts aside")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([inspect, set_aside].map(|command| settings::with_settings(command, &[Key::JournalDir])))
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
        _ => set_aside(&dir, matches.get_one("segment").copied().expect("clap requires it"), &mut out),
    }
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
