//! A model of a crypto store, in the simplest form.
//!
//! Written from the trait's documentation and the rules that this crate documents, not from its
//! code: no generations, no batches, no cache. Values are represented by their numbers in the fixtures.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    fixtures::{OWN_DEVICE, OWN_USER, is_device_known, sender_of},
    results::{Expected, Failure},
    steps::{Change, DeviceList, IdentityList, Index, Read, RoomKey, Write, name},
};

/// All that an account has stored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Model {
    account: Option<Index>,
    private_identity: Option<Index>,
    backup_version: Option<Index>,
    backup_key: Option<Index>,
    dehydrated_key: Option<Index>,
    sync_token: Option<Index>,
    olm_sessions: BTreeMap<(Index, Index), Index>,
    message_hashes: BTreeSet<Index>,
    room_keys: BTreeMap<(Index, Index), StoredRoomKey>,
    outbound_sessions: BTreeMap<Index, Index>,
    requests: BTreeMap<Index, Request>,
    identities: BTreeMap<Index, Index>,
    devices: BTreeMap<(Index, Index), Index>,
    tracked_users: BTreeMap<Index, bool>,
    withheld: BTreeMap<(Index, Index), Index>,
    room_settings: BTreeMap<Index, Index>,
    secrets: BTreeSet<(Index, Index)>,
    bundles: BTreeMap<(Index, Index), Index>,
    downloaded: BTreeSet<Index>,
    pending_bundles: BTreeMap<Index, Index>,
    custom: BTreeMap<Index, Index>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct StoredRoomKey {
    form: Index,
    /// The version of the backup that holds it.
    in_backup: Option<Index>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Request {
    info: Index,
    sent_out: bool,
}

impl Model {
    pub fn has_account(&self) -> bool {
        self.account.is_some()
    }

    pub fn after(&self, write: &Write) -> Self {
        let mut after = self.clone();
        after.apply(write);
        after
    }

    pub fn apply(&mut self, write: &Write) {
        match write {
            Write::Changes(changes) => self.apply_changes(changes),
            // Without an account nothing changes: `None` does not delete it.
            Write::Account(account) => self.account = account.or(self.account),
            Write::RoomKeys { keys, version } => self.save_room_keys(keys, *version),
            Write::MarkBackedUp { version, keys } => {
                for key in keys {
                    if let Some(stored) = self.room_keys.get_mut(key) {
                        stored.in_backup = Some(*version);
                    }
                }
            }
            Write::ResetBackup => {
                self.room_keys.values_mut().for_each(|stored| stored.in_backup = None);
            }
            Write::DeleteDehydratedKey => self.dehydrated_key = None,
            Write::TrackedUsers(users) => self.tracked_users.extend(users.iter().copied()),
            Write::DeleteRequest(id) => {
                self.requests.remove(id);
            }
            Write::DeleteSecrets(name) => self.secrets.retain(|(stored, _)| stored != name),
            Write::SetCustom { key, value } => {
                self.custom.insert(*key, *value);
            }
            Write::RemoveCustom(key) => {
                self.custom.remove(key);
            }
        }
    }

    fn apply_changes(&mut self, changes: &[Change]) {
        let mut room_keys = Vec::new();
        for change in changes {
            match *change {
                Change::PrivateIdentity(form) => self.private_identity = Some(form),
                Change::BackupVersion(version) => self.backup_version = Some(version),
                Change::BackupKey(form) => self.backup_key = Some(form),
                Change::DehydratedKey(form) => self.dehydrated_key = Some(form),
                Change::SyncToken(form) => self.sync_token = Some(form),
                Change::RoomKey(key) => room_keys.push(key),
                Change::OlmSession { sender, session, form } => {
                    self.olm_sessions.insert((sender, session), form);
                }
                Change::MessageHash(hash) => {
                    self.message_hashes.insert(hash);
                }
                Change::OutboundSession { room, form } => {
                    self.outbound_sessions.insert(room, form);
                }
                Change::Request { id, info, sent_out } => {
                    self.requests.retain(|_, stored| stored.info != info);
                    self.requests.insert(id, Request { info, sent_out });
                }
                Change::Identity { .. } | Change::Device { .. } => {}
                Change::Withheld { room, session, form } => {
                    self.withheld.insert((room, session), form);
                }
                Change::RoomSettings { room, form } => {
                    self.room_settings.insert(room, form);
                }
                Change::Secret { name, secret } => {
                    self.secrets.insert((name, secret));
                }
                Change::Bundle { room, user, form } => {
                    self.bundles.insert((room, user), form);
                }
                Change::Downloaded(room) => {
                    self.downloaded.insert(room);
                }
                Change::PendingBundle { room, form: Some(form) } => {
                    self.pending_bundles.insert(room, form);
                }
                Change::PendingBundle { room, form: None } => {
                    self.pending_bundles.remove(&room);
                }
            }
        }
        self.save_room_keys(&room_keys, None);
        self.apply_lists(changes);
    }

    /// Identities and devices come in separate lists, applied in the order new, changed, deleted.
    fn apply_lists(&mut self, changes: &[Change]) {
        for wanted in [IdentityList::New, IdentityList::Changed] {
            for change in changes {
                if let Change::Identity { user, form, list } = *change
                    && list == wanted
                {
                    self.identities.insert(user, form);
                }
            }
        }
        for wanted in [DeviceList::New, DeviceList::Changed, DeviceList::Deleted] {
            for change in changes {
                match *change {
                    Change::Device { user, device, list: DeviceList::Deleted, .. }
                        if wanted == DeviceList::Deleted =>
                    {
                        self.devices.remove(&(user, device));
                    }
                    Change::Device { user, device, form, list } if list == wanted => {
                        self.devices.insert((user, device), form);
                    }
                    _ => {}
                }
            }
        }
    }

    /// If a key is listed twice, only the last entry counts.
    fn save_room_keys(&mut self, keys: &[RoomKey], version: Option<Index>) {
        let last: BTreeMap<_, _> = keys.iter().map(|key| ((key.room, key.session), key)).collect();
        for (id, key) in last {
            let known = self.room_keys.get(&id).and_then(|stored| stored.in_backup);
            // Not backed up: the backup holds another copy of the key, if any. Backed up without a
            // version: the stored version stays.
            let in_backup = version.or(if key.backed_up { known } else { None });
            self.room_keys.insert(id, StoredRoomKey { form: key.form, in_backup });
        }
    }

    /// The result that the store must return. `account_is_loaded`: whether this store has loaded or saved
    /// its account, without which some reads are refused.
    pub fn expect(&self, read: &Read, account_is_loaded: bool) -> Expected {
        let one = |kind: &str, value: Option<&Index>| {
            exactly(value.into_iter().map(|value| name(kind, &[*value])))
        };
        match *read {
            Read::Account => one("account", self.account.as_ref()),
            Read::PrivateIdentity => one("private identity", self.private_identity.as_ref()),
            Read::OlmSessions { .. } | Read::OwnDevice | Read::OutboundSession { .. } => {
                self.expect_own(read, account_is_loaded)
            }
            Read::RoomKey { room, session } => {
                exactly(self.room_keys(|key, _| key == (room, session)))
            }
            Read::RoomKeys => exactly(self.room_keys(|_, _| true)),
            Read::RoomKeysByRoom { room } => exactly(self.room_keys(|(of, _), _| of == room)),
            Read::Pages { sender, known_device, .. } => exactly(self.room_keys(|key, stored| {
                sender_of(key.1, stored.form) == sender
                    && is_device_known(stored.form) == known_device
            })),
            Read::ForBackup { version, limit } => {
                let of = self.room_keys(|_, stored| stored.in_backup != Some(version)).collect();
                Expected::some(limit.into(), of)
            }
            Read::Counts { version } => {
                let in_it =
                    |stored: &&StoredRoomKey| version.is_some() && stored.in_backup == version;
                let backed_up = self.room_keys.values().filter(in_it).count();
                exactly([format!("{backed_up} of {}", self.room_keys.len())])
            }
            Read::Withheld { room, session } => exactly(self.withheld(|at| at == (room, session))),
            Read::WithheldByRoom { room } => exactly(self.withheld(|at| at.0 == room)),
            Read::BackupKeys => {
                let key = self.backup_key.map(|form| name("backup key", &[form]));
                let version = self.backup_version.map(|version| name("version", &[version]));
                exactly(key.into_iter().chain(version))
            }
            Read::DehydratedKey => one("dehydrated key", self.dehydrated_key.as_ref()),
            Read::TrackedUsers => {
                exactly(self.tracked_users.iter().map(|(user, dirty)| tracked_user(*user, *dirty)))
            }
            Read::Device { user, device } => exactly(self.devices(|at| at == (user, device))),
            Read::Devices { user } => exactly(self.devices(|at| at.0 == user)),
            Read::Identity { user } => {
                exactly(self.identities.get(&user).map(|form| name("identity", &[user, *form])))
            }
            Read::MessageHash(hash) => yes_or_no(self.message_hashes.contains(&hash)),
            Read::Request(id) => exactly(self.requests(|at, _| at == id)),
            Read::RequestByInfo(info) => exactly(self.requests(|_, stored| stored.info == info)),
            Read::UnsentRequests => exactly(self.requests(|_, stored| !stored.sent_out)),
            Read::Secrets(of) => {
                let of_name = self.secrets.iter().filter(|(stored, _)| *stored == of);
                exactly(of_name.map(|(_, secret)| name("secret", &[*secret])))
            }
            Read::RoomSettings { room } => one("room settings", self.room_settings.get(&room)),
            Read::Bundle { room, user } => exactly(
                self.bundles.get(&(room, user)).map(|form| name("bundle", &[room, user, *form])),
            ),
            Read::PendingBundle { room } => exactly(self.pending_bundles(|at| at == room)),
            Read::PendingBundles => exactly(self.pending_bundles(|_| true)),
            Read::Downloaded { room } => yes_or_no(self.downloaded.contains(&room)),
            Read::Custom(key) => one("value", self.custom.get(&key)),
            Read::SyncToken => one("token", self.sync_token.as_ref()),
        }
    }

    /// The reads that need a loaded account.
    fn expect_own(&self, read: &Read, account_is_loaded: bool) -> Expected {
        let own_device = self.devices.get(&(OWN_USER, OWN_DEVICE));
        match (*read, account_is_loaded) {
            (Read::OutboundSession { room }, _) if !self.outbound_sessions.contains_key(&room) => {
                exactly(None)
            }
            (_, false) => Expected::Refused(Failure::AccountUnset),
            (Read::OutboundSession { room }, true) => {
                let form = self.outbound_sessions.get(&room);
                exactly(form.map(|form| name("outbound session", &[room, *form])))
            }
            (Read::OlmSessions { sender }, true) => {
                let of_sender = self.olm_sessions.iter().filter(|((of, _), _)| *of == sender);
                let sessions: Vec<String> = of_sender
                    .map(|((_, session), form)| name("Olm session", &[sender, *session, *form]))
                    .collect();
                if !sessions.is_empty() && own_device.is_none() {
                    return Expected::Refused(Failure::OwnDeviceMissing);
                }
                exactly(sessions)
            }
            (_, true) => match own_device {
                Some(form) => exactly([name("device", &[OWN_USER, OWN_DEVICE, *form])]),
                None => Expected::Refused(Failure::OwnDeviceMissing),
            },
        }
    }

    fn room_keys(
        &self,
        is_wanted: impl Fn((Index, Index), &StoredRoomKey) -> bool,
    ) -> impl Iterator<Item = String> {
        let wanted = self.room_keys.iter().filter(move |(key, stored)| is_wanted(**key, stored));
        wanted.map(|(key, stored)| room_key(*key, stored.form, stored.in_backup.is_some()))
    }

    fn withheld(&self, is_wanted: impl Fn((Index, Index)) -> bool) -> impl Iterator<Item = String> {
        let wanted = self.withheld.iter().filter(move |(key, _)| is_wanted(**key));
        wanted.map(|((room, session), form)| name("withheld", &[*room, *session, *form]))
    }

    fn devices(&self, is_wanted: impl Fn((Index, Index)) -> bool) -> impl Iterator<Item = String> {
        let wanted = self.devices.iter().filter(move |(key, _)| is_wanted(**key));
        wanted.map(|((user, device), form)| name("device", &[*user, *device, *form]))
    }

    fn requests(
        &self,
        is_wanted: impl Fn(Index, &Request) -> bool,
    ) -> impl Iterator<Item = String> {
        let wanted = self.requests.iter().filter(move |(id, stored)| is_wanted(**id, stored));
        wanted.map(|(id, stored)| name("request", &[*id, stored.info, stored.sent_out.into()]))
    }

    fn pending_bundles(&self, is_wanted: impl Fn(Index) -> bool) -> impl Iterator<Item = String> {
        let wanted = self.pending_bundles.iter().filter(move |(room, _)| is_wanted(**room));
        wanted.map(|(room, form)| name("pending bundle", &[*room, *form]))
    }
}

/// The name of a room key that was read from the store.
pub fn room_key(id: (Index, Index), form: Index, backed_up: bool) -> String {
    let state = if backed_up { "backed up" } else { "not backed up" };
    format!("{}, {state}", name("room key", &[id.0, id.1, form]))
}

pub fn tracked_user(user: Index, dirty: bool) -> String {
    name("tracked user", &[user, dirty.into()])
}

fn exactly(values: impl IntoIterator<Item = String>) -> Expected {
    Expected::exactly(values.into_iter().collect())
}

fn yes_or_no(yes: bool) -> Expected {
    exactly([yes.to_string()])
}
