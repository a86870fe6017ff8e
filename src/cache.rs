//! Rows that an exclusive owner need not ask for again: nobody else can change them.
//!
//! Rows are kept as they are stored, so sealed in an encrypted account, and in groups that are kept
//! and dropped as one: what a read asks for. Reads fill the cache, and writes when they are committed;
//! a read that began before a commit does not fill it afterwards. Beside the rows, a set of the keys
//! that a table has tells what is not there.

mod keys;
mod memory;
mod pending;
mod run;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sha2::{Digest, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop};

use self::memory::Memory;
pub(crate) use self::{pending::Pending, run::Neighbours};
use crate::codec::Key;

/// Where a group of rows is: its table, and the keys that its rows have in common.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    table: &'static str,
    keys: Vec<Vec<u8>>,
}

impl Place {
    pub(crate) fn new<const N: usize>(table: &'static str, keys: [&Key; N]) -> Self {
        Self { table, keys: keys.map(|key| key.as_bytes().to_vec()).into() }
    }

    /// What the sets of keys know it by, computed alike by the server. Two places may share one: then
    /// one that is not there is asked for.
    fn fingerprint(&self) -> u64 {
        let mut hash = Sha256::new();
        self.keys.iter().for_each(|key| hash.update(key));
        let mut first = [0; 8];
        first.copy_from_slice(&hash.finalize()[..8]);
        u64::from_be_bytes(first)
    }

    fn bytes(&self) -> usize {
        self.keys.iter().map(|key| key.len() + OVERHEAD_BYTES).sum()
    }
}

/// What a row or a key costs beside its bytes, roughly.
const OVERHEAD_BYTES: usize = 96;

/// The stored value of a row, and the one column beside it that some tables have.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Zeroize, ZeroizeOnDrop)]
pub(crate) struct Stored {
    pub(crate) data: Vec<u8>,
    pub(crate) flag: bool,
}

impl Stored {
    pub(crate) fn new(data: Vec<u8>) -> Arc<Self> {
        Arc::new(Self { data, flag: false })
    }
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stored(…)")
    }
}

/// The rows of a group, each by what tells it from the others.
pub(crate) type Rows = BTreeMap<Vec<u8>, Arc<Stored>>;

/// What a write changes.
pub(crate) enum Effect {
    /// The place has this row, beside others.
    Put(Place, Vec<u8>, Arc<Stored>),
    /// The place has this row and no other.
    Set(Place, Vec<u8>, Arc<Stored>),
    /// The place no longer has this row.
    Remove(Place, Vec<u8>),
    /// The place has a row, but only the database knows which.
    Touch(Place),
    /// Only the database knows what the table's rows are now; none has come.
    TouchAll(&'static str),
}

/// What is known of a place.
pub(crate) enum Answer {
    Known(Arc<Rows>),
    Ask(Ticket),
}

/// Lets an answer of the database in, unless something was written since.
pub(crate) struct Ticket {
    table: &'static str,
    /// When the cache, and when the table last changed.
    epochs: (u64, u64),
    /// How many of the table's keys the caller is to fetch as well, if any.
    pub(crate) wants_keys: Option<i64>,
    /// What is worth fetching with it.
    pub(crate) neighbours: Option<Neighbours>,
}

/// The cache of one opening of an account; shared by reads and by the writer.
pub(crate) struct Cache {
    /// `None` when it is off, or was closed.
    memory: Mutex<Option<Memory>>,
}

impl Cache {
    /// Keeps about this many bytes of rows, and up to this many keys of each table; none with 0.
    pub(crate) fn new(bytes: usize, keys: usize) -> Self {
        Self { memory: Mutex::new((bytes > 0).then(|| Memory::new(bytes, keys))) }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Memory>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anything is kept.
    pub(crate) fn is_open(&self) -> bool {
        self.lock().is_some()
    }

    /// What is known of the place, or `None` when nothing ever is.
    pub(crate) fn look(&self, place: &Place) -> Option<Answer> {
        self.lock().as_mut().map(|memory| memory.look(place))
    }

    /// Like [`Self::look`], for a change: what is there without being asked for.
    fn peek(&self, place: &Place) -> Option<Arc<Rows>> {
        self.lock().as_ref()?.peek(place)
    }

    /// Takes in the rows that the database has at a place.
    pub(crate) fn fill(&self, ticket: &Ticket, place: Place, rows: Arc<Rows>) {
        if let Some(memory) = &mut *self.lock()
            && memory.is_current(ticket)
        {
            memory.keep(place, rows);
        }
    }

    /// Takes in rows that were fetched with those of a place, each at its own.
    pub(crate) fn fill_neighbours(&self, ticket: &Ticket, neighbours: Vec<(Place, Rows)>) {
        if let Some(memory) = &mut *self.lock()
            && memory.is_current(ticket)
        {
            memory.keep_neighbours(neighbours);
        }
    }

    /// Takes in the fingerprints of the keys that the database has; `None` when they did not come.
    pub(crate) fn fill_keys(&self, ticket: &Ticket, fingerprints: Option<&[u8]>) {
        if let Some(memory) = &mut *self.lock() {
            memory.fill_keys(ticket, fingerprints);
        }
    }

    /// Takes in what was committed.
    pub(crate) fn apply(&self, effects: Vec<Effect>) {
        if let Some(memory) = &mut *self.lock() {
            effects.into_iter().for_each(|effect| memory.apply(effect));
        }
    }

    /// Notes how often the rows were changed beside their owner: what was known before is dropped.
    pub(crate) fn see_maintenance(&self, generation: i64) {
        if let Some(memory) = &mut *self.lock() {
            memory.see_maintenance(generation);
        }
    }

    /// Forgets everything, and takes nothing in any more.
    pub(crate) fn close(&self) {
        drop(self.lock().take());
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cache(…)")
    }
}
