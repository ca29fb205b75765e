//! What the document says of errors, examples and schemas, held to the sources and to itself.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use ingestd::http::codes::CODES;

use super::support::checkout;

/// The text of every file below `dir`, up to its tests.
fn code_below(dir: &Path, found: &mut String) {
    for entry in fs::read_dir(dir).expect("the sources are there") {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() {
            code_below(&path, found);
        } else {
            let text = fs::read_to_string(&path).expect("a source");
            found.push_str(text.split("#[cfg(test)]").next().unwrap_or_default());
        }
    }
}

/// The snake_case words in quotes of `text`.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let is_word = |word: &&str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    text.split('"').skip(1).step_by(2).filter(is_word)
}

/// Where a problem is made, up to its code: nothing else makes one.
const MAKERS: [&str; 4] = ["Problem::new(", "Problem::unavailable(", "Self::new(StatusCode", "unauthorized("];

#[test]
fn every_code_that_the_sources_answer_is_in_the_table_and_the_other_way_round() {
    let mut code = String::new();
    code_below(&checkout().join("src/http"), &mut code);
    let mut answered = BTreeSet::new();
    for maker in MAKERS {
        for (at, _) in code.match_indices(maker) {
            let call = &code[at..];
            answered.extend(words(&call[..call.find(';').unwrap_or(call.len()).min(300)]).next());
        }
    }
    assert!(answered.len() > 30, "the makers of problems are found: {answered:?}");
    let listed: BTreeSet<_> = CODES.iter().map(|code| code.name).collect();
    let unlisted: Vec<_> = answered.difference(&listed).collect();
    assert!(unlisted.is_empty(), "add to src/http/codes.rs, which the OpenAPI document lists: {unlisted:?}");
    for name in listed {
        // One stands in the table.
        assert!(
            code.matches(&format!("\"{name}\"")).count() >= 2,
            "{name} is in src/http/codes.rs, but never answered"
        );
    }
}
