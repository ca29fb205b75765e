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
        tracing::warn!(
            "API_KEYS_FILE contains no keys: every request is rejected; create a key with 'ingestd keys new'"
        );
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
                tracing::error!(reason = %problem, "reload failed (SIGHUP); the previous settings stay in force");
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
                    tracing::info!(keys, "reloaded API keys and rate limits (SIGHUP)");
                }
                Err(error) => {
                    tracing::error!(%error, "could not reload API keys (SIGHUP); the previous keys stay in force");
                }
            }
        }
        (Auth::Loopback | Auth::Off, None) => {
            gate.replace_limits(config.rate_limits);
            tracing::info!(limited = config.rate_limits != RateLimits::default(), "reloaded rate limits (SIGHUP)");
        }
        _ => tracing::error!("authentication cannot be switched on or off by reload; restart the server"),
    }
}

/// Serves new connections with the certificates that are in `files` now. Open ones go on with theirs.
fn reload_tls(app: &App, files: Option<&TlsFiles>) {
    let (tls, files) = match (&app.tls, files) {
        (Some(tls), Some(files)) => (tls, files),
        (None, None) => return,
        (Some(_), None) | (None, Some(_)) => {
            tracing::error!("TLS cannot be enabled or disabled by reload; restart the server");
            return;
        }
    };
    match tls::load(files) {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                tracing::warn!("{warning}");
            }
            tls.replace(loaded);
            tracing::info!(
                certificate = %files.certificate.display(),
                "reloaded TLS certificates (SIGHUP); new connections use them"
            );
        }
        Err(problem) => {
            tracing::error!(
                reason = problem,
                "could not reload TLS certificates (SIGHUP); the previous ones stay in force"
            );
        }
    }
}
