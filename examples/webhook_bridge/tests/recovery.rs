//! A client of matrix-sdk that sets recovery up for its user, as Element does: an identity, a key backup,
//! and a secret storage with their keys. Prints the recovery key that opens the storage. With `STAY` it goes on
//! syncing, and answers key requests of the user's other devices; it logs what it does with them.

use matrix_sdk::{
    Client,
    config::SyncSettings,
    ruma::api::client::uiaa::{AuthData, Password, UserIdentifier},
};

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

#[tokio::main]
async fn main() -> Result<()> {
    let log = tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr);
    log.with_env_filter("warn,matrix_sdk_crypto::gossiping=debug").init();
    let client = Client::builder().homeserver_url(env("MATRIX_HOMESERVER")?).build().await?;
    let (user, password) = (env("MATRIX_USER")?, env("MATRIX_PASSWORD")?);
    client.matrix_auth().login_username(&user, &password).send().await?;
    client.sync_once(SyncSettings::default()).await?;
    let encryption = client.encryption();
    if let Err(error) = encryption.bootstrap_cross_signing(None).await {
        let requested = error.as_uiaa_response().ok_or_else(|| error.to_string())?;
        let user = client.user_id().ok_or("no user")?.to_owned();
        let mut auth = Password::new(UserIdentifier::Matrix(user.into()), password);
        auth.session.clone_from(&requested.session);
        encryption.bootstrap_cross_signing(Some(AuthData::Password(auth))).await?;
    }
    println!("{}", encryption.recovery().enable().await?);
    if std::env::var_os("STAY").is_some() {
        client.sync(SyncSettings::default()).await?;
    }
    Ok(())
}

fn env(name: &str) -> Result<String> {
    std::env::var(name).map_err(|_| format!("{name} is not set").into())
}
