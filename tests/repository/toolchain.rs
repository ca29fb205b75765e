//! One version of Rust is pinned, and everything that names a version names that one.

use super::read;

/// The text between `before` and the next quote of the only line that begins with `before`.
fn value(text: &str, before: &str) -> String {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(before));
    let rest = lines.next().unwrap_or_else(|| panic!("no line begins with {before}"));
    rest.split('"').next().expect("split gives one").to_owned()
}

#[test]
fn one_version_of_rust_is_pinned_everywhere() {
    let pinned = value(&read("rust-toolchain.toml"), "channel = \"");
    assert_eq!(pinned.split('.').count(), 3, "{pinned}: not one release");
    assert_eq!(value(&read("Cargo.toml"), "rust-version = \""), pinned, "Cargo.toml");
    let image = read("Dockerfile");
    let image = image.lines().find_map(|line| line.strip_prefix("ARG RUST_IMAGE=rust:")).expect("the image is pinned");
    assert_eq!(image.split('-').next(), Some(pinned.as_str()), "Dockerfile");
}
