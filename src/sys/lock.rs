//! A lock on a file that ends with the value, also where a child that is being spawned has a copy of the descriptor.

use std::fs::{File, TryLockError};

/// An exclusive lock on an open file, held against other processes and other openings in this one.
#[derive(Debug)]
pub struct FileLock(File);

impl FileLock {
    /// Locks `file`, waiting for nobody.
    pub fn try_new(file: File) -> Result<Self, (File, TryLockError)> {
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(error) => Err((file, error)),
        }
    }

    /// The file.
    pub fn file(&mut self) -> &mut File {
        &mut self.0
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Closing alone would leave the lock to whoever has inherited the descriptor, between fork and exec. Closing
        // still releases it when this fails.
        let _ = self.0.unlock();
    }
}
