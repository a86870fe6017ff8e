//! The life of the bridge: open, run, and after a failure drop the machine, reopen and go on.

use std::{
    future::Future,
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, Instant},
};

use secrecy::ExposeSecret;
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    config::Config,
    crypto::Crypto,
    database::Located,
    delivery::Delivery,
    errors::{BridgeError, exit_code},
    gaps,
    health::{self, Health},
    homeserver::Homeserver,
    http_client,
    inbox::{Inbox, migrate},
    keys::Keys,
    metrics::Metrics,
    retry::Delays,
    rooms,
    run::{Run, Wake},
    session::Session,
    sync,
    webhook::Webhook,
    witness::Witness,
};

/// After a stop a run may take so long to come to its end, a delivery in flight included. Docker
/// kills after 10 s, and the database has to be stopped too.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// A run that lasted so long was a good one: the next failure is a new one.
const GOOD_RUN: Duration = Duration::from_secs(60);

/// What outlives a run.
struct Engine {
    config: Arc<Config>,
    homeserver: Arc<Homeserver>,
    webhook: Webhook,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
}

/// Run the bridge until it is stopped, or until something final happens.
pub async fn run(config: Config, stop: CancellationToken) -> Result<(), BridgeError> {
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
        homeserver: engine.homeserver.clone(),
        metrics: engine.metrics.clone(),
        inbox: OnceLock::new(),
        waiting_for: Mutex::default(),
    });
    if let Some(address) = engine.config.listen {
        health::serve(address, health.clone(), engine.stop.clone()).await?;
    }
    let database = Located::new(&engine.config.database).await?;
    let ended = engine.run_on(&database, &health).await;
    database.stop().await;
    match ended {
        Err(BridgeError::Stopped) => Ok(()),
        ended => ended,
    }
}

impl Engine {
    async fn run_on(&self, database: &Located, health: &Health) -> Result<(), BridgeError> {
        let (keys, inbox) = self.open(database.url().expose_secret(), health).await?;
        health.inbox.get_or_init(|| inbox.clone());
        let ended = self.run_until_final(&keys, &inbox, database).await;
        if let Err(error) = keys.close().await {
            warn!("the store was not closed cleanly: {error}");
        }
        ended
    }

    /// Open keys and inbox, waiting for a database that is away, or for another owner.
    async fn open(&self, url: &str, health: &Health) -> Result<(Keys, Inbox), BridgeError> {
        let mut delays = Delays::new();
        let waiting = |owner: &str| {
            info!("the account is in use by {owner}: waiting until it is free");
            health.wait_for(Some(owner));
        };
        loop {
            let attempt = async {
                let (keys, pool) = Keys::open(&self.config, url, waiting).await?;
                migrate(&pool).await?;
                Ok((keys, Inbox::new(pool, &self.config.store_account)))
            };
            let attempt = self.stop.run_until_cancelled(attempt).await;
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
        let mut reopen = false;
        loop {
            let began = Instant::now();
            let mut ended = if reopen { keys.reopen().await } else { Ok(()) };
            if ended.is_ok() {
                ended = self.run_once(keys, inbox).await;
            }
            if let Err(BridgeError::TokenRevoked { soft_logout }) = ended {
                ended = self.session(keys).renew(soft_logout).await;
                if ended.is_ok() {
                    ended = Err(BridgeError::Temporary("the session was renewed".to_owned()));
                }
            }
            match ended {
                Err(BridgeError::Temporary(reason)) => {
                    if began.elapsed() > GOOD_RUN {
                        delays.reset();
                    }
                    self.pause(&reason, &mut delays).await?;
                    database.revive().await?;
                    reopen = true;
                }
                ended => return ended,
            }
        }
    }

    fn session<'a>(&'a self, keys: &'a Keys) -> Session<'a> {
        Session { config: &self.config, homeserver: &self.homeserver, keys, stop: &self.stop }
    }

    async fn run_once(&self, keys: &Keys, inbox: &Inbox) -> Result<(), BridgeError> {
        let device = self.session(keys).resume_or_begin().await?;
        let machine = keys.machine(&self.config.user_id, &device).await?;
        let witness = Witness::check(&self.homeserver, keys, &machine, &self.stop).await?;
        inbox.retry_all().await?;
        info!(user = %self.config.user_id, %device, "forwarding messages");
        let run = Run {
            config: self.config.clone(),
            homeserver: self.homeserver.clone(),
            crypto: Crypto::new(machine, keys.clone(), self.homeserver.clone()),
            inbox: inbox.clone(),
            webhook: self.webhook.clone(),
            metrics: self.metrics.clone(),
            stop: self.stop.child_token(),
            wake: Wake::default(),
            devices_asked: watch::Sender::new(false),
        };
        let delivery = Delivery::new(&run);
        let tasks = async {
            tokio::join!(
                guard(&run, sync::run(&run)),
                guard(&run, gaps::run(&run)),
                guard(&run, rooms::run(&run)),
                guard(&run, delivery.run()),
                guard(&run, witness.run(&run.stop)),
            )
        };
        let deadline = async {
            self.stop.cancelled().await;
            sleep(LAST_WORDS).await;
        };
        let ended = tokio::select! {
            (sync, gaps, rooms, delivery, witness) = tasks => {
                worst([sync, gaps, rooms, delivery, witness])
            }
            () = deadline => Err(BridgeError::Stopped),
        };
        witness.last_words(&ended).await;
        ended
    }

    /// Say why we wait, and wait.
    async fn pause(&self, reason: &str, delays: &mut Delays) -> Result<(), BridgeError> {
        let delay = delays.next(None);
        warn!("{reason}; trying again in {} s", delay.as_secs());
        let slept = self.stop.run_until_cancelled(sleep(delay)).await;
        slept.ok_or(BridgeError::Stopped)
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
        BridgeError::TokenRevoked { .. } => 1,
        BridgeError::Temporary(_) => 2,
        BridgeError::Stopped => 3,
    };
    ended.into_iter().filter_map(Result::err).min_by_key(weight).map_or(Ok(()), Err)
}
