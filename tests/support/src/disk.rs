//! Small disks.

use std::{fs, path::Path, process::Command};

use crate::{directory::Directory, privileges::run};

/// A tmpfs of a given size. Needs root, or a user name space.
pub struct Disk(Directory);

impl Disk {
    pub fn new(size: &str) -> Self {
        let directory = Directory::new();
        fs::create_dir(&directory.0).unwrap();
        run(&format!("mount -t tmpfs -o size={size} tmpfs {}", directory.0.display()));
        Self(directory)
    }

    pub fn path(&self) -> &Path {
        &self.0.0
    }

    /// Gives it another size.
    pub fn resize(&self, size: &str) {
        run(&format!("mount -o remount,size={size} {}", self.path().display()));
    }

    /// Fills all free blocks.
    pub fn fill(&self) {
        let ballast = self.path().join("ballast");
        let of = format!("of={}", ballast.display());
        // It ends with an error when the disk is full.
        Command::new("dd").args(["if=/dev/zero", &of, "bs=4096"]).output().unwrap();
    }

    pub fn relieve(&self) {
        fs::remove_file(self.path().join("ballast")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0.0).status();
    }
}
