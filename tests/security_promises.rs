//! SECURITY.md names a test for every threat; the tests are there.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

fn read(path: PathBuf) -> String {
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The sources of the test `file`: a file, or all in a folder.
fn sources(file: &str) -> String {
    let tests = support::checkout().join("tests");
    let single = tests.join(format!("{file}.rs"));
    if single.is_file() {
        return read(single);
    }
    let folder = fs::read_dir(tests.join(file)).unwrap_or_else(|error| panic!("no test file {file}: {error}"));
    folder.map(|entry| read(entry.expect("an entry").path())).collect()
}

/// The last column of each row of the table of threats.
fn rows(text: &str) -> Vec<(&str, &str)> {
    let table = text.lines().skip_while(|line| !line.starts_with("| threat |")).skip(2);
    let rows = table.take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let columns: Vec<_> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [threat, _, tests] = columns[..] else { panic!("three columns: {row}") };
        (threat, tests)
    })
    .collect()
}

#[test]
fn every_threat_has_a_test() {
    let text = read(support::checkout().join("SECURITY.md"));
    let rows = rows(&text);
    assert!(rows.len() >= 25, "{} rows", rows.len());
    for (threat, tests) in rows {
        let names: Vec<_> = tests.split(", ").map(|name| name.trim_matches('`')).collect();
        assert!(!names.is_empty(), "{threat}");
        for name in names {
            let (file, function) = name.split_once("::").unwrap_or_else(|| panic!("{threat}: {name:?} is no test"));
            let is_test = sources(file).split("#[test]\n").skip(1).any(|rest| {
                rest.lines()
                    .find(|line| line.contains("fn "))
                    .is_some_and(|line| line.contains(&format!("fn {function}(")))
            });
            assert!(is_test, "{threat}: there is no test {name}");
        }
    }
}

#[test]
fn the_lock_file_has_one_source() {
    for lock in ["Cargo.lock", "fuzz/Cargo.lock"] {
        let text = read(support::checkout().join(lock));
        let sources: BTreeSet<_> = text.lines().filter_map(|line| line.strip_prefix("source = ")).collect();
        assert_eq!(sources.len(), 1, "{lock}: {sources:?}");
        assert!(sources.iter().all(|source| source.starts_with("\"registry+")), "{lock}: {sources:?}");
    }
}
