//! A part of an answer that has not been read yet.

use std::{collections::HashMap, fmt};

use ruma::serde::Raw;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, MapAccess, Visitor},
};
use serde_json::value::RawValue;
use tracing::warn;

/// JSON as it came; only its syntax is known to be right.
#[derive(Clone, Copy)]
pub struct Piece<'a>(&'a RawValue);

impl<'a> Piece<'a> {
    pub fn parse(text: &'a str) -> Option<Self> {
        serde_json::from_str(text).ok().map(Self)
    }

    pub fn json(self) -> &'a str {
        self.0.get()
    }

    /// Without a word if it is malformed.
    pub fn read<T: DeserializeOwned>(self) -> Option<T> {
        serde_json::from_str(self.json()).ok()
    }

    /// Its value. `what` is for the log.
    pub fn value<T: DeserializeOwned>(self, what: &str) -> Option<T> {
        said(self.read(), what)
    }

    pub fn fields(self) -> Option<Fields<'a>> {
        serde_json::from_str(self.json()).ok()
    }

    /// Its fields, none if it is no object.
    pub fn object(self, what: &str) -> Fields<'a> {
        said(self.fields(), what).unwrap_or_default()
    }

    pub fn elements(self) -> Option<Vec<Self>> {
        let list: Vec<&'a RawValue> = serde_json::from_str(self.json()).ok()?;
        Some(list.into_iter().map(Self).collect())
    }

    /// Its elements, none if it is no list.
    pub fn list(self, what: &str) -> Vec<Self> {
        said(self.elements(), what).unwrap_or_default()
    }

    /// To be read later, whatever it is.
    pub fn any<T>(self) -> Raw<T> {
        Raw::from_json(self.0.to_owned())
    }

    /// To be read later, if it is an object at all.
    pub fn raw<T>(self, what: &str) -> Option<Raw<T>> {
        let is_object = self.json().starts_with('{');
        said(is_object.then(|| self.any()), what)
    }
}

/// Log what is not there.
fn said<T>(read: Option<T>, what: &str) -> Option<T> {
    if read.is_none() {
        malformed(what);
    }
    read
}

pub fn malformed(what: &str) {
    warn!("{what:?} is malformed in an answer of the homeserver: skipped");
}

/// An object's fields. `null` is as good as nothing.
#[derive(Clone, Default)]
pub struct Fields<'a>(HashMap<String, Piece<'a>>);

impl<'a> Fields<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn get(&self, name: &str) -> Option<Piece<'a>> {
        self.0.get(name).copied()
    }

    pub fn value<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        self.get(name)?.value(name)
    }

    pub fn object(&self, name: &str) -> Self {
        self.get(name).map(|piece| piece.object(name)).unwrap_or_default()
    }

    pub fn list(&self, name: &str) -> Vec<Piece<'a>> {
        self.get(name).map(|piece| piece.list(name)).unwrap_or_default()
    }
}

impl<'a> IntoIterator for Fields<'a> {
    type Item = (String, Piece<'a>);
    type IntoIter = std::collections::hash_map::IntoIter<String, Piece<'a>>;

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
        // The names too are taken as they came: one that no string can hold costs its entry only.
        while let Some((name, value)) = map.next_entry::<&'de RawValue, &'de RawValue>()? {
            match serde_json::from_str::<String>(name.get()) {
                Ok(_) if value.get() == "null" => {}
                Ok(name) => {
                    fields.insert(name, Piece(value));
                }
                Err(_) => malformed("a name"),
            }
        }
        Ok(Fields(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_malformed_costs_itself_only() {
        let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
        let text = format!(
            r#"{{"a": 1, "\ud800": 2, "b": "\ud800", "c": null, "d": {deep}, "e": [1, "x", 1e999]}}"#
        );
        let fields = Piece::parse(&text).unwrap().object("all");
        assert_eq!(fields.value::<i64>("a"), Some(1));
        assert_eq!(fields.value::<String>("a"), None);
        assert_eq!(fields.value::<String>("b"), None);
        assert!(fields.get("c").is_none() && fields.get("d").is_some());
        let numbers = fields.list("e").into_iter().filter_map(Piece::read::<i64>);
        assert_eq!(numbers.collect::<Vec<_>>(), [1]);
        assert!(fields.object("a").into_iter().next().is_none());
        assert!(Piece::parse("<html>").is_none());
    }
}
