#![allow(clippy::unwrap_used)]

use std::{collections::HashMap, path::PathBuf, time::Duration};

use super::{Address, ConnInfo, Host};
use crate::config::tls::Mode;

fn parse(text: &str) -> ConnInfo {
    ConnInfo::parse(text, |_| Ok(None)).map_err(|error| format!("{text}: {error}")).unwrap()
}

fn error(text: &str) -> String {
    ConnInfo::parse(text, |_| Ok(None)).err().unwrap_or_else(|| format!("no error for {text}"))
}

fn name(name: &str, port: u16) -> Address {
    Address { host: Host::Name(name.to_owned()), hostaddr: None, port }
}

fn socket(directory: &str, port: u16) -> Address {
    Address { host: Host::Socket(PathBuf::from(directory)), hostaddr: None, port }
}

#[test]
fn addresses() {
    let any = Address { host: Host::Default, hostaddr: None, port: 5432 };
    let by_address = Address {
        host: Host::Name("10.0.0.1".to_owned()),
        hostaddr: Some("10.0.0.1".parse().unwrap()),
        port: 5432,
    };
    let with_hostaddr = Address { host: Host::Name("db".to_owned()), ..by_address.clone() };
    for (text, expected) in [
        ("postgres://db", vec![name("db", 5432)]),
        ("postgresql://db:6432/bots", vec![name("db", 6432)]),
        ("  postgres://u@db/bots\n", vec![name("db", 5432)]),
        ("postgres://", vec![any.clone()]),
        ("postgres:///bots", vec![any.clone()]),
        ("postgres://:5433/bots", vec![Address { port: 5433, ..any.clone() }]),
        ("dbname=bots", vec![any.clone()]),
        ("host= ' db ' ", vec![name("db", 5432)]),
        ("postgres://[::1]/bots", vec![name("::1", 5432)]),
        ("postgres://u:p@[fe80::1]:6432", vec![name("fe80::1", 6432)]),
        ("host=::1 port=6432", vec![name("::1", 6432)]),
        ("postgres://%2Fvar%2Frun%2Fpostgresql/bots", vec![socket("/var/run/postgresql", 5432)]),
        ("postgres://%2ftmp:6432/bots", vec![socket("/tmp", 6432)]),
        ("postgres:///bots?host=/run/my%20db&port=6432", vec![socket("/run/my db", 6432)]),
        ("host='/run/my db'", vec![socket("/run/my db", 5432)]),
        // The later parameter wins.
        ("postgres://db1:1/bots?host=db2&port=2", vec![name("db2", 2)]),
        (
            "postgres://db1,db2:6432,[::1]/bots",
            vec![name("db1", 5432), name("db2", 6432), name("::1", 5432)],
        ),
        (
            "host=db1,/tmp,,db3 port=6432",
            vec![
                name("db1", 6432),
                socket("/tmp", 6432),
                Address { port: 6432, ..any },
                name("db3", 6432),
            ],
        ),
        ("host=db1,db2 port=,6432", vec![name("db1", 5432), name("db2", 6432)]),
        ("hostaddr=10.0.0.1", vec![by_address]),
        ("host=db hostaddr=10.0.0.1", vec![with_hostaddr]),
    ] {
        assert_eq!(parse(text).addresses, expected, "{text}");
    }
}

#[test]
fn user_password_and_database() {
    let secret = r#"a'b\c @/?%:d"#;
    for text in [
        "postgres://ana:a'b%5Cc%20%40%2F%3F%25%3Ad@db/b%C3%A4r",
        "postgres://db/b%c3%a4r?user=ana&password=a'b\\c @/?%25:d",
        r"host=db user=ana dbname='bär' password='a\'b\\c @/?%:d'",
        r"password = a\'b\\c\ @/?%:d user  =ana dbname= bär",
    ] {
        let info = parse(text);
        assert_eq!(info.user.as_deref(), Some("ana"), "{text}");
        assert_eq!(info.dbname.as_deref(), Some("bär"), "{text}");
        assert_eq!(info.password.unwrap().as_str(), secret, "{text}");
    }
    let bare = parse("postgres://ana:x:y?z@db");
    assert_eq!(bare.password.unwrap().as_str(), "x:y?z");
    let none = parse("postgres://ana:@db/?passfile=/p");
    assert!(none.password.is_none() && none.dbname.is_none());
    assert_eq!(none.passfile, Some(PathBuf::from("/p")));
}

#[test]
fn errors_name_what_is_malformed() {
    for (text, expected) in [
        ("", "is empty"),
        (" \n", "is empty"),
        ("mysql://db/bots", "must begin with postgres://"),
        ("db.example", "no '='"),
        ("user=u\\ password=p", "another parameter inside the value of user"),
        ("host=db dbname", "no '=' after the name of pair 2"),
        ("host=db password=two words", "no '=' after the name of pair 3"),
        ("password='open", "no closing quote in the value of pair 1"),
        ("host=db sslmoode=x", "did you mean sslmode?) (pair 2)"),
        ("hosst=db", "an unknown parameter \"hosst\" (did you mean host"),
        ("xyz=db", "an unknown parameter \"xyz\" (pair 1)"),
        ("postgres://u:p@db?xyz=1", "an unknown parameter \"xyz\" (number 1 after the '?')"),
        // These may be pieces of a password.
        ("host=db password=ge heim=1", "an unknown parameter (pair 3)"),
        ("postgres://db?password=ge&heim=1", "an unknown parameter (number 2 after the '?')"),
        ("postgres://u:1/2?ge=heim@db", "an unknown parameter (number 1 after the '?')"),
        ("postgres://db?sslmode", "a parameter without '=' (number 1 after the '?')"),
        ("postgres://db?user=a&sslmod=x", "did you mean sslmode?) (number 2 after the '?')"),
        ("postgres://u:p@ss@db", "a misplaced '@'"),
        ("postgres://u:p/ss@db", "a misplaced '@'"),
        ("postgres://u:p/ssdb", "a port that is not a number"),
        ("postgres://u:1/ss@db", "a misplaced '@'"),
        ("postgres://u:100%@db", "a '%' that is not followed"),
        ("postgres://u:p%zz@db", "a '%' that is not followed"),
        ("postgres://u:%00@db", "the forbidden %00"),
        ("postgres://u:%ff@db", "not UTF-8"),
        ("postgres://::1/bots", "needs brackets"),
        ("postgres://[::1/bots", "closing bracket"),
        ("postgres://[::1]5432", "something other than a port"),
        ("postgres://db:0", "from 1 to 65535"),
        ("postgres://db:65536", "from 1 to 65535"),
        ("host=a,b port=1,2,3", "2 hosts, but 3 ports"),
        ("host=a,b hostaddr=::1", "2 hosts, but 1 hostaddrs"),
        ("hostaddr=db", "hostaddr must be an IP address"),
        ("host=u@db", "a host contains '@'"),
        ("host=/tmp hostaddr=::1", "cannot have a hostaddr"),
        ("host=db connect_timeout=5s", "a whole number of seconds"),
        ("host=db keepalives=yes", "keepalives must be a number from 0 to 1"),
        ("host=db keepalives_idle=32768", "keepalives_idle must be a whole number of seconds from"),
        ("host=db keepalives_count=128", "keepalives_count must be a whole number from 0 to 127"),
        ("host=db tcp_user_timeout=2147483648", "tcp_user_timeout must be a whole number of"),
        ("host=db options='-c x=1'", "options is not supported: poolers"),
        ("host=db service=prod", "service is not supported"),
        ("host=db sslcrl=/x", "sslcrl is not supported"),
        ("host=db sslpassword=x", "sslpassword is not supported"),
        ("host=db require_auth=scram-sha-256", "require_auth is not supported"),
        ("host=db gssencmode=require", "GSSAPI is not supported"),
        ("host=db client_encoding=LATIN1", "client_encoding must be UTF8"),
        ("host=db target_session_attrs=standby", "the store writes"),
        ("host=db channel_binding=yes", "disable, prefer or require"),
        ("host=db load_balance_hosts=yes", "disable or random"),
    ] {
        let error = error(text);
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn harmless_parameters_are_accepted() {
    parse(
        "host=db gssencmode=prefer sslcompression=0 krbsrvname=postgres client_encoding='utf-8' \
         gssdelegation=0 options='' service='' keepalives_count=3 keepalives_retries=3",
    );
}

#[test]
fn session_settings() {
    let config = |text| parse(text).template;
    let default = config("host=db");
    assert_eq!(default.get_application_name(), Some("matrix-sdk-postgres"));
    assert_eq!(default.get_tcp_user_timeout(), Some(&Duration::from_secs(30)));
    assert!(default.get_keepalives());
    assert_eq!(default.get_keepalives_idle(), Duration::from_secs(30));
    assert_eq!(default.get_keepalives_retries(), Some(3));
    assert_eq!(format!("{:?}", default.get_target_session_attrs()), "Any");

    // libpq's milliseconds, where tokio-postgres has seconds.
    let given = config("host=db tcp_user_timeout=1500 keepalives_idle=7 application_name=bot");
    assert_eq!(given.get_tcp_user_timeout(), Some(&Duration::from_millis(1500)));
    assert_eq!(given.get_keepalives_idle(), Duration::from_secs(7));
    assert_eq!(given.get_application_name(), Some("bot"));
    let off = config("host=db tcp_user_timeout=0 keepalives=0 fallback_application_name=fall");
    assert_eq!(off.get_tcp_user_timeout(), None);
    assert!(!off.get_keepalives());
    assert_eq!(off.get_application_name(), Some("fall"));

    for (text, expected) in
        [("keepalives_count=5", 5), ("keepalives_retries=6", 6), ("keepalives_count=0", 3)]
    {
        assert_eq!(config(text).get_keepalives_retries(), Some(expected));
    }
    for (text, expected) in [
        ("host=db", "Prefer"),
        ("host=db channel_binding=disable", "Disable"),
        ("host=db channel_binding=prefer", "Prefer"),
        ("host=db channel_binding=require", "Require"),
    ] {
        let binding = config(text).get_channel_binding();
        assert_eq!(format!("{binding:?}"), expected);
    }

    for (text, expected) in [
        ("host=a,b", "ReadWrite"),
        ("host=a,b target_session_attrs=any", "Any"),
        ("host=a target_session_attrs=primary", "ReadWrite"),
    ] {
        let attrs = config(text).get_target_session_attrs();
        assert_eq!(format!("{attrs:?}"), expected, "{text}");
    }
    assert_eq!(parse("host=db connect_timeout=5").connect_timeout, Some(Duration::from_secs(5)));
    assert!(parse("host=db connect_timeout=0").connect_timeout > Some(Duration::from_secs(9999)));
    assert!(parse("host=a,b load_balance_hosts=random").random_order);
}

#[test]
fn tls_parameters() {
    let mode = |text: &str| parse(&format!("host=db {text}")).tls.mode;
    for (text, expected) in [
        ("", Mode::Prefer),
        ("sslmode=disable", Mode::Disable),
        ("sslmode=disable sslrootcert=/ca", Mode::Disable),
        ("sslmode=allow", Mode::Prefer),
        ("sslmode=prefer", Mode::Prefer),
        ("sslmode=require sslrootcert=/ca", Mode::Require),
        ("sslmode=verify-ca", Mode::VerifyCa),
        ("sslmode=verify-full", Mode::VerifyFull),
        ("sslrootcert=system", Mode::VerifyFull),
        ("sslrootcert=system sslmode=verify-full", Mode::VerifyFull),
        ("sslmode=require sslnegotiation=direct ssl_min_protocol_version=TLSv1.3", Mode::Require),
    ] {
        assert_eq!(mode(text), expected, "{text}");
    }
    assert_eq!(parse("postgres://db?ssl=true").tls.mode, Mode::Require);
    for (text, expected) in [
        ("sslmode=verify_full", "sslmode must be disable"),
        ("sslrootcert=system sslmode=require", "sslrootcert=system needs sslmode=verify-full"),
        ("sslrootcert=system sslmode=disable", "sslrootcert=system needs sslmode=verify-full"),
        ("sslrootcert=/ca", "add sslmode=verify-full"),
        ("sslrootcert=/ca sslmode=prefer", "add sslmode=verify-full"),
        ("sslnegotiation=direct", "sslnegotiation=direct needs sslmode=require"),
        ("sslnegotiation=x", "must be postgres or direct"),
        ("ssl_min_protocol_version=1.3", "TLSv1.2 or TLSv1.3"),
    ] {
        let error = error(&format!("host=db {text}"));
        assert!(error.contains(expected), "{text}: {error}");
    }
}

fn from_env(variables: &[(&str, &str)]) -> Result<ConnInfo, String> {
    let variables: HashMap<_, _> = variables.iter().copied().collect();
    ConnInfo::from_variables(|name| Ok(variables.get(name).map(ToString::to_string)))
}

#[test]
fn environment() {
    let info = from_env(&[
        ("PGHOST", "db"),
        ("PGHOSTADDR", "10.0.0.1"),
        ("PGPORT", "6432"),
        ("PGUSER", "ana"),
        ("PGPASSWORD", "geheim"),
        ("PGDATABASE", "bots"),
        ("PGSSLMODE", "verify-full"),
        ("PGCONNECT_TIMEOUT", "3"),
        ("PGAPPNAME", "bot"),
        ("PGTARGETSESSIONATTRS", "read-write"),
    ])
    .unwrap();
    let hostaddr = Some("10.0.0.1".parse().unwrap());
    assert_eq!(info.addresses, [Address { hostaddr, ..name("db", 6432) }]);
    assert_eq!((info.user.as_deref(), info.dbname.as_deref()), (Some("ana"), Some("bots")));
    assert_eq!(info.password.unwrap().as_str(), "geheim");
    assert_eq!(info.tls.mode, Mode::VerifyFull);
    assert_eq!(info.connect_timeout, Some(Duration::from_secs(3)));
    assert_eq!(info.template.get_application_name(), Some("bot"));

    // The URL wins, the variables add what it lacks, and host and hostaddr come from one source.
    let info = from_env(&[
        ("DATABASE_URL", "postgres://ana@db/bots"),
        ("PGHOST", "elsewhere"),
        ("PGHOSTADDR", "10.0.0.1"),
        ("PGUSER", "bob"),
        ("PGPASSWORD", "geheim"),
        ("PGSSLMODE", "disable"),
    ])
    .unwrap();
    assert_eq!(info.addresses, [name("db", 5432)]);
    assert_eq!(info.user.as_deref(), Some("ana"));
    assert_eq!(info.password.unwrap().as_str(), "geheim");
    assert_eq!(info.tls.mode, Mode::Disable);
}

#[test]
fn environment_without_a_database() {
    for variables in
        [&[][..], &[("DATABASE_URL", "")], &[("PGPASSWORD", "geheim"), ("PGPORT", "5432")]]
    {
        let error = from_env(variables).err().unwrap();
        assert!(error.contains("set DATABASE_URL, or one of PGHOST"), "{error}");
    }
    let error = from_env(&[("DATABASE_URL", "postgres://u:ge@heim@db")]).err().unwrap();
    assert!(error.contains("in DATABASE_URL, the URL is malformed: a misplaced '@'"), "{error}");
    let error = from_env(&[("PGHOST", "db"), ("PGREQUIREAUTH", "none")]).err().unwrap();
    assert!(error.contains("in PGREQUIREAUTH, require_auth is not supported"), "{error}");
}

#[test]
fn pgpassword_applies_only_to_strings_without_a_password() {
    let parse = |text: &str| {
        let variable = |name: &str| Ok((name == "PGPASSWORD").then(|| "from outside".to_owned()));
        ConnInfo::parse(text, variable).map(|info| info.password.unwrap().to_string())
    };
    for text in ["postgres://ana@db/bots", "host=db user=ana", "postgres://ana:@db/bots"] {
        assert_eq!(parse(text).unwrap(), "from outside", "{text}");
    }
    assert_eq!(parse("postgres://ana:its-own@db/bots").unwrap(), "its-own");
    assert!(ConnInfo::parse("host=db", |_| Err("not UTF-8".to_owned())).is_err());
    assert!(ConnInfo::parse("host=db password=p", |_| Err("not UTF-8".to_owned())).is_ok());
}

#[test]
fn errors_about_other_drivers_parameters_say_what_to_set_instead() {
    for (parameter, expected) in [
        // Prisma.
        ("pgbouncer=true", "PoolSettings::prepared_statements"),
        ("schema=public", "PostgresStoreConfig::schema"),
        ("connection_limit=1", "PoolSettings::max_size"),
        ("pool_timeout=5", "PoolSettings::wait_timeout"),
        ("socket_timeout=5", "Timeouts::statement"),
        ("sslaccept=strict", "sslmode=disable, prefer"),
        ("sslidentity=client.p12", "sslcert and sslkey"),
        // JDBC.
        ("currentSchema=bots", "PostgresStoreConfig::schema"),
        ("loginTimeout=5", "connect_timeout"),
        ("prepareThreshold=0", "PoolSettings::prepared_statements"),
        ("targetServerType=primary", "target_session_attrs=read-write"),
        ("ApplicationName=bot", "did you mean application_name?"),
        ("sslMode=require", "did you mean sslmode?"),
        // Go's.
        ("pool_max_conns=4", "PoolSettings::max_size"),
        ("default_query_exec_mode=exec", "PoolSettings::prepared_statements"),
        ("search_path=bots", "PostgresStoreConfig::schema"),
        ("statement_timeout=5000", "Timeouts::statement"),
        // sqlx.
        ("ssl-mode=require", "did you mean sslmode?"),
        ("ssl-root-cert=ca.pem", "did you mean sslrootcert?"),
        ("statement-cache-capacity=0", "PoolSettings::prepared_statements"),
        ("options[search_path]=bots", "PostgresStoreConfig::schema"),
        // Python's, Node's and Ruby's.
        ("prepared_statement_cache_size=0", "PoolSettings::prepared_statements"),
        ("ssl=no-verify", "sslmode=disable, prefer"),
        ("ssl=false", "sslmode=disable, prefer"),
        ("pool=5", "PoolSettings::max_size"),
        // Neon, Supabase, CockroachDB.
        ("options=endpoint%3Dep-cool-darkness-123456", "host's name (SNI)"),
        ("options=project%3Dcool-darkness", "host's name (SNI)"),
        ("options=reference%3Dabcdefgh", "postgres.<reference>"),
        ("options=--cluster%3Dcool-1", "<cluster>.<database>"),
        ("options=-c%20search_path%3Dbots", "PostgresStoreConfig::schema"),
        ("options=-c%20geqo%3Doff", "ALTER ROLE"),
        ("supa=base-pooler.x", "leave it out"),
    ] {
        let text = error(&format!("postgres://ana@db/bots?{parameter}"));
        assert!(text.contains(expected), "{parameter}: {text}");
        assert!(text.contains("number 1 after the '?'"), "{parameter}: {text}");
        assert!(!text.contains("cool"), "{parameter}: {text}");
    }
    let text = error("host=db schema=bots");
    assert!(text.contains("schema") && text.contains("pair 2"), "{text}");
    assert!(parse("postgres://db?ssl=true&sslrootcert=/ca.pem").tls.mode == Mode::Require);
}
