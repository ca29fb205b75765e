//! `ingestd dead-letter`: events that PostgreSQL refused.

use std::io::{BufWriter, IsTerminal, Write, stdout};

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::failure::Failure;
use super::help::with_examples;
use super::log::printable;
use super::progress::{self, Progress};
use super::{database, settings};
use crate::pg::dead_letter;

pub(super) fn command() -> Command {
    let all = Arg::new("all").long("all").action(ArgAction::SetTrue).help("include those already replayed");
    let limit = Arg::new("limit")
        .long("limit")
        .value_name("N")
        .value_parser(value_parser!(i64).range(1..=1_000_000))
        .default_value("100")
        .help("maximum number to list");
    let id = Arg::new("id")
        .long("id")
        .value_name("N")
        .value_parser(value_parser!(i64).range(1..))
        .help("only the dead letter with this id");
    let list = Command::new("list")
        .about("List dead letters with PostgreSQL's reasons")
        .long_about(
            "List dead letters with PostgreSQL's reasons, one per line: id, time, batch, event, SQLSTATE, reason. \
             Control characters in client data are escaped.",
        )
        .args([all.clone(), limit]);
    let list = with_examples(
        list,
        &[
            ("the first hundred that are not yet replayed", "ingestd dead-letter list"),
            ("including those already replayed", "ingestd dead-letter list --all --limit 1000"),
        ],
    );
    let export = Command::new("export")
        .about("Write dead letters to stdout as NDJSON, events verbatim")
        .long_about(
            "Write dead letters to stdout as NDJSON: one object per line, with the verbatim event as the member \
             'event'.",
        )
        .arg(all);
    let export = with_examples(
        export,
        &[
            ("save them to a file", "ingestd dead-letter export > refused.ndjson"),
            ("count them by reason", "ingestd dead-letter export | grep -o '\"sqlstate\":\"[^\"]*\"' | sort | uniq -c"),
        ],
    );
    let replay = Command::new("replay")
        .about("Replay dead letters after fixing what PostgreSQL rejected")
        .long_about(
            "Replay dead letters after fixing what PostgreSQL rejected. Each is inserted exactly once, however many \
             replays run. If any is rejected again, it stays with the new reason, and the exit code is 1.",
        )
        .arg(id);
    let replay = with_examples(
        replay,
        &[
            ("all that are not yet replayed", "ingestd dead-letter replay"),
            ("only one", "ingestd dead-letter replay --id 17"),
        ],
    );
    Command::new("dead-letter")
        .about("List, export and replay events that PostgreSQL rejected")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([list, export, replay].map(|command| settings::with_settings(command, settings::DATABASE)))
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    match matches.subcommand() {
        Some(("list", matches)) => list(matches),
        Some(("export", matches)) => export(matches),
        Some(("replay", matches)) => replay(matches),
        _ => unreachable!("clap accepts no other command"),
    }
}

fn list(matches: &ArgMatches) -> Result<(), Failure> {
    let mut client = database::connect_migrated(&settings::config(matches)?)?;
    let limit = matches.get_one::<i64>("limit").copied().expect("clap has a default");
    let mut letters = dead_letter::list(&mut client, matches.get_flag("all"), limit + 1)?;
    let more = letters.len() as i64 > limit;
    letters.truncate(limit as usize);
    let mut out = BufWriter::new(stdout().lock());
    for letter in letters {
        // A client chose these names, and PostgreSQL's messages quote data: one line each, no control characters.
        let event_id = letter.event_id.as_deref().unwrap_or("?").escape_debug();
        let message = letter.message.escape_debug();
        let owner = if letter.owner.is_empty() { String::new() } else { format!("{}/", letter.owner) };
        let replayed = letter.replayed_at.map_or_else(String::new, |when| format!(", replayed {when}"));
        writeln!(
            out,
            "{}  {}  batch {owner}{}  event {event_id}  {} {message}{replayed}",
            letter.id, letter.dead_at, letter.batch_id, letter.sqlstate
        )?;
    }
    out.flush()?;
    if more {
        eprintln!("ingestd: only the first {limit} dead letters are listed; raise --limit to see more");
    }
    Ok(())
}

fn export(matches: &ArgMatches) -> Result<(), Failure> {
    let mut client = database::connect_migrated(&settings::config(matches)?)?;
    let all = matches.get_flag("all");
    // Rows that go to the terminal are progress enough, and a bar would be in their way.
    let is_wanted = progress::is_wanted(matches) && !stdout().is_terminal();
    let count = if is_wanted { dead_letter::count(&mut client, all)? } else { 0 };
    let mut progress = Progress::of_count("exporting", is_wanted);
    let mut out = BufWriter::new(stdout().lock());
    dead_letter::export(&mut client, all, &mut out, &mut |written| progress.show(written, count))?;
    Ok(out.flush()?)
}

fn replay(matches: &ArgMatches) -> Result<(), Failure> {
    let mut client = database::connect_migrated(&settings::config(matches)?)?;
    let id = matches.get_one::<i64>("id").copied();
    let is_wanted = progress::is_wanted(matches) && id.is_none();
    let count = if is_wanted { dead_letter::count(&mut client, false)? } else { 0 };
    let mut progress = Progress::of_count("replaying", is_wanted);
    let report = dead_letter::replay(&mut client, id, &mut |tried| progress.show(tried, count))?;
    drop(progress);
    let mut out = stdout().lock();
    writeln!(out, "replayed {}; {} were already present", report.inserted, report.duplicates)?;
    let mut lines: Vec<_> =
        report.refused.iter().map(|(id, why)| format!("dead letter {id} was rejected again: {why}")).collect();
    let Some(last) = lines.pop() else { return Ok(()) };
    for line in lines {
        eprintln!("ingestd: {}", printable(&line));
    }
    Err(Failure::Runtime(last))
}
