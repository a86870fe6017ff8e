//! A file that gets its name when it is complete.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// What the file is called until then.
pub fn partial(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

/// Makes a file that only its owner can read, and keeps other runs from it.
pub fn create(partial: &Path) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(partial)?;
    lock(&file)?;
    Ok(file)
}

/// Opens what an interrupted run has left; fails with `WouldBlock` while another run writes it.
pub fn reopen(partial: &Path) -> io::Result<File> {
    if !fs::symlink_metadata(partial)?.is_file() {
        return Err(io::Error::other("it is no ordinary file"));
    }
    let file = OpenOptions::new().read(true).write(true).open(partial)?;
    lock(&file)?;
    Ok(file)
}

/// Released when the file is closed, also by the end of the process.
fn lock(file: &File) -> io::Result<()> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
        // A file system without locks.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(()),
    }
}

/// Gives the file its name, never in the place of another one.
pub fn complete(partial: &Path, file: &Path) -> io::Result<()> {
    match fs::hard_link(partial, file) {
        Ok(()) => fs::remove_file(partial)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(error),
        // A file system without links, FAT for instance: another file that comes right now is overwritten.
        Err(_) if !file.try_exists()? => fs::rename(partial, file)?,
        Err(error) => return Err(error),
    }
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}
