//! Promise: what stands around the code is true of the code. Links, anchors, paths, settings, commands and promised tests
//! that the documents name exist, and one version of Rust is pinned everywhere.
//!
//! `UPDATE_DOCS=1 cargo test --test repository` writes the generated tables anew; without it they are compared.

#[path = "../support/mod.rs"]
mod support;

mod commands;
mod links;
mod markdown;
mod names;
mod pages;
mod promises;
mod settings_table;
mod stop_times;
mod toolchain;

use std::fs;
use std::path::{Path, PathBuf};

/// Directories that hold nothing of ours.
const FOREIGN: &[&str] = &[".git", ".setup", "target", "node_modules", "data", "secrets", "__pycache__", "corpus"];

/// The files of the checkout whose names end in one of `endings`, as paths relative to it, sorted.
fn files(endings: &[&str]) -> Vec<PathBuf> {
    let root = support::checkout();
    let (mut directories, mut files) = (vec![root.to_path_buf()], Vec::new());
    while let Some(directory) = directories.pop() {
        let entries = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        for entry in entries {
            let path = entry.expect("an entry").path();
            let name = path.file_name().and_then(|name| name.to_str()).expect("names are UTF-8").to_owned();
            if path.is_symlink() || FOREIGN.contains(&name.as_str()) {
                continue;
            }
            if path.is_dir() {
                directories.push(path);
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                files.push(path.strip_prefix(root).expect("is below it").to_path_buf());
            }
        }
    }
    files.sort();
    files
}

/// The text of a file of the checkout.
fn read(path: impl AsRef<Path>) -> String {
    let path = support::checkout().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Fails with all of `faults`, a line each.
fn assert_none(faults: &[String], what: &str) {
    assert!(faults.is_empty(), "{} {what}:\n{}", faults.len(), faults.join("\n"));
}
