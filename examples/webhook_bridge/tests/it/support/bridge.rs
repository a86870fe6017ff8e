//! The bridge as a process, with a clean environment.

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use tokio::time::sleep;

use super::record::lock;

pub struct Bridge {
    child: Child,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    port: u16,
    directory: PathBuf,
}

/// An empty working directory, so that no `.env` is read.
fn directory() -> PathBuf {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("webhook_bridge-{}-{number}", std::process::id());
    let directory = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

impl Bridge {
    /// `settings` are environment variables; names that start with `--` are flags.
    pub fn start(settings: &[(&str, &str)]) -> Self {
        Self::start_in(directory(), settings)
    }

    pub fn start_in(directory: PathBuf, settings: &[(&str, &str)]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new(env!("CARGO_BIN_EXE_webhook_bridge"));
        command
            .env_clear()
            .env("BRIDGE_LISTEN", format!("127.0.0.1:{port}"))
            .current_dir(&directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        for name in ["PATH", "HOME", "PG_BIN", "TMPDIR"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        for (name, value) in settings {
            match name.strip_prefix("--") {
                Some(_) => {
                    command.arg(name);
                    if !value.is_empty() {
                        command.arg(value);
                    }
                }
                None => {
                    command.env(name, value);
                }
            }
        }
        let mut child = command.spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (lines, target) = (BufReader::new(child.stderr.take().unwrap()).lines(), log.clone());
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut log = lock(&target);
                log.push_str(&line);
                log.push('\n');
            }
        });
        Self { child, log, reader: Some(reader), port, directory }
    }

    /// Run a command to its end. Returns the exit code and the standard output.
    // Not used by the soak test.
    #[allow(dead_code)]
    pub async fn run(settings: &[(&str, &str)], arguments: &[&str]) -> (i32, String) {
        let directory = directory();
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_webhook_bridge"));
        command.env_clear().envs(settings.iter().copied()).args(arguments).current_dir(&directory);
        let output = command.output().await.unwrap();
        let _ = std::fs::remove_dir_all(directory);
        (output.status.code().unwrap_or(-1), String::from_utf8(output.stdout).unwrap())
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn log(&self) -> String {
        lock(&self.log).clone()
    }

    /// Of its probes and metrics.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Status and body of an endpoint; `None` while there is no response.
    pub async fn get(&self, path: &str) -> Option<(u16, String)> {
        self.get_with_token(path, "").await
    }

    pub async fn get_with_token(&self, path: &str, token: &str) -> Option<(u16, String)> {
        let url = format!("http://{}{path}", self.address());
        let (status, body) = Self::get_url(&url, token).await?;
        Some((status, String::from_utf8(body).unwrap()))
    }

    pub async fn get_url(url: &str, token: &str) -> Option<(u16, Vec<u8>)> {
        let request = reqwest_client().get(url).timeout(Duration::from_secs(10));
        let request = if token.is_empty() { request } else { request.bearer_auth(token) };
        let answer = request.send().await.ok()?;
        Some((answer.status().as_u16(), answer.bytes().await.ok()?.to_vec()))
    }

    /// A metric's value; `name` includes the labels.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let (_, text) = self.get("/metrics").await?;
        let name = format!("webhook_bridge_{name} ");
        text.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok())
    }

    pub async fn until(&self, what: &str, mut met: impl AsyncFnMut(&Self) -> bool) {
        for _ in 0..1200 {
            if met(self).await {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
        panic!("waited too long for {what}:\n{}", self.log());
    }

    pub async fn ready(&self) {
        self.until("the bridge to be ready", async |bridge| {
            matches!(bridge.get("/readyz").await, Some((200, _)))
        })
        .await;
    }

    pub async fn until_logged(&self, text: &str) {
        self.until(&format!("the log to contain {text:?}"), async |bridge| {
            bridge.log().contains(text)
        })
        .await;
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status().unwrap();
        assert!(sent.success());
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Wait for the process to exit. Returns the exit code.
    pub async fn ended(&mut self) -> i32 {
        for _ in 0..1200 {
            if let Some(status) = self.child.try_wait().unwrap() {
                if let Some(reader) = self.reader.take() {
                    reader.join().unwrap();
                }
                return status.code().unwrap_or(-1);
            }
            sleep(Duration::from_millis(50)).await;
        }
        panic!("the bridge does not exit:\n{}", self.log());
    }

    /// SIGKILL.
    pub async fn kill(&mut self) {
        self.child.kill().unwrap();
        self.ended().await;
    }

    /// SIGTERM.
    pub async fn stop(&mut self) -> i32 {
        self.signal("TERM");
        self.ended().await
    }
}

fn reqwest_client() -> &'static reqwest::Client {
    static CLIENT: std::sync::OnceLock<reqwest::Client> = std::sync::OnceLock::new();
    CLIENT.get_or_init(|| {
        // No test uses TLS, but the client requires a provider.
        let _ = rustls::crypto::ring::default_provider().install_default();
        reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap()
    })
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
        if std::thread::panicking() {
            eprintln!("the bridge's log:\n{}", self.log());
        }
    }
}
