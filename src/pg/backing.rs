//! Whether a session has a backend of PostgreSQL for itself, or a pooler lends it one for each transaction.
//!
//! PgBouncer in transaction mode hands the backend on at every COMMIT, with whatever a session has left there: named
//! statements and temporary tables are then somebody else's. Nothing in the protocol says that a pooler is there, so it is
//! found out: a session brings a token as a parameter of its start (`options`), and asks PostgreSQL for it. A pooler refuses
//! that parameter or keeps it to itself, as it shares backends between sessions. So a token that is there proves
//! a backend of our own, over TCP proxies and balancers too; anything else is treated as lent, which also works where
//! it is not, for a few round trips more.
//!
//! What everybody here has to keep to, as [`super`] says: outside of a transaction only unnamed statements
//! (`query_typed`, `execute_typed`) and simple queries; within one, statements and rows are dropped before it ends.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use postgres::types::Type;
use postgres::{Client, Config};

use super::tls::Tls;

/// A parameter that PostgreSQL keeps and does not know.
const PARAMETER: &str = "ingestd.session";

/// Whose backend answers a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Its own, as long as it lives.
    Own,
    /// A pooler's, which lends it for a transaction.
    Lent,
}

/// Opens a session. `is_refused` remembers that something on the way does not let the token through.
///
/// # Errors
/// As [`Config::connect`]; also where PostgreSQL went away before it was asked.
pub fn open(config: &Config, tls: &Tls, is_refused: &AtomicBool) -> Result<(Client, Backing), postgres::Error> {
    // Relaxed: a hint, which every new session may find out for itself.
    if is_refused.load(Ordering::Relaxed) {
        return Ok((config.connect(tls.clone())?, Backing::Lent));
    }
    let token = token();
    let mut marked = config.clone();
    marked.options(format!("{} -c {PARAMETER}={token}", config.get_options().unwrap_or_default()).trim());
    let mut client = match marked.connect(tls.clone()) {
        Ok(client) => client,
        Err(error) if may_refuse_parameter(&error) => {
            let client = config.connect(tls.clone())?;
            is_refused.store(true, Ordering::Relaxed);
            return Ok((client, Backing::Lent));
        }
        Err(error) => return Err(error),
    };
    let row = client.query_typed_one("SELECT current_setting($1, true)", &[(&PARAMETER, Type::TEXT)])?;
    let is_own = row.get::<_, Option<&str>>(0) == Some(&*token);
    Ok((client, if is_own { Backing::Own } else { Backing::Lent }))
}

/// A text that no other session has.
fn token() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    format!("{}-{}-{started}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// True for what poolers answer to a start-up parameter that they do not know. Wrong passwords are none of it: they are not
/// tried twice.
fn may_refuse_parameter(error: &postgres::Error) -> bool {
    error.code().is_some_and(|state| matches!(&state.code()[..2], "08" | "0A" | "22" | "42"))
}
