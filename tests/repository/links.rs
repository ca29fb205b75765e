//! Links of Markdown files, and references to documents in code and configuration, lead somewhere.

use std::path::{Component, Path, PathBuf};

use super::markdown::documents;
use super::{assert_none, files, read, support};

/// Files in whose comments documents are cited.
const CITING: &[&str] = &[
    ".rs",
    ".sh",
    ".py",
    ".mjs",
    ".js",
    ".sql",
    ".toml",
    ".yml",
    ".yaml",
    ".conf",
    ".env",
    ".service",
    "Makefile",
    "Dockerfile",
];

/// `path` without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut so_far, component| {
        match component {
            Component::ParentDir => drop(so_far.pop()),
            Component::CurDir => {}
            other => so_far.push(other),
        }
        so_far
    })
}

/// Why `target`, written in a file in the directory `from`, leads nowhere; `None` when it leads somewhere.
fn fault(from: &Path, page: &Path, target: &str) -> Option<String> {
    if target.starts_with("http://") || target.starts_with("https://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = target.split_once('#').map_or((target, None), |(path, anchor)| (path, Some(anchor)));
    let path = if path.is_empty() { page.to_path_buf() } else { normal(&from.join(path)) };
    if !support::checkout().join(&path).exists() {
        return Some(format!("{} does not exist", path.display()));
    }
    let anchor = anchor?;
    match documents().get(&path) {
        Some(document) if document.anchors.contains(anchor) => None,
        Some(_) => Some(format!("{} has no heading #{anchor}", path.display())),
        None => Some(format!("{} has no anchors", path.display())),
    }
}

#[test]
fn every_link_of_every_markdown_file_leads_somewhere() {
    let mut faults = Vec::new();
    for (page, document) in documents() {
        let from = page.parent().expect("a file has a directory");
        for target in &document.links {
            faults.extend(fault(from, page, target).map(|why| format!("{}: ({target}): {why}", page.display())));
        }
    }
    assert_none(&faults, "links lead nowhere");
}

/// The references to Markdown files in `text`, such as `docs/api.md#retries` or `SECURITY.md`.
fn references(text: &str) -> Vec<&str> {
    // A `$` is part of a word so that `$folder/run.md`, which a script makes, is told from a path.
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '#' | '$' | '{' | '}');
    let words = text.split(|c| !is_part(c)).map(|word| word.trim_end_matches(['.', '-', '#']));
    words.filter(|word| word.ends_with(".md") || word.contains(".md#")).filter(|word| *word != ".md").collect()
}

#[test]
fn documents_that_code_cites_exist() {
    let mut faults = Vec::new();
    for path in files(CITING) {
        if path.starts_with("tests/repository") {
            continue; // has examples of what must not be
        }
        let text = read(&path);
        for phrase in ["design page", "(contract", "contract)", "the contract's"] {
            if let Some(line) = text.lines().find(|line| line.to_lowercase().contains(phrase)) {
                faults.push(format!("{}: cites no page: {line:?}", path.display()));
            }
        }
        let beside = path.parent().expect("a file has a directory").to_path_buf();
        for target in references(&text) {
            // Tables that perf/harness writes into the directory of a run are no documents.
            let is_of_a_run = path.starts_with("perf/harness") && !target.contains('/');
            if target.contains(['$', '{']) || target.contains("//") || target.starts_with('/') || is_of_a_run {
                continue;
            }
            let from_root = fault(Path::new(""), Path::new(""), target);
            if let Some(why) = from_root
                && fault(&beside, Path::new(""), target).is_some()
            {
                faults.push(format!("{}: {target}: {why}", path.display()));
            }
        }
    }
    assert_none(&faults, "citations lead nowhere");
}

#[test]
fn a_link_that_leads_nowhere_is_found() {
    let (docs, page) = (Path::new("docs"), Path::new("docs/README.md"));
    assert_eq!(fault(docs, page, "api.md"), None);
    assert_eq!(fault(docs, page, "../Cargo.toml"), None);
    assert!(fault(docs, page, "no-such-page.md").is_some_and(|why| why.contains("does not exist")));
    assert!(fault(docs, page, "api.md#no-such-heading").is_some_and(|why| why.contains("no heading")));
    assert!(fault(docs, page, "#no-such-heading").is_some());
    assert_eq!(references("see docs/api.md#x, (SECURITY.md)."), ["docs/api.md#x", "SECURITY.md"]);
}
