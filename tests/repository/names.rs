//! What documents name in code spans exists: paths of the repository, settings and other variables.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use super::markdown::documents;
use super::{assert_none, files, read, support};

/// A code span that begins with one of these is a path of the repository.
const TOP: &[&str] = &[
    "src/", "tests/", "deploy/", "docs/", "perf/", "sql/", "clients/", "k8s/", "benches/", "fuzz/", ".ci/", ".github/",
];

/// True when `path` is there; `*` stands for any part of a name.
fn exists(path: &str) -> bool {
    let path = path.trim_end_matches('/');
    if !path.contains('*') {
        return support::checkout().join(path).exists();
    }
    let pattern = wildmatch::WildMatch::new(path);
    files(&[""]).iter().any(|file| file.ancestors().filter_map(Path::to_str).any(|place| pattern.matches(place)))
}

#[test]
fn paths_that_documents_name_exist() {
    let mut faults = Vec::new();
    for (page, document) in documents() {
        if page.ends_with("CHANGELOG.md") {
            continue; // tells of what was
        }
        for span in &document.spans {
            // A placeholder, or what a run makes.
            let is_example = span.contains(['<', '>', '…', '{', '$']) || span.starts_with("perf/runs/");
            let word = span.split([' ', ':', ',']).next().expect("split gives one");
            if TOP.iter().any(|top| word.starts_with(top)) && !is_example && !exists(word) {
                faults.push(format!("{}: `{span}`: {word} does not exist", page.display()));
            }
        }
    }
    assert_none(&faults, "paths do not exist");
}

/// The variables in `text`: words in upper case with an underscore.
fn variables(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| {
        word.len() > 3
            && word.contains('_')
            && word.starts_with(|c: char| c.is_ascii_uppercase())
            && !word.ends_with('_')
            && word.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
    })
}

#[test]
fn variables_that_documents_name_are_used_somewhere() {
    let elsewhere =
        [".rs", ".sh", ".py", ".mjs", ".js", ".sql", ".toml", ".yml", ".yaml", ".conf", ".env", ".service", "Makefile"];
    let mut used = HashSet::new();
    for path in files(&elsewhere) {
        used.extend(variables(&read(&path)).map(str::to_owned));
    }
    let mut faults = BTreeMap::new();
    for (page, document) in documents() {
        let code = document.spans.iter().chain(document.blocks.iter().map(|(_, text)| text));
        for name in code.flat_map(|text| variables(text)) {
            // The user's own, and standards of Rust's tools, Docker and PostgreSQL's.
            let is_foreign = ["DOCKER_", "COMPOSE_", "PG", "CARGO_", "RUST", "HTTP_", "RWF_"]
                .iter()
                .any(|own| name.starts_with(own));
            if !used.contains(name) && !is_foreign {
                faults.insert(name.to_owned(), format!("{}: `{name}` is used nowhere", page.display()));
            }
        }
    }
    assert_none(&faults.into_values().collect::<Vec<_>>(), "names are unknown");
}

#[test]
fn names_are_recognised() {
    assert!(exists("src/json/scan") && exists("src/json/*") && exists("tests/json_*.rs") && !exists("src/nothing*"));
    assert_eq!(
        variables("MAX_BODY_MB=16 and Max_Body, A_B, JOURNAL_DIR").collect::<Vec<_>>(),
        ["MAX_BODY_MB", "JOURNAL_DIR"]
    );
}
