//! What SECURITY.md and docs/faults.md promise is held by tests that `make test` runs: not ignored, not empty.

use std::collections::BTreeSet;
use std::fs;

use super::{assert_none, read, support};

/// The sources of the tests in `file`: one file, or all in a directory.
fn sources(file: &str) -> Option<String> {
    let tests = support::checkout().join("tests");
    let single = tests.join(format!("{file}.rs"));
    if single.is_file() {
        return fs::read_to_string(single).ok();
    }
    let directory = fs::read_dir(tests.join(file)).ok()?;
    let paths = directory
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "rs"));
    Some(paths.map(|path| fs::read_to_string(path).expect("a source")).collect())
}

/// The names of the tests in `source` that run and do something.
fn tests(source: &str) -> BTreeSet<&str> {
    let functions = source.split("#[test]\n").skip(1);
    functions
        .filter_map(|rest| {
            let at = rest.find("fn ")?;
            let (attributes, function) = rest.split_at(at);
            let name = function["fn ".len()..].split('(').next()?;
            let body = function.split_once('{')?.1.trim_start();
            (!attributes.contains("#[ignore") && !body.starts_with('}')).then_some(name)
        })
        .collect()
}

/// Rows of the table whose head is `head`, cell by cell.
fn rows<'a>(text: &'a str, head: &str) -> Vec<Vec<&'a str>> {
    let table =
        text.lines().skip_while(|line| !line.starts_with(head)).skip(2).take_while(|line| line.starts_with('|'));
    table.map(|row| row.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

/// What is wrong with `name`, the `file` or `file::function` of a test.
fn fault(name: &str) -> Option<String> {
    let (file, function) = name.split_once("::").map_or((name, None), |(file, function)| (file, Some(function)));
    let Some(source) = sources(file) else { return Some(format!("there is no tests/{file}")) };
    let tests = tests(&source);
    match function {
        None if tests.is_empty() => Some(format!("tests/{file} has no test that make test runs")),
        Some(function) if !tests.contains(function) => Some(format!("no test {name} that make test runs")),
        _ => None,
    }
}

#[test]
fn every_threat_has_a_test() {
    let text = read("SECURITY.md");
    let rows = rows(&text, "| threat |");
    assert!(rows.len() >= 25, "{} rows", rows.len());
    let mut faults = Vec::new();
    for row in rows {
        let [threat, _, tests] = row[..] else { panic!("three columns: {row:?}") };
        for name in tests.split(", ").map(|name| name.trim_matches('`')) {
            let why = if name.contains("::") { fault(name) } else { Some("is not FILE::TEST".into()) };
            faults.extend(why.map(|why| format!("{threat}: {name}: {why}")));
        }
    }
    assert_none(&faults, "threats without a test");
}

#[test]
fn every_fault_of_the_faults_page_has_a_test() {
    let text = read("docs/faults.md");
    let rows = rows(&text, "| what fails |");
    assert!(rows.len() >= 30, "{} rows", rows.len());
    let mut faults = Vec::new();
    for row in rows {
        let [what, _, shown] = row[..] else { panic!("three columns: {row:?}") };
        // Every second piece between backticks is code: a test program, or a module of src whose own tests show it.
        let names: Vec<_> = shown.split('`').skip(1).step_by(2).collect();
        if names.is_empty() {
            faults.push(format!("{what}: names no test"));
        }
        for name in names {
            let why = match name.strip_prefix("src/") {
                Some(_) => tests(&read(name)).is_empty().then(|| "has no tests".to_owned()),
                None => fault(name),
            };
            faults.extend(why.map(|why| format!("{what}: {name}: {why}")));
        }
    }
    assert_none(&faults, "faults without a test");
}

#[test]
fn the_lock_files_have_one_source() {
    for lock in ["Cargo.lock", "fuzz/Cargo.lock", "clients/rust/Cargo.lock"] {
        let text = read(lock);
        let sources: BTreeSet<_> = text.lines().filter_map(|line| line.strip_prefix("source = ")).collect();
        assert_eq!(sources.len(), 1, "{lock}: {sources:?}");
        assert!(sources.iter().all(|source| source.starts_with("\"registry+")), "{lock}: {sources:?}");
    }
}

#[test]
fn an_ignored_or_empty_test_shows_nothing() {
    let source = "#[test]\nfn works() {\n    run();\n}\n#[test]\n#[ignore = \"long\"]\nfn soaks() {\n    run();\n}\n#[test]\nfn empty() {}\n";
    assert_eq!(tests(source), BTreeSet::from(["works"]));
    assert!(fault("no_such_file").is_some() && fault("layers::no_such_test").is_some() && fault("soak").is_some());
}
