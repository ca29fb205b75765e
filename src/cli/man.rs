//! `ingestd man`: man pages, made from the commands themselves.

use std::fs;
use std::io::{self, Write, stdout};
use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, Command, ValueHint, value_parser};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::failure::Failure;
use super::help::{EXAMPLES, with_examples};

const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(super) fn command() -> Command {
    let dir = Arg::new("dir")
        .long("dir")
        .value_name("PATH")
        .value_parser(value_parser!(PathBuf))
        .value_hint(ValueHint::DirPath)
        .help("write a page for each command to this directory, which is created if missing");
    let command = Command::new("man")
        .about("Print the man page, or write a page for each command to a directory")
        .long_about(
            "Print the man page ingestd(1) to stdout, or write ingestd.1 and a page for each command, such as \
             ingestd-serve.1, to a directory.",
        )
        .arg(dir);
    with_examples(
        command,
        &[
            ("read the page", "ingestd man | man -l -"),
            ("for every user: man ingestd-serve", "ingestd man --dir /usr/local/share/man/man1"),
        ],
    )
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let mut root = super::command().disable_help_subcommand(true);
    root.build();
    match matches.get_one::<PathBuf>("dir") {
        None => Ok(stdout().write_all(&page(root)?)?),
        Some(dir) => {
            let refused = |error| Failure::runtime(format!("cannot write man pages to {}: {error}", dir.display()));
            fs::create_dir_all(dir).and_then(|()| write(&root, dir)).map_err(refused)
        }
    }
}

/// Writes the page of `command`, and those of all below it.
fn write(command: &Command, dir: &Path) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    fs::write(dir.join(format!("{name}.1")), page(command.clone())?)?;
    command.get_subcommands().try_for_each(|below| write(below, dir))
}

/// As [`Man::render`] has it, with the examples as they are typed.
fn page(command: Command) -> io::Result<Vec<u8>> {
    let examples = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
    let has_commands = command.has_subcommands();
    // One line, as --help has it, instead of every flag once more.
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").trim().to_owned();
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    // Where it is left out of the short help its text is left out here, too.
    let man = Man::new(command.override_usage(usage).mut_args(|argument| argument.hide_short_help(false)));
    let mut page = Vec::new();
    // By hand, because a page without a date, which would differ from build to build, needs the empty argument. No
    // hyphens in names of settings, and no wide gaps before long URLs.
    writeln!(page, r#".TH "{name}" 1 "" "ingestd {VERSION}" "ingestd manual""#)?;
    writeln!(page, ".nh\n.ad l")?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if has_commands {
        man.render_subcommands_section(&mut page)?;
    }
    let lines = examples.strip_prefix(EXAMPLES).unwrap_or_default().trim_matches('\n').lines();
    let mut roff = Roff::new();
    roff.control("SH", ["EXAMPLES"]).control("nf", []);
    for line in lines {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
    roff.to_writer(&mut page)?;
    Ok(page)
}
