//! The steps of a history. Numbers select values of the fixtures.

/// An index into the fixtures: of a room, a session id, …
pub type Index = u8;

/// A room key: its room, its session, and which form of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoomKey {
    pub room: Index,
    pub session: Index,
    /// Selects the sender data, or another sender.
    pub form: Index,
    pub backed_up: bool,
}

/// One entry of `Changes`.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    PrivateIdentity(Index),
    BackupVersion(Index),
    BackupKey(Index),
    DehydratedKey(Index),
    OlmSession { sender: Index, session: Index, form: Index },
    MessageHash(Index),
    RoomKey(RoomKey),
    OutboundSession { room: Index, form: Index },
    Request { id: Index, info: Index, sent_out: bool },
    Identity { user: Index, form: Index, list: IdentityList },
    Device { user: Index, device: Index, form: Index, list: DeviceList },
    Withheld { room: Index, session: Index, form: Index },
    RoomSettings { room: Index, form: Index },
    Secret { name: Index, secret: Index },
    SyncToken(Index),
    Bundle { room: Index, user: Index, form: Index },
    Downloaded(Index),
    PendingBundle { room: Index, form: Option<Index> },
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum IdentityList {
    New,
    Changed,
    Unchanged,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DeviceList {
    New,
    Changed,
    Deleted,
}

/// Every method of the trait that writes, except the leases.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    Changes(Vec<Change>),
    Account(Option<Index>),
    RoomKeys { keys: Vec<RoomKey>, version: Option<Index> },
    MarkBackedUp { version: Index, keys: Vec<(Index, Index)> },
    ResetBackup,
    DeleteDehydratedKey,
    TrackedUsers(Vec<(Index, bool)>),
    DeleteRequest(Index),
    DeleteSecrets(Index),
    SetCustom { key: Index, value: Index },
    RemoveCustom(Index),
}

/// Every method of the trait that reads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Read {
    Account,
    PrivateIdentity,
    OlmSessions {
        sender: Index,
    },
    RoomKey {
        room: Index,
        session: Index,
    },
    Withheld {
        room: Index,
        session: Index,
    },
    WithheldByRoom {
        room: Index,
    },
    RoomKeys,
    Counts {
        version: Option<Index>,
    },
    RoomKeysByRoom {
        room: Index,
    },
    /// All pages, one after another.
    Pages {
        sender: Index,
        known_device: bool,
        limit: Index,
    },
    ForBackup {
        version: Index,
        limit: Index,
    },
    BackupKeys,
    DehydratedKey,
    OutboundSession {
        room: Index,
    },
    TrackedUsers,
    Device {
        user: Index,
        device: Index,
    },
    Devices {
        user: Index,
    },
    OwnDevice,
    Identity {
        user: Index,
    },
    MessageHash(Index),
    Request(Index),
    RequestByInfo(Index),
    UnsentRequests,
    Secrets(Index),
    RoomSettings {
        room: Index,
    },
    Bundle {
        room: Index,
        user: Index,
    },
    PendingBundle {
        room: Index,
    },
    PendingBundles,
    Downloaded {
        room: Index,
    },
    Custom(Index),
    SyncToken,
}

/// A step within `atomically`.
#[derive(Clone, Debug, PartialEq)]
pub enum Inner {
    Write(Write),
    Read(Read),
    /// By another task, which sees the scope's changes, except the sync token and custom values.
    ReadOutside(Read),
    /// The server terminates all connections.
    Cut,
    /// The application writes a row of its own.
    OwnRow,
}

/// How `atomically` ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum End {
    Commit,
    Error,
    Dropped,
}

/// Which attempts of a write the server refuses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Refusal {
    /// Every attempt, from the row of this number on.
    Always { row: u8 },
    /// This many rows, with a retryable error.
    Passing { row: u8, times: u8 },
    /// This many attempts, at `COMMIT`.
    AtCommit { times: u8 },
}

#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    Write(Write),
    Read(Read),
    /// Takes a lease for ten minutes, or releases it.
    Lease {
        key: Index,
        holder: Index,
        keep: bool,
    },
    /// Closes, checks that operations are refused, and reopens.
    Close,
    Reopen,
    /// Closes the store and opens another one. `load`: it loads its account.
    Restart {
        load: bool,
    },
    /// Opens another store while this one is open and continues with it; the former one tries to write.
    TakeOver {
        load: bool,
        write: Write,
    },
    /// The same while the former one is within `atomically`.
    TakeOverDuring {
        steps: Vec<Inner>,
    },
    /// The server terminates all connections.
    Cut,
    CutDuring(Write),
    RefusedWrite(Write, Refusal),
    /// A write and a read, concurrently.
    Race {
        write: Write,
        read: Read,
        read_first: bool,
    },
    /// The server executes the read before the write, and its response arrives after the write.
    LateResponse {
        read: Read,
        write: Write,
    },
    /// The write's future is dropped after its first poll.
    DroppedWrite(Write),
    Atomically {
        steps: Vec<Inner>,
        end: End,
    },
}

/// The name of a value: its kind and its numbers.
pub fn name(kind: &str, numbers: &[Index]) -> String {
    let numbers: Vec<String> = numbers.iter().map(ToString::to_string).collect();
    format!("{kind} {}", numbers.join("/"))
}
