//! Resolves the addresses of a connection string.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{net::lookup_host, time::timeout};
use tokio_postgres::Config;

use super::Failure;
use crate::{
    config::conninfo::{Address, ConnInfo, Host},
    postgres::connect::{password::Server, tls::Peer},
};

/// Where Debian's and PostgreSQL's own builds put their socket.
const SOCKETS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// One address to connect to.
pub(super) enum Target {
    Tcp { name: String, address: IpAddr, port: u16 },
    Socket { directory: PathBuf, port: u16 },
}

impl Target {
    pub(super) fn put_into(&self, config: &mut Config) {
        match self {
            Self::Tcp { name, address, port } => {
                config.host(name).hostaddr(*address).port(*port);
            }
            #[cfg(unix)]
            Self::Socket { directory, port } => {
                config.host_path(directory).port(*port);
            }
            #[cfg(not(unix))]
            Self::Socket { .. } => {}
        }
    }

    /// The fields that identify this server in `.pgpass`.
    pub(super) fn server<'a>(&'a self, dbname: &'a str, user: &'a str) -> Server<'a> {
        let (host, port) = match self {
            Self::Tcp { name, port, .. } => (name.as_str(), *port),
            Self::Socket { directory, port } => {
                let default = SOCKETS.iter().any(|socket| Path::new(socket) == directory);
                (if default { "localhost" } else { directory.to_str().unwrap_or_default() }, *port)
            }
        };
        Server { host, port, dbname, user }
    }

    /// The name that the server's certificate must have.
    pub(super) fn peer(&self) -> Peer<'_> {
        match self {
            Self::Tcp { name, port, .. } => Peer { name, port: *port },
            Self::Socket { port, .. } => Peer { name: "localhost", port: *port },
        }
    }

    pub(super) fn is_tcp(&self) -> bool {
        matches!(self, Self::Tcp { .. })
    }

    /// Whether the connection leaves this host.
    pub(super) fn is_remote(&self) -> bool {
        matches!(self, Self::Tcp { address, .. } if !address.to_canonical().is_loopback())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { name, address, port } if *name == address.to_string() => {
                write!(f, "{name} port {port}")
            }
            Self::Tcp { name, address, port } => write!(f, "{name} ({address}) port {port}"),
            Self::Socket { directory, port } => {
                write!(f, "socket {}/.s.PGSQL.{port}", directory.display())
            }
        }
    }
}

/// Resolves all names concurrently, within half of the connect timeout; skips those that fail if others
/// succeed.
pub(super) async fn targets(server: &ConnInfo, limit: Duration) -> Result<Vec<Target>, Failure> {
    let mut resolved =
        join_all(server.addresses.iter().map(|address| resolve(address, limit))).await;
    if server.random_order {
        shuffle(&mut resolved);
    }
    let (mut targets, mut failure) = (Vec::new(), None);
    for result in resolved {
        match result {
            Ok(mut found) => {
                if server.random_order {
                    shuffle(&mut found);
                }
                targets.append(&mut found);
            }
            Err(error) => failure = Some(error),
        }
    }
    match failure {
        Some(failure) if targets.is_empty() => Err(failure),
        _ => Ok(targets),
    }
}

async fn resolve(address: &Address, limit: Duration) -> Result<Vec<Target>, Failure> {
    let port = address.port;
    let name = match (&address.host, address.hostaddr) {
        (Host::Name(name), Some(address)) => {
            return Ok(vec![Target::Tcp { name: name.clone(), address, port }]);
        }
        (Host::Socket(directory), _) => {
            return Ok(vec![Target::Socket { directory: directory.clone(), port }]);
        }
        (Host::Default, _) => match default_socket(port) {
            Some(directory) => return Ok(vec![Target::Socket { directory, port }]),
            None => "localhost",
        },
        (Host::Name(name), None) => name,
    };
    let found = timeout(limit / 2, lookup_host((name, port))).await.map_err(|_| {
        Failure::connect(format!(
            "the host name {name:?} was not resolved within half of the connect timeout, {limit:?}"
        ))
    })?;
    let found = found.map_err(|error| {
        Failure::connect(format!("the host name {name:?} cannot be resolved: {error}"))
    })?;
    Ok(found
        .map(|found| Target::Tcp { name: name.to_owned(), address: found.ip(), port })
        .collect())
}

fn default_socket(port: u16) -> Option<PathBuf> {
    let socket = |directory: &&str| Path::new(directory).join(format!(".s.PGSQL.{port}")).exists();
    SOCKETS.iter().copied().find(|directory| cfg!(unix) && socket(directory)).map(PathBuf::from)
}

/// `RandomState` is random enough for load balancing.
fn shuffle<T>(items: &mut [T]) {
    items.sort_by_cached_key(|_| RandomState::new().hash_one(0));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_default_socket_is_localhost_in_a_pgpass() {
        for (directory, expected) in
            [("/var/run/postgresql", "localhost"), ("/tmp", "localhost"), ("/run/my", "/run/my")]
        {
            let target = Target::Socket { directory: PathBuf::from(directory), port: 5432 };
            assert_eq!(target.server("bots", "ana").host, expected);
            assert!(!target.is_remote());
        }
    }

    #[test]
    fn loopback_is_not_remote() {
        for (address, expected) in [
            ("127.0.0.5", false),
            ("::1", false),
            ("::ffff:127.0.0.1", false),
            ("10.0.0.1", true),
            ("2001:db8::1", true),
        ] {
            let address = address.parse().unwrap();
            let target = Target::Tcp { name: "db".to_owned(), address, port: 5432 };
            assert_eq!(target.is_remote(), expected, "{target}");
        }
    }
}
