//! When it pays to fetch more than was asked for.

use super::Place;

/// So many lookups of one table in a row, each asked of the database, are a run: an import, say.
const RUN: usize = 4;

/// How many neighbours are fetched at first, and at most.
const NEIGHBOURS: (usize, usize) = (32, 1024);

/// So many are fetched in vain, and then so many for each lookup that memory answered: a few sessions
/// among a million have no neighbours that are wanted.
const VAIN: usize = 4096;
const FOR_EACH_HIT: usize = 16;

/// Which rows are to be fetched beside the one in question: those after a place, which need not be.
#[derive(Clone)]
pub(crate) struct Neighbours {
    pub(crate) after: [Vec<u8>; 2],
    pub(crate) count: usize,
}

/// The lookups of one table, with none of another table between.
#[derive(Default)]
pub(super) struct Run {
    table: &'static str,
    asked: usize,
    hits: usize,
    fetched: usize,
    count: usize,
    /// The first key of the place before which the last ones were fetched.
    first: Vec<u8>,
    /// Where those ended.
    end: Option<[Vec<u8>; 2]>,
}

impl Run {
    pub(super) fn begin(&mut self, table: &'static str) {
        if self.table != table {
            *self = Self { table, ..Self::default() };
        }
    }

    pub(super) fn hit(&mut self) {
        self.hits += 1;
    }

    /// Counts a lookup that memory cannot answer, and tells what is worth fetching with it: twice as
    /// many as before, from the first that shares its first key, or from where the last ones ended.
    pub(super) fn ask(&mut self, place: &Place) -> Option<Neighbours> {
        self.asked += 1;
        let [first, _] = place.keys.as_slice() else { return None };
        if self.asked <= RUN || self.fetched > VAIN.saturating_add(FOR_EACH_HIT * self.hits) {
            return None;
        }
        let end = self.end.take().filter(|_| self.first == *first);
        self.first.clone_from(first);
        self.count = (self.count * 2).clamp(NEIGHBOURS.0, NEIGHBOURS.1);
        let after = end.unwrap_or_else(|| [first.clone(), Vec::new()]);
        Some(Neighbours { after, count: self.count })
    }

    /// Fetches no more.
    pub(super) fn give_up(&mut self) {
        self.fetched = usize::MAX;
    }

    /// So many came; the last of them is where the next ones begin.
    pub(super) fn fetched(&mut self, count: usize, last: Option<&Place>) {
        self.fetched = self.fetched.saturating_add(count);
        self.end = last.and_then(|last| last.keys.clone().try_into().ok());
    }
}
