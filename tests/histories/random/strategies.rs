//! The strategies that draw histories: few ids, so that steps concern the same rows.

use proptest::{collection::vec, option, prelude::*, strategy::Union};

use super::steps::{
    Change, DeviceList, End, IdentityList, Index, Inner, Read, Refusal, RoomKey, Step, Write,
};

pub const ROOMS: Index = 2;
pub const SESSIONS: Index = 3;
pub const SENDERS: Index = 2;
/// The first is the account's own user.
pub const USERS: Index = 2;
pub const DEVICES: Index = 2;
pub const VERSIONS: Index = 2;
pub const REQUESTS: Index = 3;
/// Forms of each value that has several.
pub const FORMS: Index = 3;
/// Message hashes, custom keys, names of secrets, …
pub const KEYS: Index = 2;

pub fn history() -> impl Strategy<Value = Vec<Step>> {
    vec(step(), 1..=30)
}

/// Draws one of several strategies, by weight.
macro_rules! one_of {
    ($($weight:literal => $strategy:expr,)*) => {
        Union::new_weighted(vec![$(($weight, $strategy.boxed())),*])
    };
}

fn step() -> impl Strategy<Value = Step> {
    one_of! {
        30 => write().prop_map(Step::Write),
        40 => read().prop_map(Step::Read),
        6 => (0..KEYS, 0..2u8, any::<bool>())
            .prop_map(|(key, holder, keep)| Step::Lease { key, holder, keep }),
        8 => (write(), read(), any::<bool>())
            .prop_map(|(write, read, read_first)| Step::Race { write, read, read_first }),
        4 => (read(), write()).prop_map(|(read, write)| Step::LateResponse { read, write }),
        3 => write().prop_map(Step::DroppedWrite),
        8 => (vec(inner(), 0..8), end()).prop_map(|(steps, end)| Step::Atomically { steps, end }),
        4 => Just(Step::Reopen),
        1 => Just(Step::Close),
        1 => any::<bool>().prop_map(|load| Step::Restart { load }),
        1 => (any::<bool>(), write()).prop_map(|(load, write)| Step::TakeOver { load, write }),
        1 => vec(inner(), 1..4).prop_map(|steps| Step::TakeOverDuring { steps }),
        1 => Just(Step::Cut),
        1 => write().prop_map(Step::CutDuring),
        3 => (write(), refusal()).prop_map(|(write, refusal)| Step::RefusedWrite(write, refusal)),
    }
}

fn inner() -> impl Strategy<Value = Inner> {
    one_of! {
        12 => write().prop_map(Inner::Write),
        10 => read().prop_map(Inner::Read),
        4 => read().prop_map(Inner::ReadOutside),
        1 => Just(Inner::Cut),
        1 => Just(Inner::OwnRow),
    }
}

fn end() -> impl Strategy<Value = End> {
    one_of! {
        4 => Just(End::Commit),
        1 => Just(End::Error),
        1 => Just(End::Dropped),
    }
}

fn refusal() -> impl Strategy<Value = Refusal> {
    one_of! {
        3 => (1..4u8).prop_map(|row| Refusal::Always { row }),
        1 => (1..3u8, 1..3u8).prop_map(|(row, times)| Refusal::Passing { row, times }),
        1 => (1..3u8).prop_map(|times| Refusal::AtCommit { times }),
    }
}

pub fn write() -> impl Strategy<Value = Write> {
    one_of! {
        20 => vec(change(), 0..6).prop_map(Write::Changes),
        2 => option::weighted(0.8, 0..FORMS).prop_map(Write::Account),
        4 => (vec(room_key(), 0..4), option::of(0..VERSIONS))
            .prop_map(|(keys, version)| Write::RoomKeys { keys, version }),
        4 => (0..VERSIONS, vec((0..ROOMS, 0..SESSIONS), 0..4))
            .prop_map(|(version, keys)| Write::MarkBackedUp { version, keys }),
        1 => Just(Write::ResetBackup),
        1 => Just(Write::DeleteDehydratedKey),
        3 => vec((0..USERS, any::<bool>()), 0..3).prop_map(Write::TrackedUsers),
        2 => (0..REQUESTS).prop_map(Write::DeleteRequest),
        1 => (0..KEYS).prop_map(Write::DeleteSecrets),
        3 => (0..KEYS, 0..FORMS).prop_map(|(key, value)| Write::SetCustom { key, value }),
        1 => (0..KEYS).prop_map(Write::RemoveCustom),
    }
}

fn room_key() -> impl Strategy<Value = RoomKey> {
    (0..ROOMS, 0..SESSIONS, 0..FORMS, any::<bool>())
        .prop_map(|(room, session, form, backed_up)| RoomKey { room, session, form, backed_up })
}

fn change() -> impl Strategy<Value = Change> {
    let identity_list = one_of! {
        2 => Just(IdentityList::New),
        2 => Just(IdentityList::Changed),
        1 => Just(IdentityList::Unchanged),
    };
    let device_list = one_of! {
        3 => Just(DeviceList::New),
        2 => Just(DeviceList::Changed),
        2 => Just(DeviceList::Deleted),
    };
    one_of! {
        1 => (0..FORMS).prop_map(Change::PrivateIdentity),
        1 => (0..VERSIONS).prop_map(Change::BackupVersion),
        1 => (0..FORMS).prop_map(Change::BackupKey),
        1 => (0..FORMS).prop_map(Change::DehydratedKey),
        3 => (0..SENDERS, 0..2u8, 0..FORMS)
            .prop_map(|(sender, session, form)| Change::OlmSession { sender, session, form }),
        1 => (0..KEYS).prop_map(Change::MessageHash),
        4 => room_key().prop_map(Change::RoomKey),
        2 => (0..ROOMS, 0..FORMS).prop_map(|(room, form)| Change::OutboundSession { room, form }),
        4 => (0..REQUESTS, 0..REQUESTS, any::<bool>())
            .prop_map(|(id, info, sent_out)| Change::Request { id, info, sent_out }),
        3 => (0..USERS, 0..FORMS, identity_list)
            .prop_map(|(user, form, list)| Change::Identity { user, form, list }),
        6 => (0..USERS, 0..DEVICES, 0..FORMS, device_list)
            .prop_map(|(user, device, form, list)| Change::Device { user, device, form, list }),
        2 => (0..ROOMS, 0..SESSIONS, 0..FORMS)
            .prop_map(|(room, session, form)| Change::Withheld { room, session, form }),
        1 => (0..ROOMS, 0..FORMS).prop_map(|(room, form)| Change::RoomSettings { room, form }),
        1 => (0..KEYS, 0..2u8).prop_map(|(name, secret)| Change::Secret { name, secret }),
        2 => (0..FORMS).prop_map(Change::SyncToken),
        1 => (0..ROOMS, 0..USERS, 0..FORMS)
            .prop_map(|(room, user, form)| Change::Bundle { room, user, form }),
        1 => (0..ROOMS).prop_map(Change::Downloaded),
        2 => (0..ROOMS, option::of(0..FORMS))
            .prop_map(|(room, form)| Change::PendingBundle { room, form }),
    }
}

/// All reads with the same weight, except those with more arguments or more cases.
pub fn read() -> impl Strategy<Value = Read> {
    let room = 0..ROOMS;
    one_of! {
        1 => Just(Read::Account),
        1 => Just(Read::PrivateIdentity),
        2 => (0..SENDERS).prop_map(|sender| Read::OlmSessions { sender }),
        3 => (0..ROOMS, 0..SESSIONS).prop_map(|(room, session)| Read::RoomKey { room, session }),
        1 => (0..ROOMS, 0..SESSIONS).prop_map(|(room, session)| Read::Withheld { room, session }),
        1 => room.clone().prop_map(|room| Read::WithheldByRoom { room }),
        1 => Just(Read::RoomKeys),
        1 => option::of(0..VERSIONS).prop_map(|version| Read::Counts { version }),
        1 => room.clone().prop_map(|room| Read::RoomKeysByRoom { room }),
        2 => (0..SENDERS, any::<bool>(), 1..4u8)
            .prop_map(|(sender, known_device, limit)| Read::Pages { sender, known_device, limit }),
        2 => (0..VERSIONS, 0..8u8).prop_map(|(version, limit)| Read::ForBackup { version, limit }),
        1 => Just(Read::BackupKeys),
        1 => Just(Read::DehydratedKey),
        1 => room.clone().prop_map(|room| Read::OutboundSession { room }),
        2 => Just(Read::TrackedUsers),
        2 => (0..USERS, 0..DEVICES).prop_map(|(user, device)| Read::Device { user, device }),
        2 => (0..USERS).prop_map(|user| Read::Devices { user }),
        1 => Just(Read::OwnDevice),
        2 => (0..USERS).prop_map(|user| Read::Identity { user }),
        1 => (0..KEYS).prop_map(Read::MessageHash),
        1 => (0..REQUESTS).prop_map(Read::Request),
        1 => (0..REQUESTS).prop_map(Read::RequestByInfo),
        2 => Just(Read::UnsentRequests),
        1 => (0..KEYS).prop_map(Read::Secrets),
        1 => room.clone().prop_map(|room| Read::RoomSettings { room }),
        1 => (0..ROOMS, 0..USERS).prop_map(|(room, user)| Read::Bundle { room, user }),
        1 => room.clone().prop_map(|room| Read::PendingBundle { room }),
        1 => Just(Read::PendingBundles),
        1 => room.prop_map(|room| Read::Downloaded { room }),
        1 => (0..KEYS).prop_map(Read::Custom),
        1 => Just(Read::SyncToken),
    }
}
