//! Logs to stderr, as text or as JSON.

use std::io::IsTerminal;

use tracing::{Metadata, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt, filter_fn},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::{
    config::{Args, LogFormat},
    errors::BridgeError,
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
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        Ok(LogFormat::Json) => lines.json().flatten_event(true).boxed(),
        _ => {
            let colours = std::io::stderr().is_terminal();
            lines.with_ansi(colours).with_target(args.verbose).boxed()
        }
    };
    let lines = lines.with_filter(filter.and(filter_fn(is_allowed)));
    tracing_subscriber::registry().with(lines).init();
    format.map(|_| ())
}

fn is_allowed(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    let named = target.split_once("::").map_or(target, |(crate_name, _)| crate_name);
    !CAPPED_AT_INFO.contains(&named) || *metadata.level() <= LevelFilter::INFO
}
