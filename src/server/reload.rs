//! What SIGHUP reads again while the server serves: keys, rate limits and certificates.
//!
//! A source that cannot be used changes nothing: what was in force stays so, and the log says why. Requests under way
//! go on as they began.

use crate::auth::file::{KeysError, KeysFile};
use crate::auth::gate::Gate;
use crate::auth::keyring::Keyring;
use crate::auth::rate::RateLimits;
use crate::config::{Auth, Config, Problems, TlsFiles};
use crate::http::app::App;
use crate::http::tls;

/// Gathers the settings once more from where they came from: flags, environment and file.
pub type Reread<'a> = &'a dyn Fn() -> Result<Config, Problems>;

/// The gate that `config` asks for.
///
/// # Errors
/// When there is a file of keys and it cannot be used.
pub fn gate(config: &Config) -> Result<Gate, KeysError> {
    let Auth::Keys(path) = &config.auth else { return Ok(Gate::open(config.rate_limits)) };
    let keyring = Keyring::new(KeysFile::at(path).keys()?, config.rate_limits, None);
    if keyring.is_empty() {
        tracing::warn!("API_KEYS_FILE holds no key: every request is refused; 'ingestd keys new' makes one");
    }
    Ok(Gate::with_keys(keyring))
}

/// Reads again what SIGHUP concerns.
pub fn reload(app: &App, reread: Reread<'_>) {
    match reread() {
        Ok(config) => {
            reload_access(&app.gate, &config);
            reload_tls(app, config.tls.as_ref());
        }
        Err(problems) => {
            for problem in problems.0 {
                tracing::error!("SIGHUP: {problem}; what was in force stays in force");
            }
        }
    }
}

fn reload_access(gate: &Gate, config: &Config) {
    match (&config.auth, gate.keyring()) {
        (Auth::Keys(path), Some(before)) => {
            match KeysFile::at(path).keys().map(|keys| Keyring::new(keys, config.rate_limits, Some(&before))) {
                Ok(keyring) => {
                    let keys = keyring.len();
                    gate.replace_keys(keyring);
                    tracing::info!(keys, "SIGHUP: API keys and rate limits were read again");
                }
                Err(error) => tracing::error!("SIGHUP: {error}; the keys that were in force stay in force"),
            }
        }
        (Auth::Loopback | Auth::Off, None) => {
            gate.replace_limits(config.rate_limits);
            tracing::info!(
                limited = config.rate_limits != RateLimits::default(),
                "SIGHUP: rate limits were read again"
            );
        }
        _ => tracing::error!("SIGHUP: whether API keys are asked for changes only when the server is started anew"),
    }
}

/// Serves new connections with the certificates that are in `files` now. Open ones go on with theirs.
fn reload_tls(app: &App, files: Option<&TlsFiles>) {
    let (tls, files) = match (&app.tls, files) {
        (Some(tls), Some(files)) => (tls, files),
        (None, None) => return,
        (Some(_), None) | (None, Some(_)) => {
            tracing::error!("SIGHUP: TLS is neither begun nor given up while serving; restart the server for that");
            return;
        }
    };
    match tls::load(files) {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                tracing::warn!("SIGHUP: {warning}");
            }
            tls.replace(loaded);
            tracing::info!(
                "SIGHUP: new connections get the certificate that is in {} now",
                files.certificate.display()
            );
        }
        Err(problem) => tracing::error!("SIGHUP: {problem}; the certificates in force stay in force"),
    }
}
