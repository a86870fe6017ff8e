//! Which keys a table has, as fingerprints.

use std::collections::HashSet;

use super::Place;

/// The bytes of a fingerprint.
const WIDTH: usize = 8;

/// What is known of the keys of one table.
#[derive(Default)]
pub(super) enum Keys {
    #[default]
    Unknown,
    /// Somebody is fetching them; these were committed meanwhile.
    Coming(HashSet<u64>),
    Known(HashSet<u64>),
    /// More than are kept.
    TooMany,
}

impl Keys {
    /// What the server sent: the fingerprints one after the other.
    pub(super) fn parse(bytes: &[u8], most: usize) -> Self {
        if bytes.len() / WIDTH > most {
            return Self::TooMany;
        }
        let fingerprints = bytes
            .chunks_exact(WIDTH)
            .map(|chunk| chunk.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)));
        Self::Known(fingerprints.collect())
    }

    /// Whether it is sure that the table has nothing at the place.
    pub(super) fn lack(&self, place: &Place) -> bool {
        matches!(self, Self::Known(keys) if !keys.contains(&place.fingerprint()))
    }

    /// A place that was committed. One that is deleted stays: it is only asked for in vain.
    pub(super) fn add(&mut self, place: &Place, most: usize) {
        if let Self::Known(keys) | Self::Coming(keys) = self {
            keys.insert(place.fingerprint());
            if keys.len() > most {
                *self = Self::TooMany;
            }
        }
    }

    /// Takes in what came, if it still is to.
    pub(super) fn come(&mut self, mut keys: Self) {
        if let Self::Coming(committed) = self {
            if let Self::Known(known) = &mut keys {
                known.extend(committed.drain());
            }
            *self = keys;
        }
    }
}
