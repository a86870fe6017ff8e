//! A homeserver and a webhook made for tests, people who encrypt, and the bridge as a process.

mod bridge;
mod homeserver;
mod person;
mod record;
mod webhook;
mod world;

pub use self::{
    bridge::Bridge,
    homeserver::{Call, Homeserver},
    person::Person,
    record::Reply,
    webhook::Webhook,
    world::{World, invitation, limited, member, message, no, plain, room, sync},
};

// What the soak uses.
#[allow(unused_imports)]
pub use self::webhook::Delivery;
