//! `ingestd`: arguments → config → run → exit code.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    ingestd::cli::conceal_passwords(&arguments);
    ingestd::cli::run(arguments)
}
