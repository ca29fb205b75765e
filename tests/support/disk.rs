//! A small file system of its own, to fill up.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// A small file system in memory, gone with the value.
pub struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    /// One of `size`, such as `24m`; `None` for users who may not mount.
    pub fn mount(size: &str) -> Option<Self> {
        let folder = super::folder();
        let options = format!("size={size},mode=0755");
        let mounted = run(&["mount", "-t", "tmpfs", "-o", &options, "tmpfs"], folder.path());
        mounted.then_some(Self { folder })
    }

    /// The folder that it is mounted on.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Makes it `size` large.
    pub fn grow(&self, size: &str) {
        assert!(run(&["mount", "-o", &format!("remount,size={size}")], self.folder.path()), "it can be remounted");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a server that a failed test left may still hold a file.
        run(&["umount", "--lazy"], self.folder.path());
    }
}

fn run(command: &[&str], folder: &Path) -> bool {
    let output = Command::new(command[0]).args(&command[1..]).arg(folder).output();
    output.is_ok_and(|output| output.status.success())
}
