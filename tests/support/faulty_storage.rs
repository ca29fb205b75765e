//! A storage in memory that fails calls and loses power.
//!
//! It keeps no more than [`Storage`] promises. At power loss every 512-byte sector that was written and not synced is
//! there or not, each for itself, as the seed decides; so is an unsynced length; and of the unsynced changes of names
//! only a prefix, in their order, happened.

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use ingestd::journal::storage::{Access, DirEntry, Storage, StorageFile};
use rustix::io::Errno;

const SECTOR_BYTES: usize = 512;

/// A small generator of numbers (SplitMix64): the same seed, the same numbers.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// A call that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Create,
    Open,
    Write,
    Sync,
    Rename,
    Remove,
    SyncDir,
    Read,
    SetBytes,
}

/// Calls that fail.
#[derive(Clone, Copy, Debug)]
struct Fault {
    call: Call,
    /// How many of it succeed before.
    successes: u64,
    /// How many of it fail.
    times: u64,
    error: Error,
}

#[derive(Clone, Copy, Debug)]
enum Error {
    Kind(io::ErrorKind),
    Errno(Errno),
}

#[derive(Clone, Debug)]
enum NameChange {
    Set(String, usize),
    Remove(String),
    Rename(String, String),
}

#[derive(Clone, Debug, Default)]
struct FileBytes {
    now: Vec<u8>,
    durable: Vec<u8>,
}

#[derive(Clone, Debug, Default)]
struct State {
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    unsynced: Vec<NameChange>,
    files: Vec<FileBytes>,
    is_locked: bool,
    fault: Option<Fault>,
    /// Calls that have failed.
    failures: u64,
    capacity_bytes: Option<u64>,
    write_bytes_max: Option<usize>,
    bytes_peak: u64,
    /// File and bytes of it that cannot be read.
    unreadable: Option<(usize, Range<u64>)>,
}

impl State {
    fn check(&mut self, call: Call) -> io::Result<()> {
        let Some(fault) = self.fault.as_mut().filter(|fault| fault.call == call) else { return Ok(()) };
        if fault.successes > 0 {
            fault.successes -= 1;
            return Ok(());
        }
        if fault.times == 0 {
            return Ok(());
        }
        fault.times -= 1;
        self.failures += 1;
        Err(match fault.error {
            Error::Kind(kind) => io::Error::new(kind, "injected"),
            Error::Errno(errno) => errno.into(),
        })
    }

    fn bytes(&self) -> u64 {
        self.names.values().map(|&file| self.files[file].now.len() as u64).sum()
    }

    fn note_peak(&mut self) {
        self.bytes_peak = self.bytes_peak.max(self.bytes());
    }

    fn change(&mut self, change: NameChange) {
        apply(&mut self.names, &change);
        self.unsynced.push(change);
    }

    fn find(&self, name: &str) -> io::Result<usize> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn apply(names: &mut BTreeMap<String, usize>, change: &NameChange) {
    match change {
        NameChange::Set(name, file) => drop(names.insert(name.clone(), *file)),
        NameChange::Remove(name) => drop(names.remove(name)),
        NameChange::Rename(from, to) => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
    }
}

/// See the module. Clones share the files.
#[derive(Clone, Debug, Default)]
pub struct FaultyStorage(Arc<Mutex<State>>);

impl FaultyStorage {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics while it holds the storage")
    }

    /// From now on, after `successes` more of them, every `call` fails with `kind`.
    pub fn fail(&self, call: Call, successes: u64, kind: io::ErrorKind) {
        self.state().fault = Some(Fault { call, successes, times: u64::MAX, error: Error::Kind(kind) });
    }

    /// From now on, after `successes` more of them, `times` calls fail with `errno`, those after them do not.
    pub fn fail_times(&self, call: Call, successes: u64, times: u64, errno: Errno) {
        self.state().fault = Some(Fault { call, successes, times, error: Error::Errno(errno) });
    }

    /// Calls that have failed.
    pub fn failures(&self) -> u64 {
        self.state().failures
    }

    /// No call fails any more.
    pub fn heal(&self) {
        let mut state = self.state();
        state.fault = None;
        state.capacity_bytes = None;
    }

    /// The device holds this many bytes.
    pub fn set_capacity(&self, bytes: u64) {
        self.state().capacity_bytes = Some(bytes);
    }

    /// No write takes more than this many bytes at once.
    pub fn set_write_bytes_max(&self, bytes: usize) {
        self.state().write_bytes_max = Some(bytes);
    }

    /// Reads of `bytes` of the file called `name` fail.
    pub fn make_unreadable(&self, name: &str, bytes: Range<u64>) {
        let mut state = self.state();
        let file = state.find(name).expect("exists");
        state.unreadable = Some((file, bytes));
    }

    /// Bytes of all files, and the most they ever were.
    pub fn bytes_and_peak(&self) -> (u64, u64) {
        let state = self.state();
        (state.bytes(), state.bytes_peak)
    }

    /// All files by name.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.state();
        state.names.iter().map(|(name, &file)| (name.clone(), state.files[file].now.clone())).collect()
    }

    /// A storage with these files, all synced.
    pub fn with_files(files: &BTreeMap<String, Vec<u8>>) -> Self {
        let storage = Self::default();
        let mut state = storage.state();
        for (name, bytes) in files {
            let file = state.files.len();
            state.files.push(FileBytes { now: bytes.clone(), durable: bytes.clone() });
            state.names.insert(name.clone(), file);
        }
        state.durable_names = state.names.clone();
        drop(state);
        storage
    }

    /// The power fails; what comes back is decided by `seed`. Drop the journal first: its process is gone.
    pub fn lose_power(&self, seed: u64) {
        let mut random = Random(seed);
        let state = &mut *self.state();
        let happened = random.below(state.unsynced.len() as u64 + 1) as usize;
        for change in state.unsynced.drain(..).take(happened) {
            apply(&mut state.durable_names, &change);
        }
        state.names = state.durable_names.clone();
        for file in &mut state.files {
            let length = if random.below(2) == 0 { file.now.len() } else { file.durable.len() };
            let mut bytes = vec![0; length];
            for (index, sector) in bytes.chunks_mut(SECTOR_BYTES).enumerate() {
                let from = index * SECTOR_BYTES;
                let part = |whole: &[u8]| -> Vec<u8> {
                    let mut part = whole.get(from..).unwrap_or_default().to_vec();
                    part.resize(sector.len(), 0);
                    part
                };
                let (now, durable) = (part(&file.now), part(&file.durable));
                let survives = now == durable || random.below(2) == 0;
                sector.copy_from_slice(if survives { &now } else { &durable });
            }
            *file = FileBytes { now: bytes.clone(), durable: bytes };
        }
        state.is_locked = false;
    }
}

struct Guard(FaultyStorage);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.state().is_locked = false;
    }
}

impl Storage for FaultyStorage {
    fn dir(&self) -> &Path {
        Path::new("faulty")
    }

    fn lock(&self) -> io::Result<Box<dyn Send + Sync>> {
        let mut state = self.state();
        if std::mem::replace(&mut state.is_locked, true) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(Guard(self.clone())))
    }

    fn list(&self) -> io::Result<Vec<DirEntry>> {
        let files = self.files();
        Ok(files.into_iter().map(|(name, bytes)| DirEntry { name, bytes: bytes.len() as u64 }).collect())
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn StorageFile>> {
        let mut state = self.state();
        state.check(Call::Create)?;
        let file = state.files.len();
        state.files.push(FileBytes::default());
        state.change(NameChange::Set(name.to_owned(), file));
        if state.capacity_bytes.is_some_and(|capacity| state.bytes() + bytes > capacity) {
            return Err(io::ErrorKind::StorageFull.into()); // the name stays, like after a failed fallocate
        }
        state.files[file].now = vec![0; bytes as usize];
        state.note_peak();
        Ok(Arc::new(FaultyFile { storage: self.clone(), file, access: Access::Write }))
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn StorageFile>> {
        let mut state = self.state();
        state.check(Call::Open)?;
        let file = state.find(name)?;
        Ok(Arc::new(FaultyFile { storage: self.clone(), file, access }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        state.check(Call::Rename)?;
        state.find(from)?;
        state.change(NameChange::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.check(Call::Remove)?;
        state.find(name)?;
        state.change(NameChange::Remove(name.to_owned()));
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.state();
        state.check(Call::SyncDir)?;
        state.unsynced.clear();
        state.durable_names = state.names.clone();
        Ok(())
    }
}

struct FaultyFile {
    storage: FaultyStorage,
    file: usize,
    access: Access,
}

impl StorageFile for FaultyFile {
    fn write_vectored_at(&self, slices: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        assert_eq!(self.access, Access::Write);
        let mut state = self.storage.state();
        let mut bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        let failed = state.check(Call::Write);
        if failed.is_err() {
            bytes.truncate(bytes.len() / 2); // the device took a part before it failed
        }
        bytes.truncate(state.write_bytes_max.unwrap_or(usize::MAX));
        let now = &mut state.files[self.file].now;
        let end = offset as usize + bytes.len();
        now.resize(now.len().max(end), 0);
        now[offset as usize..end].copy_from_slice(&bytes);
        state.note_peak();
        failed.map(|()| bytes.len())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.storage.state();
        state.check(Call::Sync)?;
        let file = &mut state.files[self.file];
        file.durable.clone_from(&file.now);
        Ok(())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.storage.state();
        state.check(Call::Read)?;
        let wanted = offset..offset + buffer.len() as u64;
        if let Some((file, bad)) = &state.unreadable
            && *file == self.file
            && wanted.start.max(bad.start) < wanted.end.min(bad.end)
        {
            return Err(io::Error::other("bad sector"));
        }
        let rest = state.files[self.file].now.get(offset as usize..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.storage.state().files[self.file].now.len() as u64)
    }

    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        assert_eq!(self.access, Access::Write);
        let mut state = self.storage.state();
        state.check(Call::SetBytes)?;
        state.files[self.file].now.resize(bytes as usize, 0);
        Ok(())
    }
}
