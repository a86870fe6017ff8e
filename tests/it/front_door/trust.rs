//! `SSL_CERT_FILE` takes the place of what the system trusts.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::PathBuf,
};

use matrix_sdk_postgres::{
    OpenStoreError, PostgresCryptoStore, PostgresStoreConfig, testing::PostgresServer,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use test_support::child_process;

/// A server with a certificate of an authority that no system trusts, whose file is the second.
fn server() -> (PostgresServer, PathBuf) {
    let mut authority = CertificateParams::new([]).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["db.example".to_owned()]).unwrap();
    let certificate = certificate.signed_by(&key, &authority).unwrap();

    let mut server = PostgresServer::start().unwrap();
    server.stop();
    let data = server.data_directory();
    let write = |name: &str, text: &str| {
        let (path, owner) = (data.join(name), fs::metadata(&data).unwrap());
        fs::write(&path, text).unwrap();
        chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    write("server.crt", &certificate.pem());
    write("server.key", &key.serialize_pem());
    let authority = write("authority.crt", &authority.pem());
    let settings = fs::read_to_string(data.join("postgresql.conf")).unwrap();
    let settings =
        settings + "\nssl = on\nssl_cert_file = 'server.crt'\nssl_key_file = 'server.key'\n";
    fs::write(data.join("postgresql.conf"), settings).unwrap();
    server.start_again().unwrap();
    (server, authority)
}

/// Opens a store in a process that has the variables; prints the result.
async fn open_in_this_process(url: String) {
    match PostgresCryptoStore::open(url, "trust", None).await {
        Ok(_) => println!("result: opened"),
        Err(error @ (OpenStoreError::Tls(_) | OpenStoreError::InvalidConfig(_))) => {
            println!("result: {error}")
        }
        Err(error) => panic!("{error:?}"),
    }
}

#[tokio::test]
async fn ssl_cert_file_is_what_the_system_trusts() {
    if let Some(url) = child_process::task() {
        return open_in_this_process(url).await;
    }
    let (server, authority) = server();
    let password = server.url().split([':', '@']).nth(2).unwrap().to_owned();
    let url = format!(
        "host=db.example hostaddr=127.0.0.1 port={} user=postgres dbname=postgres password={password} \
         sslmode=verify-full",
        server.port()
    );
    assert!(PostgresStoreConfig::new(&url, "trust").build_pool().is_ok());
    let test = "front_door::trust::ssl_cert_file_is_what_the_system_trusts";
    let result_with = |variable: Option<&str>| {
        let mut command = child_process::command_with_task(test, &url);
        // libpq's directory in the home would come before.
        command.env("HOME", server.data_directory());
        command.env_remove("SSL_CERT_DIR").env_remove("SSL_CERT_FILE");
        if let Some(file) = variable {
            command.env("SSL_CERT_FILE", file);
        }
        let text = child_process::passes(&mut command);
        text.split("result: ").nth(1).unwrap().lines().next().unwrap().to_owned()
    };
    assert_eq!(result_with(authority.to_str()), "opened");
    let text = result_with(Some("/nowhere/authority.crt"));
    assert!(text.contains("SSL_CERT_FILE names no readable file with a PEM certificate"), "{text}");
    let text = result_with(None);
    assert!(text.contains("certificate"), "{text}");
}
