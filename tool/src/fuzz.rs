//! Random changes, for as long as it is wanted.

use std::time::{Duration, Instant};

/// How long to run, and the result.
pub struct Budget {
    name: String,
    end: Instant,
    seed: u64,
    runs: u64,
    read: u64,
}

impl Budget {
    /// `FUZZ_SECONDS` says how long, one by default; `FUZZ_SEED` where to begin.
    pub fn new(name: &str) -> Self {
        let variable = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
        let seconds = variable("FUZZ_SECONDS").unwrap_or(1);
        let seed = variable("FUZZ_SEED").unwrap_or_else(|| fastrand::u64(..));
        eprintln!("{name}: seed {seed}");
        let end = Instant::now() + Duration::from_secs(seconds);
        Self { name: name.to_owned(), end, seed, runs: 0, read: 0 }
    }

    /// The next run's numbers; `None` when the time is over.
    pub fn next(&mut self) -> Option<fastrand::Rng> {
        if Instant::now() >= self.end {
            return None;
        }
        self.seed = self.seed.wrapping_add(1);
        self.runs += 1;
        Some(fastrand::Rng::with_seed(self.seed))
    }

    /// The number that repeats this run: `FUZZ_SEED` one less.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Whether what was changed could still be read.
    pub fn count(&mut self, was_read: bool) {
        self.read += u64::from(was_read);
    }
}

impl Drop for Budget {
    fn drop(&mut self) {
        let Self { name, runs, read, .. } = self;
        eprintln!("{name}: {runs} runs, {read} of them read to the end");
    }
}

/// Changes some bytes, cuts off some, doubles some.
pub fn mutate(bytes: &mut Vec<u8>, random: &mut fastrand::Rng) {
    for _ in 0..random.usize(1..9) {
        if bytes.is_empty() {
            return;
        }
        let at = random.usize(..bytes.len());
        match random.u8(..20) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, random.u8(..)),
            2 => _ = bytes.remove(at),
            3 => {
                let end = (at + random.usize(..64)).min(bytes.len());
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            4..10 => {
                bytes[at] = *random.choice(&[0, 1, 0x7f, 0x80, 0xc1, 0xdc, 0xff]).unwrap_or(&0)
            }
            _ => bytes[at] ^= 1 << random.u8(..8),
        }
    }
}
