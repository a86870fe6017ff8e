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
    record::{Record, Reply},
    webhook::{Delivery, Webhook},
    world::{World, member, message, plain, room, sync},
};
