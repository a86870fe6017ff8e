//! A part of a response that is not parsed yet.

use std::{collections::HashMap, fmt};

use ruma::serde::Raw;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, MapAccess, Visitor},
};
use serde_json::value::RawValue;
use tracing::warn;

/// JSON as received; only its syntax has been checked.
#[derive(Clone, Copy)]
pub struct RawJson<'a>(&'a RawValue);

impl<'a> RawJson<'a> {
    pub fn parse(text: &'a str) -> Option<Self> {
        serde_json::from_str(text).ok().map(Self)
    }

    pub fn json(self) -> &'a str {
        self.0.get()
    }

    /// Its value; a malformed one is not logged.
    pub fn read<T: DeserializeOwned>(self) -> Option<T> {
        serde_json::from_str(self.json()).ok()
    }

    /// Its value; a malformed one is logged as `what`.
    pub fn value<T: DeserializeOwned>(self, what: &str) -> Option<T> {
        log_if_none(self.read(), what)
    }

    pub fn fields(self) -> Option<Fields<'a>> {
        serde_json::from_str(self.json()).ok()
    }

    /// Its fields; none, and logged as `what`, if it is no object.
    pub fn object(self, what: &str) -> Fields<'a> {
        log_if_none(self.fields(), what).unwrap_or_default()
    }

    pub fn elements(self) -> Option<Vec<Self>> {
        let list: Vec<&'a RawValue> = serde_json::from_str(self.json()).ok()?;
        Some(list.into_iter().map(Self).collect())
    }

    /// Its elements; none, and logged as `what`, if it is no list.
    pub fn list(self, what: &str) -> Vec<Self> {
        log_if_none(self.elements(), what).unwrap_or_default()
    }

    /// For later deserialization, whatever its type.
    pub fn to_raw<T>(self) -> Raw<T> {
        Raw::from_json(self.0.to_owned())
    }

    /// For later deserialization; `None`, and logged as `what`, if it is no object.
    pub fn raw_object<T>(self, what: &str) -> Option<Raw<T>> {
        let is_object = self.json().starts_with('{');
        log_if_none(is_object.then(|| self.to_raw()), what)
    }
}

fn log_if_none<T>(read: Option<T>, what: &str) -> Option<T> {
    if read.is_none() {
        log_malformed(what);
    }
    read
}

pub fn log_malformed(what: &str) {
    warn!("{what:?} is malformed in the homeserver's response: skipped");
}

/// An object's fields, without those that are `null`.
#[derive(Clone, Default)]
pub struct Fields<'a>(HashMap<String, RawJson<'a>>);

impl<'a> Fields<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn get(&self, name: &str) -> Option<RawJson<'a>> {
        self.0.get(name).copied()
    }

    pub fn value<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        self.get(name)?.value(name)
    }

    pub fn object(&self, name: &str) -> Self {
        self.get(name).map(|json| json.object(name)).unwrap_or_default()
    }

    pub fn list(&self, name: &str) -> Vec<RawJson<'a>> {
        self.get(name).map(|json| json.list(name)).unwrap_or_default()
    }
}

impl<'a> IntoIterator for Fields<'a> {
    type Item = (String, RawJson<'a>);
    type IntoIter = std::collections::hash_map::IntoIter<String, RawJson<'a>>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = HashMap::new();
        // Names are read raw, too: an invalid one (such as a lone surrogate) skips its entry only.
        while let Some((name, value)) = map.next_entry::<&'de RawValue, &'de RawValue>()? {
            match serde_json::from_str::<String>(name.get()) {
                Ok(_) if value.get() == "null" => {}
                Ok(name) => {
                    fields.insert(name, RawJson(value));
                }
                Err(_) => log_malformed("a name"),
            }
        }
        Ok(Fields(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_malformed_entries_are_skipped() {
        let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
        let text = format!(
            r#"{{"a": 1, "\ud800": 2, "b": "\ud800", "c": null, "d": {deep}, "e": [1, "x", 1e999]}}"#
        );
        let fields = RawJson::parse(&text).unwrap().object("all");
        assert_eq!(fields.value::<i64>("a"), Some(1));
        assert_eq!(fields.value::<String>("a"), None);
        assert_eq!(fields.value::<String>("b"), None);
        assert!(fields.get("c").is_none() && fields.get("d").is_some());
        let numbers = fields.list("e").into_iter().filter_map(RawJson::read::<i64>);
        assert_eq!(numbers.collect::<Vec<_>>(), [1]);
        assert!(fields.object("a").into_iter().next().is_none());
        assert!(RawJson::parse("<html>").is_none());
    }
}
