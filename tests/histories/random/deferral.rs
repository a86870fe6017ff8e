//! The model's part for deferred saves: those of a sync that must not be stored without the sync's own save.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    model::Model,
    results::ReadResult,
    steps::{Change, DeviceList, Index, Read, Write},
};

/// The rows that are stored and those that are deferred. `Model` contains both.
#[derive(Clone, Debug, Default)]
pub struct Deferral {
    /// What another store would read.
    stored: Model,
    rows: BTreeSet<Row>,
    /// The form in which this store last read or saved each Olm session.
    last_seen: BTreeMap<(Index, Index), Index>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Row {
    OlmSession(Index, Index),
    Device(Index, Index),
    Request(Index),
}

impl Deferral {
    /// Whether a save is deferred: it only records that a message or the reply to a request was received.
    pub fn defers(&self, write: &Write) -> bool {
        let Write::Changes(changes) = write else {
            return matches!(write, Write::DeleteRequest(_));
        };
        let (mut sessions, mut devices) = (Vec::new(), 0);
        for change in changes {
            match *change {
                Change::OlmSession { sender, session, form } => {
                    sessions.push(((sender, session), form));
                }
                Change::Device { list: DeviceList::Changed, .. } => devices += 1,
                _ => return false,
            }
        }
        let [(session, form)] = sessions.as_slice() else { return false };
        // In its first form the session has encrypted nothing.
        devices <= 1 && (*form == 0 || self.last_seen.get(session) == Some(form))
    }

    /// Whether a save changes stored rows.
    pub fn changes_rows(&self, model: &Model, write: &Write) -> bool {
        if self.defers(write) {
            return false;
        }
        let mut after = self.clone();
        after.written(&model.after(write), write);
        after.stored != self.stored
    }

    /// Applies a save; `model` is the model after it.
    pub fn written(&mut self, model: &Model, write: &Write) {
        if self.defers(write) {
            self.rows.extend(rows(write));
            self.note_write(write);
        } else {
            self.committed(model, std::slice::from_ref(write));
        }
    }

    /// Applies saves that were committed without being deferred.
    pub fn committed(&mut self, model: &Model, writes: &[Write]) {
        for write in writes {
            self.note_write(write);
            self.stored.apply(write);
            let saved = rows(write);
            self.rows.retain(|row| !saved.contains(row));
        }
        if writes.iter().any(ends_sync) {
            self.rows.clear();
            self.stored = model.clone();
        }
    }

    /// Records the Olm sessions of a save.
    pub fn note_write(&mut self, write: &Write) {
        let Write::Changes(changes) = write else { return };
        for change in changes {
            if let Change::OlmSession { sender, session, form } = *change {
                self.last_seen.insert((sender, session), form);
            }
        }
    }

    /// Records the Olm sessions that a read returned.
    pub fn note_read(&mut self, read: &Read, result: &ReadResult) {
        if !matches!(read, Read::OlmSessions { .. }) {
            return;
        }
        for name in result.iter().flatten() {
            let numbers = name.strip_prefix("Olm session ").unwrap_or_default();
            let numbers: Vec<Index> = numbers.split('/').flat_map(str::parse).collect();
            if let [sender, session, form] = *numbers {
                self.last_seen.insert((sender, session), form);
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Drops the deferred rows; returns the model of the stored ones.
    pub fn dropped(&mut self) -> Model {
        self.rows.clear();
        self.stored.clone()
    }

    pub fn stored(&self) -> &Model {
        &self.stored
    }

    /// A new store has read no session yet, and a store that failed forgets those it has read.
    pub fn forget_last_seen(&mut self) {
        self.last_seen.clear();
    }
}

/// Whether a save stores all deferred rows with it.
pub fn ends_sync(write: &Write) -> bool {
    match write {
        Write::Account(account) => account.is_some(),
        Write::Changes(changes) => {
            changes.iter().any(|change| matches!(change, Change::SyncToken(_)))
        }
        _ => false,
    }
}

fn rows(write: &Write) -> Vec<Row> {
    let changes = match write {
        Write::DeleteRequest(id) => return vec![Row::Request(*id)],
        Write::Changes(changes) => changes,
        _ => return Vec::new(),
    };
    let row = |change: &Change| match *change {
        Change::OlmSession { sender, session, .. } => Some(Row::OlmSession(sender, session)),
        Change::Device { user, device, .. } => Some(Row::Device(user, device)),
        Change::Request { id, .. } => Some(Row::Request(id)),
        _ => None,
    };
    changes.iter().filter_map(row).collect()
}
