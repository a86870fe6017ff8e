//! Whether others can listen on the way to the server.

use super::get;
use crate::{
    OpenStoreError, PostgresStoreConfig,
    admin::{check::Check, connection::AdminConnection},
    config::{
        conninfo::{Address, Host},
        tls::Mode,
    },
};

const NAME: &str = "TLS";
const DOC: &str = "docs/operations.md#tls-and-passwords";

pub(super) async fn check(
    admin: &AdminConnection,
    config: &PostgresStoreConfig,
) -> Result<Vec<Check>, OpenStoreError> {
    let transaction = admin.read().await?;
    let sql = "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let rows = transaction.query(sql, &[]).await?;
    let version: Option<String> = match rows.first() {
        Some(row) if get::<bool>(row, "ssl")? => get(row, "version")?,
        _ => None,
    };
    transaction.commit().await?;
    let Some(Ok(server)) = &config.server else { return Ok(Vec::new()) };
    let is_local = server.addresses.iter().all(is_local);
    Ok(vec![judge(is_local, server.tls.mode, version.as_deref())])
}

/// `version` is that of the connection, if it is encrypted.
fn judge(is_local: bool, mode: Mode, version: Option<&str>) -> Check {
    let advice =
        "put sslmode=verify-full into the connection string, and switch ssl on in the server";
    match version {
        Some(version) if mode >= Mode::Require => {
            Check::ok(NAME, format!("{version}, and the server's certificate is verified"))
        }
        _ if is_local => Check::ok(NAME, "not needed: the server is on this machine"),
        Some(version) => {
            let found = format!("{version}, but the server's certificate is not verified");
            Check::warning(NAME, found, advice).see(DOC)
        }
        None => {
            let found = "none: the password's exchange and all rows can be read on the way";
            Check::problem(NAME, found, advice, DOC)
        }
    }
}

fn is_local(address: &Address) -> bool {
    if let Some(ip) = address.hostaddr {
        return ip.is_loopback();
    }
    match &address.host {
        Host::Default | Host::Socket(_) => true,
        Host::Name(name) => {
            name == "localhost" || name.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Mode, judge};
    use crate::admin::CheckStatus;

    #[test]
    fn a_network_needs_tls_that_is_verified() {
        for (is_local, mode, version, status) in [
            (true, Mode::Prefer, None, CheckStatus::Ok),
            (false, Mode::Prefer, None, CheckStatus::Problem),
            (false, Mode::Prefer, Some("TLSv1.3"), CheckStatus::Warning),
            (false, Mode::VerifyFull, Some("TLSv1.3"), CheckStatus::Ok),
            // Behind a pooler, to which the connection is encrypted.
            (false, Mode::VerifyFull, None, CheckStatus::Problem),
        ] {
            assert_eq!(judge(is_local, mode, version).status, status, "{mode:?} {version:?}");
        }
    }
}
