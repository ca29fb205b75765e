//! Promise: the command line explains itself: help with examples, completions that a shell takes, man pages that format,
//! bars and colours on terminals and nowhere else.

mod support;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use support::WAIT_MAX;
use support::server::Ingestd;

const BINARY: &str = env!("CARGO_BIN_EXE_ingestd");
const ESCAPE: char = '\u{1b}';

/// Runs `line` by bash in `folder`, with `ingestd` on its path, within the time that tests wait for anything.
fn bash(folder: &Path, line: &str, settings: &[(&str, &str)]) -> Output {
    let target = Path::new(BINARY).parent().expect("it lies in a folder").display();
    let path = format!("{target}:{}", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("timeout");
    command.args([&WAIT_MAX.as_secs().to_string(), "bash", "-c", line]).current_dir(folder).env("PATH", path);
    // Those of whoever runs the tests.
    command.env_remove("NO_COLOR").env_remove("LOG_FORMAT").env("TERM", "xterm-256color");
    command.envs(settings.iter().copied()).stdin(Stdio::null());
    command.output().expect("bash runs")
}

/// Everything that `line` writes to a terminal.
fn on_terminal(folder: &Path, line: &str, settings: &[(&str, &str)]) -> String {
    // `script` gives it a terminal; its own words about begin and end go to the file.
    let quoted = line.replace('\'', r"'\''");
    let output = bash(folder, &format!("script --quiet --flush --return --command '{quoted}' typescript"), settings);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!text.is_empty(), "{line} wrote nothing: {}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Everything that `line` writes into a pipe, both outputs.
fn in_pipe(folder: &Path, line: &str, settings: &[(&str, &str)]) -> String {
    let output = bash(folder, &format!("{{ {line}; }} 2>&1 | cat"), settings);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn help(words: &[&str], flag: &str) -> String {
    let arguments: Vec<&str> = words.iter().copied().chain([flag]).collect();
    let finished = Ingestd::run_to_exit(&arguments, &[]);
    assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""), "{arguments:?}");
    finished.stdout
}

#[test]
fn help_has_settings_by_group_and_the_short_one_is_shorter() {
    let (short, long) = (help(&["serve"], "-h"), help(&["serve"], "--help"));
    for heading in ["Serving:", "API keys and rate limits:", "Limits of requests and connections:", "Examples:"] {
        assert!(long.contains(&format!("\n{heading}\n")), "{heading} is missing: {long}");
    }
    assert!(long.contains("--max-header-kb") && !short.contains("--max-header-kb"), "{short}");
    assert!(short.contains("--listen-addr") && short.contains("See --help for more."), "{short}");
    let example = "ingestd serve --listen-addr 127.0.0.1:8001 --ack commit --log-format json";
    assert!(long.contains(example), "{long}");
}

/// What bash offers for the last of `words`, with the script of `ingestd completions bash`.
fn completed(words: &[&str]) -> Vec<String> {
    let folder = support::folder();
    let last = words.len() - 1;
    // `compopt` works only while bash itself asks.
    let line = format!(
        "compopt() {{ :; }}; source <(ingestd completions bash) && complete -p ingestd >/dev/null && COMP_WORDS=({}) COMP_CWORD={last} \
         && _ingestd ingestd '{}' '{}'; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" "),
        words[last],
        words[last - 1],
    );
    let output = bash(folder.path(), &line, &[]);
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8").lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_flags_and_words() {
    assert_eq!(completed(&["ingestd", "jour"]), ["journal"]);
    assert_eq!(completed(&["ingestd", "journal", "dr"]), ["drain"]);
    assert_eq!(completed(&["ingestd", "dead-letter", "re"]), ["replay"]);
    assert_eq!(completed(&["ingestd", "serve", "--journal-"]), ["--journal-dir", "--journal-max-mb"]);
    assert_eq!(completed(&["ingestd", "serve", "--ack", ""]), ["memory", "journal", "commit"]);
}

#[test]
fn every_shell_has_a_script_and_an_unknown_one_is_told_which() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let finished = Ingestd::run_to_exit(&["completions", shell], &[]);
        assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""), "{shell}");
        assert!(finished.stdout.contains("dead-letter") && finished.stdout.contains("listen-addr"), "{shell}");
    }
    let unknown = Ingestd::run_to_exit(&["completions", "sh"], &[]);
    assert!(unknown.code == Some(2) && unknown.stderr.contains("powershell"), "{}", unknown.stderr);
}

#[test]
fn words_that_completion_knows_are_still_judged_with_all_settings() {
    let finished = Ingestd::run_to_exit(&["check-config", "--ack", "maybe", "--workers", "0"], &[]);
    assert_eq!(finished.code, Some(2));
    assert!(finished.stderr.contains("ACK") && finished.stderr.contains("WORKERS"), "{}", finished.stderr);
}

#[test]
fn man_pages_are_there_for_every_command_and_format_without_a_warning() {
    let folder = support::folder();
    let dir = folder.path().join("share/man1");
    let finished = Ingestd::run_to_exit(&["man", "--dir", dir.to_str().expect("a plain path")], &[]);
    assert_eq!((finished.code, finished.stdout.as_str()), (Some(0), ""), "{}", finished.stderr);
    for name in
        ["ingestd.1", "ingestd-serve.1", "ingestd-journal-set-aside.1", "ingestd-journal-drain.1", "ingestd-man.1"]
    {
        assert!(dir.join(name).is_file(), "{name} is missing");
    }
    let main = Ingestd::run_to_exit(&["man"], &[]);
    let written = std::fs::read_to_string(dir.join("ingestd.1")).expect("a page");
    assert_eq!(main.stdout, written, "the page on stdout is the one in the folder");
    let serve = std::fs::read_to_string(dir.join("ingestd-serve.1")).expect("a page");
    assert!(serve.contains("MAX_HEADER_KB") && serve.contains(".SH EXAMPLES"), "{serve}");
    if !bash(folder.path(), "type groff", &[]).status.success() {
        support::not_run(
            "command_line::man_pages_are_there_for_every_command_and_format_without_a_warning (formatting)",
            "there is no groff on this machine",
        );
        return;
    }
    let line = "for page in share/man1/*; do groff -man -rLL=80n -Tutf8 -ww -z $page; done";
    let output = bash(folder.path(), line, &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[test]
fn a_folder_for_man_pages_that_cannot_be_made_is_told() {
    let folder = support::folder();
    std::fs::write(folder.path().join("file"), "").expect("ours");
    let finished = Ingestd::run_to_exit_in(folder.path(), &["man", "--dir", "file/man1"], &[]);
    assert!(finished.code == Some(1) && finished.stderr.contains("file/man1"), "{}", finished.stderr);
}

#[test]
fn colours_are_for_terminals_and_no_color_leaves_them_out() {
    let database = support::postgres::shared().create_database();
    let folder = support::folder();
    let address = format!("127.0.0.1:{}", support::free_port());
    // It ends once it is ready, so that it has logged something.
    let serve = "ingestd serve & server=$!
                 until ingestd healthcheck >/dev/null 2>&1 || ! kill -0 $server; do sleep 0.1; done
                 kill -TERM $server; wait $server";
    let settings = [("DATABASE_URL", database.url.as_str()), ("LISTEN_ADDR", &address)];
    for line in ["ingestd --help", serve] {
        assert!(on_terminal(folder.path(), line, &settings).contains(ESCAPE), "{line} is coloured on a terminal");
        for quiet in [("NO_COLOR", "1"), ("TERM", "dumb")] {
            // Some libraries colour there whatever else is said.
            let settings = [settings[0], settings[1], quiet, ("CI", "true")];
            assert!(!on_terminal(folder.path(), line, &settings).contains(ESCAPE), "{line} with {quiet:?}");
        }
        let piped = in_pipe(folder.path(), line, &settings);
        assert!(!piped.is_empty() && !piped.contains(ESCAPE), "{line} in a pipe: {piped:?}");
    }
}

#[test]
fn a_load_shows_a_bar_on_a_terminal_and_lines_elsewhere() {
    let database = support::postgres::shared().create_database();
    let server = Ingestd::builder().database(&database).start();
    let line = format!("ingestd load --url {} --rate 1000 --duration 3s --batch 50", server.url(""));
    let terminal = on_terminal(server.folder(), &line, &[]);
    assert!(terminal.contains("load [=") && terminal.contains("0 lost"), "{terminal:?}");
    for quiet in [("TERM", "dumb"), ("LOG_FORMAT", "json")] {
        let text = on_terminal(server.folder(), &line, &[quiet]);
        assert!(!text.contains(ESCAPE) && !text.contains("[=") && text.contains("0 lost"), "{quiet:?}: {text:?}");
    }
    let piped = in_pipe(server.folder(), &line, &[]);
    assert!(!piped.contains(ESCAPE) && !piped.contains('\r'), "{piped:?}");
    assert!(piped.contains("events/s accepted  p50") && piped.contains("0 lost"), "{piped}");
}

#[test]
fn results_in_a_pipe_hold_no_escape_whatever_stderr_is() {
    let database = support::postgres::shared().create_database();
    let server = Ingestd::builder().database(&database).start();
    let commands = [
        "ingestd journal inspect --dir journal",
        "ingestd migrate",
        "ingestd partitions list",
        "ingestd partitions cleanup --older-than 3months --dry-run",
        "ingestd dead-letter list",
        "ingestd dead-letter export",
        "ingestd dead-letter replay",
        "ingestd print-config",
        "ingestd completions zsh",
        "ingestd man",
    ];
    for line in commands {
        // The same with stderr on a terminal, as in `ingestd … | less`.
        let settings = [("DATABASE_URL", database.url.as_str())];
        let piped = in_pipe(server.folder(), line, &settings);
        on_terminal(server.folder(), &format!("{line} > out; echo done"), &settings);
        let written = std::fs::read_to_string(server.folder().join("out")).expect("the output");
        assert!(!piped.contains(ESCAPE) && !written.contains(ESCAPE), "{line}");
        assert_eq!(written, piped, "{line}");
    }
}
