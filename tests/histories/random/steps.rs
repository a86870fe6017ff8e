//! What a history is made of. Numbers name values of the universe.

/// A room, or a session id, or …: an index into the universe.
pub type Index = u8;

/// A room key: where it belongs, and which form of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoomKey {
    pub room: Index,
    pub session: Index,
    /// Other sender data, or another sender.
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
    /// All pages, one after the other.
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

/// What may happen within `atomically`.
#[derive(Clone, Debug, PartialEq)]
pub enum Inner {
    Write(Write),
    Read(Read),
    /// By another task, which sees the same, but for what others act on at the homeserver.
    ReadOutside(Read),
    /// The server ends all connections.
    Cut,
    /// A row of the application's own.
    OwnRow,
}

/// How `atomically` ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum End {
    Commit,
    Error,
    Dropped,
}

/// How often the server refuses a write.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Refusal {
    /// From the row of this number on, however often it is tried.
    Always { row: u8 },
    /// So many times, with an error that asks for another try.
    Passing { row: u8, times: u8 },
    /// So many times, in answer to `COMMIT`.
    AtCommit { times: u8 },
}

#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    Write(Write),
    Read(Read),
    /// Takes a lease for ten minutes, or gives it up.
    Lease {
        key: Index,
        holder: Index,
        keep: bool,
    },
    /// Closes, tries all sorts of things, and reopens.
    Close,
    Reopen,
    /// Closes the store and opens another one, which may load its account.
    Restart {
        load: bool,
    },
    /// Opens another store while this one is open, and goes on with that; this one tries to write.
    TakeOver {
        load: bool,
        write: Write,
    },
    /// The same while this one is within `atomically`.
    TakeOverDuring {
        steps: Vec<Inner>,
    },
    /// The server ends all connections.
    Cut,
    CutDuring(Write),
    RefusedWrite(Write, Refusal),
    /// A write and a read at the same time.
    Race {
        write: Write,
        read: Read,
        read_first: bool,
    },
    /// The read is answered by the server before the write, and the answer comes after it.
    LateAnswer {
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

/// How a value is called, by what it is and its numbers.
pub fn name(kind: &str, numbers: &[Index]) -> String {
    let numbers: Vec<String> = numbers.iter().map(ToString::to_string).collect();
    format!("{kind} {}", numbers.join("/"))
}
