//! The webhooks that messages are delivered to.

mod post;
mod signature;
mod template;

use std::{collections::HashMap, sync::Arc};

pub use self::{
    post::{Outcome, Webhook},
    template::Template,
};
use crate::{config::Config, errors::BridgeError};

/// The default webhook, and those of labels that have their own.
#[derive(Clone)]
pub struct Webhooks {
    default: Arc<Webhook>,
    labelled: Arc<HashMap<String, Webhook>>,
}

impl Webhooks {
    pub fn new(http: &reqwest::Client, config: &Config) -> Result<Self, BridgeError> {
        let labelled = config.labelled_webhooks.iter().map(|(label, webhook)| {
            Ok((label.clone(), Webhook::new(http.clone(), webhook, label)?))
        });
        Ok(Self {
            default: Arc::new(Webhook::new(http.clone(), &config.webhook, "")?),
            labelled: Arc::new(labelled.collect::<Result<_, BridgeError>>()?),
        })
    }

    /// The webhook for rooms with this label.
    pub fn of(&self, label: Option<&str>) -> &Webhook {
        label.and_then(|label| self.labelled.get(label)).unwrap_or(&self.default)
    }
}
