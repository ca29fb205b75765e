//! Examples for `--help` and the man pages.

use clap::Command;

/// What an example does, and the line that does it; a long one goes on after ` \\` and a line break.
pub(super) type Example = (&'static str, &'static str);

/// What the section of examples begins with.
pub(super) const EXAMPLES: &str = "Examples:";

/// `command` with its examples: the first under `-h`, all under `--help`.
pub(super) fn with_examples(command: Command, examples: &[Example]) -> Command {
    let shown = |examples: &[Example]| {
        let one = |(what, line): &Example| format!("  {}\n      {what}", line.replace('\n', "\n    "));
        let lines: Vec<String> = examples.iter().map(one).collect();
        format!("{EXAMPLES}\n{}", lines.join("\n"))
    };
    let first = format!("{}\n\nSee --help for more.", shown(&examples[..1]));
    command.after_help(first).after_long_help(shown(examples))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every command that does something, by its words.
    fn leaves(command: &Command, words: &str, found: &mut Vec<(String, Command)>) {
        for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
            let words = format!("{words} {}", below.get_name());
            if below.has_subcommands() {
                leaves(below, &words, found);
            } else {
                found.push((words, below.clone()));
            }
        }
    }

    #[test]
    fn every_command_has_examples_of_itself_that_are_well_formed() {
        let (mut root, mut found) = (crate::cli::command(), Vec::new());
        root.build();
        leaves(&root, "ingestd", &mut found);
        assert!(found.len() > 12, "{}", found.len());
        for (words, command) in found {
            let help = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
            let help = help.replace("\\\n", "");
            let lines = help.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
            let own: Vec<_> = lines.filter(|line| line.contains(&*words)).collect();
            assert!(!own.is_empty(), "{words} has no example: {help:?}");
            for line in own {
                let start = line.find(&*words).expect("it contains the words");
                let end = line[start..].find([';', '|', '>', '&', ')']).map_or(line.len(), |at| start + at);
                let arguments = line[start..end].split_whitespace().map(|word| word.trim_matches('\''));
                let parsed = crate::cli::command().try_get_matches_from(arguments);
                assert!(parsed.is_ok(), "{line}: {}", parsed.err().map(|e| e.to_string()).unwrap_or_default());
            }
        }
    }
}
