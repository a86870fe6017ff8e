//! Whether a connection is encrypted: with `sslmode=prefer` the driver does not say.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio_postgres::{
    Socket,
    tls::{MakeTlsConnect, TlsConnect},
};

/// Makes TLS connections, and notes that the server agreed to one.
#[derive(Clone)]
pub(crate) struct Watched<T> {
    inner: T,
    is_used: Arc<AtomicBool>,
}

impl<T> Watched<T> {
    pub(crate) fn new(inner: T) -> Self {
        Self { inner, is_used: Arc::default() }
    }

    /// Whether the server agreed to TLS, so that a handshake was begun.
    pub(crate) fn is_used(&self) -> bool {
        self.is_used.load(Ordering::Acquire)
    }
}

impl<T: MakeTlsConnect<Socket>> MakeTlsConnect<Socket> for Watched<T> {
    type Stream = T::Stream;
    type TlsConnect = Watched<T::TlsConnect>;
    type Error = T::Error;

    fn make_tls_connect(&mut self, domain: &str) -> Result<Self::TlsConnect, T::Error> {
        let inner = self.inner.make_tls_connect(domain)?;
        Ok(Watched { inner, is_used: self.is_used.clone() })
    }
}

impl<T: TlsConnect<Socket>> TlsConnect<Socket> for Watched<T> {
    type Stream = T::Stream;
    type Error = T::Error;
    type Future = T::Future;

    fn connect(self, stream: Socket) -> T::Future {
        self.is_used.store(true, Ordering::Release);
        self.inner.connect(stream)
    }
}
