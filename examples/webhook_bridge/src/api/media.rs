//! Downloads media from the homeserver, with authentication (MSC3916).

use std::time::Duration;

use axum::http::StatusCode;
use reqwest::Response;

use crate::{
    homeserver::{Homeserver, causes},
    http_client,
};

const TIMEOUT: Duration = Duration::from_secs(120);

#[derive(Debug)]
pub enum DownloadError {
    NotFound,
    TooLarge,
    Failed(String),
}

/// A medium of at most `max` bytes.
pub async fn download(
    homeserver: &Homeserver,
    server: &str,
    media: &str,
    max: usize,
) -> Result<Vec<u8>, DownloadError> {
    let mut response =
        fetch(homeserver, &["client", "v1", "media", "download", server, media]).await?;
    if response.status() == StatusCode::NOT_FOUND {
        // Homeservers before Matrix 1.11.
        response = fetch(homeserver, &["media", "v3", "download", server, media]).await?;
    }
    match response.status() {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => return Err(DownloadError::NotFound),
        status => return Err(DownloadError::Failed(status.to_string())),
    }
    let content = http_client::body(response, max).await;
    content.map_err(|error| DownloadError::Failed(causes(error)))?.ok_or(DownloadError::TooLarge)
}

async fn fetch(homeserver: &Homeserver, path: &[&str]) -> Result<Response, DownloadError> {
    let request = homeserver.get(path).timeout(TIMEOUT);
    request.send().await.map_err(|error| DownloadError::Failed(causes(error)))
}
