//! A server with TLS, and certificates for it.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::PathBuf,
};

use matrix_sdk_postgres::{PostgresStoreConfig, testing::PostgresServer};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};

/// The name in the server's certificate. It is not resolved, because `hostaddr` is set.
pub const NAME: &str = "db.example";

pub type Authority = CertifiedIssuer<'static, KeyPair>;

pub fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// The PEM texts of a certificate and its key.
pub struct Issued {
    pub certificate: String,
    pub key: String,
}

pub fn issue(authority: &Authority, params: CertificateParams) -> Issued {
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, authority).unwrap().pem();
    Issued { certificate, key: key.serialize_pem() }
}

pub fn for_server() -> CertificateParams {
    CertificateParams::new([NAME.to_owned()]).unwrap()
}

/// PostgreSQL compares the common name with the role's name.
pub fn for_client(role: &str) -> CertificateParams {
    let mut params = CertificateParams::new([]).unwrap();
    params.distinguished_name.push(DnType::CommonName, role);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

/// A server with TLS, and the directory of its certificate files.
pub struct TlsServer {
    pub server: PostgresServer,
    password: String,
}

impl TlsServer {
    pub fn start(certificate: &Issued, client_authority: &str) -> Self {
        let mut server = PostgresServer::start().unwrap();
        let password = server.url().split([':', '@']).nth(2).unwrap().to_owned();
        server.stop();
        let started = Self { server, password };
        started.write("server.crt", &certificate.certificate);
        started.write("server.key", &certificate.key);
        started.write("clients.crt", client_authority);
        let data = started.server.data_directory();
        let mut settings = fs::read_to_string(data.join("postgresql.conf")).unwrap();
        settings += "\nssl = on\nssl_cert_file = 'server.crt'\nssl_key_file = 'server.key'\n\
                     ssl_ca_file = 'clients.crt'\n";
        fs::write(data.join("postgresql.conf"), settings).unwrap();
        let rules = fs::read_to_string(data.join("pg_hba.conf")).unwrap();
        let rules = format!(
            "hostssl all by_certificate 127.0.0.1/32 cert\n\
             hostnossl all only_plain 127.0.0.1/32 trust\n\
             hostssl all only_plain 127.0.0.1/32 reject\n{rules}"
        );
        fs::write(data.join("pg_hba.conf"), rules).unwrap();
        let mut started = started;
        started.server.start_again().unwrap();
        started
    }

    /// Writes a file that only the server's user can read.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let data = self.server.data_directory();
        let path = data.join(name);
        fs::write(&path, text).unwrap();
        let owner = fs::metadata(&data).unwrap();
        chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    pub fn with(&self, host: &str, words: &str) -> PostgresStoreConfig {
        let (port, password) = (self.server.port(), &self.password);
        PostgresStoreConfig::new(
            format!(
                "host='{host}' hostaddr=127.0.0.1 port={port} user=postgres dbname=postgres \
                 password={password} {words}"
            ),
            "tls",
        )
    }

    /// As another role, without a password.
    pub fn as_role(&self, role: &str, words: &str) -> PostgresStoreConfig {
        let port = self.server.port();
        PostgresStoreConfig::new(
            format!(
                "host={NAME} hostaddr=127.0.0.1 port={port} user={role} dbname=postgres {words}"
            ),
            "tls",
        )
    }

    pub async fn create_role(&self, role: &str) {
        let pool = self.with(NAME, "sslmode=disable").build_pool().unwrap();
        let sql = format!("CREATE ROLE {role} LOGIN");
        pool.get().await.unwrap().batch_execute(&sql).await.unwrap();
    }
}
