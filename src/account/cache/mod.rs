//! Rows that an exclusive owner need not ask for again: nobody else can change them.
//!
//! Rows are kept as they are stored, so sealed in an encrypted account, and in groups that are kept
//! and dropped as one: what a read asks for. Reads fill the cache, and writes when they are committed;
//! a read that began before a commit does not fill it afterwards. Beside the rows, a set of the keys
//! that a table has tells what is not there.

mod keys;
mod memory;
mod pending;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sha2::{Digest, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop};

pub(crate) use self::pending::{Changed, Pending};
use self::{
    keys::Keys,
    memory::{Memory, Question},
};
use crate::account::cipher::Key;

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

/// Changes one row of a group, and returns what was there.
fn put(rows: &mut Rows, key: Vec<u8>, row: Option<Arc<Stored>>) -> Option<Arc<Stored>> {
    match row {
        Some(row) => rows.insert(key, row),
        None => rows.remove(&key),
    }
}

/// What a write changes.
pub(crate) enum Effect {
    /// The place has this row, beside others; or, with `None`, no longer.
    Put(Place, Vec<u8>, Option<Arc<Stored>>),
    /// The place has this row and no other.
    Set(Place, Vec<u8>, Arc<Stored>),
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

/// Lets the database's answer about a place in, unless something was written since.
pub(crate) struct Ticket {
    cache: Arc<Cache>,
    place: Place,
    pub(crate) question: Question,
}

impl Ticket {
    /// Takes in the rows of the place.
    pub(crate) fn fill(&self, rows: Arc<Rows>) {
        self.cache.with(|memory| {
            if memory.is_current(self) {
                memory.keep(self.place.clone(), rows);
            }
        });
    }

    /// Takes in the fingerprints of the keys that the database has.
    pub(crate) fn fill_keys(&self, fingerprints: &[u8]) {
        let keys = Keys::parse(fingerprints, self.cache.most_keys);
        self.cache.with(|memory| memory.fill_keys(self, keys));
    }

    /// Stops loading the key set, after the combined query failed.
    pub(crate) fn give_up_keys(&self) {
        self.cache.with(|memory| memory.fill_keys(self, Keys::TooMany));
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.cache.with(|memory| memory.settle(self));
    }
}

/// The cache of one opening of an account; shared by reads and by the writer.
pub(crate) struct Cache {
    /// `None` when it is off, or was closed.
    memory: Mutex<Option<Memory>>,
    most_keys: usize,
}

impl Cache {
    /// Keeps about this many bytes of rows, and up to this many keys of each table; none with 0.
    pub(crate) fn new(bytes: usize, keys: usize) -> Self {
        let memory = (bytes > 0).then(|| Memory::new(bytes, keys));
        Self { memory: Mutex::new(memory), most_keys: keys }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Memory>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with(&self, act: impl FnOnce(&mut Memory)) {
        if let Some(memory) = &mut *self.lock() {
            act(memory);
        }
    }

    /// What is known of the place, or `None` when nothing ever is.
    pub(crate) fn look(self: &Arc<Self>, place: &Place) -> Option<Answer> {
        Some(match self.lock().as_mut()?.look(place) {
            Ok(rows) => Answer::Known(rows),
            Err(question) => {
                Answer::Ask(Ticket { cache: self.clone(), place: place.clone(), question })
            }
        })
    }

    /// What is known of the place, for one who will not ask.
    pub(crate) fn peek(&self, place: &Place) -> Option<Arc<Rows>> {
        self.lock().as_ref()?.peek(place)
    }

    /// Takes in what was committed, all at once.
    pub(crate) fn apply(&self, effects: impl IntoIterator<Item = Effect>) {
        self.with(|memory| effects.into_iter().for_each(|effect| memory.apply(effect)));
    }

    /// Notes how often the rows were changed beside their owner: what was known before is dropped.
    pub(crate) fn see_maintenance(&self, generation: i64) {
        self.with(|memory| memory.see_maintenance(generation));
    }

    /// Forgets everything; what is on its way is not taken in.
    pub(crate) fn clear(&self) {
        self.with(Memory::clear);
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
