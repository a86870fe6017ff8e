//! Every read of every value in the fixtures.

use super::{
    steps::{Index, Read},
    strategies::{DEVICES, KEYS, REQUESTS, ROOMS, SENDERS, SESSIONS, USERS, VERSIONS},
};

pub fn all_reads() -> Vec<Read> {
    let mut reads = vec![
        Read::PrivateIdentity,
        Read::RoomKeys,
        Read::Counts { version: None },
        Read::BackupKeys,
        Read::DehydratedKey,
        Read::TrackedUsers,
        Read::OwnDevice,
        Read::UnsentRequests,
        Read::PendingBundles,
        Read::SyncToken,
    ];
    let mut each = |count: Index, read: &dyn Fn(Index) -> Vec<Read>| {
        reads.extend((0..count).flat_map(read));
    };
    each(ROOMS, &of_room);
    each(USERS, &of_user);
    each(SENDERS, &|sender| {
        let pages = |known_device| Read::Pages { sender, known_device, limit: 2 };
        vec![Read::OlmSessions { sender }, pages(false), pages(true)]
    });
    each(VERSIONS, &|version| {
        vec![Read::Counts { version: Some(version) }, Read::ForBackup { version, limit: 100 }]
    });
    each(REQUESTS, &|number| vec![Read::Request(number), Read::RequestByInfo(number)]);
    each(KEYS, &|key| vec![Read::Custom(key), Read::Secrets(key), Read::MessageHash(key)]);
    // Last, because it drops deferred rows.
    reads.push(Read::Account);
    reads
}

fn of_room(room: Index) -> Vec<Read> {
    let mut reads = vec![
        Read::WithheldByRoom { room },
        Read::RoomKeysByRoom { room },
        Read::OutboundSession { room },
        Read::RoomSettings { room },
        Read::PendingBundle { room },
        Read::Downloaded { room },
    ];
    for session in 0..SESSIONS {
        reads.extend([Read::RoomKey { room, session }, Read::Withheld { room, session }]);
    }
    reads.extend((0..USERS).map(|user| Read::Bundle { room, user }));
    reads
}

fn of_user(user: Index) -> Vec<Read> {
    let mut reads = vec![Read::Devices { user }, Read::Identity { user }];
    reads.extend((0..DEVICES).map(|device| Read::Device { user, device }));
    reads
}
