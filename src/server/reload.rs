//! SIGHUP: what is read again while the server serves.
//!
//! A source that cannot be used changes nothing: what was in force stays so, and the log says why.

use std::sync::Arc;

use crate::config::{Config, Problems};
use crate::http::app::App;

/// Gathers the settings once more from where they came from: flags, environment and file.
pub type Reread<'a> = &'a dyn Fn() -> Result<Config, Problems>;

/// Reads again what SIGHUP concerns.
pub fn reload(_app: &Arc<App>, reread: Reread<'_>) {
    if let Err(problems) = reread() {
        for problem in problems.0 {
            tracing::error!("SIGHUP: {problem}; what was in force stays in force");
        }
    }
}
