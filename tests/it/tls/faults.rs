//! Common mistakes in certificates: the error names the fault and the command that fixes it, and a fallback to
//! plain text is logged.

use std::{
    fs,
    io::Write,
    path::PathBuf,
    process::Command,
    sync::{Arc, Mutex},
};

use rcgen::{CertificateParams, DnType, KeyPair};

use super::{
    encrypted, refused,
    server::{Issued, NAME, TlsServer, authority, issue},
};

/// A directory that is removed at the end.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let name = format!("matrix-sdk-postgres-faults-{:016x}", fastrand::u64(..));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Runs a command line in the directory; returns whether it succeeded.
    fn run(&self, line: &str) -> bool {
        Command::new("sh")
            .args(["-c", line])
            .current_dir(&self.0)
            .output()
            .unwrap()
            .status
            .success()
    }

    fn issued(&self) -> Issued {
        let read = |name| fs::read_to_string(self.0.join(name)).unwrap();
        Issued { certificate: read("server.crt"), key: read("server.key") }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The certificate made by the first of these command lines that this OpenSSL version supports.
fn openssl(lines: &[&str]) -> Issued {
    let directory = Directory::new();
    let found = lines.iter().any(|line| directory.run(line));
    assert!(found, "install openssl: none of {lines:?} succeeded");
    directory.issued()
}

fn self_signed(options: &str) -> Issued {
    openssl(&[&format!(
        "openssl req -x509 {options} -nodes -subj /CN={NAME} -addext subjectAltName=DNS:{NAME} \
         -keyout server.key -out server.crt"
    )])
}

fn version_1() -> Issued {
    openssl(&[
        &format!(
            "openssl req -x509 -x509v1 -newkey rsa:2048 -nodes -subj /CN={NAME} -keyout server.key \
             -out server.crt"
        ),
        &format!(
            "openssl req -new -newkey rsa:2048 -nodes -subj /CN={NAME} -keyout server.key -out r.csr &&
             openssl x509 -req -in r.csr -signkey server.key -out server.crt"
        ),
    ])
}

/// The server, and the `sslrootcert` parameter that trusts its own certificate.
fn start(issued: &Issued) -> (TlsServer, String) {
    let server = TlsServer::start(issued, &issued.certificate);
    let trusted = server.server.data_directory().join("server.crt");
    (server, format!("sslrootcert={}", trusted.display()))
}

/// Runs the command in the error; every mode must accept the certificate that it makes.
async fn assert_command_fixes(text: &str) {
    let line = text.split('`').nth(1).unwrap();
    assert!(line.starts_with("openssl req -x509"), "{text}");
    let (server, trusted) = start(&openssl(&[line]));
    for mode in ["require", "verify-ca", "verify-full"] {
        let config = server.with(NAME, &format!("sslmode={mode} {trusted}"));
        assert!(encrypted(&config).await.unwrap(), "{mode}");
    }
}

#[tokio::test]
async fn version_1_is_named_and_the_command_fixes_it() {
    let (server, trusted) = start(&version_1());
    let mut text = String::new();
    for mode in ["require", "verify-ca", "verify-full"] {
        text = refused(&server.with(NAME, &format!("sslmode={mode} {trusted}"))).await;
        assert!(text.contains("certificate is of version 1"), "{mode}: {text}");
    }
    assert_command_fixes(&text).await;
}

#[tokio::test]
async fn a_common_name_only_is_named() {
    let authority = authority("the right one");
    let mut params = CertificateParams::new([]).unwrap();
    params.distinguished_name.push(DnType::CommonName, NAME);
    let server = TlsServer::start(&issue(&authority, params), &authority.pem());
    let path = server.write("right.crt", &authority.pem());
    let trusted = format!("sslrootcert={}", path.display());
    for (host, shown) in [(NAME, "subjectAltName=DNS:db.example"), ("127.0.0.1", "=IP:127.0.0.1")] {
        let text = refused(&server.with(host, &format!("sslmode=verify-full {trusted}"))).await;
        for expected in ["has no subjectAltName", "common name", shown, "sslmode=verify-ca"] {
            assert!(text.contains(expected), "{text}");
        }
    }
    assert!(encrypted(&server.with(NAME, &format!("sslmode=verify-ca {trusted}"))).await.unwrap());
    // The same, self-signed.
    let mut params = CertificateParams::new([]).unwrap();
    params.distinguished_name.push(DnType::CommonName, NAME);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap().pem();
    let (server, trusted) = start(&Issued { certificate, key: key.serialize_pem() });
    let text = refused(&server.with(NAME, &format!("sslmode=verify-full {trusted}"))).await;
    assert!(text.contains("has no subjectAltName"), "{text}");
}

#[tokio::test]
async fn keys_that_are_not_supported_are_named() {
    for (options, kind) in [
        ("-newkey ec -pkeyopt ec_paramgen_curve:P-521", "P-521"),
        ("-newkey rsa-pss -pkeyopt rsa_keygen_bits:2048", "RSA-PSS"),
    ] {
        let (server, trusted) = start(&self_signed(options));
        for mode in ["require", "verify-ca", "verify-full"] {
            let text = refused(&server.with(NAME, &format!("sslmode={mode} {trusted}"))).await;
            for expected in [kind, "not supported", "openssl req -x509", "P-256"] {
                assert!(text.contains(expected), "{mode}: {text}");
            }
        }
    }
}

#[tokio::test]
async fn a_self_signed_certificate_that_is_not_trusted_is_named() {
    let (server, _) = start(&self_signed("-newkey rsa:2048"));
    let other = server.write("other.crt", &authority("another").pem());
    let other = format!("sslrootcert={}", other.display());
    for words in ["sslmode=require", "sslmode=verify-full", &format!("sslmode=verify-ca {other}")] {
        let text = refused(&server.with(NAME, words)).await;
        for expected in ["self-signed", "openssl s_client", "sslrootcert=server.crt"] {
            assert!(text.contains(expected), "{words}: {text}");
        }
    }
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_fallback_to_plain_text_is_logged_once() {
    let p521 = self_signed("-newkey ec -pkeyopt ec_paramgen_curve:P-521");
    for (issued, reason) in [(version_1(), "of version 1"), (p521, "P-521")] {
        let (server, _) = start(&issued);
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::WARN)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        let recording = tracing::subscriber::set_default(subscriber);
        let config = server.with(NAME, "sslmode=prefer");
        let pool = config.build_pool().unwrap();
        for _ in 0..2 {
            drop(deadpool_postgres::Object::take(pool.get().await.unwrap()));
        }
        drop(recording);
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.matches("fell back to plain text").count(), 1, "{text}");
        assert!(text.contains(reason), "{text}");
    }
}
