//! The values that histories save, created once: few ids, each in several forms.

use std::{collections::HashMap, sync::OnceLock};

use matrix_sdk_crypto::{
    DeviceData, GossipRequest, LocalTrust, UserIdentityData,
    olm::{
        Account, InboundGroupSession, OutboundGroupSession, PrivateCrossSigningIdentity, Session,
    },
    store::types::{
        BackupDecryptionKey, DehydratedDeviceKey, RoomKeyWithheldEntry,
        RoomPendingKeyBundleDetails, RoomSettings, StoredRoomKeyBundleData,
    },
};
use ruma::{OwnedRoomId, OwnedTransactionId, OwnedUserId, events::secret::request::SecretName};
use serde::Serialize;

use super::{
    steps::{Index, RoomKey, name},
    strategies::{DEVICES, FORMS, REQUESTS, ROOMS, SENDERS, SESSIONS, USERS},
    values,
};

pub const OWN_USER: Index = 0;
pub const OWN_DEVICE: Index = 0;

/// The sender that a room key names: another one in its last form.
pub fn sender_of(session: Index, form: Index) -> Index {
    (session + u8::from(form == 2)) % SENDERS
}

/// Whether the room key's sender data names a device.
pub fn is_device_known(form: Index) -> bool {
    form == 1
}

pub struct Fixtures {
    /// The name of each value, by its serialised form.
    names: HashMap<String, String>,
    accounts: Vec<Account>,
    private_identities: Vec<PrivateCrossSigningIdentity>,
    backup_keys: Vec<BackupDecryptionKey>,
    dehydrated_keys: Vec<DehydratedDeviceKey>,
    olm_sessions: HashMap<[Index; 3], Session>,
    pub sender_keys: Vec<matrix_sdk_crypto::vodozemac::Curve25519PublicKey>,
    pub session_ids: Vec<String>,
    room_keys: HashMap<([Index; 3], bool), InboundGroupSession>,
    outbound_sessions: HashMap<[Index; 2], OutboundGroupSession>,
    devices: HashMap<[Index; 3], DeviceData>,
    identities: HashMap<[Index; 2], UserIdentityData>,
}

impl Fixtures {
    pub fn get() -> &'static Self {
        static FIXTURES: OnceLock<Fixtures> = OnceLock::new();
        FIXTURES.get_or_init(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(Self::make())
        })
    }

    async fn make() -> Self {
        let own = Account::with_device_id(&user_id(OWN_USER), &device_id(OWN_USER, OWN_DEVICE));
        let mut fixtures = Self {
            names: HashMap::new(),
            accounts: Vec::new(),
            private_identities: Vec::new(),
            backup_keys: Vec::new(),
            dehydrated_keys: Vec::new(),
            olm_sessions: HashMap::new(),
            sender_keys: Vec::new(),
            session_ids: Vec::new(),
            room_keys: HashMap::new(),
            outbound_sessions: HashMap::new(),
            devices: HashMap::new(),
            identities: HashMap::new(),
        };
        fixtures.make_account_data(&own).await;
        fixtures.make_devices(&own);
        fixtures.make_sessions(&own).await;
        fixtures.make_other_values();
        fixtures
    }

    async fn make_account_data(&mut self, own: &Account) {
        for form in 0..FORMS {
            let mut account = own.deep_clone();
            account.generate_one_time_keys(form.into());
            self.add_name(name("account", &[form]), &account.pickle());
            self.accounts.push(account);

            let identity = PrivateCrossSigningIdentity::new(user_id(OWN_USER));
            self.add_name(name("private identity", &[form]), &identity.pickle().await);
            self.private_identities.push(identity);

            let key = BackupDecryptionKey::new();
            self.add_name(name("backup key", &[form]), &key);
            self.backup_keys.push(key);

            let key = DehydratedDeviceKey::new();
            self.add_name(name("dehydrated key", &[form]), &key);
            self.dehydrated_keys.push(key);
        }
    }

    fn make_devices(&mut self, own: &Account) {
        let trusts = [LocalTrust::Unset, LocalTrust::Verified, LocalTrust::BlackListed];
        for (user, device) in pairs(USERS, DEVICES) {
            let other = Account::with_device_id(&user_id(user), &device_id(user, device));
            let is_own = (user, device) == (OWN_USER, OWN_DEVICE);
            let keys = if is_own { own.device_keys() } else { other.device_keys() };
            for (form, trust) in (0..FORMS).zip(trusts) {
                let data = DeviceData::new(keys.clone(), trust);
                self.add_name(name("device", &[user, device, form]), &data);
                self.devices.insert([user, device, form], data);
            }
        }
        for (user, form) in pairs(USERS, FORMS) {
            let identity = values::identity(&user_id(user), form);
            self.add_name(name("identity", &[user, form]), &identity);
            self.identities.insert([user, form], identity);
        }
    }

    async fn make_sessions(&mut self, own: &Account) {
        let senders: Vec<Account> = (0..SENDERS)
            .map(|sender| Account::with_device_id(&user_id(1), &device_id(1, sender)))
            .collect();
        for (sender, account) in (0..SENDERS).zip(&senders) {
            self.sender_keys.push(account.identity_keys().curve25519);
            for session in 0..2 {
                // In its first form the session has only received; each further form has encrypted once more.
                let [made, _] = values::received_session(own, account).await;
                for form in 0..FORMS {
                    if form > 0 {
                        made.inner.lock().await.encrypt("hello").unwrap();
                    }
                    let made = values::copy_of(own, &made).await;
                    let value_name = name("Olm session", &[sender, session, form]);
                    self.add_name(value_name, &made.pickle().await);
                    self.olm_sessions.insert([sender, session, form], made);
                }
            }
        }
        for session in 0..SESSIONS {
            let ratchet = values::megolm_ratchet();
            self.session_ids.push(ratchet.session_id());
            for (room, form) in pairs(ROOMS, FORMS) {
                let sender = &senders[usize::from(sender_of(session, form))];
                for backed_up in [false, true] {
                    let is_known = is_device_known(form);
                    // Not a clone: clones share the flag.
                    let key = values::room_key(sender, &room_id(room), &ratchet, is_known);
                    if backed_up {
                        key.mark_as_backed_up();
                    } else {
                        let value_name = name("room key", &[room, session, form]);
                        self.add_name(value_name, &key.pickle().await);
                    }
                    self.room_keys.insert(([room, session, form], backed_up), key);
                }
            }
        }
        for (room, form) in pairs(ROOMS, FORMS) {
            let session = values::outbound_session(own, &room_id(room), form).await;
            self.add_name(name("outbound session", &[room, form]), &session.pickle().await);
            self.outbound_sessions.insert([room, form], session);
        }
    }

    fn make_other_values(&mut self) {
        for (room, form) in pairs(ROOMS, FORMS) {
            let details = pending_bundle(room, form);
            self.add_name(name("pending bundle", &[room, form]), &details);
            for session in 0..SESSIONS {
                let entry = self.withheld(room, session, form);
                self.add_name(name("withheld", &[room, session, form]), &entry);
            }
            for user in 0..USERS {
                let bundle = values::bundle(&room_id(room), &user_id(user), form);
                self.add_name(name("bundle", &[room, user, form]), &bundle);
            }
        }
        for form in 0..FORMS {
            self.add_name(name("room settings", &[form]), &room_settings(form));
        }
        for (id, info) in pairs(REQUESTS, REQUESTS) {
            for sent_out in [false, true] {
                let value_name = name("request", &[id, info, sent_out.into()]);
                self.add_name(value_name, &request(id, info, sent_out));
            }
        }
    }

    fn add_name(&mut self, value_name: String, value: &impl Serialize) {
        let before = self.names.insert(text(value), value_name);
        assert_eq!(before, None, "two values have the same serialised form");
    }

    /// The name of a value, or its serialised form if it is not one of the fixtures.
    pub fn name_of(&self, value: &impl Serialize) -> String {
        let text = text(value);
        self.names.get(&text).cloned().unwrap_or(text)
    }

    pub fn account(&self, form: Index) -> Account {
        self.accounts[usize::from(form)].deep_clone()
    }

    pub fn private_identity(&self, form: Index) -> PrivateCrossSigningIdentity {
        self.private_identities[usize::from(form)].clone()
    }

    pub fn backup_key(&self, form: Index) -> BackupDecryptionKey {
        self.backup_keys[usize::from(form)].clone()
    }

    pub fn dehydrated_key(&self, form: Index) -> DehydratedDeviceKey {
        self.dehydrated_keys[usize::from(form)].clone()
    }

    pub fn olm_session(&self, sender: Index, session: Index, form: Index) -> Session {
        self.olm_sessions[&[sender, session, form]].clone()
    }

    pub fn room_key(&self, key: &RoomKey) -> InboundGroupSession {
        self.room_keys[&([key.room, key.session, key.form], key.backed_up)].clone()
    }

    pub fn outbound_session(&self, room: Index, form: Index) -> OutboundGroupSession {
        self.outbound_sessions[&[room, form]].clone()
    }

    pub fn device(&self, user: Index, device: Index, form: Index) -> DeviceData {
        self.devices[&[user, device, form]].clone()
    }

    pub fn identity(&self, user: Index, form: Index) -> UserIdentityData {
        self.identities[&[user, form]].clone()
    }

    pub fn withheld(&self, room: Index, session: Index, form: Index) -> RoomKeyWithheldEntry {
        let session_id = &self.session_ids[usize::from(session)];
        values::withheld(&room_id(room), session_id, &user_id(form % USERS), form)
    }
}

pub fn room_id(room: Index) -> OwnedRoomId {
    OwnedRoomId::try_from(format!("!room{room}:example.org")).unwrap()
}

pub fn user_id(user: Index) -> OwnedUserId {
    OwnedUserId::try_from(format!("@user{user}:example.org")).unwrap()
}

pub fn device_id(user: Index, device: Index) -> ruma::OwnedDeviceId {
    format!("DEVICE{user}{device}").into()
}

pub fn secret_name(kind: Index) -> SecretName {
    [SecretName::RecoveryKey, SecretName::CrossSigningMasterKey, SecretName::from("another")]
        [usize::from(kind)]
    .clone()
}

pub fn request_id(id: Index) -> OwnedTransactionId {
    OwnedTransactionId::from(name("request", &[id]))
}

pub fn request(id: Index, info: Index, sent_out: bool) -> GossipRequest {
    GossipRequest {
        request_recipient: user_id(OWN_USER),
        request_id: request_id(id),
        info: secret_name(info).into(),
        sent_out,
    }
}

pub fn bundle(room: Index, user: Index, form: Index) -> StoredRoomKeyBundleData {
    values::bundle(&room_id(room), &user_id(user), form)
}

pub fn pending_bundle(room: Index, form: Index) -> RoomPendingKeyBundleDetails {
    RoomPendingKeyBundleDetails {
        room_id: room_id(room),
        invite_accepted_at: ruma::MilliSecondsSinceUnixEpoch(u32::from(form).into()),
        inviter: user_id(1),
    }
}

pub fn room_settings(form: Index) -> RoomSettings {
    RoomSettings { session_rotation_period_messages: Some(form.into()), ..Default::default() }
}

fn pairs(first: Index, second: Index) -> impl Iterator<Item = (Index, Index)> {
    (0..first).flat_map(move |one| (0..second).map(move |two| (one, two)))
}

/// Serialised through a `Value`, whose maps are sorted.
fn text(value: &impl Serialize) -> String {
    serde_json::to_value(value).unwrap().to_string()
}
