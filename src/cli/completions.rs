//! `ingestd completions`: scripts that teach a shell the commands and flags.

use std::io::{Write, stdout};

use clap::{Arg, ArgMatches, Command, value_parser};
use clap_complete::Shell;

use super::failure::Failure;
use super::help::with_examples;

pub(super) fn command() -> Command {
    let shell = Arg::new("shell").value_name("SHELL").required(true).value_parser(value_parser!(Shell));
    let command = Command::new("completions")
        .about("Print a shell completion script")
        .arg(shell.help("the shell to generate the script for"));
    with_examples(
        command,
        &[
            ("for the current bash session", "source <(ingestd completions bash)"),
            (
                "for all bash sessions of this user",
                "ingestd completions bash > ~/.local/share/bash-completion/completions/ingestd",
            ),
            (
                "for all zsh sessions, in a directory of $fpath",
                "ingestd completions zsh > /usr/local/share/zsh/site-functions/_ingestd",
            ),
            (
                "for all fish sessions of this user",
                "ingestd completions fish > ~/.config/fish/completions/ingestd.fish",
            ),
        ],
    )
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let shell = matches.get_one::<Shell>("shell").copied().expect("clap requires it");
    // The generators panic when they cannot write, as into `| head`.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut super::command(), "ingestd", &mut script);
    Ok(stdout().write_all(&script)?)
}
