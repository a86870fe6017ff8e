//! The lifecycle of the bridge: open, run, and after a failure drop the machine, reopen, run again.

use std::{
    future::Future,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use matrix_sdk_postgres::deadpool_postgres::Pool;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    api::{self, Backend},
    auth::BearerToken,
    checkpoint::Checkpoint,
    config::{Config, Takeover},
    crypto::Crypto,
    database::DatabaseServer,
    delivery::Delivery,
    devices::Devices,
    errors::{BridgeError, exit_code},
    gaps,
    health::{self, Health},
    homeserver::Homeserver,
    http_client,
    inbox::{self, Inbox},
    keys::Keys,
    late_keys,
    metrics::{self, Metrics},
    outgoing, own_device, prune,
    refusal::SessionLoss,
    retry::Delays,
    rooms,
    run::{Run, Wake},
    sealing::Sealer,
    session::{self, Session},
    sync, tokens,
    webhook::Webhooks,
};

/// Time limit for tasks and deliveries in flight after a stop. Docker kills after 10 s, and the
/// database must be stopped before that.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// Time limit for closing the store while the database does not respond.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);
/// A failure after a run of at least this length resets the backoff.
const STABLE_RUN: Duration = Duration::from_secs(60);

/// The parts that are shared by consecutive runs.
struct Engine {
    config: Arc<Config>,
    homeserver: Arc<Homeserver>,
    webhooks: Webhooks,
    metrics: Arc<Metrics>,
    stop: Stop,
    /// What the API serves from, once this process owns the account.
    api: Arc<OnceLock<Backend>>,
}

/// Requests to stop.
#[derive(Clone, Default)]
pub struct Stop {
    /// Finish deliveries in flight, which may take some seconds.
    pub graceful: CancellationToken,
    /// Abandon deliveries in flight; the store is still closed.
    pub immediate: CancellationToken,
}

/// Run the bridge until it is stopped or a fatal error occurs.
pub async fn run(config: Config, stop: Stop) -> Result<(), BridgeError> {
    let http = http_client::build(&config)?;
    // Without the endpoint the metrics cannot be read.
    let exporter = config.listen.is_some().then(metrics::install).transpose()?;
    let engine = Engine {
        homeserver: Arc::new(Homeserver::new(http.clone(), config.homeserver.clone())),
        webhooks: Webhooks::new(&http, &config)?,
        metrics: Arc::default(),
        config: Arc::new(config),
        stop,
        api: Arc::default(),
    };
    let health = Arc::new(Health {
        metrics: engine.metrics.clone(),
        inbox: OnceLock::new(),
        waiting_for: Mutex::default(),
        exporter,
        metrics_token: engine.config.metrics_token.as_ref().map(BearerToken::new),
        counting: Arc::default(),
    });
    if let Some(address) = engine.config.listen {
        health::serve(address, health.clone(), engine.stop.graceful.clone()).await?;
    }
    if let Some(config) = &engine.config.api {
        api::serve(config, engine.api.clone(), engine.stop.graceful.clone()).await?;
    }
    let database = DatabaseServer::new(&engine.config.database.database).await?;
    let ended = engine.run_on(&database, &health).await;
    database.stop().await;
    match ended {
        Err(BridgeError::Stopped) => Ok(()),
        ended => ended,
    }
}

impl Engine {
    async fn run_on(&self, database: &DatabaseServer, health: &Health) -> Result<(), BridgeError> {
        let (keys, inbox) = self.open(database, health).await?;
        health.inbox.get_or_init(|| inbox.clone());
        self.metrics.owner.set(1);
        let ended = self.run_until_fatal(&keys, &inbox, database).await;
        self.metrics.owner.set(0);
        match timeout(CLOSE_TIMEOUT, keys.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!("the store was not closed cleanly: {error}"),
            Err(_) => warn!("the store was not closed in time: the database does not respond"),
        }
        ended
    }

    /// Open keys and inbox. Waits while the database is unavailable or another owner is alive.
    async fn open(
        &self,
        database: &DatabaseServer,
        health: &Health,
    ) -> Result<(Keys, Inbox), BridgeError> {
        let mut delays = Delays::new();
        let may_migrate = self.config.database.run_migrations;
        let supersedes = AtomicBool::new(false);
        let owner_alive = async |owner: &str, pool: &Pool| {
            // Before it matters: a rollout stops the owner once a standby is healthy.
            inbox::check(pool, may_migrate).await?;
            if self.config.takeover == Takeover::Immediate {
                warn!("the account is in use by {owner}: taking it over, as BRIDGE_TAKEOVER says");
                supersedes.store(true, Ordering::Relaxed);
            } else {
                info!("the account is in use by {owner}: waiting until it is free");
                health.set_waiting_for(Some(owner));
            }
            Ok(())
        };
        loop {
            let attempt = async {
                let settings = database.settings(&self.config.store_account)?;
                supersedes.store(false, Ordering::Relaxed);
                let (keys, pool) = Keys::open(&self.config, settings, &owner_alive).await?;
                if supersedes.load(Ordering::Relaxed) {
                    self.metrics.takeovers.increment(1);
                }
                if may_migrate {
                    inbox::migrate(&pool).await?;
                } else {
                    inbox::check(&pool, false).await?;
                }
                let inbox = Inbox::new(pool, &self.config.store_account)
                    .of_user(self.config.user_id.as_str());
                inbox.retry_rejected().await?;
                let labels = &self.config.labels;
                if labels.use_members() {
                    inbox.recheck_ghosts(|user| labels.of_ghost(user).is_some()).await?;
                }
                Ok((keys, inbox))
            };
            let attempt = self.stop.graceful.run_until_cancelled(attempt).await;
            health.set_waiting_for(None);
            match attempt.unwrap_or(Err(BridgeError::Stopped)) {
                Err(BridgeError::Temporary(reason)) => self.pause(&reason, &mut delays).await?,
                opened => return opened,
            }
        }
    }

    /// Run repeatedly, until stopped or until a fatal error.
    async fn run_until_fatal(
        &self,
        keys: &Keys,
        inbox: &Inbox,
        database: &DatabaseServer,
    ) -> Result<(), BridgeError> {
        let mut delays = Delays::new();
        let mut refused = TokenRefusals::default();
        let mut reopen = false;
        loop {
            let began = Instant::now();
            // Cancelled on a stop: a hanging start must not delay the shutdown.
            let prepare = async {
                if reopen {
                    reopen_store(keys).await?;
                }
                self.prepare(keys, inbox).await
            };
            let prepared = self.stop.graceful.run_until_cancelled(prepare).await;
            let ended = match prepared.unwrap_or(Err(BridgeError::Stopped)) {
                Ok((checkpoint, run)) => self.run_once(&checkpoint, &run, keys).await,
                Err(error) => Err(error),
            };
            if self.metrics.since_sync().is_some_and(|since| since < began.elapsed()) {
                refused = TokenRefusals::default();
            }
            match ended {
                Err(BridgeError::SessionRefused(loss)) => {
                    self.after_refusal(loss, &mut refused, keys).await?;
                }
                Err(BridgeError::Temporary(reason)) => {
                    if began.elapsed() > STABLE_RUN {
                        delays.reset();
                    }
                    self.pause(&reason, &mut delays).await?;
                }
                ended => return ended,
            }
            database.restart_if_dead().await?;
            reopen = true;
        }
    }

    /// The access token was refused. An expired token is renewed; otherwise the refusal may be
    /// temporary (a locked account), so the run is retried until `retry_timeout`.
    async fn after_refusal(
        &self,
        loss: SessionLoss,
        refused: &mut TokenRefusals,
        keys: &Keys,
    ) -> Result<(), BridgeError> {
        let explanation = session::explain(loss);
        if loss == SessionLoss::Expired {
            if self.session(keys).renew().await? {
                return self.pause("the session was renewed", &mut refused.delays).await;
            }
            return Err(BridgeError::fatal(exit_code::SESSION_ENDED, explanation));
        }
        let since = refused.since.get_or_insert_with(Instant::now);
        if since.elapsed() >= self.config.retry_timeout {
            return Err(BridgeError::fatal(exit_code::SESSION_ENDED, explanation));
        }
        self.pause(explanation, &mut refused.delays).await
    }

    fn session<'a>(&'a self, keys: &'a Keys) -> Session<'a> {
        Session {
            config: &self.config,
            homeserver: &self.homeserver,
            keys,
            stop: &self.stop.graceful,
        }
    }

    async fn run_once(
        &self,
        checkpoint: &Checkpoint,
        run: &Run,
        keys: &Keys,
    ) -> Result<(), BridgeError> {
        let delivery = Delivery::new(run);
        let tasks = async {
            tokio::join!(
                stop_all_after(run, sync::run(run)),
                stop_all_after(run, gaps::run(run)),
                stop_all_after(run, rooms::accept_invitations(run)),
                stop_all_after(run, rooms::fetch_members(run)),
                stop_all_after(run, outgoing::run(run)),
                stop_all_after(run, outgoing::query_senders(run)),
                stop_all_after(run, delivery.run()),
                stop_all_after(run, checkpoint.run(&run.stop)),
                stop_all_after(run, prune::run(run)),
                stop_all_after(run, own_device::run(run)),
                stop_all_after(run, late_keys::run(run)),
                stop_all_after(run, tokens::keep_fresh(keys, &run.homeserver, &run.stop)),
            )
        };
        let deadline = async {
            self.stop.graceful.cancelled().await;
            let _ = timeout(SHUTDOWN_GRACE, self.stop.immediate.cancelled()).await;
        };
        let ended = tokio::select! {
            (a, b, c, d, e, f, g, h, i, j, k, l) = tasks => {
                most_severe([a, b, c, d, e, f, g, h, i, j, k, l])
            },
            () = deadline => Err(BridgeError::Stopped),
        };
        if !self.stop.immediate.is_cancelled() {
            checkpoint.write_final(&ended).await;
        }
        ended
    }

    /// Log in or resume the session, check that the database was not rolled back, and build a run.
    async fn prepare(&self, keys: &Keys, inbox: &Inbox) -> Result<(Checkpoint, Run), BridgeError> {
        let stop = &self.stop.graceful;
        let device = self.session(keys).resume_or_log_in().await?;
        let machine = keys.machine(&self.config.user_id, &device).await?;
        let checkpoint =
            Checkpoint::check(&self.config, &self.homeserver, keys, &machine, stop).await?;
        inbox.hold_rooms();
        let sealer = self.open_api(keys, inbox).await?;
        let devices = Devices::default();
        devices.load(keys.tracked_users().await?);
        info!(user = %self.config.user_id, %device, "forwarding messages");
        let run = Run {
            config: self.config.clone(),
            homeserver: self.homeserver.clone(),
            crypto: Crypto::new(machine, keys.clone()),
            inbox: inbox.clone(),
            webhooks: self.webhooks.clone(),
            sealer,
            metrics: self.metrics.clone(),
            stop: stop.child_token(),
            wake: Wake::default(),
            synced: CancellationToken::new(),
            devices,
            published_device: keys.own_device().await?.filter(|own| own.is_uploaded),
        };
        Ok((checkpoint, run))
    }

    /// Let the API serve this account, if it is on. Returns what seals its messages.
    async fn open_api(&self, keys: &Keys, inbox: &Inbox) -> Result<Option<Sealer>, BridgeError> {
        if self.config.api.is_none() {
            return Ok(None);
        }
        let sealer = Sealer::open(keys).await?;
        self.api.get_or_init(|| Backend {
            inbox: inbox.clone(),
            sealer: sealer.clone(),
            homeserver: self.homeserver.clone(),
            labels: self.config.labels.clone(),
        });
        Ok(Some(sealer))
    }

    /// Log the reason, and wait until the next attempt.
    async fn pause(&self, reason: &str, delays: &mut Delays) -> Result<(), BridgeError> {
        let delay = delays.next(None);
        warn!("{reason}; trying again in {} s", delay.as_secs());
        let slept = self.stop.graceful.run_until_cancelled(sleep(delay)).await;
        slept.ok_or(BridgeError::Stopped)
    }
}

/// Reopen the store; a slow reopening is logged.
async fn reopen_store(keys: &Keys) -> Result<(), BridgeError> {
    let mut reopening = std::pin::pin!(keys.reopen());
    if let Ok(reopened) = timeout(CLOSE_TIMEOUT, &mut reopening).await {
        return reopened;
    }
    warn!("the store is still being reopened: the database does not respond");
    reopening.await
}

/// How long the access token has been refused without a successful sync in between.
struct TokenRefusals {
    since: Option<Instant>,
    delays: Delays,
}

impl Default for TokenRefusals {
    fn default() -> Self {
        Self { since: None, delays: Delays::after_refusals() }
    }
}

/// Stop all tasks when one ends. The others are not dropped but finish their current step: a sync
/// that is dropped loses its keys.
async fn stop_all_after(
    run: &Run,
    task: impl Future<Output = Result<(), BridgeError>>,
) -> Result<(), BridgeError> {
    let ended = task.await;
    run.stop.cancel();
    ended
}

/// The most severe error, which decides what happens next.
fn most_severe<const N: usize>(ended: [Result<(), BridgeError>; N]) -> Result<(), BridgeError> {
    let weight = |error: &BridgeError| match error {
        BridgeError::Fatal { .. } => 0,
        BridgeError::SessionRefused(_) => 1,
        BridgeError::Temporary(_) => 2,
        BridgeError::Stopped => 3,
    };
    ended.into_iter().filter_map(Result::err).min_by_key(weight).map_or(Ok(()), Err)
}
