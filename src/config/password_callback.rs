//! The application's password callback.

use std::{error::Error, future::Future, pin::Pin, sync::Arc};

type PasswordFuture =
    Pin<Box<dyn Future<Output = Result<String, Box<dyn Error + Send + Sync>>> + Send>>;

#[derive(Clone)]
pub(crate) struct PasswordCallback(Arc<dyn Fn() -> PasswordFuture + Send + Sync>);

impl PasswordCallback {
    pub(crate) fn new<F, Fut>(callback: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<String, Box<dyn Error + Send + Sync>>> + Send + 'static,
    {
        Self(Arc::new(move || Box::pin(callback())))
    }

    pub(crate) async fn call(&self) -> Result<String, Box<dyn Error + Send + Sync>> {
        (self.0)().await
    }
}
