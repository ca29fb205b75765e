//! Promise: imports go down only, as `src/lib.rs` and docs/architecture.md#layers draw it.

use std::fs;
use std::path::{Path, PathBuf};

/// Layers, lowest first; a module may import from its own and from lower ones. The longest name that fits a module
/// wins: `journal::frame` is pure, the rest of `journal` is not.
const LAYERS: &[&[&str]] = &[
    &["types", "limits", "sharding", "state_log", "auth::rate", "config"],
    &["sys", "ring", "metrics", "auth"],
    &[
        "json",
        "encode",
        "journal::frame",
        "flush::merge",
        "flush::group",
        "flush::cut",
        "flush::admission",
        "flush::culprit",
        "pg::sqlstate",
        "pg::time_limits",
    ],
    &["journal", "pg", "status"],
    &["telemetry"],
    &["http", "flush"],
    &["server"],
    &["cli"],
];

/// Modules that do no I/O: what they may not name.
const PURE: &[&str] = &[
    "types",
    "sharding",
    "state_log",
    "auth::rate",
    "json",
    "encode",
    "journal::frame",
    "flush::merge",
    "flush::group",
    "flush::cut",
    "flush::admission",
    "flush::culprit",
    "pg::sqlstate",
    "pg::time_limits",
];
const IO: &[&str] = &["std::net", "std::fs", "tokio::", "hyper::", "postgres::Client", "r2d2", "redis::", "socket2"];

/// True when `module` is `name` or lies in it.
fn is_within(module: &str, name: &str) -> bool {
    module.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn layer(module: &str) -> Option<usize> {
    let candidates = LAYERS.iter().enumerate().flat_map(|(layer, names)| names.iter().map(move |name| (layer, *name)));
    candidates.filter(|(_, name)| is_within(module, name)).max_by_key(|(_, name)| name.len()).map(|(layer, _)| layer)
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("the sources are there") {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// `src/pg/land.rs` → `pg::land`, `src/pg/mod.rs` → `pg`.
fn module_of(root: &Path, file: &Path) -> String {
    let relative = file.strip_prefix(root).expect("below the root").with_extension("");
    let parts: Vec<_> = relative.iter().filter_map(|part| part.to_str()).filter(|part| *part != "mod").collect();
    parts.join("::")
}

/// The code of `text` up to its tests, without comments.
fn code_of(text: &str) -> String {
    let lines =
        text.lines().take_while(|line| !line.starts_with("#[cfg(test)]") && !line.starts_with("#[cfg(all(test"));
    let code = lines.map(|line| line.split("//").next().unwrap_or_default());
    code.collect::<Vec<_>>().join("\n")
}

/// What follows each `crate::` in `code`: `pg::land`, and for `crate::{a, b::c}` both.
fn imports(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => {
                let inside = group.split('}').next().unwrap_or_default();
                found.extend(inside.split(',').map(path_at_start).filter(|path| !path.is_empty()));
            }
            None => found.push(path_at_start(rest)),
        }
    }
    found
}

/// The leading `a::b::C` of `text`.
fn path_at_start(text: &str) -> String {
    let text = text.trim_start();
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(text.len());
    text[..end].trim_end_matches(':').to_owned()
}

#[test]
fn imports_go_down_only() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut files, mut wrong, mut seen) = (Vec::new(), Vec::new(), 0);
    sources(&root, &mut files);
    for file in files {
        let module = module_of(&root, &file);
        if module == "lib" || module == "main" {
            continue;
        }
        let from = layer(&module)
            .unwrap_or_else(|| panic!("module {module} has no layer: give it one here and in src/lib.rs"));
        let code = code_of(&fs::read_to_string(&file).expect("a source file"));
        for import in imports(&code) {
            let Some(to) = layer(&import) else { continue };
            seen += 1;
            if to > from {
                wrong.push(format!("{module} (layer {from}) imports {import} (layer {to})"));
            }
        }
    }
    assert!(seen > 100, "the test reads imports: {seen}");
    assert!(wrong.is_empty(), "imports go down only (src/lib.rs):\n{}", wrong.join("\n"));
}

#[test]
fn pure_stations_know_no_sockets_and_no_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut files, mut wrong) = (Vec::new(), Vec::new());
    sources(&root, &mut files);
    for file in files {
        let module = module_of(&root, &file);
        if PURE.iter().any(|name| is_within(&module, name)) {
            let code = code_of(&fs::read_to_string(&file).expect("a source file"));
            wrong.extend(IO.iter().filter(|io| code.contains(**io)).map(|io| format!("{module} uses {io}")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_reader_of_imports_sees_all_forms() {
    let code = code_of(
        "use crate::pg::{land, ledger};\nuse crate::{types, journal::frame::X};\n// crate::http\nlet a = crate::sys::clock::wall_now();\n#[cfg(test)]\nuse crate::cli;",
    );
    assert_eq!(imports(&code), ["pg", "types", "journal::frame::X", "sys::clock::wall_now"]);
    assert_eq!((layer("journal::frame::X"), layer("journal::frames"), layer("pgx")), (Some(2), Some(3), None));
}
