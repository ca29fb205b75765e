//! A wall clock that a test can move while a real server runs by it: a small library that the server is started with.

use std::fs;
use std::os::unix::fs::FileExt;

use tempfile::TempDir;

use super::server::Builder;

/// The clock of one or more servers. Built by the C compiler that setup brings.
#[derive(Debug)]
pub struct WallClock {
    folder: TempDir,
    offset: fs::File,
}

impl WallClock {
    /// A clock that shows the right time.
    pub fn new() -> Self {
        let folder = super::folder();
        super::build_library(folder.path(), "clock");
        let offset = fs::File::create(folder.path().join("offset")).expect("the folder is ours");
        let clock = Self { folder, offset };
        clock.set_offset(0);
        clock
    }

    /// Has the server that `builder` starts go by this clock.
    pub fn of(&self, builder: Builder) -> Builder {
        let file = |name| self.folder.path().join(name).display().to_string();
        builder.env("LD_PRELOAD", file("clock.so")).env("TEST_CLOCK_FILE", file("offset"))
    }

    /// From now on the clock is `seconds` ahead, or behind.
    pub fn set_offset(&self, seconds: i64) {
        self.offset.write_all_at(&seconds.to_ne_bytes(), 0).expect("the file is ours");
    }
}
