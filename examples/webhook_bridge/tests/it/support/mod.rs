//! Mock homeserver and webhook, Matrix users that encrypt, and the bridge as a process.

mod bridge;
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

// For the soak test.
#[allow(unused_imports)]
pub use self::webhook::Delivery;
