//! How many files and connections the process may have open.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard one. Shells and service managers start programs with a soft limit of
/// 1024, for the sake of programs that use `select`; each connection is an open file.
pub fn raise_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Refused only where even that is forbidden: then the limit stays as it is.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// The limit in force; `None`: there is none.
pub fn limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}
