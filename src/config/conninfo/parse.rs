//! The two notations of a connection string, libpq's: a URL, and `key=value` pairs.
//!
//! No error quotes the text it is about, but for names that cannot be a piece of a password.

use zeroize::Zeroizing;

use super::parameters::Parameters;

pub(super) fn parse(text: &str) -> Result<Parameters, String> {
    let text = text.trim();
    if text.is_empty() {
        return Err("the connection string is empty".to_owned());
    }
    if text.contains('\0') {
        return Err("the connection string contains a NUL character".to_owned());
    }
    if let Some(rest) =
        text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://"))
    {
        return parse_url(rest).map_err(|error| format!("the URL is malformed: {error}"));
    }
    // After an equals sign, `scheme://` would be part of a pair's value.
    if text.split_once("://").is_some_and(|(scheme, _)| !scheme.contains('=')) {
        return Err("the URL must begin with postgres:// or postgresql://".to_owned());
    }
    parse_pairs(text).map_err(|error| format!("the connection string is malformed: {error}"))
}

const ESCAPE_IT: &str = "an '@', '/' or '%' in user, password or database name must be written \
                         as %40, %2F or %25";

fn parse_url(rest: &str) -> Result<Parameters, String> {
    let mut parameters = Parameters::default();
    let rest = match rest.find(['@', '/']) {
        Some(end) if rest[end..].starts_with('@') => {
            let (user, password) =
                rest[..end].split_once(':').map_or((&rest[..end], None), |(u, p)| (u, Some(p)));
            parameters.insert("user", decode(user)?)?;
            if let Some(password) = password {
                parameters.insert("password", decode(password)?)?;
            }
            &rest[end + 1..]
        }
        _ => rest,
    };
    let (rest, query) = rest.split_once('?').map_or((rest, ""), |(rest, query)| (rest, query));
    let (hosts, database) = rest.split_once('/').unwrap_or((rest, ""));
    // A password with a bare '@' or '/' ends up here; it must not be used as a host's name.
    if hosts.contains('@') || database.contains('@') {
        return Err(format!("a misplaced '@': {ESCAPE_IT}"));
    }
    parse_hosts(hosts, &mut parameters)?;
    parameters.insert("dbname", decode(database)?)?;
    parameters.quote_names_of(query);
    for (at, pair) in query.split('&').filter(|pair| !pair.is_empty()).enumerate() {
        parse_query(pair, &mut parameters)
            .map_err(|error| format!("{error} (number {} after the '?')", at + 1))?;
    }
    Ok(parameters)
}

fn parse_hosts(hosts: &str, parameters: &mut Parameters) -> Result<(), String> {
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for host in hosts.split(',') {
        let (name, port) = match host.strip_prefix('[') {
            Some(bracketed) => {
                let (name, after) = bracketed
                    .split_once(']')
                    .ok_or("an IPv6 address without its closing bracket")?;
                let port = match after.strip_prefix(':') {
                    Some(port) => port,
                    None if after.is_empty() => "",
                    None => return Err("something other than a port after the ']'".to_owned()),
                };
                (name, port)
            }
            None => host.split_once(':').unwrap_or((host, "")),
        };
        if !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(format!(
                "a port that is not a number: an IPv6 address needs brackets, and {ESCAPE_IT}"
            ));
        }
        names.push(decode(name)?.to_string());
        ports.push(port);
    }
    parameters.insert("host", names.join(",").into())?;
    if ports.iter().any(|port| !port.is_empty()) {
        parameters.insert("port", ports.join(",").into())?;
    }
    Ok(())
}

fn parse_query(pair: &str, parameters: &mut Parameters) -> Result<(), String> {
    let (name, value) = pair.split_once('=').ok_or("a parameter without '='")?;
    let (name, value) = (decode(name)?, decode(value)?);
    // JDBC's notation, which libpq accepts too.
    if name.as_str() == "ssl" && value.as_str() == "true" {
        return parameters.insert("sslmode", "require".to_owned().into());
    }
    parameters.insert(&name, value)
}

fn decode(text: &str) -> Result<Zeroizing<String>, String> {
    const MALFORMED: &str = "a '%' that is not followed by two hexadecimal digits: write it as %25";
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = rest.first_chunk::<2>().ok_or(MALFORMED)?;
        let digit =
            |at: usize| char::from(digits[at]).to_digit(16).and_then(|d| u8::try_from(d).ok());
        let value = digit(0).zip(digit(1)).map(|(high, low)| high * 16 + low).ok_or(MALFORMED)?;
        if value == 0 {
            return Err("the forbidden %00".to_owned());
        }
        bytes.push(value);
        rest = &rest[2..];
    }
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(text.to_owned().into()),
        Err(_) => Err("a percent-encoded part that is not UTF-8".to_owned()),
    }
}

fn parse_pairs(text: &str) -> Result<Parameters, String> {
    let mut parameters = Parameters::default();
    parameters.quote_names_of(text);
    let mut rest = text.trim_start();
    for number in 1.. {
        if rest.is_empty() {
            break;
        }
        let end = rest.find(|c: char| c == '=' || c.is_ascii_whitespace()).unwrap_or(rest.len());
        let name = &rest[..end];
        let Some(after) = rest[end..].trim_start().strip_prefix('=') else {
            return Err(format!(
                "no '=' after the name of pair {number}: expected postgres://… or key=value \
                 pairs, and a value with blanks needs single quotes"
            ));
        };
        let (value, after) = take_value(after.trim_start(), number)?;
        parameters.insert(name, value).map_err(|error| format!("{error} (pair {number})"))?;
        rest = after.trim_start();
    }
    Ok(parameters)
}

/// Reads a value up to its closing quote or the next blank; a backslash takes the next character
/// as it is.
fn take_value(text: &str, number: usize) -> Result<(Zeroizing<String>, &str), String> {
    let quoted = text.strip_prefix('\'');
    let body = quoted.unwrap_or(text);
    let mut value = Zeroizing::new(String::with_capacity(body.len()));
    let mut characters = body.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            '\'' if quoted.is_some() => return Ok((value, &body[at + 1..])),
            blank if quoted.is_none() && blank.is_ascii_whitespace() => {
                return Ok((value, &body[at..]));
            }
            other => value.push(other),
        }
    }
    if quoted.is_some() {
        return Err(format!("no closing quote in the value of pair {number}"));
    }
    Ok((value, ""))
}
