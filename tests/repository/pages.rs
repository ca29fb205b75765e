//! The documents are short, and every one of them can be found.

use std::path::Path;

use super::markdown::{document, documents};
use super::{assert_none, read};

/// Bytes that the README may have: one screen and links.
const README_BYTES_MAX: usize = 10_000;
/// Bytes that a page of `docs/` may have: one reader, one question.
const PAGE_BYTES_MAX: usize = 15_360;

fn pages() -> impl Iterator<Item = &'static Path> {
    documents().keys().map(|path| path.as_path()).filter(|path| path.starts_with("docs"))
}

#[test]
fn the_readme_is_one_screen_and_links() {
    let bytes = read("README.md").len();
    assert!(bytes <= README_BYTES_MAX, "README.md has {bytes} bytes of {README_BYTES_MAX}: move something to docs/");
}

#[test]
fn every_page_is_short_has_one_title_and_names_what_it_leaves_out() {
    let mut faults = Vec::new();
    for path in pages() {
        let (bytes, document) = (read(path).len(), &documents()[path]);
        if bytes > PAGE_BYTES_MAX {
            faults.push(format!("{}: {bytes} bytes of {PAGE_BYTES_MAX}: split it", path.display()));
        }
        if document.headings.iter().filter(|(level, _)| *level == 1).count() != 1 {
            faults.push(format!("{}: not one title", path.display()));
        }
        let is_record = path.starts_with("docs/design");
        let is_index = path.ends_with("README.md");
        if !is_record && !is_index && !document.anchors.contains("not-covered-here") {
            faults.push(format!("{}: no section \"Not covered here\"", path.display()));
        }
    }
    assert_none(&faults, "faults in docs/");
}

#[test]
fn every_page_is_in_its_index() {
    let mut faults = Vec::new();
    for path in pages() {
        let folder = path.parent().and_then(Path::to_str).expect("docs/…");
        let index = format!("{folder}/README.md");
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        let is_linked = || document(&index).links.iter().any(|link| link.split('#').next() == Some(name));
        if name != "README.md" && !is_linked() {
            faults.push(format!("{index} does not link {name}"));
        }
    }
    assert_none(&faults, "pages that nobody finds");
}
