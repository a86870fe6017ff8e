//! A file that gets its name when it is complete.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use crate::outcome::Error;

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

/// Gives the file its name, never in the place of another one. `what` it is called in errors.
pub fn complete(partial: &Path, file: &Path, what: &str) -> Result<(), Error> {
    let (whole, name) = (partial.display(), file.display());
    let unnamed = |error: io::Error| {
        Error::failed(match error.kind() {
            io::ErrorKind::AlreadyExists => {
                format!("another file came in the place of the {what}, which is {whole}")
            }
            _ => format!("the {what} is complete, but stays {whole}: {error}; rename it"),
        })
    };
    let named = |doing: &str, error: io::Error| {
        Error::failed(format!("the {what} is complete: {name}; but {doing} failed: {error}"))
    };
    match fs::hard_link(partial, file) {
        Ok(()) => fs::remove_file(partial)
            .map_err(|error| named("removing its other name, .partial,", error))?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(unnamed(error)),
        // A file system without links, FAT for instance: another file that comes right now is overwritten.
        Err(error) => match file.try_exists() {
            Ok(false) => fs::rename(partial, file).map_err(unnamed)?,
            _ => return Err(unnamed(error)),
        },
    }
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    let synced = File::open(folder.unwrap_or(Path::new("."))).and_then(|folder| folder.sync_all());
    synced.map_err(|error| named("writing its folder to the disk", error))
}
