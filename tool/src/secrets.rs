//! Where secrets come from: a file, or the environment. Never the command line.

use std::{env, fs, path::Path};

use base64::Engine;
use matrix_sdk_postgres::{PostgresStoreConfig, admin::has_password};
use zeroize::Zeroizing;

use crate::{args::Global, key_file::BASE64, outcome::Error};

/// The server: from `--url`, a file, or the environment.
pub fn server(account: &str, global: &Global) -> Result<PostgresStoreConfig, Error> {
    let config = PostgresStoreConfig::for_account(account);
    if let Some(url) = &global.url {
        if has_password(url)? {
            return Err(Error::failed(
                "--url holds a password, which other users of this machine can read: set DATABASE_URL, \
                 name a file with --url-file, or leave the password to PGPASSWORD or ~/.pgpass",
            ));
        }
        return Ok(config.url(url));
    }
    if let Some(file) = &global.url_file {
        return Ok(config.url(read(file, "the connection string")?.as_str()));
    }
    Ok(PostgresStoreConfig::from_env(account)?)
}

/// The account's passphrase or key, if one was given.
pub fn unlock(config: PostgresStoreConfig, global: &Global) -> Result<PostgresStoreConfig, Error> {
    Ok(match given(global)? {
        Some(secret) => secret.set(config),
        None => config,
    })
}

fn given(global: &Global) -> Result<Option<Secret>, Error> {
    let passphrase =
        secret(global.passphrase_file.as_deref(), "STORE_PASSPHRASE", "the passphrase")?;
    if passphrase.as_ref().is_some_and(|passphrase| passphrase.is_empty()) {
        return Err(Error::failed("STORE_PASSPHRASE is empty: unset it, or set the passphrase"));
    }
    let key = key_bytes(global.key_file.as_deref(), "STORE_KEY", "the key")?;
    Secret::one_of(passphrase, key, "a passphrase and a key")
}

/// What opens an account or a file.
pub enum Secret {
    Passphrase(Zeroizing<String>),
    Key(Zeroizing<[u8; 32]>),
}

impl Secret {
    /// The one that was given, if any; `both` names them in the error.
    pub fn one_of(
        passphrase: Option<Zeroizing<String>>,
        key: Option<Zeroizing<[u8; 32]>>,
        both: &str,
    ) -> Result<Option<Self>, Error> {
        match (passphrase, key) {
            (Some(_), Some(_)) => Err(Error::failed(format!("both {both} were given: give one"))),
            (Some(passphrase), None) => Ok(Some(Self::Passphrase(passphrase))),
            (None, key) => Ok(key.map(Self::Key)),
        }
    }

    pub fn set(&self, config: PostgresStoreConfig) -> PostgresStoreConfig {
        match self {
            Self::Passphrase(passphrase) => config.passphrase(Some(passphrase)),
            Self::Key(key) => config.key(Some(key)),
        }
    }
}

/// Whether the account's passphrase or key was given.
pub fn is_given(global: &Global) -> Result<bool, Error> {
    Ok(given(global)?.is_some())
}

/// The passphrase of a file: that of another file or the environment, else the answer to a question. `of` is
/// what the file is called.
pub fn file_passphrase(
    file: Option<&Path>,
    variable: &str,
    of: &str,
    ask: impl Fn(&str) -> Result<Zeroizing<String>, Error>,
) -> Result<Zeroizing<String>, Error> {
    match secret(file, variable, &format!("the passphrase of the {of}"))? {
        Some(passphrase) if passphrase.is_empty() => {
            Err(Error::failed(format!("the passphrase of the {of} is empty")))
        }
        Some(passphrase) => Ok(passphrase),
        None => ask(&format!("Passphrase of the {of} (or set {variable})")),
    }
}

/// A secret text: the file's, else the environment variable's.
pub fn secret(
    file: Option<&Path>,
    variable: &str,
    what: &str,
) -> Result<Option<Zeroizing<String>>, Error> {
    match (file, env::var(variable)) {
        (Some(file), _) => read(file, what).map(Some),
        (None, Ok(secret)) => Ok(Some(Zeroizing::new(secret))),
        (None, Err(env::VarError::NotPresent)) => Ok(None),
        (None, Err(env::VarError::NotUnicode(_))) => {
            Err(Error::failed(format!("{variable} is not UTF-8")))
        }
    }
}

/// A key of 32 bytes, in one of its written forms.
pub fn key_bytes(
    file: Option<&Path>,
    variable: &str,
    what: &str,
) -> Result<Option<Zeroizing<[u8; 32]>>, Error> {
    let raw = match file {
        Some(file) => Some(read_bytes(file, what)?),
        None => secret(None, variable, what)?.map(|text| Zeroizing::new(text.as_bytes().to_vec())),
    };
    let Some(raw) = raw else { return Ok(None) };
    let wrong = || {
        Error::failed(format!(
            "{what} is not 32 bytes: give 64 hexadecimal digits, base64, or the bytes"
        ))
    };
    parse_key(&raw).map(Some).ok_or_else(wrong)
}

fn parse_key(raw: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
    if let Ok(key) = <[u8; 32]>::try_from(raw) {
        return Some(Zeroizing::new(key));
    }
    let text = std::str::from_utf8(raw).ok()?.trim();
    let bytes = match text.len() {
        64 => {
            let digits =
                (0..32).map(|at| u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok());
            Zeroizing::new(digits.collect::<Option<Vec<u8>>>()?)
        }
        _ => Zeroizing::new(BASE64.decode(text.replace('-', "+").replace('_', "/")).ok()?),
    };
    bytes.as_slice().try_into().ok().map(Zeroizing::new)
}

/// A file's text, without the newline at its end.
pub fn read(file: &Path, what: &str) -> Result<Zeroizing<String>, Error> {
    let bytes = read_bytes(file, what)?;
    let text = std::str::from_utf8(&bytes);
    let text =
        text.map_err(|_| Error::failed(format!("{what}: {} is not UTF-8", file.display())))?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err(Error::failed(format!("{what}: {} is empty", file.display())));
    }
    Ok(Zeroizing::new(text.to_owned()))
}

fn read_bytes(file: &Path, what: &str) -> Result<Zeroizing<Vec<u8>>, Error> {
    let bytes = fs::read(file).map(Zeroizing::new);
    bytes.map_err(|error| Error::failed(format!("{what}: cannot read {}: {error}", file.display())))
}
