//! A homeserver, as far as the tool asks it.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    sync::{Arc, Mutex},
    thread,
};

use serde_json::{Value, json};

/// Path, status and body.
type Answers = Arc<Mutex<Vec<(&'static str, &'static str, Value)>>>;

/// Answers each path with what was set for it; others are not found.
pub struct Homeserver {
    pub url: String,
    answers: Answers,
}

impl Homeserver {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answers = Answers::default();
        let shared = answers.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let (mut line, mut length, mut is_ours) = (String::new(), 0, false);
                reader.read_line(&mut line).unwrap();
                loop {
                    let mut header = String::new();
                    reader.read_line(&mut header).unwrap();
                    let header = header.trim().to_lowercase();
                    if header.is_empty() {
                        break;
                    }
                    is_ours |= header == "authorization: bearer secret-token";
                    if let Some(value) = header.strip_prefix("content-length: ") {
                        length = value.parse().unwrap();
                    }
                }
                reader.read_exact(&mut vec![0; length]).unwrap();
                let answers = shared.lock().unwrap();
                let found = answers.iter().rev().find(|(path, ..)| line.contains(path));
                let (status, body) = match found {
                    _ if !is_ours => ("401 Unauthorized", json!({ "errcode": "M_UNKNOWN_TOKEN" })),
                    Some((_, status, body)) => (*status, body.clone()),
                    None => ("404 Not Found", json!({ "errcode": "M_NOT_FOUND" })),
                };
                let body = body.to_string();
                let length = body.len();
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-type: application/json\r\n\
                     content-length: {length}\r\n\r\n{body}"
                );
            }
        });
        Self { url, answers }
    }

    pub fn set(&self, path: &'static str, answer: Value) {
        self.answers.lock().unwrap().push((path, "200 OK", answer));
    }

    pub fn set_status(&self, path: &'static str, status: &'static str) {
        self.answers.lock().unwrap().push((path, status, json!({})));
    }
}
