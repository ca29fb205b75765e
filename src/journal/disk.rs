//! The real file system behind the seam of [`super::storage`].

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, IoSlice, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, OFlags, fallocate};
use rustix::io::Errno;

use super::aligned::is_aligned;
use super::append::Appender;
use super::storage::{Access, DirEntry, LOCK_NAME, Storage, StorageFile};
use crate::sys::lock::FileLock;

/// A directory of the real file system. Files are readable by their owner only: they hold what clients sent.
#[derive(Clone, Debug)]
pub struct DiskStorage {
    dir: PathBuf,
}

impl DiskStorage {
    /// The directory `dir`, made if missing.
    pub fn create(dir: impl Into<PathBuf>) -> io::Result<Self> {
        let dir = dir.into();
        if !dir.is_dir() {
            let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
            // Only the journal's own folder is private: others may live beside it.
            fs::create_dir_all(parent.unwrap_or(Path::new(".")))?;
            DirBuilder::new().mode(0o700).create(&dir)?;
            File::open(parent.unwrap_or(Path::new(".")))?.sync_all()?;
        }
        Ok(Self { dir })
    }

    /// The directory `dir`, for reading; it is not made.
    pub fn existing(dir: impl Into<PathBuf>) -> io::Result<Self> {
        let dir = dir.into();
        fs::read_dir(&dir)?;
        Ok(Self { dir })
    }
}

impl Storage for DiskStorage {
    fn dir(&self) -> &Path {
        &self.dir
    }

    fn lock(&self) -> io::Result<Box<dyn Send + Sync>> {
        let path = self.dir.join(LOCK_NAME);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let mut lock = match FileLock::try_new(file) {
            Ok(lock) => lock,
            Err((_, TryLockError::Error(error))) => return Err(error),
            Err((mut file, TryLockError::WouldBlock)) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder); // only words for the message
                let message = format!("held by PID {}", holder.trim());
                return Err(io::Error::new(io::ErrorKind::WouldBlock, message));
            }
        };
        lock.file().set_len(0)?;
        writeln!(lock.file(), "{}", std::process::id())?;
        Ok(Box::new(lock))
    }

    fn list(&self) -> io::Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue, // removed since, by a live server
                Err(error) => return Err(error),
            };
            if metadata.is_file() {
                entries
                    .push(DirEntry { name: entry.file_name().to_string_lossy().into_owned(), bytes: metadata.len() });
            }
        }
        Ok(entries)
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn StorageFile>> {
        let path = self.dir.join(name);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        if bytes > 0 {
            match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
                Ok(()) => {}
                // A file system that cannot reserve: the space is then found, or not, write by write.
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.set_len(bytes)?,
                Err(errno) => return Err(errno.into()),
            }
        }
        // Small files are written once, and read again soon.
        let direct = if bytes > 0 { Direct::open(&path) } else { None };
        Ok(Arc::new(DiskFile { file, direct }))
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn StorageFile>> {
        let path = self.dir.join(name);
        let file = OpenOptions::new().read(true).write(access == Access::Write).open(&path)?;
        let direct = if access == Access::Write { Direct::open(&path) } else { None };
        Ok(Arc::new(DiskFile { file, direct }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.dir.join(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }
}

/// An open file; a segment that was filled by this process is written and read past the page cache where the file
/// system can.
struct DiskFile {
    file: File,
    direct: Option<Direct>,
}

struct Direct {
    file: Arc<File>,
    appender: Mutex<Appender>,
}

impl Direct {
    /// A second handle on `path` that bypasses the page cache; `None` where the file system has no such thing.
    fn open(path: &Path) -> Option<Self> {
        let flags = OFlags::DIRECT.bits().cast_signed();
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).ok().map(Arc::new)?;
        Some(Self { appender: Mutex::new(Appender::new(Arc::clone(&file))), file })
    }
}

impl StorageFile for DiskFile {
    fn write_vectored_at(&self, slices: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        match &self.direct {
            Some(direct) => direct.appender.lock().write(&self.file, slices, offset),
            None => Ok(rustix::io::pwritev(&self.file, slices, offset)?),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if let Some(direct) = self.direct.as_ref().filter(|_| is_aligned(buffer, offset)) {
            match direct.file.read_at(buffer, offset) {
                // The device wants more than our blocks.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
                outcome => return outcome,
            }
        }
        self.file.read_at(buffer, offset)
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_lock_names_its_holder() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let storage = DiskStorage::create(dir.path().join("a/b")).expect("creates");
        let guard = storage.lock().expect("is free");
        let error = storage.lock().err().expect("is held");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        drop(guard);
        storage.lock().expect("is free again");
    }

    #[test]
    fn reserved_files_have_their_length() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let storage = DiskStorage::create(dir.path()).expect("opens");
        let file = storage.create("a", 10_000).expect("creates");
        assert_eq!(file.bytes().expect("has a length"), 10_000);
        assert_eq!(storage.list().expect("lists"), [DirEntry { name: "a".to_owned(), bytes: 10_000 }]);
        assert!(DiskStorage::existing(dir.path().join("missing")).is_err());
    }
}
