//! `ingestd`: arguments → config → run → exit code.
fn main() {}
