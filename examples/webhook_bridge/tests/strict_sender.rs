//! A client of matrix-sdk that shares room keys only with devices that their owner has signed
//! (MSC4153): sends its arguments to a room, and prints the ids of the events.

use matrix_sdk::{
    Client,
    config::SyncSettings,
    ruma::{
        RoomId,
        api::client::uiaa::{AuthData, Password, UserIdentifier},
        events::room::message::RoomMessageEventContent,
    },
};
use matrix_sdk_crypto::CollectStrategy;

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

#[tokio::main]
async fn main() -> Result<()> {
    let client = Client::builder()
        .homeserver_url(env("MATRIX_HOMESERVER")?)
        .with_room_key_recipient_strategy(CollectStrategy::IdentityBasedStrategy)
        .build()
        .await?;
    client
        .matrix_auth()
        .login_username(env("MATRIX_USER")?, &env("MATRIX_PASSWORD")?)
        .send()
        .await?;
    sign_device(&client).await?;
    client.sync_once(SyncSettings::default()).await?;
    let room = client.get_room(&RoomId::parse(env("ROOM")?)?).ok_or("the room is not joined")?;
    for text in std::env::args().skip(1) {
        let sent = room.send(RoomMessageEventContent::text_plain(text)).await?;
        println!("{}", sent.response.event_id);
    }
    Ok(())
}

/// Create an identity, or replace the user's, which needs the password.
async fn sign_device(client: &Client) -> Result<()> {
    let encryption = client.encryption();
    let Err(error) = encryption.bootstrap_cross_signing(None).await else { return Ok(()) };
    let requested = error.as_uiaa_response().ok_or_else(|| error.to_string())?;
    let user = UserIdentifier::Matrix(client.user_id().ok_or("no user")?.to_owned().into());
    let mut password = Password::new(user, env("MATRIX_PASSWORD")?);
    password.session.clone_from(&requested.session);
    Ok(encryption.bootstrap_cross_signing(Some(AuthData::Password(password))).await?)
}

fn env(name: &str) -> Result<String> {
    std::env::var(name).map_err(|_| format!("{name} is not set").into())
}
