//! Puts uPlot, which the dashboard draws its charts with, where `src/http/dashboard/assets.rs` includes it from.
//!
//! It is brought by `deploy/setup.sh` and never committed. `INGESTD_UPLOT_DIR` names another folder of uPlot's package,
//! for those who build without that.

use std::path::{Path, PathBuf};
use std::{env, fs, process};

/// The package's files, by their place in it.
const FILES: [&str; 3] = ["dist/uPlot.iife.min.js", "dist/uPlot.min.css", "LICENSE"];

fn main() {
    // Tests on a Citus cluster run where there is one, and are reported as ignored where there is none.
    println!("cargo::rerun-if-env-changed=INGESTD_TEST_CITUS_URL");
    println!("cargo::rustc-check-cfg=cfg(ingestd_citus)");
    if env::var_os("INGESTD_TEST_CITUS_URL").is_some_and(|url| !url.is_empty()) {
        println!("cargo::rustc-cfg=ingestd_citus");
    }
    println!("cargo::rerun-if-env-changed=INGESTD_UPLOT_DIR");
    let folder = env::var_os("INGESTD_UPLOT_DIR").map_or_else(
        || Path::new(&variable("CARGO_MANIFEST_DIR")).join(".setup/page/node_modules/uplot"),
        PathBuf::from,
    );
    let out = PathBuf::from(variable("OUT_DIR"));
    for file in FILES {
        let from = folder.join(file);
        println!("cargo::rerun-if-changed={}", from.display());
        let name = from.file_name().unwrap_or_default();
        if let Err(error) = fs::copy(&from, out.join(name)) {
            println!(
                "cargo::error=cannot read {}: {error}; run 'deploy/setup.sh run', or let INGESTD_UPLOT_DIR name a folder \
                 with the npm package uplot",
                from.display()
            );
            process::exit(1);
        }
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}
