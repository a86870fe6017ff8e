//! Mock homeserver and webhook, Matrix users that encrypt, and the bridge as a process.

mod backup;
mod bridge;
mod files;
mod harness;
mod homeserver;
mod record;
mod user;
mod webhook;

pub use self::{
    bridge::Bridge,
    harness::{Harness, invitation, limited, matrix_error, member, message, plain, room, sync},
    homeserver::{BOT, Call, Homeserver},
    record::Reply,
    user::MatrixUser,
    webhook::Webhook,
};

// Not all are used by the soak test.
#[allow(unused_imports)]
pub use self::{
    files::{TempFile, labels_file},
    webhook::Delivery,
};
