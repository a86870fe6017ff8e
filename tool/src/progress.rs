//! Progress bars, on standard error and only for people.

use std::{io::Read, time::Duration};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

const KNOWN: &str = "{msg} {wide_bar} {human_pos}/{human_len} {eta}";
const UNKNOWN: &str = "{spinner} {msg} {human_pos} {elapsed}";

/// What a command that takes longer than a second shows. Wiped when it is dropped.
pub struct Progress(ProgressBar);

impl Progress {
    pub fn new(what: &'static str, steps: Option<u64>, shows: bool) -> Self {
        let target = match shows {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(steps, target);
        let style = if steps.is_some() { KNOWN } else { UNKNOWN };
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        bar.set_message(what);
        if shows {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Self(bar)
    }

    /// Sets the number of steps that are done.
    pub fn set(&self, steps: u64) {
        self.0.set_position(steps);
    }

    /// Adds steps that are done.
    pub fn add(&self, steps: u64) {
        self.0.inc(steps);
    }

    /// Shows how many bytes are read.
    pub fn count<R: Read>(&self, reader: R) -> impl Read + use<R> {
        self.0.wrap_read(reader)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
