//! What an account is encrypted with.

use std::{error::Error, fmt, future::Future, pin::Pin, sync::Arc};

use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// The secret that unlocks an account's cipher; wiped from memory on drop, never printed.
#[derive(Clone)]
pub(crate) enum Secret {
    Passphrase(Passphrase),
    Key(Box<Zeroizing<[u8; 32]>>),
    Provider(KeyProvider),
}

#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(crate) struct Passphrase(pub(crate) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passphrase(_) => "Passphrase(…)",
            Self::Key(_) => "Key(…)",
            Self::Provider(_) => "Provider(…)",
        })
    }
}

/// What a [`key_provider`](crate::PostgresStoreConfig::key_provider) is asked for. Its `Debug` shows
/// neither.
#[non_exhaustive]
pub enum KeyRequest {
    /// To encrypt a key of 32 bytes, which was made for this account alone. The answer is stored beside the
    /// account, in any form and of any length.
    Wrap(Zeroizing<[u8; 32]>),
    /// To decrypt what was answered then. The answer is the key.
    Unwrap(Vec<u8>),
}

impl fmt::Debug for KeyRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wrap(_) => "Wrap(…)",
            Self::Unwrap(_) => "Unwrap(…)",
        })
    }
}

type BoxedError = Box<dyn Error + Send + Sync>;
type Answer = Pin<Box<dyn Future<Output = Result<Vec<u8>, BoxedError>> + Send>>;

/// The application's own way to wrap an account's key.
#[derive(Clone)]
pub(crate) struct KeyProvider(Arc<dyn Fn(KeyRequest) -> Answer + Send + Sync>);

impl KeyProvider {
    pub(crate) fn new<F, Fut>(provider: F) -> Self
    where
        F: Fn(KeyRequest) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Vec<u8>, BoxedError>> + Send + 'static,
    {
        Self(Arc::new(move |request| Box::pin(provider(request))))
    }

    /// The stored form of a key.
    pub(crate) async fn wrap(&self, key: &Zeroizing<[u8; 32]>) -> Result<Vec<u8>, String> {
        let answer = (self.0)(KeyRequest::Wrap(key.clone())).await;
        answer.map_err(|error| error.to_string())
    }

    /// The key of a stored form; `None` if the answer has another length.
    pub(crate) async fn unwrap(
        &self,
        wrapped: &[u8],
    ) -> Result<Option<Zeroizing<[u8; 32]>>, String> {
        let answer = (self.0)(KeyRequest::Unwrap(wrapped.to_vec())).await;
        let key = answer.map(Zeroizing::new).map_err(|error| error.to_string())?;
        Ok(key.as_slice().try_into().ok().map(Zeroizing::new))
    }
}
