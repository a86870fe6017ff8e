//! What Ctrl-C ends.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    context::Context,
    outcome::{Error, Exit},
};

/// Folders that a value's drop would remove.
static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Also removes this temporary folder when the program is interrupted.
pub fn remove_too(folder: &Path) {
    FOLDERS.lock().unwrap_or_else(PoisonError::into_inner).push(folder.to_owned());
}

/// Ends the program at Ctrl-C. A task of its own: questions and copies of files block the command's thread. The
/// server rolls back what was not committed.
pub fn exit_on_ctrl_c(context: Arc<Context>) {
    tokio::spawn(async move {
        // Without a handler the signal ends the program in any case.
        if tokio::signal::ctrl_c().await.is_err() {
            return;
        }
        for folder in FOLDERS.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = fs::remove_dir_all(folder);
        }
        let error = Error { message: "interrupted".to_owned(), exit: Exit::Interrupted };
        let exit = context.print_error(&error).unwrap_or(Exit::Interrupted);
        process::exit(exit as i32);
    });
}
