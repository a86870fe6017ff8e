//! Files that are removed with their test.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
};

pub struct TempFile(PathBuf);

// Not used by the soak test.
#[allow(dead_code)]
impl TempFile {
    pub fn new(name: &str, text: &str) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("bridge-{}-{number}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[allow(dead_code)]
pub fn labels_file(text: &str) -> TempFile {
    TempFile::new("labels.toml", text)
}
