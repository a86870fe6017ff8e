//! What a store may not have written yet: the saves of a sync that are harmful alone.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    answers::Answer,
    model::Model,
    steps::{Change, DeviceList, Index, Read, Write},
};

/// What is stored, and what is deferred. The model has both.
#[derive(Clone, Debug, Default)]
pub struct Deferral {
    /// What another store would find.
    stored: Model,
    rows: BTreeSet<Row>,
    /// In which form each Olm session was last read or saved by this store.
    seen: BTreeMap<(Index, Index), Index>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Row {
    OlmSession(Index, Index),
    Device(Index, Index),
    Request(Index),
}

impl Deferral {
    /// Whether a save says no more than that a message was received, or an answer came.
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
        // In its first form it has encrypted nothing.
        devices <= 1 && (*form == 0 || self.seen.get(session) == Some(form))
    }

    /// Whether a save changes what is stored.
    pub fn changes_rows(&self, model: &Model, write: &Write) -> bool {
        if self.defers(write) {
            return false;
        }
        let mut after = self.clone();
        after.written(&model.after(write), write);
        after.stored != self.stored
    }

    /// A save was made; `model` is how it is now.
    pub fn written(&mut self, model: &Model, write: &Write) {
        if self.defers(write) {
            self.rows.extend(rows(write));
            self.see(write);
        } else {
            self.committed(model, std::slice::from_ref(write));
        }
    }

    /// These saves were committed, without any of them being deferred.
    pub fn committed(&mut self, model: &Model, writes: &[Write]) {
        for write in writes {
            self.see(write);
            self.stored.apply(write);
            let saved = rows(write);
            self.rows.retain(|row| !saved.contains(row));
        }
        if writes.iter().any(ends_sync) {
            self.rows.clear();
            self.stored = model.clone();
        }
    }

    /// Notes the sessions of a save.
    pub fn see(&mut self, write: &Write) {
        let Write::Changes(changes) = write else { return };
        for change in changes {
            if let Change::OlmSession { sender, session, form } = *change {
                self.seen.insert((sender, session), form);
            }
        }
    }

    /// Notes the sessions that a read answered with.
    pub fn saw(&mut self, read: &Read, answer: &Answer) {
        if !matches!(read, Read::OlmSessions { .. }) {
            return;
        }
        for name in answer.iter().flatten() {
            let numbers = name.strip_prefix("Olm session ").unwrap_or_default();
            let numbers: Vec<Index> = numbers.split('/').flat_map(str::parse).collect();
            if let [sender, session, form] = *numbers {
                self.seen.insert((sender, session), form);
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// What is deferred is dropped: what is stored is all there is.
    pub fn dropped(&mut self) -> Model {
        self.rows.clear();
        self.stored.clone()
    }

    pub fn stored(&self) -> &Model {
        &self.stored
    }

    /// Another store has seen nothing, and neither has one that failed.
    pub fn forget_seen(&mut self) {
        self.seen.clear();
    }
}

/// Whether everything that is deferred goes with a save.
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
