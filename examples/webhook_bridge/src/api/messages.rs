//! `GET /api/v1/messages/{label or room}`.

use std::sync::Arc;

use axum::{
    Json,
    extract::{
        Path, Query, State,
        rejection::{PathRejection, QueryRejection},
    },
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::warn;

use super::{Api, Backend, reply::Error};
use crate::{
    inbox::{SealedMessage, Slice, Target},
    timeline::storable,
};

const DEFAULT_LIMIT: i64 = 50;
const MAX_LIMIT: i64 = 100;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    limit: Option<String>,
    after: Option<String>,
    before: Option<String>,
}

/// A page of messages, oldest first. The README and `openapi.json` describe it: change them, too.
#[derive(Serialize)]
pub struct Page {
    messages: Vec<Value>,
    /// The cursor for newer messages, also those to come.
    after: Option<String>,
    /// The cursor for older messages; `null` if there are none, or the page is empty.
    before: Option<String>,
}

pub async fn get(
    State(api): State<Arc<Api>>,
    path: Result<Path<String>, PathRejection>,
    parameters: Result<Query<Parameters>, QueryRejection>,
) -> Result<Json<Page>, Error> {
    let Path(name) = path.map_err(|_| Error::Parameter("the label or room is malformed"))?;
    let Query(parameters) = parameters
        .map_err(|_| Error::Parameter("the parameters are limit, after and before, each once"))?;
    let limit = limit(parameters.limit.as_deref())?;
    let slice = Slice {
        after: parameters.after.as_deref().map(cursor).transpose()?,
        before: parameters.before.as_deref().map(cursor).transpose()?,
        // One more tells whether there are others.
        limit: limit + 1,
        max_age: api.config.max_age,
    };
    let backend = api.backend()?;
    let target = target(backend, &name).await?;
    let mut sealed = backend.inbox.sealed_messages(&target, &slice).await?;
    let more = sealed.len() as i64 > limit;
    let forwards = slice.after.is_some();
    if more {
        // The one that is too much is the newest when paging forwards, and the oldest otherwise.
        let extra = if forwards { sealed.len() - 1 } else { 0 };
        sealed.remove(extra);
    }
    let ids = (sealed.first().map(|message| message.id), sealed.last().map(|message| message.id));
    let has_older = match ids.0 {
        Some(first) if forwards => {
            let older = Slice { after: None, before: Some(first), limit: 1, ..slice };
            !backend.inbox.sealed_messages(&target, &older).await?.is_empty()
        }
        _ => more,
    };
    let older = ids.0.filter(|_| has_older);
    Ok(Json(Page {
        after: ids.1.or(slice.after).map(|id| id.to_string()),
        before: older.map(|id| id.to_string()),
        messages: sealed.iter().filter_map(|message| unseal(backend, message)).collect(),
    }))
}

fn limit(given: Option<&str>) -> Result<i64, Error> {
    let Some(given) = given else { return Ok(DEFAULT_LIMIT) };
    let number = given.parse().ok().filter(|number| (1..=MAX_LIMIT).contains(number));
    number.ok_or(Error::Parameter("limit is a number from 1 to 100"))
}

fn cursor(given: &str) -> Result<i64, Error> {
    let digits = (1..=18).contains(&given.len()) && given.bytes().all(|one| one.is_ascii_digit());
    let number = digits.then(|| given.parse().ok()).flatten();
    number.ok_or(Error::Parameter("after and before are cursors of an earlier response"))
}

async fn target(backend: &Backend, name: &str) -> Result<Target, Error> {
    if name.starts_with('!') {
        if !storable(name) {
            return Err(Error::Parameter("the room id is malformed"));
        }
        let rooms = backend.inbox.known_rooms(&[name.to_owned()]).await?;
        let known = rooms.contains_key(name);
        return known.then(|| Target::Room(name.to_owned())).ok_or(Error::Unknown("unknown room"));
    }
    let known = backend.labels.0.iter().any(|rule| rule.name == name);
    known.then(|| Target::Label(name.to_owned())).ok_or(Error::Unknown("unknown label"))
}

/// A row that another one was copied over is left out.
fn unseal(backend: &Backend, message: &SealedMessage) -> Option<Value> {
    let unsealed = backend.sealer.unseal::<Value>(&message.sealed);
    let unsealed = unsealed.filter(|json| {
        json["event_id"] == message.event_id.as_str() && json["room_id"] == message.room_id.as_str()
    });
    if unsealed.is_none() {
        warn!(event_id = message.event_id, "a sealed message cannot be read: it is left out");
    }
    unsealed
}
