//! The source of a connection's password: read again for each connection, so that rotated
//! credentials are picked up.

mod passfile;

use std::path::PathBuf;

use zeroize::Zeroizing;

use crate::{
    PostgresStoreConfig,
    config::{conninfo::ConnInfo, password_callback::PasswordCallback},
    postgres::connect::Failure,
};

/// The source in use: callback, file, connection string, `.pgpass`, the first that is set.
#[derive(Clone)]
pub(crate) enum PasswordSource {
    Callback(PasswordCallback),
    File(PathBuf),
    Given(Zeroizing<String>),
    PassFile(PathBuf),
    None,
}

impl PasswordSource {
    pub(crate) fn new(config: &PostgresStoreConfig, server: &ConnInfo) -> Self {
        if let Some(callback) = &config.password_callback {
            Self::Callback(callback.clone())
        } else if let Some(path) = &config.password_file {
            Self::File(path.clone())
        } else if let Some(password) = &server.password {
            Self::Given(password.clone())
        } else {
            server
                .passfile
                .clone()
                .or_else(passfile::default_path)
                .map_or(Self::None, Self::PassFile)
        }
    }

    /// Whether the next connection may get another password.
    pub(crate) fn is_read_again(&self) -> bool {
        match self {
            Self::Callback(_) | Self::File(_) | Self::PassFile(_) => true,
            Self::Given(_) | Self::None => false,
        }
    }

    /// Fetches the password, or the file that holds one per server.
    pub(crate) async fn fetch(&self) -> Result<Passwords, Failure> {
        match self {
            Self::Callback(callback) => match callback.call().await {
                Ok(password) => Ok(Passwords::One(password.into())),
                Err(error) => {
                    Err(Failure::connect(format!("the password callback failed: {error}")))
                }
            },
            Self::File(path) => {
                let path = path.clone();
                let password = blocking(move || read_password_file(path)).await?;
                Ok(Passwords::One(password))
            }
            Self::Given(password) => Ok(Passwords::One(password.clone())),
            Self::PassFile(path) => {
                let path = path.clone();
                let file = blocking(move || Ok((passfile::read(&path), path))).await?;
                Ok(match file {
                    (Ok(Some(text)), path) => Passwords::PerServer(text, path),
                    (Ok(None), _) => Passwords::None,
                    (Err(reason), _) => Passwords::Unused(reason),
                })
            }
            Self::None => Ok(Passwords::None),
        }
    }
}

/// The result of a source.
pub(crate) enum Passwords {
    One(Zeroizing<String>),
    /// The text of a `.pgpass`, and where it is.
    PerServer(Zeroizing<String>, PathBuf),
    /// Why the `.pgpass` is not used.
    Unused(String),
    None,
}

impl Passwords {
    pub(crate) fn of(&self, server: &Server<'_>) -> Option<Zeroizing<String>> {
        match self {
            Self::One(password) => Some(password.clone()),
            Self::PerServer(text, _) => passfile::look_up(text, server),
            Self::Unused(_) | Self::None => None,
        }
    }

    /// Why none of them was for a server, where there is a file that could have held one.
    pub(crate) fn why_none(&self) -> Option<String> {
        match self {
            Self::PerServer(_, path) => Some(format!(
                "the password file {} has no line for this host, port, database and user",
                path.display()
            )),
            Self::Unused(reason) => Some(reason.clone()),
            Self::One(_) | Self::None => None,
        }
    }
}

/// The server, as a line of `.pgpass` names it.
pub(crate) struct Server<'a> {
    /// The host name, or a socket's directory; `localhost` for the default directory.
    pub(crate) host: &'a str,
    pub(crate) port: u16,
    pub(crate) dbname: &'a str,
    pub(crate) user: &'a str,
}

fn read_password_file(path: PathBuf) -> Result<Zeroizing<String>, Failure> {
    let text = std::fs::read_to_string(&path).map(Zeroizing::new).map_err(|error| {
        Failure::config(format!("the password file {} cannot be read: {error}", path.display()))
    })?;
    // An editor, or `echo`, ends the line; the newline is not part of the password.
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() {
        let path = path.display();
        return Err(Failure::config(format!("the password file {path} is empty")));
    }
    Ok(line.to_owned().into())
}

/// Reads off the async threads, because a file may be on a slow volume.
async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(read)
        .await
        .unwrap_or_else(|_| Err(Failure::connect("reading the password was interrupted")))
}
