//! A real server whose system calls fail, or at one of which it is killed: a small library that it is started with.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use tempfile::TempDir;

use super::server::{Builder, Ingestd};

/// Kinds of calls that `syscalls.c` counts.
pub const KINDS: [&str; 7] = ["write", "fdatasync", "fsync", "rename", "unlink", "fallocate", "ftruncate"];
/// What a server exits with where the kernel cannot filter calls.
const NO_FILTER: i32 = 99;

/// What happens at the n-th call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strike {
    /// The server is killed (-9) in its place.
    Kill,
    /// It fails with EIO.
    Eio,
}

/// The calls of one server, which is told before each start what happens. Built by the C compiler that setup brings.
#[derive(Debug)]
pub struct Syscalls {
    folder: TempDir,
    fired: fs::File,
}

impl Syscalls {
    /// Builds the library.
    pub fn new() -> Self {
        let folder = super::folder();
        super::build_library(folder.path(), "syscalls");
        let mut options = fs::File::options();
        let fired = options.read(true).write(true).create(true).truncate(true).open(folder.path().join("fired"));
        let syscalls = Self { folder, fired: fired.expect("the folder is ours") };
        syscalls.reset();
        syscalls
    }

    /// Has the server that `builder` starts run with the library.
    pub fn of(&self, builder: Builder) -> Builder {
        let file = |name| self.folder.path().join(name).display().to_string();
        builder.env("LD_PRELOAD", file("syscalls.so")).env("TEST_SYSCALL_FILE", file("fired"))
    }

    /// From the next start of `server` on, its `number`-th call of `kind` is struck; the first is 1.
    pub fn strike(&self, server: &mut Ingestd, kind: &str, number: u64, strike: Strike) {
        self.reset();
        let outcome = if strike == Strike::Kill { "kill" } else { "eio" };
        server.set_env("TEST_SYSCALL", format!("{kind} {number} {outcome}"));
    }

    /// As [`Self::of`], for a server whose power can fail: [`Self::cut_power`].
    pub fn of_powered(&self, builder: Builder) -> Builder {
        let images = self.folder.path().join("images");
        fs::create_dir_all(&images).expect("the folder is ours");
        self.of(builder).env("TEST_SYSCALL", "fdatasync 0 keep").env("TEST_SYSCALL_IMAGES", images.display())
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

    /// From the next start of `server` on, nothing is struck.
    pub fn spare(&self, server: &mut Ingestd) {
        server.set_env("TEST_SYSCALL", "");
    }

    /// Whether the call has come since [`Self::strike`].
    pub fn has_struck(&self) -> bool {
        let mut bytes = [0; 8];
        self.fired.read_exact_at(&mut bytes, 0).expect("the file is ours");
        bytes != [0; 8]
    }

    /// Whether this kernel can do it.
    pub fn works(&self) -> bool {
        let library = self.folder.path().join("syscalls.so");
        let mut command = std::process::Command::new("true");
        command.env("LD_PRELOAD", library).env("TEST_SYSCALL_FILE", self.folder.path().join("fired"));
        let status = command.env("TEST_SYSCALL", "fdatasync 1 kill").status().expect("it runs");
        !Self::is_missing(status.code())
    }

    /// Whether `code`, with which a server has exited, says that this kernel cannot do it.
    pub fn is_missing(code: Option<i32>) -> bool {
        code == Some(NO_FILTER)
    }

    fn reset(&self) {
        self.fired.write_all_at(&[0; 8], 0).expect("the file is ours");
    }
}
