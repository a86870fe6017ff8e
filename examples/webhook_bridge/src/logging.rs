//! Logs to stderr, as text or as JSON.

use std::io::IsTerminal;

use tracing::{Metadata, Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt, filter_fn},
    fmt::{MakeWriter, format::debug_fn},
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};

use crate::{
    config::{Args, LogFormat},
    errors::BridgeError,
    untrusted::printable,
};

/// At debug and trace level these crates log secrets: statement parameters and URLs.
const CAPPED_AT_INFO: [&str; 6] =
    ["tokio_postgres", "hyper", "hyper_util", "reqwest", "h2", "rustls"];

/// A wrong setting is returned after logging is set up, so that it can be logged.
pub fn set_up(args: &Args) -> Result<(), BridgeError> {
    let default = if args.verbose {
        "info,webhook_bridge=debug,matrix_sdk_postgres=debug"
    } else {
        // The SDK warns of every message whose key is missing; the bridge logs these itself.
        "warn,webhook_bridge=info,matrix_sdk_crypto=error"
    };
    let chosen = std::env::var("RUST_LOG").ok().filter(|chosen| !chosen.is_empty());
    let filter = EnvFilter::builder().parse_lossy(chosen.as_deref().unwrap_or(default));
    let format = LogFormat::try_from(args);
    let lines = match format {
        Ok(LogFormat::Json) => {
            let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
            lines.json().flatten_event(true).boxed()
        }
        _ => text_lines(args.verbose, std::io::stderr).boxed(),
    };
    let lines = lines.with_filter(filter.and(filter_fn(is_allowed)));
    tracing_subscriber::registry().with(lines).init();
    format.map(|_| ())
}

/// Lines of text: each event is one, whatever its values hold. JSON escapes these by itself.
fn text_lines<S, W>(with_target: bool, writer: W) -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let fields = debug_fn(|line, field, value| {
        let value = printable(&format!("{value:?}"));
        match field.name() {
            "message" => write!(line, "{value}"),
            // Where the crate `log` was called.
            name if name.starts_with("log.") => Ok(()),
            name => write!(line, " {name}={value}"),
        }
    });
    tracing_subscriber::fmt::layer()
        .fmt_fields(fields)
        .with_writer(writer)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(with_target)
}

fn is_allowed(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    let named = target.split_once("::").map_or(target, |(crate_name, _)| crate_name);
    !CAPPED_AT_INFO.contains(&named) || *metadata.level() <= LevelFilter::INFO
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing::warn;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Lines {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    #[test]
    fn an_event_is_one_line_without_control_characters() {
        let written = Lines::default();
        let subscriber = tracing_subscriber::registry().with(text_lines(false, written.clone()));
        tracing::subscriber::with_default(subscriber, || {
            let hostile = "@a\nERROR forged\u{1b}[2J\u{9b}\u{202e}:x";
            warn!(user = %hostile, room = hostile, "failed: {hostile}");
        });
        let written = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let line = written.strip_suffix('\n').unwrap();
        assert!(!line.contains(|one: char| one.is_control() || one == '\u{202e}'), "{line:?}");
        let shown = r"@a\nERROR forged\u{1b}[2J\u{9b}\u{202e}:x";
        let expected = format!("failed: {shown} user={shown} room=\"{shown}\"");
        assert!(line.ends_with(&expected), "{line:?}");
    }
}
