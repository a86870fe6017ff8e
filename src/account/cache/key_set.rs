//! Which keys of a table exist, as fingerprints.

use std::collections::HashSet;

use super::CacheKey;

/// The bytes of a fingerprint.
const WIDTH: usize = 8;

/// The known keys of one table.
#[derive(Default)]
pub(super) enum KeySet {
    #[default]
    Unknown,
    /// A query for them is in flight; these keys were committed meanwhile.
    Loading(HashSet<u64>),
    Known(HashSet<u64>),
    /// More than the limit, or disabled.
    TooMany,
}

impl KeySet {
    /// Parses the concatenated fingerprints of up to `limit` rows. With exactly `limit`, there may
    /// be more.
    pub(super) fn parse(bytes: &[u8], limit: i64) -> Self {
        if usize::try_from(limit).is_ok_and(|limit| bytes.len() / WIDTH >= limit) {
            return Self::TooMany;
        }
        let fingerprints = bytes
            .chunks_exact(WIDTH)
            .map(|chunk| chunk.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)));
        Self::Known(fingerprints.collect())
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Loading(keys) | Self::Known(keys) => keys.len(),
            Self::Unknown | Self::TooMany => 0,
        }
    }

    /// Whether the table certainly has no row under this key.
    pub(super) fn is_absent(&self, key: &CacheKey) -> bool {
        matches!(self, Self::Known(keys) if !keys.contains(&key.fingerprint()))
    }

    /// Whether the table has at most this many keys.
    pub(super) fn is_few(&self, max: usize) -> bool {
        matches!(self, Self::Known(keys) if keys.len() <= max)
    }

    /// Adds a committed key. Deletions are not tracked: a stale key costs one query.
    pub(super) fn add(&mut self, key: &CacheKey, max: usize) {
        if let Self::Known(keys) | Self::Loading(keys) = self {
            keys.insert(key.fingerprint());
            if keys.len() > max {
                *self = Self::TooMany;
            }
        }
    }

    /// Stores the loaded keys, unless the load was given up meanwhile.
    pub(super) fn loaded(&mut self, mut keys: Self, max: usize) {
        if let Self::Loading(committed) = self {
            if let Self::Known(known) = &mut keys {
                known.extend(committed.drain());
                if known.len() > max {
                    keys = Self::TooMany;
                }
            }
            *self = keys;
        }
    }
}
