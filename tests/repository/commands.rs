//! The commands that documents show exist, with every flag: `ingestd …` and `make …`.

use std::collections::{BTreeSet, HashMap};
use std::process::Command;

use super::markdown::documents;
use super::{assert_none, read};

/// What `ingestd WORDS… --help` prints, asked once; `None` when there is no such command.
#[derive(Default)]
struct Helps(HashMap<Vec<String>, Option<String>>);

impl Helps {
    fn of(&mut self, words: &[String]) -> Option<&str> {
        let help = self.0.entry(words.to_vec()).or_insert_with(|| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_ingestd"));
            let output = command.args(words).arg("--help").env("NO_COLOR", "1").output().expect("the program runs");
            output.status.success().then(|| String::from_utf8(output.stdout).expect("help is UTF-8"))
        });
        help.as_deref()
    }
}

/// The words behind `ingestd` in one line of a shell, up to what ends the command.
fn invocation(line: &str) -> Option<Vec<&str>> {
    let line = line.split(" #").next()?.trim();
    let words: Vec<_> =
        line.split_whitespace().skip_while(|word| *word == "$" || *word == "sudo" || word.contains('=')).collect();
    let program = words.first()?;
    if *program != "ingestd" && !program.ends_with("/ingestd") {
        return None;
    }
    let ends = |word: &&str| ["|", "||", "&&", ";", "&", ">", "2>", "2>/dev/null", "\\"].contains(word);
    let words: Vec<_> = words[1..].iter().copied().take_while(|word| !ends(word)).collect();
    (!words.is_empty()).then_some(words)
}

/// Why `words` is not what the program takes.
fn fault(words: &[&str], helps: &mut Helps) -> Option<String> {
    let is_word = |word: &&&str| {
        word.starts_with(|c: char| c.is_ascii_lowercase()) && word.chars().all(|c| c.is_ascii_lowercase() || c == '-')
    };
    // One command, or one and one of its own; what follows are values and flags.
    let mut path = Vec::new();
    for word in words.iter().take_while(is_word) {
        path.push((*word).to_owned());
        if helps.of(&path).is_none() {
            path.pop();
            break;
        }
    }
    if path.is_empty() && !words[0].starts_with('-') {
        return Some(format!("there is no command {}", words[0]));
    }
    let help = helps.of(&path).unwrap_or_default();
    let flags = words.iter().filter_map(|word| word.strip_prefix("--")).map(|flag| {
        flag.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')).next().unwrap_or_default()
    });
    flags
        .filter(|flag| !flag.is_empty() && !["help", "version"].contains(flag))
        .find(|flag| {
            !help.split(|c: char| c.is_whitespace() || c == '=' || c == ',').any(|word| word == format!("--{flag}"))
        })
        .map(|flag| format!("{} has no flag --{flag}", path.join(" ")))
}

#[test]
fn commands_of_the_program_that_documents_show_exist() {
    let (mut helps, mut faults, mut seen) = (Helps::default(), Vec::new(), 0);
    for (page, document) in documents() {
        if page.ends_with("CHANGELOG.md") {
            continue;
        }
        let shown = document.blocks.iter().filter(|(language, _)| matches!(language.as_str(), "sh" | "console"));
        let lines = shown.flat_map(|(_, text)| text.lines()).chain(document.spans.iter().map(String::as_str));
        for words in lines.filter_map(invocation) {
            seen += 1;
            faults.extend(
                fault(&words, &mut helps).map(|why| format!("{}: ingestd {}: {why}", page.display(), words.join(" "))),
            );
        }
    }
    assert!(seen > 40, "only {seen} commands were found");
    assert_none(&faults, "commands do not exist");
}

#[test]
fn targets_of_make_that_documents_show_exist() {
    let makefile = read("Makefile");
    let targets: BTreeSet<_> = makefile
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))
        .filter_map(|line| Some(line.split_once(':')?.0))
        .collect();
    let mut faults = Vec::new();
    for (page, document) in documents() {
        let shown = document.blocks.iter().filter(|(language, _)| matches!(language.as_str(), "sh" | "console"));
        let lines = shown.flat_map(|(_, text)| text.lines()).chain(document.spans.iter().map(String::as_str));
        for line in lines {
            let words: Vec<_> = line.split_whitespace().skip_while(|word| *word == "$" || word.contains('=')).collect();
            if let ["make", target, ..] = words[..]
                && target.starts_with(|c: char| c.is_ascii_lowercase())
                && !targets.contains(target)
            {
                faults.push(format!("{}: there is no make {target}", page.display()));
            }
        }
    }
    assert_none(&faults, "targets do not exist");
}

#[test]
fn a_command_that_does_not_exist_is_found() {
    let mut helps = Helps::default();
    let mut why = |line: &str| fault(&invocation(line).expect("is one of ours"), &mut helps);
    assert_eq!(why("$ ingestd journal drain --dir /mnt/journal 2>/dev/null"), None);
    assert_eq!(why("DATABASE_URL=postgresql://… ingestd load --rate 5 | less --raw"), None);
    assert!(why("ingestd jurnal drain").is_some_and(|why| why.contains("no command")));
    assert!(why("ingestd journal drain --folder /mnt").is_some_and(|why| why.contains("no flag --folder")));
    assert!(why("sudo ingestd serve --no-such-flag").is_some());
    assert!(invocation("systemctl restart ingestd").is_none());
}
