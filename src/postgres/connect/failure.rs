//! Why no connection could be made, and how the reason passes through the pool.
//!
//! The pool returns only `tokio_postgres::Error`, which cannot be constructed outside of the
//! driver. But connecting over a stream that fails returns the stream's I/O error. So a `Failure`
//! is passed as the I/O error of such a stream, and [`classify`] extracts it.

use std::{
    error::Error as _,
    fmt, io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::{
    Config, NoTls,
    config::{SslMode, TargetSessionAttrs},
    error::SqlState,
};

use super::targets::Target;
use crate::{
    DatabaseError, OpenStoreError,
    config::tls::TlsSettings,
    error,
    postgres::connect::tls::{self, TlsPhase},
};

/// Why a connection could not be made.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A file that the configuration names is missing or malformed.
    Config(String),
    /// No server answered, or none could be reached.
    Connect(String),
    /// The driver could not log in: without a password, for example.
    Login(String),
    Tls(String),
    /// An error returned by the server.
    Answer(tokio_postgres::Error),
    /// The credentials were refused, but the next connection reads them again.
    Outdated(Box<Failure>),
}

impl Failure {
    /// The driver's errors have no public kind: it is inferred from their cause and from the
    /// configuration.
    pub(super) fn new(
        error: tokio_postgres::Error,
        target: &Target,
        config: &Config,
        settings: &TlsSettings,
        phase: TlsPhase,
    ) -> Self {
        if error.as_db_error().is_some() {
            return Self::Answer(error);
        }
        if let Some(text) = tls::explain(&error, settings, &target.peer(), phase) {
            return Self::Tls(format!("{target}: {text}"));
        }
        let wants_writes = config.get_target_session_attrs() == TargetSessionAttrs::ReadWrite;
        if wants_writes && error::is_permission_denied_by_driver(&error) {
            return Self::Connect(format!(
                "{target} accepts no writes: it is a standby, or default_transaction_read_only is on \
                 for the role, the database or the server"
            ));
        }
        // A cause other than an I/O error is the driver's own: it cannot log in with these
        // settings.
        let is_refusal = error.source().is_some() && !error::has_io_cause(&error);
        let text = DatabaseError::from(error).to_string();
        match (is_refusal, config.get_password()) {
            (true, None) => Self::Login(format!(
                "{target} requires authentication, and no password is configured, in the connection \
                 string, PGPASSWORD or ~/.pgpass ({text})"
            )),
            (true, Some(_)) => Self::Login(format!("{target}: {text}")),
            (false, _) => Self::Connect(format!("{target}: {text}")),
        }
    }

    pub(crate) fn connect(text: impl Into<String>) -> Self {
        Self::Connect(text.into())
    }

    pub(crate) fn config(text: impl Into<String>) -> Self {
        Self::Config(text.into())
    }

    /// Adds the reason why no password was given to a refused login.
    pub(super) fn without_password(self, reason: Option<String>) -> Self {
        match (self, reason) {
            (Self::Login(text), Some(reason)) => Self::Login(format!("{text}; {reason}")),
            (failure, _) => failure,
        }
    }

    /// Marks refused credentials as [`Self::Outdated`], where the password is read again for each
    /// connection: the server may have a new password earlier than its source.
    pub(super) fn mark_outdated_credentials(self) -> Self {
        let is_outdated = match &self {
            Self::Login(_) => true,
            Self::Answer(error) => error::refuses_credentials(error.code()),
            _ => false,
        };
        if is_outdated { Self::Outdated(Box::new(self)) } else { self }
    }

    /// No statement was sent, so the operation that needed the connection can be retried, unless
    /// the same credentials would be refused again.
    fn database_error(&self) -> DatabaseError {
        match self {
            Self::Config(text) | Self::Connect(text) | Self::Tls(text) => {
                DatabaseError::broken(text).at_login(false)
            }
            Self::Login(text) => DatabaseError::broken(text).at_login(true),
            Self::Answer(error) => server_error(error),
            Self::Outdated(failure) => failure.database_error().at_login(false),
        }
    }

    /// Whether to try no further server: as in libpq, a refused login ends the search.
    pub(super) fn is_final(&self) -> bool {
        match self {
            Self::Login(_) | Self::Config(_) => true,
            Self::Answer(error) => error::refuses_login(error.code()),
            Self::Outdated(failure) => failure.is_final(),
            Self::Connect(_) | Self::Tls(_) => false,
        }
    }

    /// Of several failures, the most specific one is reported.
    pub(super) fn weight(&self) -> u8 {
        match self {
            Self::Connect(_) => 0,
            Self::Tls(_) => 1,
            Self::Answer(_) | Self::Login(_) | Self::Config(_) | Self::Outdated(_) => 2,
        }
    }

    /// Wraps the failure in the only type that the pool returns.
    pub(super) async fn into_postgres(self) -> tokio_postgres::Error {
        let failure = match self {
            Self::Answer(error) => return error,
            failure => failure,
        };
        let mut failure = Some(io::Error::other(failure));
        loop {
            let stream = FailingStream(failure.take());
            let mut config = Config::new();
            config.user("-").ssl_mode(SslMode::Disable);
            // Always an error: the stream fails at its first use.
            if let Err(error) = config.connect_raw(stream, NoTls).await {
                return error;
            }
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(text) | Self::Connect(text) | Self::Login(text) | Self::Tls(text) => {
                f.write_str(text)
            }
            Self::Answer(error) => write!(f, "{}", DatabaseError::from(error)),
            Self::Outdated(failure) => failure.fmt(f),
        }
    }
}

impl std::error::Error for Failure {}

/// The error of an operation for which the pool could not make a connection.
pub(crate) fn login_error(error: &tokio_postgres::Error) -> DatabaseError {
    match tls::find::<Failure>(error) {
        Some(failure) => failure.database_error(),
        None => server_error(error),
    }
}

/// The error of opening a store when no connection could be made.
pub(crate) fn classify(error: &tokio_postgres::Error) -> OpenStoreError {
    let source = login_error(error);
    match tls::find::<Failure>(error) {
        Some(Failure::Config(text)) => return OpenStoreError::InvalidConfig(text.clone()),
        Some(Failure::Tls(text)) => return OpenStoreError::Tls(text.clone()),
        Some(Failure::Login(_) | Failure::Outdated(_)) => {
            return OpenStoreError::Authentication(source);
        }
        Some(Failure::Connect(_) | Failure::Answer(_)) | None => {}
    }
    match error.code() {
        code if error::refuses_login(code) => OpenStoreError::Authentication(source),
        Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            OpenStoreError::PermissionDenied { what: "connecting to the database", source }
        }
        _ => OpenStoreError::Connect(source),
    }
}

/// An error that is no [`Failure`]: of the server, or of a foreign pool.
fn server_error(error: &tokio_postgres::Error) -> DatabaseError {
    DatabaseError::from(error).at_login(error::refuses_credentials(error.code()))
}

/// Fails at its first use, with the given error.
struct FailingStream(Option<io::Error>);

impl FailingStream {
    fn fail<T>(&mut self) -> Poll<io::Result<T>> {
        Poll::Ready(Err(self.0.take().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())))
    }
}

impl AsyncRead for FailingStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.fail()
    }
}

impl AsyncWrite for FailingStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.fail()
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.fail()
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.fail()
    }
}
