//! The requests to a scope. They own their data, because the task that sends one may end before the
//! answer.

use std::fmt;

use bytes::BytesMut;
use tokio::sync::oneshot;
use tokio_postgres::{
    Row,
    types::{IsNull, ToSql, Type, to_sql_checked},
};

use crate::{
    DatabaseError, Error,
    account::write::lane::Stage,
    postgres::{database::Param, statement::Sql},
};

/// Sends the answer to the requesting task.
pub(crate) type ReplySender<T> = oneshot::Sender<Result<T, Error>>;

pub(crate) enum Request {
    /// A save in the lane with this index.
    Save(usize, Stage, ReplySender<()>),
    /// A read of a store.
    Read(Query, ReplySender<Vec<Row>>),
    /// A statement of the application.
    Application(Query, ReplySender<(Vec<Row>, u64)>),
    Commit(ReplySender<()>),
}

/// A statement with its parameters.
#[derive(Clone)]
pub(crate) struct Query {
    pub(crate) text: Text,
    params: Vec<Encoded>,
}

#[derive(Clone)]
pub(crate) enum Text {
    Store(&'static Sql),
    Application(String, Vec<Type>),
}

impl Query {
    pub(crate) fn store(sql: &'static Sql, params: &[Param<'_>]) -> Result<Self, Error> {
        let params = params.iter().zip(sql.types()).map(|(param, ty)| Encoded::new(*param, &ty));
        Ok(Self { text: Text::Store(sql), params: params.collect::<Result<_, _>>()? })
    }

    pub(crate) fn application(sql: &str, params: &[(Param<'_>, Type)]) -> Result<Self, Error> {
        let types = params.iter().map(|(_, ty)| ty.clone()).collect();
        let params = params.iter().map(|(param, ty)| Encoded::new(*param, ty));
        let params = params.collect::<Result<_, _>>()?;
        Ok(Self { text: Text::Application(sql.to_owned(), types), params })
    }

    pub(crate) fn params(&self) -> Vec<Param<'_>> {
        self.params.iter().map(|param| param as Param<'_>).collect()
    }
}

/// A parameter, encoded by the requesting task.
#[derive(Clone)]
struct Encoded(Option<Vec<u8>>);

impl Encoded {
    fn new(param: Param<'_>, ty: &Type) -> Result<Self, Error> {
        let mut bytes = BytesMut::new();
        match param.to_sql_checked(ty, &mut bytes) {
            Ok(IsNull::Yes) => Ok(Self(None)),
            Ok(IsNull::No) => Ok(Self(Some(bytes.to_vec()))),
            // The error's text may quote the value.
            Err(_) => {
                let message = format!("a parameter cannot be sent as {ty}: give another type");
                Err(DatabaseError::permanent(message).into())
            }
        }
    }
}

/// Prints no value, because tokio-postgres logs parameters at `debug`.
impl fmt::Debug for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("_")
    }
}

impl ToSql for Encoded {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        let Some(bytes) = &self.0 else { return Ok(IsNull::Yes) };
        out.extend_from_slice(bytes);
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        // The type was checked when the parameter was encoded.
        true
    }

    to_sql_checked!();
}
