//! Requests for secrets and room keys to the user's own devices, sent and unsent.

use std::collections::HashSet;

use matrix_sdk_common::ruma::TransactionId;
use matrix_sdk_crypto::{GossipRequest, SecretInfo};
use tokio_postgres::{Row, types::Type};

use super::deferred::{self, Group as Deferred, RowKey, Saves};
use crate::{
    Error,
    account::{
        StoreLane,
        cache::{CacheKey, CacheUpdate},
        cancellation::Cancellation,
        cipher::{Codec, Key, column},
        write::batch::Batch,
    },
    postgres::{
        cell::{Cell, Cells},
        statement::{CacheIndex, Delete, ExpectedRows, Sql, Table, Write, bytea},
    },
};

const TABLE: &str = KEY_REQUESTS.name;

pub(crate) static KEY_REQUESTS: Table =
    Table { name: "key_requests", key: &[bytea("request_id")], values: &[], cache: Some(&UNSENT) };

// One group: the unsent requests are read together; there are few.
static UNSENT: CacheIndex = CacheIndex {
    table: &KEY_REQUESTS,
    group: &GET_UNSENT,
    row: None,
    keys: None,
    prefetch: None,
    row_key: 1,
    keeps_rows: true,
};

macro_rules! select {
    ($condition:literal) => {
        concat!(
            "SELECT request_id, data, sent_out FROM {schema}.key_requests WHERE account_id = $1 ",
            $condition
        )
    };
}

static GET: Sql =
    Sql::new("key_requests.get", select!("AND request_id = $2"), &[Type::INT8, Type::BYTEA]);

static BY_INFO: Sql =
    Sql::new("key_requests.by_info", select!("AND info = $2 LIMIT 1"), &[Type::INT8, Type::BYTEA]);

static GET_UNSENT: Sql =
    Sql::new("key_requests.unsent", select!("AND NOT sent_out"), &[Type::INT8]);

// A request for the same secret replaces the older one, whatever its id. ON CONFLICT names one index
// only, and a CTE does not see its sibling's changes, so a DELETE comes first, then an INSERT.
static DELETE_OLDER: Write = Write {
    table: &KEY_REQUESTS,
    expected_rows: ExpectedRows::Any,
    sql: Sql::new(
        "key_requests.delete_older",
        "
DELETE FROM {schema}.key_requests
WHERE account_id = $1 AND {guarded} AND (info = ANY ($2) OR request_id = ANY ($3))",
        &[Type::INT8, Type::BYTEA_ARRAY, Type::BYTEA_ARRAY],
    ),
};

static INSERT: Write = Write {
    table: &KEY_REQUESTS,
    expected_rows: ExpectedRows::Each,
    sql: Sql::new(
        "key_requests.insert",
        "
INSERT INTO {schema}.key_requests (account_id, info, request_id, sent_out, data)
SELECT o.account_id, u.info, u.request_id, u.sent_out, u.data
FROM {schema}.account_owners o
CROSS JOIN unnest($2, $3, $4, $5) AS u (info, request_id, sent_out, data)
WHERE o.account_id = $1 AND {guarded}",
        &[Type::INT8, Type::BYTEA_ARRAY, Type::BYTEA_ARRAY, Type::BOOL_ARRAY, Type::BYTEA_ARRAY],
    ),
};

static DELETE: Delete = Delete::new("key_requests.delete", &KEY_REQUESTS);

pub(super) const STATEMENTS: &[&Sql] =
    &[&GET, &BY_INFO, &GET_UNSENT, &DELETE_OLDER.sql, &INSERT.sql, DELETE.sql()];

pub(super) async fn get(
    account: &StoreLane,
    saves: &Saves,
    request_id: &TransactionId,
) -> Result<Option<GossipRequest>, Error> {
    let request_id = key(&account.codec, request_id);
    if saves.row(&row_key(&request_id)).is_some() {
        return Ok(None);
    }
    let row = account.query_opt(&GET, &[&request_id]).await?;
    row.map(|row| open_row(&account.codec, &row)).transpose()
}

pub(super) async fn by_info(
    account: &StoreLane,
    saves: &Saves,
    info: &SecretInfo,
) -> Result<Option<GossipRequest>, Error> {
    let deleted = saves.rows(&Deferred::KeyRequests);
    let row = account.query_opt(&BY_INFO, &[&info_key(&account.codec, info)]).await?;
    let Some(row) = row else { return Ok(None) };
    if deleted.contains_key(&Key::of(&row, 0, TABLE)?) {
        return Ok(None);
    }
    open_row(&account.codec, &row).map(Some)
}

pub(super) async fn unsent(
    account: &StoreLane,
    saves: &Saves,
) -> Result<Vec<GossipRequest>, Error> {
    let deleted = saves.rows(&Deferred::KeyRequests);
    let rows = deferred::merge(account.rows(&UNSENT, Cells::default()).await?, deleted);
    let requests = rows.iter().map(|(key, row)| {
        let key = Key::of_cell(key, 0, TABLE)?;
        open(&account.codec, &key, row.bytes(0, TABLE)?, row.bool(1, TABLE)?)
    });
    requests.collect()
}

/// Deletes a request that was answered, deferred: the request must stay until the answer is stored.
pub(super) async fn delete(
    account: &StoreLane,
    saves: Saves,
    request_id: &TransactionId,
) -> Result<(), Error> {
    let request_id = key(&account.codec, request_id);
    let (_guard, cancellation) = Cancellation::new();
    let stage = |_| async move {
        let deleted = row_key(&request_id);
        let mut batch = Batch::default();
        if !saves.may_defer() || !saves.defer(&cancellation, [(deleted.clone(), None)])? {
            stage_delete(&mut batch, &request_id);
            saves.complete(&mut batch, vec![deleted], false)?;
        }
        Ok(batch)
    };
    account.write(stage).await
}

pub(super) fn stage_delete(batch: &mut Batch, request_id: &Key) {
    batch.delete(&DELETE, [request_id]);
}

/// Stages all requests of one call. Of those with the same secret or id, the last one is stored; the
/// rows that the others replace are deleted all the same.
pub(super) fn stage(
    batch: &mut Batch,
    codec: &Codec,
    requests: &[GossipRequest],
) -> Result<Vec<RowKey>, Error> {
    let (mut infos, mut request_ids) = (HashSet::new(), HashSet::new());
    let mut staged = Vec::new();
    for request in requests.iter().rev() {
        let request_id = key(codec, &request.request_id);
        staged.push(row_key(&request_id));
        let data = codec.seal(TABLE, &[&request_id], request)?;
        let info = info_key(codec, &request.info);
        // The rows that this deletes are not known here, so their group is invalidated.
        let update = || [CacheUpdate::InvalidateGroup(CacheKey::new(&UNSENT, Cells::default()))];
        batch.write(&DELETE_OLDER, [&info, &request_id], Cells::default(), update());
        let is_last = infos.insert(request.info.as_key());
        if request_ids.insert(&request.request_id) && is_last {
            let values = [request_id.into(), Cell::Bool(request.sent_out), data.into()];
            batch.write(&INSERT, [info], values, update());
        }
    }
    Ok(staged)
}

fn row_key(request_id: &Key) -> RowKey {
    (Deferred::KeyRequests, request_id.clone())
}

fn key(codec: &Codec, request_id: &TransactionId) -> Key {
    codec.key(TABLE, request_id.as_bytes())
}

fn info_key(codec: &Codec, info: &SecretInfo) -> Key {
    codec.key(TABLE, info.as_key())
}

fn open_row(codec: &Codec, row: &Row) -> Result<GossipRequest, Error> {
    open(codec, &Key::of(row, 0, TABLE)?, column(row, 1, TABLE)?, column(row, 2, TABLE)?)
}

fn open(codec: &Codec, key: &Key, data: &[u8], sent_out: bool) -> Result<GossipRequest, Error> {
    let mut request: GossipRequest = codec.open(TABLE, &[key], data)?;
    request.sent_out = sent_out;
    Ok(request)
}
