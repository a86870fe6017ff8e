//! The `tracing` spans and their OpenTelemetry fields.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, Mutex},
};

use matrix_sdk_crypto::{CryptoStoreError, store::CryptoStore};
use matrix_sdk_postgres::{PostgresCryptoStore, testing};
use test_support::{Mode, connect};
use tracing::{
    Id, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Record},
};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt},
    registry::LookupSpan,
};

/// A span: its name, its parent's, and its fields.
#[derive(Clone, Debug, Default)]
struct RecordedSpan {
    name: &'static str,
    parent: Option<&'static str>,
    fields: BTreeMap<&'static str, String>,
}

impl Visit for RecordedSpan {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.fields.insert(field.name(), format!("{value:?}").trim_matches('"').to_owned());
    }
}

/// Collects the crate's spans when they are closed.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<RecordedSpan>>>);

impl Collector {
    fn take(&self) -> Vec<RecordedSpan> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }

    /// The single database span since the last call.
    fn one(&self) -> RecordedSpan {
        let mut seen = self.take();
        seen.retain(|span| span.name == "database");
        assert_eq!(seen.len(), 1, "{seen:?}");
        seen.pop().unwrap()
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Collector {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let span = context.span(id).unwrap();
        let parent = span.parent().map(|parent| parent.name());
        let mut seen = RecordedSpan { name: span.name(), parent, ..Default::default() };
        attributes.record(&mut seen);
        span.extensions_mut().insert(seen);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let span = context.span(id).unwrap();
        values.record(span.extensions_mut().get_mut::<RecordedSpan>().unwrap());
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let span = context.span(&id).unwrap();
        if span.metadata().target().starts_with("matrix_sdk_postgres") {
            self.0.lock().unwrap().push(span.extensions().get::<RecordedSpan>().unwrap().clone());
        }
    }
}

/// The fields of a database span without those that every database span has.
fn specific_fields(span: &RecordedSpan) -> BTreeMap<&'static str, &str> {
    let mut fields: BTreeMap<_, _> =
        span.fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
    assert_eq!(fields.remove("db.system.name"), Some("postgresql"));
    assert_eq!(fields.remove("otel.kind"), Some("client"));
    fields
}

async fn open() -> (testing::TestDatabase, PostgresCryptoStore) {
    let database = testing::database().unwrap();
    let store = Mode::Key.open_uncached(&database.url(), "bot").await;
    (database, store)
}

#[tokio::test]
async fn spans_of_statements_and_commits_are_the_operations_children() {
    let (_database, store) = open().await;
    let collector = Collector::default();
    let subscriber = tracing_subscriber::registry().with(collector.clone());
    let _set = tracing::subscriber::set_default(subscriber);

    store.get_custom_value("secret-key").await.unwrap();
    let read = collector.one();
    assert_eq!(read.parent, Some("get_custom_value"));
    let expected = [
        ("db.collection.name", "custom_values"),
        ("db.operation.name", "SELECT"),
        ("db.query.summary", "custom_values.get"),
    ];
    assert_eq!(specific_fields(&read), BTreeMap::from(expected));

    store.set_custom_value("secret-key", b"secret-value".to_vec()).await.unwrap();
    let write = collector.one();
    assert_eq!(write.parent, Some("set_custom_value"));
    assert_eq!(specific_fields(&write), BTreeMap::from([("db.operation.name", "COMMIT")]));

    let within = store.atomically(async {
        store.transaction().await?.execute("SELECT 'secret-value'", &[]).await?;
        Ok::<_, CryptoStoreError>(())
    });
    within.await.unwrap();
    let spans = collector.take();
    let names: Vec<_> =
        spans.iter().map(|span| specific_fields(span)["db.operation.name"]).collect();
    assert_eq!(names, ["EXECUTE", "COMMIT"]);
    assert!(!format!("{spans:?}{read:?}{write:?}").contains("secret"));
}

#[tokio::test]
async fn a_failure_is_a_spans_error() {
    let (database, store) = open().await;
    store.set_custom_value("secret-key", b"secret-value".to_vec()).await.unwrap();
    let client = connect(&database.url()).await;
    client.batch_execute("ALTER TABLE matrix_sdk.custom_values RENAME TO gone").await.unwrap();
    let collector = Collector::default();
    let subscriber = tracing_subscriber::registry().with(collector.clone());
    let _set = tracing::subscriber::set_default(subscriber);

    store.set_custom_value("secret-key", b"secret-value".to_vec()).await.unwrap_err();
    store.get_custom_value("secret-key").await.unwrap_err();
    let mut spans = collector.take();
    spans.retain(|span| span.name == "database");
    for operation in ["COMMIT", "SELECT"] {
        let failed =
            spans.iter().find(|span| specific_fields(span)["db.operation.name"] == operation);
        let failed = failed.unwrap_or_else(|| panic!("no {operation} in {spans:?}"));
        let fields = specific_fields(failed);
        assert_eq!(fields["otel.status_code"], "ERROR", "{fields:?}");
        assert_eq!(fields["db.response.status_code"], "42P01");
        assert_eq!(fields["error.type"], "42P01");
    }
    assert!(!format!("{spans:?}").contains("secret"));
}
