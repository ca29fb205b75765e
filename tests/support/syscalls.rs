//! A real server whose system calls fail or are held up, or at one of which it is killed: a small library that it is
//! started with.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::Errno;
use tempfile::TempDir;

use super::server::{Builder, Ingestd};

/// Kinds of calls that a journal makes all the time. `syscalls.c` knows `open`, too.
pub const KINDS: [&str; 7] = ["write", "fdatasync", "fsync", "rename", "unlink", "fallocate", "ftruncate"];
/// What a server exits with where the kernel cannot filter calls.
const NO_FILTER: i32 = 99;
/// Bytes of a field of `struct orders` in `syscalls.c`, which has them in the order of [`Field`].
const FIELD_BYTES: u64 = 8;

/// What the test says, and hears.
#[derive(Clone, Copy, Debug)]
enum Field {
    Skip,
    Strike,
    Error,
    Hold,
    Seen,
    Struck,
}

/// What happens at the n-th call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strike {
    /// The server is killed (-9) in its place.
    Kill,
    /// It fails with EIO.
    Eio,
}

/// The calls of one server. Built by the C compiler that setup brings.
#[derive(Debug)]
pub struct Syscalls {
    folder: TempDir,
    orders: fs::File,
}

impl Syscalls {
    /// Builds the library.
    pub fn new() -> Self {
        let folder = super::folder();
        super::build_library(folder.path(), "syscalls");
        let mut options = fs::File::options();
        let orders = options.read(true).write(true).create(true).truncate(true).open(folder.path().join("orders"));
        let syscalls = Self { folder, orders: orders.expect("the folder is ours") };
        syscalls.reset();
        syscalls
    }

    /// Has the server that `builder` starts run with the library.
    pub fn of(&self, builder: Builder) -> Builder {
        let file = |name| self.folder.path().join(name).display().to_string();
        builder.env("LD_PRELOAD", file("syscalls.so")).env("TEST_SYSCALL_FILE", file("orders"))
    }

    /// Has the server that `builder` starts count its calls of `kind` on files whose path has `part_of_path` in it: they
    /// can be struck or held up while it runs.
    pub fn watch(&self, builder: Builder, kind: &str, part_of_path: &str) -> Builder {
        self.reset();
        self.of(builder).env("TEST_SYSCALL", kind).env("TEST_SYSCALL_PATH", part_of_path)
    }

    /// As [`Self::of`], for a server whose power can fail: [`Self::cut_power`].
    pub fn of_powered(&self, builder: Builder) -> Builder {
        let images = self.folder.path().join("images");
        fs::create_dir_all(&images).expect("the folder is ours");
        self.watch(builder, "fdatasync", "").env("TEST_SYSCALL_IMAGES", images.display())
    }

    /// Gives each file in `folder` back what it held when it was last synced; the server has been killed. What a disk may
    /// keep of the rest is another test's matter (`journal_crash`).
    pub fn cut_power(&self, folder: &Path) {
        for entry in fs::read_dir(folder).expect("the server's folder").flatten() {
            let inode = entry.metadata().expect("it is there").ino();
            let image = fs::read(self.folder.path().join("images").join(inode.to_string()));
            fs::write(entry.path(), image.unwrap_or_default()).expect("the folder is ours");
        }
    }

    /// From the next start of `server` on, its `number`-th call of `kind` is struck; the first is 1.
    pub fn strike(&self, server: &mut Ingestd, kind: &str, number: u64, strike: Strike) {
        self.reset();
        let error = if strike == Strike::Kill { 0 } else { Errno::IO.raw_os_error().into() };
        self.set(Field::Skip, number.cast_signed() - 1);
        self.set(Field::Error, error);
        self.set(Field::Strike, 1);
        server.set_env("TEST_SYSCALL", kind);
    }

    /// From now on the calls that are watched fail with `error`.
    pub fn fail(&self, error: Errno) {
        self.set(Field::Error, error.raw_os_error().into());
        self.set(Field::Strike, -1);
    }

    /// The next call that is watched fails with `error`, those after it do not.
    pub fn fail_once(&self, error: Errno) {
        self.set(Field::Error, error.raw_os_error().into());
        self.set(Field::Strike, 1);
    }

    /// No call fails any more.
    pub fn heal(&self) {
        self.set(Field::Strike, 0);
    }

    /// From now on the calls that are watched do not end, until [`Self::release`].
    pub fn hold(&self) {
        self.set(Field::Hold, 1);
    }

    /// Lets them go on.
    pub fn release(&self) {
        self.set(Field::Hold, 0);
    }

    /// Calls that have come since the server was built.
    pub fn seen(&self) -> u64 {
        self.get(Field::Seen).cast_unsigned()
    }

    /// Those of them that were struck.
    pub fn struck(&self) -> u64 {
        self.get(Field::Struck).cast_unsigned()
    }

    /// From the next start of `server` on, nothing is struck.
    pub fn spare(&self, server: &mut Ingestd) {
        server.set_env("TEST_SYSCALL", "");
    }

    /// Whether the call has come since [`Self::strike`].
    pub fn has_struck(&self) -> bool {
        self.struck() > 0
    }

    /// Whether this kernel can hand calls to a program.
    pub fn is_supported(&self) -> bool {
        let mut command = Command::new("/bin/true");
        command.env("LD_PRELOAD", self.folder.path().join("syscalls.so")).env("TEST_SYSCALL", "fsync");
        command.env("TEST_SYSCALL_FILE", self.folder.path().join("orders")).stderr(Stdio::null());
        !Self::is_missing(command.status().expect("true runs").code())
    }

    /// Whether `code`, with which a server has exited, says that this kernel cannot do it.
    pub fn is_missing(code: Option<i32>) -> bool {
        code == Some(NO_FILTER)
    }

    fn reset(&self) {
        for field in [Field::Skip, Field::Strike, Field::Error, Field::Hold, Field::Seen, Field::Struck] {
            self.set(field, 0);
        }
    }

    fn set(&self, field: Field, value: i64) {
        self.orders.write_all_at(&value.to_ne_bytes(), field as u64 * FIELD_BYTES).expect("the file is ours");
    }

    fn get(&self, field: Field) -> i64 {
        let mut bytes = [0; FIELD_BYTES as usize];
        self.orders.read_exact_at(&mut bytes, field as u64 * FIELD_BYTES).expect("the file is ours");
        i64::from_ne_bytes(bytes)
    }
}
