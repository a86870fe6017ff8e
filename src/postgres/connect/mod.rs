//! Makes one connection, within one time limit: fetches the password, tries the addresses in order,
//! and negotiates TLS by `sslmode`.

mod failure;
mod own_pools;
pub(crate) mod password;
mod targets;
pub(crate) mod tls;

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use deadpool_postgres::Connect;
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tokio_postgres::{
    AsyncMessage, Client, Config, NoTls, Socket,
    config::SslMode,
    error::DbError,
    tls::{MakeTlsConnect, TlsConnect},
};
use tracing::{debug, warn};

pub(crate) use self::failure::{Failure, classify, login_error};
use self::targets::{Target, targets};
use crate::{
    DatabaseError, OpenStoreError, PostgresStoreConfig,
    config::{
        conninfo::{APPLICATION_NAME, ConnInfo, Host},
        tls::Mode,
    },
    error,
    postgres::connect::{
        password::{PasswordSource, Passwords},
        tls::{MakeTls, PhaseTracker, TlsPhase},
    },
};

type Connected = (Client, JoinHandle<()>);

/// Makes the connections of a pool.
#[derive(Clone)]
pub(crate) struct Connector(Arc<Inner>);

struct Inner {
    server: Arc<ConnInfo>,
    /// What every connection has in common.
    template: Config,
    user: String,
    dbname: String,
    password: PasswordSource,
    tls: Option<MakeTls>,
    limit: Duration,
    prepared_statements: bool,
    warned: AtomicBool,
    unreplicated_commits: Arc<AtomicU64>,
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

impl Connector {
    /// Reads the certificates and fills in libpq's defaults; no connection is made.
    ///
    /// The `Config` is what the pool's `Debug` prints: it holds no host and no password.
    pub(crate) fn new(config: &PostgresStoreConfig) -> Result<(Config, Self), OpenStoreError> {
        config.validate()?;
        let no_url = || {
            Err("no URL is given: name the server with url(), or open the store \
                             with a pool"
                .to_owned())
        };
        let server = config.server.clone().unwrap_or_else(no_url);
        let server = server.map_err(OpenStoreError::InvalidConfig)?;
        let user = match server.user.clone() {
            Some(user) => user,
            None => whoami::username().map_err(|error| {
                OpenStoreError::InvalidConfig(format!(
                    "no user is given, and the operating system reports none ({error}): name one \
                     in the URL"
                ))
            })?,
        };
        let dbname = server.dbname.clone().unwrap_or_else(|| user.clone());
        let mut template = server.template.clone();
        template.user(&user).dbname(&dbname);
        let is_unnamed = template.get_application_name() == Some(APPLICATION_NAME);
        if let Some(name) = config.application_name.as_ref().filter(|_| is_unnamed) {
            template.application_name(name);
        }
        let only_sockets =
            server.addresses.iter().all(|address| matches!(address.host, Host::Socket(_)));
        let inner = Inner {
            tls: if only_sockets { None } else { tls::make_tls(&server.tls)? },
            password: PasswordSource::new(config, &server),
            limit: config
                .pool
                .connect_timeout
                .or(server.connect_timeout)
                .unwrap_or(CONNECT_TIMEOUT),
            prepared_statements: config.pool.prepared_statements,
            warned: AtomicBool::new(false),
            unreplicated_commits: Arc::default(),
            template: template.clone(),
            user,
            dbname,
            server,
        };
        Ok((template, Self(Arc::new(inner))))
    }
}

impl Connect for Connector {
    fn connect(
        &self,
        _: &Config,
    ) -> Pin<Box<dyn Future<Output = Result<Connected, tokio_postgres::Error>> + Send + '_>> {
        Box::pin(async move {
            match self.0.connect().await {
                Ok(connected) => Ok(connected),
                Err(failure) if self.0.password.is_read_again() => {
                    Err(failure.mark_outdated_credentials().into_postgres().await)
                }
                Err(failure) => Err(failure.into_postgres().await),
            }
        })
    }
}

impl Inner {
    async fn connect(&self) -> Result<Connected, Failure> {
        let deadline = Instant::now() + self.limit;
        let passwords = timeout_at(deadline, self.password.fetch()).await.map_err(|_| {
            Failure::connect(format!(
                "the password source returned no password within the connect timeout, {:?}",
                self.limit
            ))
        })??;
        let targets = targets(&self.server, self.limit).await?;
        let mut worst: Option<Failure> = None;
        for (tried, target) in targets.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(targets.len() - tried).unwrap_or(u32::MAX);
            let attempt = timeout_at(Instant::now() + share, self.attempt(target, &passwords));
            let failure = match attempt.await {
                Ok(Ok(connected)) => return Ok(connected),
                Ok(Err(failure)) => failure,
                Err(_) if targets.len() == 1 => Failure::connect(format!(
                    "{target} did not respond within the connect timeout, {:?}",
                    self.limit
                )),
                Err(_) => Failure::connect(format!(
                    "{target} did not respond within its part of the connect timeout, {:?} for {} \
                     addresses",
                    self.limit,
                    targets.len()
                )),
            };
            debug!(%target, %failure, "connection attempt failed");
            let last = failure.is_final();
            if worst.as_ref().is_none_or(|worst| worst.weight() <= failure.weight()) {
                worst = Some(failure);
            }
            if last {
                break;
            }
        }
        Err(worst.unwrap_or_else(|| Failure::connect("no address to connect to")))
    }

    async fn attempt(&self, target: &Target, passwords: &Passwords) -> Result<Connected, Failure> {
        let mut config = self.template.clone();
        target.put_into(&mut config);
        let mut why_no_password = None;
        match passwords.of(&target.server(&self.dbname, &self.user)) {
            Some(password) => {
                config.password(password.as_bytes());
            }
            None => why_no_password = passwords.why_none(),
        }
        // As in libpq, sockets are never encrypted.
        let tls = self.tls.as_ref().filter(|_| target.is_tcp());
        let mut phase = TlsPhase::NotBegun;
        let result = match (tls, self.server.tls.mode) {
            (None, _) | (_, Mode::Disable) => self.plain(&mut config).await.map(Link::plain),
            (Some(tls), Mode::Prefer) => self.prefer_tls(&mut config, tls, target).await,
            (Some(tls), _) => {
                let tls = PhaseTracker::new(MakeTls::clone(tls));
                let opened = self.open(config.ssl_mode(SslMode::Require), tls.clone()).await;
                phase = tls.phase();
                opened.map(Link::encrypted)
            }
        };
        let failed = |error| {
            let failure = Failure::new(error, target, &config, &self.server.tls, phase);
            failure.without_password(why_no_password)
        };
        let link = result.map_err(failed)?;
        self.warn_if_unprotected(target, &link);
        Ok(link.connected)
    }

    /// libpq's `prefer`: connects without TLS after a failed handshake, or if `pg_hba.conf` has no
    /// entry for TLS.
    async fn prefer_tls(
        &self,
        config: &mut Config,
        tls: &MakeTls,
        target: &Target,
    ) -> Result<Link, tokio_postgres::Error> {
        let tls = PhaseTracker::new(MakeTls::clone(tls));
        let error = match self.open(config.ssl_mode(SslMode::Prefer), tls.clone()).await {
            Ok(connected) if tls.phase() == TlsPhase::Encrypted => {
                return Ok(Link::encrypted(connected));
            }
            Ok(connected) => return Ok(Link::plain(connected)),
            // The failed attempt was without TLS already.
            Err(error) if tls.phase() == TlsPhase::NotBegun => return Err(error),
            Err(error) => error,
        };
        let reason = match error.as_db_error() {
            None => tls::explain(&error, &self.server.tls, &target.peer(), tls.phase()),
            Some(answer) if error::refuses_entry(answer.code()) => {
                Some("the server refused the login with TLS".to_owned())
            }
            Some(_) => None,
        };
        let Some(reason) = reason else { return Err(error) };
        debug!(%target, reason, "TLS failed with this server: connecting without it");
        Ok(Link { fallback: Some(reason), ..Link::plain(self.plain(config).await?) })
    }

    async fn plain(&self, config: &mut Config) -> Result<Connected, tokio_postgres::Error> {
        self.open(config.ssl_mode(SslMode::Disable), NoTls).await
    }

    async fn open<T>(&self, config: &Config, tls: T) -> Result<Connected, tokio_postgres::Error>
    where
        T: MakeTlsConnect<Socket>,
        T::Stream: Send + 'static,
        T::TlsConnect: Send,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        let (client, mut connection) = config.connect(tls).await?;
        let unreplicated_commits = self.unreplicated_commits.clone();
        let task = tokio::spawn(async move {
            while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
                match message {
                    Ok(AsyncMessage::Notice(notice)) => {
                        let (severity, code) = (notice.severity(), notice.code().code());
                        debug!(severity, code, "notice from the server");
                        if is_unreplicated_commit(&notice) {
                            unreplicated_commits.fetch_add(1, Ordering::AcqRel);
                        }
                    }
                    Ok(_) => {}
                    Err(error) => {
                        // `DatabaseError` leaves out the values that the server quotes.
                        warn!(error = %DatabaseError::from(error), "the database connection broke");
                        return;
                    }
                }
            }
        });
        Ok((client, task))
    }

    /// Warns once about a connection without encryption or without verification.
    fn warn_if_unprotected(&self, target: &Target, link: &Link) {
        let is_at_risk = target.is_remote() || link.fallback.is_some();
        if self.server.tls.mode > Mode::Prefer || !is_at_risk {
            return;
        }
        if self.warned.swap(true, Ordering::Relaxed) {
            return;
        }
        match link {
            Link { fallback: Some(reason), .. } => warn!(
                %target,
                reason,
                "the connection to the database is not encrypted: sslmode=prefer fell back to plain \
                 text; use sslmode=verify-full"
            ),
            Link { is_encrypted: false, .. } => warn!(
                %target,
                "the connection to the database is not encrypted: anyone on the network path can read \
                 and change everything; use sslmode=verify-full"
            ),
            Link { is_encrypted: true, .. } => warn!(
                %target,
                "the database server is not verified: anyone on the network path can read and \
                 change everything; use sslmode=verify-full"
            ),
        }
    }
}

/// A connection and its protection.
struct Link {
    connected: Connected,
    is_encrypted: bool,
    /// Why it fell back to plain text.
    fallback: Option<String>,
}

impl Link {
    fn plain(connected: Connected) -> Self {
        Self { connected, is_encrypted: false, fallback: None }
    }

    fn encrypted(connected: Connected) -> Self {
        Self { connected, is_encrypted: true, fallback: None }
    }
}

/// Whether a notice says that a COMMIT did not wait for its synchronous standby.
fn is_unreplicated_commit(notice: &DbError) -> bool {
    // The message is translated, the C function's name is not.
    notice.routine() == Some("SyncRepWaitForLSN")
}
