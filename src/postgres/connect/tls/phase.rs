//! The TLS phase that a connection has reached: the driver does not report it, neither when it
//! succeeds with `sslmode=prefer` nor when it fails.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use futures_util::future::{BoxFuture, FutureExt};
use tokio_postgres::{
    Socket,
    tls::{MakeTlsConnect, TlsConnect},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TlsPhase {
    /// TLS was not requested, or the server has not agreed to it.
    NotBegun,
    Handshake,
    Encrypted,
}

/// Makes TLS connections, and records the phase that they reach.
#[derive(Clone)]
pub(crate) struct PhaseTracker<T> {
    inner: T,
    phase: Arc<AtomicU8>,
}

impl<T> PhaseTracker<T> {
    pub(crate) fn new(inner: T) -> Self {
        Self { inner, phase: Arc::new(AtomicU8::new(TlsPhase::NotBegun as u8)) }
    }

    pub(crate) fn phase(&self) -> TlsPhase {
        match self.phase.load(Ordering::Acquire) {
            phase if phase == TlsPhase::Encrypted as u8 => TlsPhase::Encrypted,
            phase if phase == TlsPhase::Handshake as u8 => TlsPhase::Handshake,
            _ => TlsPhase::NotBegun,
        }
    }
}

impl<T> MakeTlsConnect<Socket> for PhaseTracker<T>
where
    T: MakeTlsConnect<Socket>,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send + 'static,
{
    type Stream = T::Stream;
    type TlsConnect = PhaseTracker<T::TlsConnect>;
    type Error = T::Error;

    fn make_tls_connect(&mut self, domain: &str) -> Result<Self::TlsConnect, T::Error> {
        let inner = self.inner.make_tls_connect(domain)?;
        Ok(PhaseTracker { inner, phase: self.phase.clone() })
    }
}

impl<T> TlsConnect<Socket> for PhaseTracker<T>
where
    T: TlsConnect<Socket>,
    T::Future: Send + 'static,
{
    type Stream = T::Stream;
    type Error = T::Error;
    type Future = BoxFuture<'static, Result<T::Stream, T::Error>>;

    fn connect(self, stream: Socket) -> Self::Future {
        self.phase.store(TlsPhase::Handshake as u8, Ordering::Release);
        let (handshake, phase) = (self.inner.connect(stream), self.phase);
        async move {
            let stream = handshake.await?;
            phase.store(TlsPhase::Encrypted as u8, Ordering::Release);
            Ok(stream)
        }
        .boxed()
    }
}
