//! Where the data of the embedded PostgreSQL lie, and who may use them.
//!
//! ```text
//!  data/postgres          the data; or, when root runs ingestd in a folder that only root may enter,
//!                         a link to /var/lib/ingestd/<id>/postgres, so that `rm -rf data` still means a fresh start
//!  data/postgres.lock     held by the ingestd that uses the data
//!  data/postgres.log      what PostgreSQL says
//!  data/postgres.partial  initdb at work; renamed when it is done (beside the data themselves)
//! ```
//!
//! Invariants: one ingestd a data folder; data at their final name are complete; every path is absolute and
//! without links, because PostgreSQL writes them down and its processes are recognised by them.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::EmbeddedError;
use super::account::Account;
use crate::limits::POSTGRES_LOG_BYTES_MAX;
use crate::sys::lock::FileLock;

/// Where root puts what an unprivileged PostgreSQL cannot reach in the checkout.
pub(super) const SHARED_HOME: &str = "/var/lib/ingestd";
/// Longest path of a unix socket: `sun_path` without its closing NUL.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// The name that PostgreSQL gives its socket, with the longest port.
const SOCKET_NAME_LONGEST: &str = "/.s.PGSQL.65535";

/// A data folder that this process alone may use, until this value is dropped.
#[derive(Debug)]
pub(super) struct Place {
    /// The user that owns the data.
    pub(super) account: Account,
    /// The data themselves; need not exist yet, its parent does.
    pub(super) data_dir: PathBuf,
    /// PostgreSQL's log.
    pub(super) log_path: PathBuf,
    _lock: FileLock,
}

impl Place {
    /// Takes the data folder `configured` for this process.
    pub(super) fn claim(configured: &Path) -> Result<Self, EmbeddedError> {
        let named = settle(configured)?;
        let lock = lock(&named)?;
        let account = Account::for_data(&named);
        let data_dir = locate(&named, &account)?;
        if let Ok(found) = fs::metadata(&data_dir)
            && found.uid() != account.uid()
            && !(found.uid() == 0 && matches!(account, Account::Handed { .. }))
        {
            return Err(EmbeddedError::OtherOwner { path: data_dir, uid: found.uid() });
        }
        let log_path = beside(&named, ".log");
        if fs::metadata(&log_path).is_ok_and(|found| found.len() > POSTGRES_LOG_BYTES_MAX) {
            let aside = beside(&named, ".log.1");
            fs::rename(&log_path, &aside).map_err(|source| EmbeddedError::io("set aside", &log_path, source))?;
        }
        Ok(Self { account, data_dir, log_path, _lock: lock })
    }

    /// PostgreSQL's log, open for appending.
    pub(super) fn open_log(&self) -> Result<File, EmbeddedError> {
        let opened = OpenOptions::new().create(true).append(true).mode(0o640).open(&self.log_path);
        opened.map_err(|source| EmbeddedError::io("write", &self.log_path, source))
    }

    /// The name `suffix` beside the data themselves.
    pub(super) fn beside_data(&self, suffix: &str) -> PathBuf {
        beside(&self.data_dir, suffix)
    }

    /// The folder for the socket: the data folder, which is private already, or a folder with a short name.
    pub(super) fn socket_dir(&self) -> Result<SocketDir, EmbeddedError> {
        if fits_a_socket(&self.data_dir) {
            return Ok(SocketDir { path: self.data_dir.clone(), temporary: false });
        }
        // One name a data folder, so that a killed ingestd leaves one folder behind and not many.
        let digest = xxhash_rust::xxh3::xxh3_64(self.data_dir.as_os_str().as_encoded_bytes());
        let name = format!("ingestd-{}-{digest:016x}", self.account.uid());
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let runtime = runtime.filter(|path| path.is_absolute() && matches!(self.account, Account::Own { .. }));
        let bases = runtime.into_iter().chain([std::env::temp_dir(), PathBuf::from("/tmp")]);
        let short = bases.map(|base| base.join(&name)).find(|path| fits_a_socket(path));
        let path = short.unwrap_or_else(|| Path::new("/tmp").join(&name));
        self.make_private(&path).map_err(|source| EmbeddedError::io("create the socket directory", &path, source))?;
        Ok(SocketDir { path, temporary: true })
    }

    /// Makes the folder `path`, which only this place's user may enter; one that is there must be that.
    fn make_private(&self, path: &Path) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => self.account.own(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let found = fs::symlink_metadata(path)?;
                let private = found.is_dir() && found.uid() == self.account.uid() && found.mode() & 0o077 == 0;
                if private { Ok(()) } else { Err(io::Error::other("it belongs to another user; remove it")) }
            }
            Err(error) => Err(error),
        }
    }
}

/// The folder of PostgreSQL's socket; a temporary one is removed when this is dropped.
#[derive(Debug)]
pub(super) struct SocketDir {
    pub(super) path: PathBuf,
    temporary: bool,
}

impl Drop for SocketDir {
    fn drop(&mut self) {
        if self.temporary
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            tracing::debug!(path = %self.path.display(), %error, "could not remove PostgreSQL's socket directory");
        }
    }
}

/// True when the embedded PostgreSQL could keep its data in or below `folder`, which exists: as root it runs as
/// another user, who has to pass through the folders above.
pub fn may_hold_data(folder: &Path) -> bool {
    fs::canonicalize(folder).is_ok_and(|real| Account::for_data(&real.join("new")).may_enter(&real))
}

/// Makes `path` and the folders above it; `path` itself gets `mode` whatever the umask is.
pub(super) fn make_folder(path: &Path, mode: u32) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(mode).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn fits_a_socket(folder: &Path) -> bool {
    folder.as_os_str().len() + SOCKET_NAME_LONGEST.len() <= SOCKET_PATH_BYTES_MAX
}

/// `path` with `suffix` after its name.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

/// `configured` as an absolute path in a folder that exists and is named without links.
fn settle(configured: &Path) -> Result<PathBuf, EmbeddedError> {
    let whole = std::path::absolute(configured).map_err(|source| EmbeddedError::io("use", configured, source))?;
    let (Some(parent), Some(name)) = (whole.parent(), whole.file_name()) else {
        return Err(EmbeddedError::io("use", configured, io::ErrorKind::InvalidInput.into()));
    };
    fs::create_dir_all(parent).map_err(|source| EmbeddedError::io("create", parent, source))?;
    let parent = fs::canonicalize(parent).map_err(|source| EmbeddedError::io("use", parent, source))?;
    Ok(parent.join(name))
}

fn lock(named: &Path) -> Result<FileLock, EmbeddedError> {
    let path = beside(named, ".lock");
    let opened = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = opened.map_err(|source| EmbeddedError::io("write", &path, source))?;
    FileLock::try_new(file).map_err(|(_, error)| match error {
        TryLockError::WouldBlock => EmbeddedError::InUse { data_dir: named.to_path_buf() },
        TryLockError::Error(error) => EmbeddedError::io("lock", &path, error),
    })
}

/// Where the data named `named` really lie.
///
/// | there is | then |
/// |---|---|
/// | a link to data | the data that it names |
/// | a link to a name in an existing folder | that name: a first start was interrupted |
/// | another link | an error: whoever removed the data decides whether to start empty |
/// | a folder | the folder, if the user may enter it |
/// | nothing | `named`, if the user may enter its folder; else a new place in [`SHARED_HOME`] and a link to it |
fn locate(named: &Path, account: &Account) -> Result<PathBuf, EmbeddedError> {
    let parent = named.parent().unwrap_or(Path::new("/"));
    let at_name = match fs::symlink_metadata(named) {
        Ok(found) => Some(found),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(EmbeddedError::io("read", named, source)),
    };
    let data_dir = match at_name {
        Some(found) if found.is_symlink() => follow(named)?,
        None if !account.may_enter(parent) => return relocate(named, account),
        _ => named.to_path_buf(),
    };
    if account.may_enter(data_dir.parent().unwrap_or(Path::new("/"))) {
        Ok(data_dir)
    } else {
        Err(EmbeddedError::Unreachable { path: data_dir, uid: account.uid() })
    }
}

/// What the link `named` points to.
fn follow(named: &Path) -> Result<PathBuf, EmbeddedError> {
    if let Ok(data_dir) = fs::canonicalize(named) {
        return Ok(data_dir);
    }
    let target = fs::read_link(named).map_err(|source| EmbeddedError::io("read", named, source))?;
    let target = named.parent().unwrap_or(Path::new("/")).join(target);
    match (target.parent().and_then(|parent| fs::canonicalize(parent).ok()), target.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.join(name)),
        _ => Err(EmbeddedError::DataGone { link: named.to_path_buf(), target }),
    }
}

/// Makes a place for the data outside of the folders that only root may enter, and `named` a link to it.
fn relocate(named: &Path, account: &Account) -> Result<PathBuf, EmbeddedError> {
    let id = uuid::Uuid::now_v7().simple().to_string();
    let home = Path::new(SHARED_HOME).join(&id);
    make_folder(Path::new(SHARED_HOME), 0o755).map_err(|source| EmbeddedError::io("create", SHARED_HOME, source))?;
    make_folder(&home, 0o755).map_err(|source| EmbeddedError::io("create", &home, source))?;
    let data_dir = home.join("postgres");
    symlink(&data_dir, named).map_err(|source| EmbeddedError::io("link", named, source))?;
    tracing::info!(link = %named.display(), data_dir = %data_dir.display(), uid = account.uid(),
        "the PostgreSQL user cannot access this directory; data is stored elsewhere (symlinked)");
    Ok(data_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account() -> Account {
        Account::Own { uid: rustix::process::geteuid().as_raw() }
    }

    #[test]
    fn data_have_one_user_at_a_time() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let named = folder.path().join("postgres");
        let first = lock(&named).expect("free");
        let error = lock(&named).expect_err("taken");
        assert!(matches!(error, EmbeddedError::InUse { .. }), "{error}");
        drop(first);
        lock(&named).expect("free again");
    }

    #[test]
    fn a_link_whose_data_are_gone_is_not_taken_for_a_first_start() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let top = fs::canonicalize(folder.path()).expect("it exists");
        let named = top.join("postgres");
        symlink(top.join("home/postgres"), &named).expect("ours");
        let error = locate(&named, &account()).expect_err("the folder is gone");
        assert!(matches!(error, EmbeddedError::DataGone { .. }), "{error}");
        fs::create_dir(top.join("home")).expect("ours");
        let interrupted = locate(&named, &account()).expect("a first start was interrupted");
        assert_eq!(interrupted, top.join("home/postgres"));
    }

    #[test]
    fn a_long_path_has_its_socket_elsewhere_and_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        // As root, PostgreSQL's user has to pass here.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("ours");
        let long = folder.path().join("x".repeat(100));
        fs::create_dir(&long).expect("ours");
        let place = Place::claim(&long.join("postgres")).expect("free");
        let socket_dir = place.socket_dir().expect("a short name");
        let path = socket_dir.path.clone();
        assert!(fits_a_socket(&path) && path.is_dir(), "{}", path.display());
        drop(socket_dir);
        assert!(!path.exists());
    }
}
