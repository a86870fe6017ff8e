//! The homeserver, as far as it is asked about a device.

use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::Args;
use reqwest::{Client, Method, StatusCode, Url};
use ruma::api::{IncomingResponse, client::keys::get_keys::v3::Response as KeysQuery};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::{
    outcome::{Error, with_causes},
    secrets,
};

const URL: &str = "MATRIX_HOMESERVER";

/// Where it is, and a token.
#[derive(Args)]
pub struct HomeserverArgs {
    /// Base URL of the homeserver's client API, to compare its view of the device with ours
    #[arg(long, env = URL, value_name = "URL", help_heading = "Homeserver")]
    pub homeserver: Option<String>,
    /// File that holds an access token of the bot's user [env: MATRIX_ACCESS_TOKEN]
    #[arg(
        long,
        env = "MATRIX_ACCESS_TOKEN_FILE",
        value_name = "FILE",
        help_heading = "Homeserver"
    )]
    pub access_token_file: Option<PathBuf>,
}

pub struct Homeserver {
    client: Client,
    base: String,
    token: Zeroizing<String>,
}

/// When a device was last seen.
pub enum LastSeen {
    /// The user has no such device: it was logged out.
    NoDevice,
    /// The homeserver does not say.
    Unknown,
    /// In milliseconds since 1970.
    At(u64),
}

const TIMEOUT: Duration = Duration::from_secs(20);

impl HomeserverArgs {
    /// Whether the homeserver is in the environment only, which may be the bot's, and no token is given.
    pub fn is_without_token(&self) -> Result<bool, Error> {
        let in_environment =
            self.homeserver.is_some() && std::env::var(URL).ok() == self.homeserver;
        Ok(in_environment && self.token()?.is_none())
    }

    fn token(&self) -> Result<Option<Zeroizing<String>>, Error> {
        let file = self.access_token_file.as_deref();
        secrets::secret(file, "MATRIX_ACCESS_TOKEN", "the access token")
    }

    /// The homeserver, if one is named.
    pub fn connect(&self) -> Result<Option<Homeserver>, Error> {
        let Some(base) = &self.homeserver else { return Ok(None) };
        let token = self.token()?.ok_or_else(|| {
            Error::failed(
                "--homeserver (or MATRIX_HOMESERVER) needs a token: set MATRIX_ACCESS_TOKEN or \
                 --access-token-file, or leave the homeserver out",
            )
        })?;
        let base = base.trim_end_matches('/').to_owned();
        let url = Url::parse(&base).map_err(|error| error.to_string());
        let url = url.and_then(|url| match url.scheme() {
            "http" | "https" => Ok(url),
            _ => Err("it begins neither with https:// nor with http://".to_owned()),
        });
        url.map_err(|error| Error::failed(format!("--homeserver {base} is no base URL: {error}")))?;
        Ok(Some(Homeserver { client: client()?, base, token }))
    }
}

fn client() -> Result<Client, Error> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let unusable = |error: &dyn std::error::Error| {
        Error::failed(format!("TLS cannot be set up for the homeserver: {error}"))
    };
    let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Client::builder()
        .tls_backend_preconfigured(tls)
        .timeout(TIMEOUT)
        // A redirect could take the token to another server.
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("matrix-postgres/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| unusable(&error))
}

impl Homeserver {
    /// The user and the device that the token belongs to.
    pub async fn whoami(&self) -> Result<(String, Option<String>), Error> {
        let answer = self.json(Method::GET, "account/whoami", None).await?;
        let text = |name: &str| answer[name].as_str().map(ToOwned::to_owned);
        let user = text("user_id");
        let user = user.ok_or_else(|| Error::failed("the homeserver's whoami names no user"))?;
        Ok((user, text("device_id")))
    }

    /// The keys of a user's devices.
    pub async fn keys(&self, user: &str) -> Result<KeysQuery, Error> {
        let body = json!({ "device_keys": { user: [] } });
        let (_, bytes) = self.send(Method::POST, "keys/query", Some(body)).await?;
        let answer = http::Response::new(bytes);
        KeysQuery::try_from_http_response(answer).map_err(|error| {
            Error::failed(format!("the homeserver's answer to keys/query is malformed: {error}"))
        })
    }

    /// The counts of one-time keys: what an upload of nothing answers with.
    pub async fn one_time_keys(&self) -> Result<Value, Error> {
        let answer = self.json(Method::POST, "keys/upload", Some(json!({}))).await?;
        Ok(answer["one_time_key_counts"].clone())
    }

    /// The key backup's version and public key.
    pub async fn backup(&self) -> Result<Option<(String, Option<String>)>, Error> {
        let (status, bytes) = self.send(Method::GET, "room_keys/version", None).await?;
        if status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let answer: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let version = answer["version"].as_str().map(ToOwned::to_owned);
        let version = version.ok_or_else(|| {
            Error::failed("the homeserver's answer to room_keys/version is malformed")
        })?;
        let key = answer["auth_data"]["public_key"].as_str().map(ToOwned::to_owned);
        Ok(Some((version, key)))
    }

    /// When a device of the token's user was last seen: the token's own device is seen by this request.
    pub async fn last_seen(&self, device: &str) -> Result<LastSeen, Error> {
        let answer = self.json(Method::GET, "devices", None).await?;
        let Some(devices) = answer["devices"].as_array() else { return Ok(LastSeen::Unknown) };
        let found = devices.iter().find(|found| found["device_id"] == device);
        Ok(match found.map(|found| found["last_seen_ts"].as_u64()) {
            None => LastSeen::NoDevice,
            Some(None) => LastSeen::Unknown,
            Some(Some(time)) => LastSeen::At(time),
        })
    }

    async fn json(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, Error> {
        let (_, bytes) = self.send(method, path, body).await?;
        serde_json::from_slice(&bytes)
            .map_err(|_| Error::failed(format!("the homeserver's answer to {path} is not JSON")))
    }

    /// Fails on all but success and "not found".
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<(StatusCode, Vec<u8>), Error> {
        let url = format!("{}/_matrix/client/v3/{path}", self.base);
        let mut request = self.client.request(method, url).bearer_auth(&*self.token);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let away = |error: reqwest::Error| match error.is_builder() {
            true => Error::failed(format!(
                "the request {path} to the homeserver cannot be made: check its URL, and the token, which is \
                 one line ({})",
                with_causes(&error.without_url())
            )),
            false => Error::unavailable(format!(
                "the homeserver did not answer {path}: {}",
                with_causes(&error.without_url())
            )),
        };
        let answer = request.send().await.map_err(away)?;
        let status = answer.status();
        let bytes = answer.bytes().await.map_err(away)?;
        match status {
            StatusCode::UNAUTHORIZED => Err(Error::failed(
                "the homeserver refused the token: the token is wrong, or its device was logged out",
            )),
            status if status.is_success() || status == StatusCode::NOT_FOUND => {
                Ok((status, bytes.to_vec()))
            }
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Err(Error::unavailable(format!(
                "the homeserver answered {path} with {status}: run the command again later"
            ))),
            status => Err(Error::failed(format!("the homeserver answered {path} with {status}"))),
        }
    }
}
