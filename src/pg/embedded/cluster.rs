//! The data folder's contents: made by `initdb` on the first start, with ingestd's settings on every start.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use rustix::process::Signal;

use super::binaries::Server;
use super::error::log_quote;
use super::place::Place;
use super::{EmbeddedError, EmbeddedOptions, SUPERUSER, previous};
use crate::limits::POSTGRES_INIT_WAIT_MAX;
use crate::sys::child;

/// ingestd's settings, rewritten at every start. It is PostgreSQL's main configuration file.
pub(super) const SETTINGS_FILE: &str = "ingestd.conf";
/// Who may connect how, rewritten at every start.
const ACCESS_FILE: &str = "ingestd_hba.conf";
/// The folder's own socket is private by the folder's mode; a loopback port asks for the password.
const ACCESS: &str = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n";

/// Settings for a server that mostly takes COPYs, on a machine that it shares with ingestd. `fsync` and
/// `full_page_writes` stay on: the journal lets go of what PostgreSQL has committed.
const SETTINGS: &[(&str, &str)] = &[
    ("shared_buffers", "256MB"),
    ("effective_cache_size", "1GB"),
    ("maintenance_work_mem", "128MB"),
    ("work_mem", "32MB"),
    ("wal_buffers", "16MB"),
    ("checkpoint_completion_target", "0.9"),
    ("max_wal_size", "4GB"),
    ("random_page_cost", "1.1"),
    ("effective_io_concurrency", "200"),
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
    ("cluster_name", "ingestd"),
    // Statements carry users' data, and the flusher logs what matters of an error.
    ("log_min_error_statement", "panic"),
    ("log_error_verbosity", "terse"),
    ("log_checkpoints", "off"),
];

/// What is in the data folder.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Contents {
    /// Nothing: `initdb` has to run.
    Nothing,
    /// Complete data, written by this major version.
    Data {
        /// PostgreSQL's major version.
        major: u32,
    },
}

/// Looks into the data folder of `place`.
pub(super) fn contents(place: &Place) -> Result<Contents, EmbeddedError> {
    let data_dir = &place.data_dir;
    let entries = match fs::read_dir(data_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Contents::Nothing),
        Err(source) => return Err(EmbeddedError::io("read", data_dir, source)),
    };
    let major = fs::read_to_string(data_dir.join("PG_VERSION")).ok().and_then(|text| text.trim().parse().ok());
    match major {
        Some(major) if data_dir.join("global/pg_control").exists() => Ok(Contents::Data { major }),
        _ if entries.count() == 0 => Ok(Contents::Nothing),
        _ => Err(EmbeddedError::NotData { path: data_dir.clone() }),
    }
}

/// Makes the data folder of `place` with `initdb`: complete under its final name, or not there at all.
pub(super) fn create(place: &Place, server: &Server) -> Result<(), EmbeddedError> {
    let partial = place.beside_data(".partial");
    previous::see_out(&partial)?;
    tracing::info!(data_dir = %place.data_dir.display(), version = %server.version,
        "initializing the data directory of the embedded PostgreSQL");
    // Where the system lacks C.UTF-8, C sorts alike and UTF-8 is stored all the same.
    let log_before = log_bytes(place);
    let mut status = initdb(place, server, &partial, "C.UTF-8")?;
    if !status.success() {
        status = initdb(place, server, &partial, "C")?;
    }
    if !status.success() {
        let quote = log_quote(&place.log_path, log_before);
        return Err(EmbeddedError::InitFailed { status, quote, log: place.log_path.clone() });
    }
    fs::rename(&partial, &place.data_dir)
        .and_then(|()| sync_folder(&place.data_dir))
        .map_err(|source| EmbeddedError::io("create", &place.data_dir, source))
}

/// Runs `initdb` on an empty folder `partial`; what an interrupted one left there goes.
fn initdb(place: &Place, server: &Server, partial: &Path, locale: &str) -> Result<ExitStatus, EmbeddedError> {
    let emptied = match fs::remove_dir_all(partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => DirBuilder::new().mode(0o700).create(partial).and_then(|()| place.account.own(partial)),
    };
    emptied.map_err(|source| EmbeddedError::io("create", partial, source))?;
    let mut command = program(place, server, "initdb")?;
    command.args(["--encoding=UTF8", "--auth=trust", "--data-checksums", "--no-instructions"]);
    command.arg(format!("--username={SUPERUSER}")).arg(format!("--locale={locale}")).arg("--pgdata").arg(partial);
    // Not TERM, on which initdb tidies up: that could hit the folder of the next start.
    child::end_with_thread(&mut command, Signal::KILL);
    let failed = |source| EmbeddedError::io("run", server.bin_dir.join("initdb"), source);
    let mut initdb = command.spawn().map_err(failed)?;
    if let Some(status) = child::wait_at_most(&mut initdb, POSTGRES_INIT_WAIT_MAX).map_err(failed)? {
        return Ok(status);
    }
    initdb.kill().and_then(|()| initdb.wait()).map_err(failed)
}

/// A command for the server program `name`: as the data's user, in a reachable folder, away from the terminal,
/// with none of the `PG…` variables of whoever started ingestd, its output in PostgreSQL's log.
pub(super) fn program(place: &Place, server: &Server, name: &str) -> Result<Command, EmbeddedError> {
    let log = place.open_log()?;
    let log_too = log.try_clone().map_err(|source| EmbeddedError::io("write", &place.log_path, source))?;
    let mut command = Command::new(server.bin_dir.join(name));
    place.account.apply(&mut command);
    command.current_dir("/").process_group(0).env_clear().env("LC_ALL", "C").env("TZ", "UTC");
    let kept = ["PATH", "LD_LIBRARY_PATH", "TMPDIR"];
    command.envs(kept.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    command.stdin(Stdio::null()).stdout(log).stderr(log_too);
    Ok(command)
}

/// Writes the settings of this start: ingestd's, the socket's place, then the caller's.
pub(super) fn write_settings(
    place: &Place,
    options: &EmbeddedOptions,
    socket_dir: &Path,
    port: u16,
) -> Result<(), EmbeddedError> {
    let mut text = String::from(
        "# Written by ingestd at every start; change settings with ALTER SYSTEM, which takes \
         precedence.\ninclude_if_exists 'postgresql.conf'\n",
    );
    let mut set = |name: &str, value: &str| text.push_str(&format!("{name} = {}\n", quoted(value)));
    SETTINGS.iter().for_each(|(name, value)| set(name, value));
    set("hba_file", &place.data_dir.join(ACCESS_FILE).to_string_lossy());
    set("listen_addresses", if options.loopback.is_some() { "127.0.0.1" } else { "" });
    set("port", &port.to_string());
    // A list of folders, so that a comma or a space in the name needs quotes of its own.
    set("unix_socket_directories", &format!("\"{}\"", socket_dir.to_string_lossy().replace('"', "\"\"")));
    set("unix_socket_permissions", "0700");
    options.settings.iter().for_each(|(name, value)| set(name, value));
    replace_file(&place.data_dir.join(SETTINGS_FILE), &text)?;
    replace_file(&place.data_dir.join(ACCESS_FILE), ACCESS)
}

/// Replaces `path`, or makes it. Never writes through a link: the folder belongs to PostgreSQL's user, and this
/// process may be root.
fn replace_file(path: &Path, text: &str) -> Result<(), EmbeddedError> {
    let fresh = path.with_extension("fresh");
    let _ = fs::remove_file(&fresh);
    let write = || {
        // PostgreSQL's user is another one when this process is root, and has to read it.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&fresh)?;
        rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o644))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    };
    write().map_err(|source| EmbeddedError::io("write", path, source))
}

/// `value` as a string of PostgreSQL's configuration language.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''").replace('\n', "\\n"))
}

/// Makes the name of `path` in its folder survive a power loss.
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// How long PostgreSQL's log is, so that an error quotes only what came later.
pub(super) fn log_bytes(place: &Place) -> u64 {
    fs::metadata(&place.log_path).map_or(0, |found| found.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_keep_quotes_and_backslashes() {
        assert_eq!(quoted("it's C:\\x"), "'it''s C:\\\\x'");
        assert_eq!(quoted("a\nb"), "'a\\nb'");
    }

    #[test]
    fn a_settings_file_is_replaced_and_not_written_through_a_link() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (path, precious) = (folder.path().join("ingestd.conf"), folder.path().join("precious"));
        fs::write(&precious, "precious").expect("ours");
        std::os::unix::fs::symlink(&precious, &path).expect("ours");
        replace_file(&path, "fresh").expect("ours");
        assert_eq!(fs::read_to_string(&path).expect("written"), "fresh");
        assert_eq!(fs::read_to_string(&precious).expect("untouched"), "precious");
    }
}
