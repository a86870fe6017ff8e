//! The tables of a `matrix-sdk-sqlite` crypto store, over all its versions.

/// A table of the file, and what is read of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    Devices,
    UserIdentities,
    TrackedUsers,
    OlmSessions,
    InboundSessions,
    OutboundSessions,
    MessageHashes,
    KeyRequests,
    SecretsBefore17,
    Secrets,
    Withheld,
    RoomSettings,
    RoomKeyBundles,
    PendingKeyBundles,
    BackedUpRooms,
    KeyValues,
    Leases,
}

impl Table {
    /// In the order in which they are saved.
    pub const ALL: [Self; 17] = [
        Self::Devices,
        Self::UserIdentities,
        Self::TrackedUsers,
        Self::OlmSessions,
        Self::InboundSessions,
        Self::OutboundSessions,
        Self::MessageHashes,
        Self::KeyRequests,
        Self::SecretsBefore17,
        Self::Secrets,
        Self::Withheld,
        Self::RoomSettings,
        Self::RoomKeyBundles,
        Self::PendingKeyBundles,
        Self::BackedUpRooms,
        Self::KeyValues,
        Self::Leases,
    ];

    /// Its name in the file, which is also the domain of its hashes, but for `tracked_user`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Devices => "device",
            Self::UserIdentities => "identity",
            Self::TrackedUsers => "tracked_user",
            Self::OlmSessions => "session",
            Self::InboundSessions => "inbound_group_session",
            Self::OutboundSessions => "outbound_group_session",
            Self::MessageHashes => "olm_hash",
            Self::KeyRequests => "key_requests",
            Self::SecretsBefore17 => "secrets",
            Self::Secrets => "secrets_inbox",
            Self::Withheld => "direct_withheld_info",
            Self::RoomSettings => "room_settings",
            Self::RoomKeyBundles => "received_room_key_bundle",
            Self::PendingKeyBundles => "rooms_pending_key_bundle",
            Self::BackedUpRooms => "room_key_backups_fully_downloaded",
            Self::KeyValues => "kv",
            Self::Leases => "lease_locks",
        }
    }

    /// Whether every version of the file has it.
    pub fn is_required(self) -> bool {
        matches!(
            self,
            Self::Devices
                | Self::UserIdentities
                | Self::TrackedUsers
                | Self::OlmSessions
                | Self::InboundSessions
                | Self::OutboundSessions
                | Self::MessageHashes
                | Self::KeyRequests
                | Self::KeyValues
        )
    }

    /// The columns that are read: a key, the value, and a flag.
    pub fn columns(self) -> [&'static str; 3] {
        match self {
            Self::InboundSessions => ["session_id", "data", "backed_up"],
            Self::KeyRequests => ["request_id", "data", "sent_out"],
            Self::SecretsBefore17 => ["secret_name", "data", "0"],
            Self::Secrets => ["secret_name", "secret", "0"],
            Self::RoomSettings | Self::PendingKeyBundles => ["room_id", "data", "0"],
            Self::RoomKeyBundles => ["room_id", "bundle_data", "0"],
            Self::BackedUpRooms => ["room_id", "room_id", "0"],
            Self::KeyValues => ["key", "value", "0"],
            Self::Leases => ["key", "key", "0"],
            _ => ["NULL", "data", "0"],
        }
    }

    /// The SDK's own migrations drop what an older file has here.
    pub fn dropped_before(self) -> Option<(u8, &'static str)> {
        match self {
            Self::MessageHashes => Some((2, "they are in an older form, which the SDK drops too")),
            Self::OutboundSessions => {
                Some((6, "they are in an older form, which the SDK drops too; new ones are made"))
            }
            Self::RoomKeyBundles => {
                Some((11, "they lack the sender's key; the SDK drops them too"))
            }
            _ => None,
        }
    }
}
