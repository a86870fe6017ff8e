//! The servers that a connection string names.

use std::{net::IpAddr, path::PathBuf};

use super::parameters::Parameters;

/// One server of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) host: Host,
    /// Replaces name resolution; the certificate is still verified against the host's name.
    pub(crate) hostaddr: Option<IpAddr>,
    pub(crate) port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// No host was given: the local socket, or `localhost` where there is none.
    Default,
    /// The directory of a Unix socket.
    Socket(PathBuf),
    Name(String),
}

/// Reads `host`, `hostaddr` and `port`: lists of equal length.
pub(super) fn addresses(parameters: &Parameters) -> Result<Vec<Address>, String> {
    let split = |parameter| {
        parameters.get(parameter).map(|text| text.split(',').map(str::trim).collect::<Vec<_>>())
    };
    let (hosts, hostaddrs) = (split("host"), split("hostaddr"));
    let ports = split("port").unwrap_or_default();
    let count = hosts.as_ref().or(hostaddrs.as_ref()).map_or(1, Vec::len);
    let hostaddrs = hostaddrs.unwrap_or_else(|| vec![""; count]);
    let hosts = hosts.unwrap_or_else(|| vec![""; count]);
    if hostaddrs.len() != count {
        return Err(format!("{count} hosts, but {} hostaddrs", hostaddrs.len()));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(format!("{count} hosts, but {} ports", ports.len()));
    }
    let mut addresses = Vec::with_capacity(count);
    for (at, (host, hostaddr)) in hosts.into_iter().zip(hostaddrs).enumerate() {
        let hostaddr = match hostaddr {
            "" => None,
            text => Some(text.parse().map_err(|_| "hostaddr must be an IP address".to_owned())?),
        };
        let port = match ports.get(at).or(ports.first()).copied().unwrap_or_default() {
            "" => 5432,
            text => text
                .parse()
                .ok()
                .filter(|port| *port != 0)
                .ok_or("a port must be a number from 1 to 65535")?,
        };
        addresses.push(Address { host: host_of(host, hostaddr)?, hostaddr, port });
    }
    Ok(addresses)
}

fn host_of(text: &str, hostaddr: Option<IpAddr>) -> Result<Host, String> {
    match (text, hostaddr) {
        // The certificate is verified against the address.
        ("", Some(address)) => Ok(Host::Name(address.to_string())),
        ("", None) => Ok(Host::Default),
        (path, None) if path.starts_with('/') => Ok(Host::Socket(PathBuf::from(path))),
        (name, _) if name.starts_with('/') => {
            Err("a host that is a socket's directory cannot have a hostaddr".to_owned())
        }
        (name, _) if name.contains(['@', '/', ' ', '\t']) => {
            Err("a host contains '@', '/' or a blank".to_owned())
        }
        (name, _) => Ok(Host::Name(name.to_owned())),
    }
}
