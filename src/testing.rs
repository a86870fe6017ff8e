//! stub
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
pub struct TestDatabase {
    name: String,
}
impl TestDatabase {
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:54999/{}", self.name)
    }
}
static N: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
pub fn database() -> Result<TestDatabase, String> {
    let name =
        format!("t{}_{}", std::process::id(), N.fetch_add(1, std::sync::atomic::Ordering::SeqCst));
    let o = std::process::Command::new("psql")
        .args([
            "-h",
            "127.0.0.1",
            "-p",
            "54999",
            "-U",
            "postgres",
            "-c",
            &format!("create database {name}"),
        ])
        .output()
        .unwrap();
    assert!(o.status.success(), "{o:?}");
    Ok(TestDatabase { name })
}
