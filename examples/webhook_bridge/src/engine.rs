//! The life of the bridge: open, run, and after a failure drop the machine, reopen and go on.

use std::{
    future::Future,
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, Instant},
};

use matrix_sdk_crypto::{CryptoStoreError, store::CryptoStore};
use matrix_sdk_postgres::{PoolSettings, PostgresCryptoStore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    checkpoint::Checkpoint,
    config::{Config, DatabaseConfig},
    crypto::Crypto,
    database::Located,
    delivery::Delivery,
    devices::Devices,
    errors::{BridgeError, exit_code},
    gaps,
    health::{self, Health},
    homeserver::Homeserver,
    http_client,
    inbox::{self, Inbox},
    keys::Keys,
    metrics::Metrics,
    outgoing,
    refusal::SessionLoss,
    retry::Delays,
    rooms,
    run::{Run, Wake},
    session::{self, Session},
    sync, tidy,
    webhook::Webhook,
};

/// After a stop a run may take so long to come to its end, a delivery in flight included. Docker
/// kills after 10 s, and the database has to be stopped too.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Closing the store may take so long, when the database is away.
const CLOSING: Duration = Duration::from_secs(3);
/// A run that lasted so long was a good one: the next failure is a new one.
const GOOD_RUN: Duration = Duration::from_secs(60);

/// What outlives a run.
struct Engine {
    config: Arc<Config>,
    homeserver: Arc<Homeserver>,
    webhook: Webhook,
    metrics: Arc<Metrics>,
    stop: Stop,
}

/// The wish to end.
#[derive(Clone, Default)]
pub struct Stop {
    /// In good order, which may take some seconds.
    pub soon: CancellationToken,
    /// Without waiting for deliveries in flight; the store is closed all the same.
    pub now: CancellationToken,
}

/// Bring the database's schemas up to date, and do nothing else.
pub async fn migrate_only(config: DatabaseConfig) -> Result<(), BridgeError> {
    /// Opening an account migrates the keys' schema; this one is removed again.
    const ACCOUNT: &str = "webhook_bridge.migrate-only";
    let database = Located::new(&config.database).await?;
    let migrate = async {
        let settings = database
            .settings(ACCOUNT)?
            .pool(PoolSettings { max_size: config.pool_size, ..Default::default() });
        let pool = settings.build_pool()?;
        let store = PostgresCryptoStore::open_with_pool(pool.clone(), &settings).await?;
        store.close().await.map_err(CryptoStoreError::from)?;
        let pool = settings.build_pool()?;
        let remove = format!("DELETE FROM matrix_sdk.accounts WHERE name = '{ACCOUNT}'");
        pool.get().await?.batch_execute(&remove).await?;
        inbox::migrate(&pool).await
    };
    let migrated = migrate.await;
    database.stop().await;
    migrated?;
    info!("the schemas matrix_sdk and webhook_bridge are up to date");
    Ok(())
}

/// Run the bridge until it is stopped, or until something final happens.
pub async fn run(config: Config, stop: Stop) -> Result<(), BridgeError> {
    let http = http_client::build(&config)?;
    let metrics = Metrics::new()
        .map_err(|error| BridgeError::last(exit_code::UNEXPECTED, error.to_string()))?;
    let engine = Engine {
        homeserver: Arc::new(Homeserver::new(http.clone(), config.homeserver.clone())),
        webhook: Webhook::new(http, &config)?,
        metrics: Arc::new(metrics),
        config: Arc::new(config),
        stop,
    };
    let health = Arc::new(Health {
        metrics: engine.metrics.clone(),
        inbox: OnceLock::new(),
        waiting_for: Mutex::default(),
    });
    if let Some(address) = engine.config.listen {
        health::serve(address, health.clone(), engine.stop.soon.clone()).await?;
    }
    let database = Located::new(&engine.config.database.database).await?;
    let ended = engine.run_on(&database, &health).await;
    database.stop().await;
    match ended {
        Err(BridgeError::Stopped) => Ok(()),
        ended => ended,
    }
}

impl Engine {
    async fn run_on(&self, database: &Located, health: &Health) -> Result<(), BridgeError> {
        let (keys, inbox) = self.open(database, health).await?;
        health.inbox.get_or_init(|| inbox.clone());
        self.metrics.owner.set(1);
        let ended = self.run_until_final(&keys, &inbox, database).await;
        self.metrics.owner.set(0);
        match timeout(CLOSING, keys.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!("the store was not closed cleanly: {error}"),
            Err(_) => warn!("the store was not closed in time: the database does not answer"),
        }
        ended
    }

    /// Open keys and inbox, waiting for a database that is away, or for another owner.
    async fn open(
        &self,
        database: &Located,
        health: &Health,
    ) -> Result<(Keys, Inbox), BridgeError> {
        let mut delays = Delays::new();
        let waiting = |owner: &str| {
            info!("the account is in use by {owner}: waiting until it is free");
            health.wait_for(Some(owner));
        };
        loop {
            let attempt = async {
                let settings = database.settings(&self.config.store_account)?;
                let (keys, pool) = Keys::open(&self.config, settings, waiting).await?;
                if self.config.database.run_migrations {
                    inbox::migrate(&pool).await?;
                } else {
                    inbox::check(&pool).await?;
                }
                Ok((keys, Inbox::new(pool, &self.config.store_account)))
            };
            let attempt = self.stop.soon.run_until_cancelled(attempt).await;
            health.wait_for(None);
            match attempt.unwrap_or(Err(BridgeError::Stopped)) {
                Err(BridgeError::Temporary(reason)) => self.pause(&reason, &mut delays).await?,
                opened => return opened,
            }
        }
    }

    /// One run after the other.
    async fn run_until_final(
        &self,
        keys: &Keys,
        inbox: &Inbox,
        database: &Located,
    ) -> Result<(), BridgeError> {
        let mut delays = Delays::new();
        let mut refused = Refused::default();
        let mut reopen = false;
        loop {
            let began = Instant::now();
            // Whatever hangs before the run, the end is not waited for.
            let prepare = async {
                if reopen {
                    reopened(keys).await?;
                }
                self.prepare(keys, inbox).await
            };
            let prepared = self.stop.soon.run_until_cancelled(prepare).await;
            let ended = match prepared.unwrap_or(Err(BridgeError::Stopped)) {
                Ok((checkpoint, run)) => self.run_once(&checkpoint, &run).await,
                Err(error) => Err(error),
            };
            if self.metrics.since_sync().is_some_and(|since| since < began.elapsed()) {
                refused = Refused::default();
            }
            match ended {
                Err(BridgeError::SessionRefused(loss)) => {
                    self.after_refusal(loss, &mut refused, keys).await?;
                }
                Err(BridgeError::Temporary(reason)) => {
                    if began.elapsed() > GOOD_RUN {
                        delays.reset();
                    }
                    self.pause(&reason, &mut delays).await?;
                }
                ended => return ended,
            }
            database.revive().await?;
            reopen = true;
        }
    }

    /// Our token was refused. What has expired is renewed; whatever else it is may pass, and is asked
    /// again for some time.
    async fn after_refusal(
        &self,
        loss: SessionLoss,
        refused: &mut Refused,
        keys: &Keys,
    ) -> Result<(), BridgeError> {
        let explanation = session::explain(loss);
        if loss == SessionLoss::Expired {
            if self.session(keys).renew().await? {
                return self.pause("the session was renewed", &mut refused.delays).await;
            }
            return Err(BridgeError::last(exit_code::SESSION_ENDED, explanation));
        }
        let since = refused.since.get_or_insert_with(Instant::now);
        if since.elapsed() >= self.config.refusal_wait {
            return Err(BridgeError::last(exit_code::SESSION_ENDED, explanation));
        }
        self.pause(explanation, &mut refused.delays).await
    }

    fn session<'a>(&'a self, keys: &'a Keys) -> Session<'a> {
        Session { config: &self.config, homeserver: &self.homeserver, keys, stop: &self.stop.soon }
    }

    async fn run_once(&self, checkpoint: &Checkpoint, run: &Run) -> Result<(), BridgeError> {
        let delivery = Delivery::new(run);
        let tasks = async {
            tokio::join!(
                guard(run, sync::run(run)),
                guard(run, gaps::run(run)),
                guard(run, rooms::accept_invitations(run)),
                guard(run, rooms::fetch_members(run)),
                guard(run, outgoing::run(run)),
                guard(run, outgoing::ask_senders(run)),
                guard(run, delivery.run()),
                guard(run, checkpoint.run(&run.stop)),
                guard(run, tidy::run(run)),
            )
        };
        let deadline = async {
            self.stop.soon.cancelled().await;
            let _ = timeout(LAST_WORDS, self.stop.now.cancelled()).await;
        };
        let ended = tokio::select! {
            (a, b, c, d, e, f, g, h, i) = tasks => worst([a, b, c, d, e, f, g, h, i]),
            () = deadline => Err(BridgeError::Stopped),
        };
        if !self.stop.now.is_cancelled() {
            checkpoint.last_words(&ended).await;
        }
        ended
    }

    /// Log in or go on, check that the database is the newest, and build what a run consists of.
    async fn prepare(&self, keys: &Keys, inbox: &Inbox) -> Result<(Checkpoint, Run), BridgeError> {
        let stop = &self.stop.soon;
        let device = self.session(keys).resume_or_begin().await?;
        let machine = keys.machine(&self.config.user_id, &device).await?;
        let checkpoint =
            Checkpoint::check(&self.config, &self.homeserver, keys, &machine, stop).await?;
        inbox.retry_all().await?;
        let devices = Devices::default();
        devices.remember(keys.tracked_users().await?);
        info!(user = %self.config.user_id, %device, "forwarding messages");
        let run = Run {
            config: self.config.clone(),
            homeserver: self.homeserver.clone(),
            crypto: Crypto::new(machine, keys.clone()),
            inbox: inbox.clone(),
            webhook: self.webhook.clone(),
            metrics: self.metrics.clone(),
            stop: stop.child_token(),
            wake: Wake::default(),
            devices,
        };
        Ok((checkpoint, run))
    }

    /// Say why we wait, and wait.
    async fn pause(&self, reason: &str, delays: &mut Delays) -> Result<(), BridgeError> {
        let delay = delays.next(None);
        warn!("{reason}; trying again in {} s", delay.as_secs());
        let slept = self.stop.soon.run_until_cancelled(sleep(delay)).await;
        slept.ok_or(BridgeError::Stopped)
    }
}

/// Open the store again, and say so when it takes long.
async fn reopened(keys: &Keys) -> Result<(), BridgeError> {
    let mut reopening = std::pin::pin!(keys.reopen());
    if let Ok(reopened) = timeout(CLOSING, &mut reopening).await {
        return reopened;
    }
    warn!("the store is still being reopened: the database does not answer");
    reopening.await
}

/// Since when our token has been refused, with no sync in between.
struct Refused {
    since: Option<Instant>,
    delays: Delays,
}

impl Default for Refused {
    fn default() -> Self {
        Self { since: None, delays: Delays::after_refusals() }
    }
}

/// When one task fails, the others come to their end too: none is torn out of a sync, which would
/// lose the keys it carries.
async fn guard(
    run: &Run,
    task: impl Future<Output = Result<(), BridgeError>>,
) -> Result<(), BridgeError> {
    let ended = task.await;
    run.stop.cancel();
    ended
}

/// The error that decides what happens next.
fn worst<const N: usize>(ended: [Result<(), BridgeError>; N]) -> Result<(), BridgeError> {
    let weight = |error: &BridgeError| match error {
        BridgeError::Final { .. } => 0,
        BridgeError::SessionRefused(_) => 1,
        BridgeError::Temporary(_) => 2,
        BridgeError::Stopped => 3,
    };
    ended.into_iter().filter_map(Result::err).min_by_key(weight).map_or(Ok(()), Err)
}
