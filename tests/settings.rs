//! Settings reach the program from flags, environment and file; what is wrong with them is said in one line
//! each, with exit code 2, and passwords never show.

mod support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Output};

use support::{WAIT_MAX, wait_until};

/// The program with an environment that holds only `variables`.
fn ingestd(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ingestd"));
    command.env_clear().args(arguments).envs(variables.iter().copied());
    command.output().expect("the program starts")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

/// Asserts that the program refuses, with exit code 2 and lines that all carry the prefix.
fn refusal(arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let output = ingestd(arguments, variables);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(!said.is_empty() && said.lines().all(|line| line.starts_with("ingestd: ")), "{said}");
    said
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("temporary file");
    std::fs::write(file.path(), text).expect("written");
    file
}

/// The line of `name` in `print-config`, its columns.
fn printed(output: &Output, name: &str) -> Vec<String> {
    let text = stdout(output);
    let line = text.lines().find(|line| line.split(' ').next() == Some(name)).expect("every setting is printed");
    line.split("  ").map(str::trim).filter(|column| !column.is_empty()).map(Into::into).collect()
}

#[test]
fn flags_beat_the_environment_which_beats_the_file_which_beats_defaults() {
    let file = file("batch_size = 1\nmax_body_mb = 2\nworkers = \"3\"\n");
    let path = file.path().to_str().expect("UTF-8");
    let arguments = ["print-config", "--config", path, "--batch-size", "9"];
    let output = ingestd(&arguments, &[("BATCH_SIZE", "5"), ("MAX_BODY_MB", "6")]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(printed(&output, "BATCH_SIZE"), ["BATCH_SIZE", "9", "flag"]);
    assert_eq!(printed(&output, "MAX_BODY_MB"), ["MAX_BODY_MB", "6", "environment"]);
    assert_eq!(printed(&output, "WORKERS"), ["WORKERS", "3", &format!("file {path}")]);
    assert_eq!(printed(&output, "DB_POOL_MAX_SIZE"), ["DB_POOL_MAX_SIZE", "20", "default"]);
    assert_eq!(printed(&output, "DATABASE_URL"), ["DATABASE_URL", "unset (embedded)", "default"]);
}

#[test]
fn print_config_hides_passwords_wherever_they_stand() {
    let variables =
        [("DATABASE_URL", "postgres://u:geheim@h/d?sslmode=require"), ("REDIS_URL", "redis://:geheim@h:6379/0")];
    let output = ingestd(&["print-config"], &variables);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(printed(&output, "DATABASE_URL")[1], "postgres://u:***@h/d?sslmode=require");
    assert_eq!(printed(&output, "REDIS_URL")[1], "redis://:***@h:6379/0");
    for url in [
        "postgres://u:geheim@",
        "postgres:/u:geheim@h",
        "mysql://u:ge/geheim@h/d",
        "postgres://h/d?password=geheim&x=1",
    ] {
        for command in ["print-config", "check-config", "serve", "migrate"] {
            let output = ingestd(&[command], &[("DATABASE_URL", url)]);
            let said = stdout(&output) + &stderr(&output);
            assert_eq!(output.status.code(), Some(2), "{said}");
            assert!(!said.contains("geheim"), "{said}");
        }
    }
}

#[test]
fn a_collectors_address_holds_no_secret_and_check_config_says_what_goes_there() {
    for command in ["print-config", "check-config", "serve"] {
        for url in ["https://geheim@h:4318", "https://u:geheim@h:4318"] {
            let output = ingestd(&[command], &[("OTLP_ENDPOINT", url)]);
            let said = stdout(&output) + &stderr(&output);
            assert_eq!(output.status.code(), Some(2), "{said}");
            assert!(said.contains("OTLP_ENDPOINT=https://***@h:4318: must not contain a user"), "{said}");
            assert!(!said.contains("geheim"), "{said}");
        }
    }
    let output = ingestd(&["check-config"], &[("OTLP_ENDPOINT", "http://127.0.0.1:4318/")]);
    assert!(stdout(&output).contains("sampled requests are sent to http://127.0.0.1:4318\n"), "{}", stdout(&output));
}

#[test]
fn wrong_settings_are_printed_and_then_refused() {
    let output = ingestd(&["print-config"], &[("BATCH_SIZE", "0")]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(printed(&output, "BATCH_SIZE"), ["BATCH_SIZE", "0", "environment"]);
    assert_eq!(stderr(&output), "ingestd: BATCH_SIZE=0: must be a whole number from 1 to 1000000\n");
}

#[test]
fn an_unknown_key_in_the_file_stops_every_command_and_is_named() {
    let file = file("bach_size = 1\n");
    let path = file.path().to_str().expect("UTF-8");
    for command in [&["serve"][..], &["check-config"], &["migrate"], &["partitions", "list"], &["healthcheck"]] {
        let said = refusal(&[command, &["--config", path]].concat(), &[]);
        assert_eq!(said, format!("ingestd: {path}: unknown setting 'bach_size'; did you mean 'batch_size'?\n"));
    }
}

#[test]
fn all_problems_are_said_at_once() {
    let said = refusal(&["check-config", "--ack", "disk"], &[("BATCH_SIZE", "x"), ("DB_POOL_MIN_SIZE", "21")]);
    assert_eq!(said.lines().count(), 3, "{said}");
    assert!(said.contains("ACK=disk (flag --ack): must be one of memory, journal, commit"), "{said}");
    assert!(said.contains("DB_POOL_MIN_SIZE=21: must not be greater than DB_POOL_MAX_SIZE, which is 20"), "{said}");
}

#[test]
fn a_database_url_without_host_or_content_is_not_silently_embedded() {
    let said = refusal(&["serve"], &[("DATABASE_URL", "")]);
    assert!(said.contains("DATABASE_URL=: is empty; unset it to use the default (embedded)"), "{said}");
    let said = refusal(&["serve"], &[("DATABASE_URL", "postgresql:///events")]);
    assert!(said.contains("has no host; write it as postgresql://user:password@host:5432/database"), "{said}");
}

#[test]
fn an_open_address_needs_keys_or_auth_off() {
    let said = refusal(&["serve"], &[("LISTEN_ADDR", "0.0.0.0:8000")]);
    assert!(said.contains("set API_KEYS_FILE") && said.contains("AUTH=off"), "{said}");
    let output = ingestd(&["check-config"], &[("LISTEN_ADDR", "0.0.0.0:8000"), ("AUTH", "off")]);
    assert!(stdout(&output).contains("everyone who can reach 0.0.0.0:8000 can ingest"), "{}", stdout(&output));
}

#[test]
fn the_embedded_flag_wins_over_the_environment_and_check_config_says_so() {
    let url = [("DATABASE_URL", "postgresql://u:geheim@db.example/d")];
    let output = ingestd(&["check-config", "--embedded"], &url);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("DATABASE_URL, given by environment, is ignored"), "{}", stdout(&output));
    assert!(stdout(&output).contains("private PostgreSQL with its data in data/postgres"), "{}", stdout(&output));
    let output = ingestd(&["check-config"], &url);
    assert!(stdout(&output).contains("does not verify that db.example:5432 is your server"), "{}", stdout(&output));
    refusal(&["check-config", "--embedded", "--database-url", "postgresql://h/d"], &[]);
}

#[test]
fn what_the_command_line_cannot_mean_is_one_line_with_exit_code_two() {
    for arguments in [
        &["serve", "--bach-size", "1"][..],
        &["sreve"],
        &["partitions", "create"],
        &["partitions", "create", "--month", "2026-13"],
        &["partitions", "cleanup", "--older-than", "3days"],
        &["dead-letter", "replay", "--id", "0"],
        &["serve", "--batch-size", "1", "--batch-size", "2"],
        &["serve", "--batch-size", "-1"],
    ] {
        assert_eq!(refusal(arguments, &[]).lines().count(), 1);
    }
    let said = refusal(&["serve", "--bach-size", "1"], &[]);
    assert!(said.contains("--bach-size") && said.contains("--batch-size"), "{said}");
    assert_eq!(ingestd(&[], &[]).status.code(), Some(2));
}

#[test]
fn every_command_explains_itself() {
    for command in [
        &["serve"][..],
        &["migrate"],
        &["partitions"],
        &["partitions", "create"],
        &["partitions", "list"],
        &["partitions", "cleanup"],
        &["dead-letter"],
        &["dead-letter", "list"],
        &["dead-letter", "export"],
        &["dead-letter", "replay"],
        &["journal", "inspect"],
        &["check-config"],
        &["print-config"],
        &["healthcheck"],
    ] {
        let output = ingestd(&[command, &["--help"]].concat(), &[]);
        assert_eq!(output.status.code(), Some(0));
        assert!(stdout(&output).lines().count() > 3, "{}", stdout(&output));
    }
    let help = stdout(&ingestd(&["serve", "--help"], &[]));
    for part in ["--batch-timeout-seconds", "BATCH_TIMEOUT_SECONDS", "default: 30", "--embedded", "--config"] {
        assert!(help.contains(part), "{part}");
    }
    assert!(stdout(&ingestd(&["--version"], &[])).starts_with("ingestd "));
}

#[test]
fn commands_without_a_database_say_how_to_get_one() {
    let data = tempfile::tempdir().expect("temporary folder");
    let data = data.path().to_str().expect("UTF-8");
    for command in [&["migrate"][..], &["partitions", "list"], &["dead-letter", "list"]] {
        let said = refusal(command, &[("DATA_DIR", data)]);
        assert!(said.contains("set DATABASE_URL, or start 'ingestd serve'"), "{said}");
    }
}

#[test]
fn healthcheck_follows_readyz() {
    for (answer, code) in [("HTTP/1.1 200 OK\r\n\r\n", 0), ("HTTP/1.1 503 Service Unavailable\r\n\r\n", 1), ("", 1)] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("address").to_string();
        let (requests, seen) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut request = [0; 1024];
                let count = stream.read(&mut request).unwrap_or_default();
                let _ = requests.send(String::from_utf8_lossy(&request[..count]).into_owned());
                // Whoever asks may have given up.
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        let ask = || ingestd(&["healthcheck"], &[("LISTEN_ADDR", &address)]);
        let mut output = ask();
        // An answer that a busy machine gives after two seconds is none.
        wait_until("an answer in time", WAIT_MAX, || {
            let is_in_time = !stderr(&output).contains("within 2 s");
            if !is_in_time {
                output = ask();
            }
            is_in_time
        });
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        let request = seen.recv().expect("it was asked");
        assert!(request.starts_with("GET /readyz HTTP/1.1\r\n"), "{request}");
    }
}

#[test]
fn healthcheck_does_not_wait_for_a_server_that_is_silent() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = listener.local_addr().expect("address").to_string();
    let output = ingestd(&["healthcheck", "--listen-addr", &address], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("within 2 s"), "{}", stderr(&output));
    drop(listener);
    assert_eq!(ingestd(&["healthcheck", "--listen-addr", &address], &[]).status.code(), Some(1));
    assert!(refusal(&["healthcheck", "--listen-addr", "127.0.0.1:0"], &[]).contains("port 0"));
}
