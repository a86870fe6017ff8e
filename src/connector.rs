//! stub
use crate::*;
pub(crate) struct Connector;
impl Connector {
    pub(crate) fn new(
        c: &PostgresStoreConfig,
    ) -> Result<
        (tokio_postgres::Config, deadpool_postgres::ConfigConnectImpl<tokio_postgres::NoTls>),
        OpenStoreError,
    > {
        Ok((
            c.url
                .parse()
                .map_err(|e: tokio_postgres::Error| OpenStoreError::InvalidConfig(e.to_string()))?,
            deadpool_postgres::ConfigConnectImpl { tls: tokio_postgres::NoTls },
        ))
    }
}
pub(crate) fn classify(e: tokio_postgres::Error) -> OpenStoreError {
    OpenStoreError::Connect(e.into())
}
