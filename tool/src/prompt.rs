//! Questions to the person at the terminal.

use std::io::{self, BufRead, IsTerminal, Write};

use zeroize::Zeroizing;

use crate::outcome::Error;

/// Whether there is a terminal to ask on.
pub fn is_possible() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks for a secret, which is not shown.
pub fn secret(what: &str) -> Result<Zeroizing<String>, Error> {
    if !is_possible() {
        return Err(Error::failed(format!(
            "{what}: not given, and there is no terminal to ask on"
        )));
    }
    let secret = rpassword::prompt_password(format!("{what}: "));
    secret.map(Zeroizing::new).map_err(|error| match error.kind() {
        // Ctrl-C is a character here, no signal.
        io::ErrorKind::Interrupted => Error::interrupted(),
        _ => Error::failed(format!("{what}: {error}")),
    })
}

/// Asks for a new secret twice.
pub fn new_secret(what: &str) -> Result<Zeroizing<String>, Error> {
    let first = secret(what)?;
    if *first != *secret(&format!("{what}, again"))? {
        return Err(Error::refused(format!(
            "{what}: the two are not the same; nothing was changed"
        )));
    }
    Ok(first)
}

/// Asks a question that is answered with yes or no; no without a terminal.
pub fn confirm(question: &str) -> Result<bool, Error> {
    let failed = |error: io::Error| Error::failed(format!("cannot ask: {error}"));
    // Not locked: Ctrl-C prints an error while the answer is awaited.
    let mut err = io::stderr();
    writeln!(err, "{question}").map_err(failed)?;
    if !is_possible() {
        return Ok(false);
    }
    write!(err, "Type yes to go on: ").map_err(failed)?;
    err.flush().map_err(failed)?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(failed)?;
    Ok(answer.trim() == "yes")
}
