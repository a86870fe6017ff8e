//! `GET /api/v1/attachments/{id}`: fetches an attachment from the homeserver, and decrypts it.

use std::{io::Read, sync::Arc, time::Duration};

use axum::{
    body::Bytes,
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use matrix_sdk_crypto::{AttachmentDecryptor, MediaEncryptionInfo};
use ruma::MxcUri;
use tokio::{sync::OwnedSemaphorePermit, time::timeout};

use super::{
    Api,
    media::{DownloadError, download},
    reply::Error,
};
use crate::{attachment::Source, errors::BridgeError, sealing::Sealer};

/// How long a request waits for a download of others to end.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// The path of an attachment's download: its source, sealed, so that nothing is stored.
pub fn path(sealer: &Sealer, source: &Source) -> Result<String, BridgeError> {
    Ok(format!("/api/v1/attachments/{}", URL_SAFE_NO_PAD.encode(sealer.seal(source)?)))
}

pub async fn get(
    State(api): State<Arc<Api>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, Error> {
    let unknown = Error::Unknown("no document of this bridge has this path");
    let Ok(Path(id)) = path else { return Err(unknown) };
    let backend = api.backend()?;
    let sealed = URL_SAFE_NO_PAD.decode(id).ok();
    let Some(source) = sealed.and_then(|sealed| backend.sealer.unseal::<Source>(&sealed)) else {
        return Err(unknown);
    };
    let url = <&MxcUri>::from(source.url.as_str());
    let (server, media) =
        url.parts().map_err(|_| Error::Homeserver("the sender's mxc:// address is malformed"))?;
    // Clients that do not read what they have asked for keep their permits.
    let permit = timeout(MAX_WAIT, api.downloads.clone().acquire_owned()).await;
    let permit = permit.map_err(|_| Error::Busy(MAX_WAIT))?.ok();
    let content =
        download(&backend.homeserver, server.as_str(), media, api.config.max_attachment).await;
    let content = content.map_err(|error| match error {
        DownloadError::NotFound => Error::Unknown("the homeserver does not have it any more"),
        DownloadError::TooLarge => {
            Error::Homeserver("it is larger than BRIDGE_ATTACHMENT_MAX_BYTES")
        }
        DownloadError::Failed(reason) => {
            tracing::warn!("an attachment cannot be fetched: {reason}");
            Error::Homeserver("the homeserver does not serve it now")
        }
    })?;
    let content = match &source.file {
        Some(file) => decrypt(&content, file).ok_or(Error::Homeserver(
            "it cannot be decrypted: it was changed, or its key is wrong",
        ))?,
        None => content,
    };
    let content = Bytes::from_owner(Held { content, _permit: permit });
    Ok((headers(&source), content).into_response())
}

/// Keeps the permit until the body is sent.
struct Held {
    content: Vec<u8>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.content
    }
}

fn decrypt(content: &[u8], file: &serde_json::Value) -> Option<Vec<u8>> {
    let info: MediaEncryptionInfo = serde_json::from_value(file.clone()).ok()?;
    let mut content = content;
    let mut decryptor = AttachmentDecryptor::new(&mut content, info).ok()?;
    let mut decrypted = Vec::new();
    // The end of the file checks its hash.
    decryptor.read_to_end(&mut decrypted).ok()?;
    Some(decrypted)
}

/// The type is the sender's claim: no browser may run the file.
fn headers(source: &Source) -> [(HeaderName, HeaderValue); 4] {
    let kind = source.mimetype.as_deref().and_then(|kind| HeaderValue::from_str(kind).ok());
    let kind = kind.filter(|kind| kind.to_str().is_ok_and(|kind| kind.contains('/')));
    let fixed = HeaderValue::from_static;
    [
        (header::CONTENT_TYPE, kind.unwrap_or(fixed("application/octet-stream"))),
        (header::CONTENT_DISPOSITION, fixed("attachment")),
        (header::X_CONTENT_TYPE_OPTIONS, fixed("nosniff")),
        (header::CONTENT_SECURITY_POLICY, fixed("sandbox; default-src 'none'")),
    ]
}
