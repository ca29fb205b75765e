//! `ingestd`: arguments → config → run → exit code.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    ingestd::cli::run(std::env::args_os())
}
