//! The API's error responses.

use std::time::Duration;

use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;
use tracing::warn;

use crate::errors::BridgeError;

#[derive(Debug)]
pub enum Error {
    /// A parameter is malformed.
    Parameter(&'static str),
    Unauthorized,
    UnknownPath,
    Unknown(&'static str),
    Method,
    TooMany(Duration),
    /// Others are downloading attachments.
    Busy(Duration),
    /// The process does not own the account (yet).
    NotReady,
    /// The database failed.
    Database,
    /// The homeserver failed, or sent something else.
    Homeserver(&'static str),
}

impl From<BridgeError> for Error {
    fn from(error: BridgeError) -> Self {
        warn!("a request to the API failed: {error}");
        Self::Database
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let (status, text) = match &self {
            Self::Parameter(what) => (StatusCode::BAD_REQUEST, *what),
            Self::Unauthorized => {
                (StatusCode::UNAUTHORIZED, "the Authorization header must be Bearer and the token")
            }
            Self::UnknownPath => (StatusCode::NOT_FOUND, "unknown path"),
            Self::Unknown(what) => (StatusCode::NOT_FOUND, *what),
            Self::Method => (StatusCode::METHOD_NOT_ALLOWED, "only GET is supported"),
            Self::TooMany(_) => (StatusCode::TOO_MANY_REQUESTS, "too many requests"),
            Self::Busy(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "other attachments are being downloaded")
            }
            Self::NotReady => {
                (StatusCode::SERVICE_UNAVAILABLE, "this process does not own the account")
            }
            Self::Database => (StatusCode::SERVICE_UNAVAILABLE, "the database is unavailable"),
            Self::Homeserver(what) => (StatusCode::BAD_GATEWAY, *what),
        };
        let body = json!({"error": text}).to_string();
        let kind = [(header::CONTENT_TYPE, "application/json")];
        let mut response = (status, kind, body).into_response();
        let more = match self {
            Self::Unauthorized => Some((header::WWW_AUTHENTICATE, "Bearer".to_owned())),
            Self::TooMany(wait) | Self::Busy(wait) => {
                Some((header::RETRY_AFTER, (wait.as_secs() + 1).to_string()))
            }
            Self::Method => Some((header::ALLOW, "GET,HEAD".to_owned())),
            _ => None,
        };
        if let Some((name, value)) = more
            && let Ok(value) = value.parse()
        {
            response.headers_mut().insert(name, value);
        }
        response
    }
}
