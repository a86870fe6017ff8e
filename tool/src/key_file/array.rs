//! A JSON array, value by value.

use std::{fmt, io::Read};

use serde::{
    Deserializer,
    de::{SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::KeyFileError;

/// Calls `see` with each value of the array; ends when it says so, or with the array.
pub fn each(
    json: impl Read,
    see: impl FnMut(&RawValue) -> Result<(), ()>,
) -> Result<(), KeyFileError> {
    let mut deserializer = serde_json::Deserializer::from_reader(json);
    let walked = deserializer.deserialize_seq(Values(see));
    walked.and_then(|()| deserializer.end()).map_err(|error| match error.is_io() {
        true => KeyFileError::Io(error.into()),
        // Its message may quote a key.
        false => KeyFileError::Content,
    })
}

struct Values<F>(F);

impl<'de, F: FnMut(&RawValue) -> Result<(), ()>> Visitor<'de> for Values<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut array: A) -> Result<(), A::Error> {
        while let Some(value) = array.next_element::<Box<RawValue>>()? {
            if (self.0)(&value).is_err() {
                return Err(serde::de::Error::custom("ended"));
            }
        }
        Ok(())
    }
}
