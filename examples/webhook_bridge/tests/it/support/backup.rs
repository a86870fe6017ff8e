//! The key backup of the mock homeserver.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Reply, homeserver::Call};

#[derive(Default)]
pub struct Backup {
    versions: usize,
    /// Algorithm and `auth_data`; `None` if there is no backup.
    info: Option<Value>,
    /// By room and session.
    pub keys: BTreeMap<(String, String), Value>,
    /// The number of keys of each upload.
    pub uploads: Vec<usize>,
}

impl Backup {
    /// Create a backup, as another client does, in the place of the one that there may be.
    pub fn replace(&mut self, info: Value) {
        self.versions += 1;
        self.info = Some(info);
        self.keys.clear();
    }

    fn version(&self) -> String {
        self.versions.to_string()
    }

    pub fn reply(&mut self, call: &Call, path: &[&str]) -> Reply {
        let missing = || Reply::json(404, json!({"errcode": "M_NOT_FOUND"}));
        let is_current = call.query.get("version") == Some(&self.version());
        match (call.method.as_str(), path) {
            ("GET", ["version"]) => {
                let Some(mut info) = self.info.clone() else { return missing() };
                info["version"] = json!(self.version());
                info["count"] = json!(self.keys.len());
                info["etag"] = json!(self.uploads.len().to_string());
                Reply::json(200, info)
            }
            ("POST", ["version"]) => {
                self.replace(call.body.clone());
                Reply::json(200, json!({"version": self.version()}))
            }
            ("PUT", ["keys"]) if !is_current => {
                let error = json!({"errcode": "M_WRONG_ROOM_KEYS_VERSION",
                    "current_version": self.version()});
                Reply::json(403, error)
            }
            ("PUT", ["keys"]) => {
                let before = self.keys.len();
                for (room, keys) in call.body["rooms"].as_object().into_iter().flatten() {
                    for (session, key) in keys["sessions"].as_object().into_iter().flatten() {
                        let index = |key: &Value| key["first_message_index"].as_u64();
                        let id = (room.clone(), session.clone());
                        // A worse version does not replace a better one.
                        if self.keys.get(&id).is_none_or(|known| index(key) < index(known)) {
                            self.keys.insert(id, key.clone());
                        }
                    }
                }
                self.uploads.push(self.keys.len() - before);
                Reply::json(200, json!({"etag": "1", "count": self.keys.len()}))
            }
            // A session id may contain slashes.
            ("GET", ["keys", room, session @ ..]) if is_current => {
                match self.keys.get(&((*room).to_owned(), session.join("/"))) {
                    Some(key) => Reply::json(200, key.clone()),
                    None => missing(),
                }
            }
            _ => missing(),
        }
    }
}
