//! The attachment of a message: a file, image, recording or sticker on the homeserver.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a document says about an attachment. The README has a sample: change both.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Attachment {
    /// As the sender gave it: not to be used as a path.
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mimetype: Option<String>,
    /// Bytes, as the sender gave it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    pub encrypted: bool,
    /// Where the bridge's API serves it decrypted; only with `BRIDGE_ATTACHMENTS=download`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// Where an attachment is, and its key. Sealed in the path of its download.
#[derive(Debug, Deserialize, Serialize)]
pub struct Source {
    /// `mxc://server/id`.
    pub url: String,
    /// The encrypted file's object of the content, with the key.
    pub file: Option<Value>,
    pub name: String,
    pub mimetype: Option<String>,
}

/// Takes the attachment of a content, if it has one, and removes the keys from the content unless
/// `keep_keys`.
pub fn take(kind: &str, content: &mut Value, keep_keys: bool) -> Option<(Attachment, Source)> {
    let found = read(kind, content);
    if !keep_keys {
        remove_keys(content);
    }
    found
}

fn read(kind: &str, content: &Value) -> Option<(Attachment, Source)> {
    // An edit holds the attachment as it is now.
    let content = match &content["m.new_content"] {
        Value::Object(_) => &content["m.new_content"],
        _ => content,
    };
    let is_file =
        matches!(content["msgtype"].as_str(), Some("m.file" | "m.image" | "m.audio" | "m.video"));
    if !is_file && kind != "m.sticker" {
        return None;
    }
    let text = |value: &Value| value.as_str().map(ToOwned::to_owned);
    let file = Some(&content["file"]).filter(|file| file.is_object());
    let url = file.map_or(&content["url"], |file| &file["url"]);
    let name = text(&content["filename"]).or_else(|| text(&content["body"])).unwrap_or_default();
    let mimetype = text(&content["info"]["mimetype"]);
    let source = Source {
        url: text(url)?,
        file: file.cloned(),
        name: name.clone(),
        mimetype: mimetype.clone(),
    };
    let size = content["info"]["size"].as_u64();
    Some((Attachment { name, mimetype, size, encrypted: file.is_some(), path: None }, source))
}

/// Leaves of encrypted files only where they are, at any depth: clients repeat them in fields of their own,
/// as Element does with a voice message.
fn remove_keys(value: &mut Value) {
    match value {
        Value::Object(fields)
            if fields.contains_key("key")
                && (fields.contains_key("iv") || fields.contains_key("hashes")) =>
        {
            fields.retain(|name, _| name == "url");
        }
        Value::Object(fields) => fields.values_mut().for_each(remove_keys),
        Value::Array(values) => values.iter_mut().for_each(remove_keys),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn content() -> Value {
        let file = |url: &str| {
            json!({"url": url, "v": "v2", "iv": "iv", "key": {"k": "secret"},
                "hashes": {"sha256": "h"}})
        };
        json!({"msgtype": "m.image", "body": "a caption", "filename": "cat.png",
            "file": file("mxc://x/1"),
            "info": {"mimetype": "image/png", "size": 7, "thumbnail_file": file("mxc://x/2")},
            "org.matrix.msc1767.file": {"name": "cat.png", "file": file("mxc://x/1")}})
    }

    #[test]
    fn keys_are_removed_unless_they_are_passed_on() {
        let mut with_keys = content();
        let (attachment, source) = take("m.room.message", &mut with_keys, true).unwrap();
        assert_eq!(with_keys, content());
        assert_eq!(source.file.unwrap()["key"]["k"], "secret");
        let expected =
            json!({"name": "cat.png", "mimetype": "image/png", "size": 7, "encrypted": true});
        assert_eq!(serde_json::to_value(attachment).unwrap(), expected);

        let mut without = json!({"msgtype": "m.image", "body": "*", "m.new_content": content()});
        let (attachment, _) = take("m.room.message", &mut without, false).unwrap();
        assert_eq!(attachment.name, "cat.png");
        assert_eq!(without["m.new_content"]["file"], json!({"url": "mxc://x/1"}));
        assert!(!without.to_string().contains("secret"));
    }

    #[test]
    fn stickers_and_unencrypted_files_are_attachments_and_texts_are_not() {
        let mut sticker = json!({"body": "hi", "url": "mxc://x/1", "info": {}});
        let (attachment, source) = take("m.sticker", &mut sticker, false).unwrap();
        assert_eq!((attachment.encrypted, source.url.as_str()), (false, "mxc://x/1"));
        let mut text = json!({"msgtype": "m.text", "body": "hi", "url": "mxc://x/1"});
        assert_eq!(take("m.room.message", &mut text, false).map(|found| found.0), None);
        let mut no_url = json!({"msgtype": "m.file", "body": "hi", "url": 7});
        assert!(take("m.room.message", &mut no_url, false).is_none());
    }
}
