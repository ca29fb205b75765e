//! The seam to the file system: just the calls that the journal's promises rest on.
//!
//! Two users: [`DiskStorage`](super::DiskStorage), and the faulty storage of the tests, which fails calls and loses power. What the
//! journal relies on, and a new implementation has to keep:
//!
//! * bytes survive power loss once [`StorageFile::sync_data`] returned, and no earlier;
//! * a name (created, renamed, removed) does once [`Storage::sync_dir`] returned, and names that were changed in
//!   order are never found changed out of order;
//! * a rename replaces its target at once.

use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

/// Name of the file that a running server holds locked.
pub const LOCK_NAME: &str = "lock";

/// A file of the journal's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Its name, without the directory.
    pub name: String,
    /// Its length.
    pub bytes: u64,
}

/// What an opened file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading only.
    Read,
    /// Reading and writing.
    Write,
}

/// A directory of files. Names are plain, without separators.
pub trait Storage: Send + Sync + Debug {
    /// The directory, for messages.
    fn dir(&self) -> &Path;
    /// Takes the lock that keeps a second server out, until the returned guard is dropped.
    /// [`io::ErrorKind::WouldBlock`] when it is held; the message then names the holder, if known.
    fn lock(&self) -> io::Result<Box<dyn Send + Sync>>;
    /// All files, in no order.
    fn list(&self) -> io::Result<Vec<DirEntry>>;
    /// Creates `name` (replacing it) with `bytes` of reserved space, where the file system can reserve.
    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn StorageFile>>;
    /// Opens `name`, which exists.
    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn StorageFile>>;
    /// Renames `from` to `to`, replacing it.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes `name`.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes all names as they are now survive power loss.
    fn sync_dir(&self) -> io::Result<()>;
}

/// An open file; calls from several threads do not disturb each other.
pub trait StorageFile: Send + Sync {
    /// Writes some of `slices` at `offset`; returns how many bytes, like `pwritev(2)`. At most
    /// [`SLICES_PER_WRITE_MAX`] slices.
    fn write_vectored_at(&self, slices: &[IoSlice<'_>], offset: u64) -> io::Result<usize>;
    /// Makes all bytes written survive power loss, and the length with them.
    fn sync_data(&self) -> io::Result<()>;
    /// Reads some bytes at `offset`; returns how many, 0 at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// The file's length.
    fn bytes(&self) -> io::Result<u64>;
    /// Cuts or extends the file to `bytes`.
    fn set_bytes(&self, bytes: u64) -> io::Result<()>;
}

/// `IOV_MAX` of Linux: slices that one vectored write takes at most.
pub const SLICES_PER_WRITE_MAX: usize = 1024;

/// Writes all of `slices` at `offset`, over short writes and interruptions.
pub fn write_all_vectored_at(
    file: &dyn StorageFile,
    mut slices: &mut [IoSlice<'_>],
    mut offset: u64,
) -> io::Result<()> {
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        let count = slices.len().min(SLICES_PER_WRITE_MAX);
        match file.write_vectored_at(&slices[..count], offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                IoSlice::advance_slices(&mut slices, written);
                offset += written as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Fills `buffer` from `offset` on; returns how many bytes there were before the end of the file.
pub fn read_full_at(file: &dyn StorageFile, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes at most three bytes a call, and is interrupted on every other one.
    struct Stingy(parking_lot::Mutex<(Vec<u8>, bool)>);

    impl StorageFile for Stingy {
        fn write_vectored_at(&self, slices: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
            let (bytes, interrupt) = &mut *self.0.lock();
            *interrupt = !*interrupt;
            if *interrupt {
                return Err(io::ErrorKind::Interrupted.into());
            }
            assert!(slices.len() <= SLICES_PER_WRITE_MAX && bytes.len() as u64 == offset);
            let taken: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).take(3).collect();
            bytes.extend_from_slice(&taken);
            Ok(taken.len())
        }
        fn sync_data(&self) -> io::Result<()> {
            Ok(())
        }
        fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
            Ok(0)
        }
        fn bytes(&self) -> io::Result<u64> {
            Ok(0)
        }
        fn set_bytes(&self, _: u64) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn short_and_interrupted_writes_are_continued() {
        let file = Stingy(Default::default());
        let parts: Vec<Vec<u8>> = (0..1500u32).map(|i| vec![i as u8; (i % 5) as usize]).collect();
        let mut slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
        write_all_vectored_at(&file, &mut slices, 0).expect("writes");
        assert_eq!(file.0.lock().0, parts.concat());
    }
}
