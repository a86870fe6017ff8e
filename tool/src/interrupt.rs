//! What ends the program before its end.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::signal::unix::{SignalKind, signal};

use crate::{
    context::Context,
    outcome::{Error, Exit},
};

/// Files and folders that the command's thread would remove.
static LEFT: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Also removes this file or folder when the program is interrupted.
pub fn remove_too(path: &Path) {
    LEFT.lock().unwrap_or_else(PoisonError::into_inner).push(path.to_owned());
}

/// Ends the program at Ctrl-C, at the end of its terminal, and when it is asked to end. A task of its own:
/// questions and copies of files block the command's thread. The server rolls back what was not committed.
pub fn exit_on_signals(context: Arc<Context>, is_resumable: bool) {
    let kinds = [SignalKind::interrupt(), SignalKind::hangup(), SignalKind::terminate()];
    // Without a handler the signal ends the program in any case.
    let signals = kinds.into_iter().filter(|kind| !is_ignored(*kind)).map(signal);
    let mut signals: Vec<_> = signals.filter_map(Result::ok).collect();
    if signals.is_empty() {
        return;
    }
    tokio::spawn(async move {
        let received = signals.iter_mut().map(|signal| Box::pin(signal.recv()));
        futures_util::future::select_all(received).await;
        for path in LEFT.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = match path.is_dir() {
                true => fs::remove_dir_all(path),
                false => fs::remove_file(path),
            };
        }
        let error = match is_resumable {
            true => Error::interrupted_and_resumable(),
            false => Error::interrupted(),
        };
        let exit = context.print_error(&error).unwrap_or(Exit::Interrupted);
        process::exit(exit as i32);
    });
}

/// Whether who started the program has it ignore the signal, as `nohup` does.
fn is_ignored(kind: SignalKind) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask >> (kind.as_raw_value() - 1) & 1 == 1)
}
