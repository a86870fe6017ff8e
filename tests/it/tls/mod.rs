//! Every `sslmode` against a real server: without TLS, and with certificates that are valid, of an unknown
//! authority, for another name, expired or self-signed.
mod faults;
mod server;

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, sync::OnceLock};

use assert_matches::assert_matches;
use matrix_sdk_postgres::{
    OpenStoreError, PostgresCryptoStore, PostgresStoreConfig, testing::PostgresServer,
};
use rcgen::{BasicConstraints, IsCa, KeyPair, date_time_ymd};

use self::server::{Authority, Issued, NAME, TlsServer, authority, for_client, for_server, issue};

/// Whether the connection is encrypted, or why there is none.
async fn encrypted(config: &PostgresStoreConfig) -> Result<bool, OpenStoreError> {
    let pool = config.build_pool()?;
    let Ok(connection) = pool.get().await else {
        // Opening a store must return the same error.
        return Err(PostgresCryptoStore::open_with_config(config).await.unwrap_err());
    };
    let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    Ok(connection.query_one(sql, &[]).await.unwrap().get(0))
}

/// The text of an error about TLS.
async fn refused(config: &PostgresStoreConfig) -> String {
    match encrypted(config).await {
        Err(OpenStoreError::Tls(text)) => text,
        other => panic!("{other:?}"),
    }
}

async fn invalid(config: &PostgresStoreConfig) -> String {
    match encrypted(config).await {
        Err(OpenStoreError::InvalidConfig(text)) => text,
        other => panic!("{other:?}"),
    }
}

struct Environment {
    server: TlsServer,
    authority: Authority,
    /// The `sslrootcert` parameters for the right authority and for another one.
    right: String,
    wrong: String,
}

fn environment() -> &'static Environment {
    static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();
    ENVIRONMENT.get_or_init(|| {
        let authority = authority("the right one");
        let server = TlsServer::start(&issue(&authority, for_server()), &authority.pem());
        let right = server.write("right.crt", &authority.pem());
        let wrong = server.write("wrong.crt", &server::authority("another").pem());
        let word = |path: PathBuf| format!("sslrootcert={}", path.display());
        Environment { right: word(right), wrong: word(wrong), server, authority }
    })
}

#[tokio::test]
async fn without_verification() {
    let server = &environment().server;
    for (words, expected) in [
        ("sslmode=disable", false),
        ("", true),
        ("sslmode=prefer", true),
        ("sslmode=allow", true),
        ("sslmode=prefer channel_binding=require", true),
        ("sslmode=prefer ssl_min_protocol_version=TLSv1.3", true),
        ("sslmode=prefer sslsni=0", true),
    ] {
        let result = encrypted(&server.with(NAME, words)).await;
        assert_eq!(result.unwrap(), expected, "{words}");
    }
    assert_matches!(
        encrypted(&server.with(NAME, "sslmode=disable channel_binding=require")).await,
        Err(OpenStoreError::Authentication(error)) if error.to_string().contains("channel binding")
    );
}

#[tokio::test]
async fn the_chain_is_verified() {
    let Environment { server, right, wrong, .. } = environment();
    for mode in ["require", "verify-ca"] {
        for host in [NAME, "another.example", "127.0.0.1"] {
            let config = server.with(host, &format!("sslmode={mode} {right}"));
            assert!(encrypted(&config).await.unwrap(), "{mode} {host}");
        }
    }
    for mode in ["require", "verify-ca", "verify-full"] {
        let text = refused(&server.with(NAME, &format!("sslmode={mode} {wrong}"))).await;
        for expected in [NAME, "trusted authority", "sslrootcert=<the CA's file>", "sslmode=prefer"]
        {
            assert!(text.contains(expected), "{text}");
        }
    }
}

#[tokio::test]
async fn the_name_is_verified() {
    let Environment { server, right, .. } = environment();
    let full = format!("sslmode=verify-full {right}");
    assert!(encrypted(&server.with(NAME, &full)).await.unwrap());
    for host in ["another.example", "127.0.0.1"] {
        let text = refused(&server.with(host, &full)).await;
        for expected in [host, NAME, "another name", "sslmode=verify-ca"] {
            assert!(text.contains(expected), "{text}");
        }
    }
    // Without a host name the address is verified.
    let config = server.with("", &full);
    assert!(refused(&config).await.contains("127.0.0.1"));
}

#[tokio::test]
async fn a_certificate_that_no_authority_of_the_system_has_signed_is_refused() {
    let server = &environment().server;
    for words in ["sslmode=require", "sslmode=verify-full", "sslrootcert=system"] {
        match encrypted(&server.with(NAME, words)).await {
            Err(OpenStoreError::Tls(text)) => assert!(text.contains("trusted authority"), "{text}"),
            // The system has no trusted authorities.
            Err(OpenStoreError::InvalidConfig(text)) => {
                assert!(text.contains("install ca-certificates"), "{text}");
            }
            other => panic!("{words}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn sockets_are_not_encrypted() {
    let Environment { server, .. } = environment();
    let url = server.server.socket_url();
    for mode in ["disable", "prefer", "require", "verify-full"] {
        let config = PostgresStoreConfig::new(format!("{url}?sslmode={mode}"), "tls");
        assert!(!encrypted(&config).await.unwrap(), "{mode}");
    }
}

#[tokio::test]
async fn client_certificates() {
    let Environment { server, right, authority, .. } = environment();
    server.create_role("by_certificate").await;
    let base = format!("sslmode=verify-full {right}");
    let issued = issue(authority, for_client("by_certificate"));
    let (crt, key) =
        (server.write("client.crt", &issued.certificate), server.write("client.key", &issued.key));
    let words = format!("{base} sslcert={} sslkey={}", crt.display(), key.display());
    let config = server.as_role("by_certificate", &words);
    assert!(encrypted(&config).await.unwrap());

    // No certificate, one for another role, one of an unknown authority.
    assert_matches!(
        encrypted(&server.as_role("by_certificate", &base)).await,
        Err(OpenStoreError::Authentication(error)) if error.sqlstate() == Some("28000")
    );
    let bob = issue(authority, for_client("bob"));
    server.write("bob.crt", &bob.certificate);
    server.write("bob.key", &bob.key);
    let words_of_bob = words.replace("client.", "bob.");
    assert_matches!(
        encrypted(&server.as_role("by_certificate", &words_of_bob)).await,
        Err(OpenStoreError::Authentication(error)) if error.sqlstate() == Some("28000")
    );
    let foreign = issue(&server::authority("another"), for_client("by_certificate"));
    server.write("foreign.crt", &foreign.certificate);
    server.write("foreign.key", &foreign.key);
    let text =
        refused(&server.as_role("by_certificate", &words.replace("client.", "foreign."))).await;
    assert!(text.contains("check the client certificate"), "{text}");

    // The key of another certificate, and one with too permissive a mode.
    let mixed = words.replace("client.key", "bob.key");
    let text = invalid(&server.as_role("by_certificate", &mixed)).await;
    assert!(text.contains("client.crt cannot be used with its key"), "{text}");
    fs::set_permissions(
        server.server.data_directory().join("bob.key"),
        PermissionsExt::from_mode(0o644),
    )
    .unwrap();
    let text = invalid(&server.as_role("by_certificate", &words_of_bob)).await;
    assert!(text.contains("bob.key has group or world access"), "{text}");
}

#[tokio::test]
async fn prefer_falls_back_to_plain_text() {
    let server = &environment().server;
    server.create_role("only_plain").await;
    assert!(!encrypted(&server.as_role("only_plain", "sslmode=prefer")).await.unwrap());
    assert_matches!(
        encrypted(&server.as_role("only_plain", &format!("sslmode=require {}", environment().right)))
            .await,
        Err(OpenStoreError::Authentication(error)) if error.sqlstate() == Some("28000")
    );
}

#[tokio::test]
async fn direct_tls_needs_postgresql_17() {
    let Environment { server, right, .. } = environment();
    let words = format!("sslmode=verify-full {right} sslnegotiation=direct");
    let result = encrypted(&server.with(NAME, &words)).await;
    if server.server.version() >= 17 {
        assert!(result.unwrap());
    } else {
        assert_matches!(result, Err(OpenStoreError::Tls(_) | OpenStoreError::Connect(_)));
    }
}

#[tokio::test]
async fn a_server_without_tls() {
    let server = PostgresServer::start().unwrap();
    let with = |words: &str| PostgresStoreConfig::new(format!("{}?{words}", server.url()), "tls");
    for words in ["", "sslmode=disable", "sslmode=prefer"] {
        assert!(!encrypted(&with(words)).await.unwrap(), "{words}");
    }
    let right = &environment().right;
    for mode in ["require", "verify-ca", "verify-full"] {
        let text = refused(&with(&format!("sslmode={mode}&{right}"))).await;
        for expected in ["offers no TLS", &format!("sslmode={mode}"), "ssl = on"] {
            assert!(text.contains(expected), "{text}");
        }
    }
}

#[tokio::test]
async fn an_expired_certificate() {
    let authority = authority("the right one");
    let mut params = for_server();
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2021, 1, 1);
    let server = TlsServer::start(&issue(&authority, params), &authority.pem());
    let right = server.write("right.crt", &authority.pem());
    let words = format!("sslmode=verify-ca sslrootcert={}", right.display());
    let text = refused(&server.with(NAME, &words)).await;
    assert!(text.contains("expired"), "{text}");
    assert!(encrypted(&server.with(NAME, "sslmode=prefer")).await.unwrap());
}

/// The certificate that PostgreSQL's manual creates with `openssl req -x509`: both authority and server.
#[tokio::test]
async fn a_self_signed_certificate() {
    let make = |expired: bool| {
        let mut params = for_server();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        if expired {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        Issued { certificate, key: key.serialize_pem() }
    };
    let good = make(false);
    let server = TlsServer::start(&good, &good.certificate);
    let trusted =
        format!("sslrootcert={}", server.server.data_directory().join("server.crt").display());
    for (mode, host) in
        [("require", "any.example"), ("verify-ca", "any.example"), ("verify-full", NAME)]
    {
        let config = server.with(host, &format!("sslmode={mode} {trusted}"));
        assert!(encrypted(&config).await.unwrap(), "{mode}");
    }
    let text =
        refused(&server.with("any.example", &format!("sslmode=verify-full {trusted}"))).await;
    assert!(text.contains("another name"), "{text}");
    // Another certificate with the same name.
    let other = server.write("other.crt", &make(false).certificate);
    let words = format!("sslmode=verify-ca sslrootcert={}", other.display());
    refused(&server.with(NAME, &words)).await;

    let expired = make(true);
    let server = TlsServer::start(&expired, &expired.certificate);
    let path = server.server.data_directory().join("server.crt");
    let words = format!("sslmode=verify-ca sslrootcert={}", path.display());
    assert!(refused(&server.with(NAME, &words)).await.contains("expired"));
}

#[tokio::test]
async fn files_that_are_missing_or_malformed() {
    let Environment { server, right, authority, .. } = environment();
    let issued = issue(authority, for_client("postgres"));
    let crt = server.write("files.crt", &issued.certificate).display().to_string();
    let key = server.write("files.key", &issued.key).display().to_string();
    let text = server.write("text", "no certificate").display().to_string();
    let torn = issued.certificate.replace("-----END", "!!!!-----END");
    let torn = server.write("torn.crt", &torn).display().to_string();
    let locked = issued.key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    let locked = server.write("locked.key", &locked).display().to_string();
    for (words, expected) in [
        ("sslmode=verify-ca".to_owned(), "sslmode=verify-ca needs sslrootcert"),
        ("sslmode=verify-ca sslrootcert=/none.crt".to_owned(), "/none.crt cannot be read"),
        (format!("sslmode=verify-ca sslrootcert={text}"), "text holds no PEM certificate"),
        (format!("sslmode=verify-ca sslrootcert={torn}"), "torn.crt is malformed"),
        (format!("sslmode=verify-ca {right} sslcert={crt}"), "files.crt is missing: add sslkey"),
        (format!("sslmode=verify-ca {right} sslkey={key}"), "sslkey is given without sslcert"),
        (format!("sslcert=/none.crt sslkey={key}"), "/none.crt cannot be read"),
        (format!("sslcert={crt} sslkey=/none.key"), "/none.key cannot be read"),
        (format!("sslcert={crt} sslkey={text}"), "text holds no PEM private key"),
        (format!("sslcert={crt} sslkey={locked}"), "locked.key is encrypted"),
    ] {
        let error = invalid(&server.with(NAME, &words)).await;
        assert!(error.contains(expected), "{words}: {error}");
    }
}
