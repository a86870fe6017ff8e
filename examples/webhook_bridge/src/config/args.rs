//! Command line flags and their environment variables.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use secrecy::SecretString;

/// Receives end-to-end encrypted Matrix messages and forwards them to a webhook.
///
/// Every setting is a flag or an environment variable, also from a file .env in the working
/// directory. Give secrets through the environment or as files, since other users of the machine can
/// read flags.
#[derive(Parser)]
#[command(version)]
pub struct Args {
    /// Base URL of the homeserver's client API, such as `https://matrix.example.org`
    #[arg(long, env = "MATRIX_HOMESERVER", hide_env_values = true)]
    pub homeserver: Option<String>,
    /// Full user id of the bot, such as @bot:example.org
    #[arg(long, env = "MATRIX_USER")]
    pub user: Option<String>,
    /// The bot's password
    #[arg(long, env = "MATRIX_PASSWORD", hide_env_values = true)]
    pub password: Option<SecretString>,
    /// A file with the bot's password
    #[arg(long, env = "MATRIX_PASSWORD_FILE")]
    pub password_file: Option<PathBuf>,
    /// An access token, instead of a password
    #[arg(long, env = "MATRIX_ACCESS_TOKEN", hide_env_values = true)]
    pub access_token: Option<SecretString>,
    /// A file with the access token
    #[arg(long, env = "MATRIX_ACCESS_TOKEN_FILE")]
    pub access_token_file: Option<PathBuf>,
    /// Device id for the first login [default: a random one, stored]
    #[arg(long, env = "MATRIX_DEVICE_ID")]
    pub device_id: Option<String>,
    /// PostgreSQL URL or key=value string; libpq's PG* variables complete or replace it
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<SecretString>,
    /// A file with the PostgreSQL URL
    #[arg(long, env = "DATABASE_URL_FILE")]
    pub database_url_file: Option<PathBuf>,
    /// If no database is configured, start an embedded PostgreSQL in the data directory, for a trial
    #[arg(long, env = "BRIDGE_EMBEDDED_POSTGRES")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub embedded_postgres: Option<String>,
    /// Maximum number of connections to PostgreSQL [default: 8]
    #[arg(long, env = "BRIDGE_POOL_SIZE")]
    pub pool_size: Option<String>,
    /// Whether the database's schemas are migrated at startup: true or false [default: true]
    #[arg(long, env = "BRIDGE_RUN_MIGRATIONS")]
    pub run_migrations: Option<String>,
    /// Migrate the database's schemas and exit
    #[arg(long)]
    pub migrate_only: bool,
    /// Passphrase that encrypts keys and access token in the database
    #[arg(long, env = "STORE_PASSPHRASE", hide_env_values = true)]
    pub store_passphrase: Option<SecretString>,
    /// A file with the passphrase
    #[arg(long, env = "STORE_PASSPHRASE_FILE")]
    pub store_passphrase_file: Option<PathBuf>,
    /// No encryption at rest: store keys and access token in plaintext
    #[arg(long, env = "BRIDGE_PLAIN")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub plain: Option<String>,
    /// Name under which keys and undelivered messages are kept [default: the user id]
    #[arg(long, env = "STORE_ACCOUNT")]
    pub store_account: Option<String>,
    /// Name that at most one bridge has at a time, such as its pod's: its restart waits for no heartbeat
    #[arg(long, env = "STORE_INSTANCE")]
    pub store_instance: Option<String>,
    /// URL that messages are POSTed to
    #[arg(long, env = "WEBHOOK_URL", hide_env_values = true)]
    pub webhook_url: Option<SecretString>,
    /// A file with the webhook's URL
    #[arg(long, env = "WEBHOOK_URL_FILE")]
    pub webhook_url_file: Option<PathBuf>,
    /// Bearer token sent to the webhook
    #[arg(long, env = "WEBHOOK_TOKEN", hide_env_values = true)]
    pub webhook_token: Option<SecretString>,
    /// A file with the webhook's token
    #[arg(long, env = "WEBHOOK_TOKEN_FILE")]
    pub webhook_token_file: Option<PathBuf>,
    /// Directory of the embedded PostgreSQL
    #[arg(long, env = "BRIDGE_DATA_DIR", default_value = "./webhook_bridge_data")]
    pub data_dir: PathBuf,
    /// Address for /healthz, /readyz and /metrics, such as 0.0.0.0:9090, or a port of the loopback
    /// interface [default: none]
    #[arg(long, env = "BRIDGE_LISTEN")]
    pub listen: Option<String>,
    /// If another process owns the account: wait, immediate or refuse [default: wait]
    #[arg(long, env = "BRIDGE_TAKEOVER")]
    pub takeover: Option<String>,
    /// Seconds for which a refused join or access token is retried [default: 600]
    #[arg(long, env = "BRIDGE_RETRY_TIMEOUT")]
    pub retry_timeout: Option<String>,
    /// Pages after which filling a gap in a room's history is abandoned [default: 200]
    #[arg(long, env = "BRIDGE_GAP_MAX_PAGES")]
    pub gap_max_pages: Option<String>,
    /// Empty pages after which filling a gap in a room's history is abandoned [default: 20]
    #[arg(long, env = "BRIDGE_GAP_MAX_EMPTY_PAGES")]
    pub gap_max_empty_pages: Option<String>,
    /// Start even if the homeserver's checkpoint cannot be read: true or false [default: false]
    #[arg(long, env = "BRIDGE_SKIP_CHECKPOINT")]
    pub skip_checkpoint: Option<String>,
    /// A key that deliveries are signed with (HMAC-SHA256)
    #[arg(long, env = "WEBHOOK_SECRET", hide_env_values = true)]
    pub webhook_secret: Option<SecretString>,
    /// A file with the key that deliveries are signed with
    #[arg(long, env = "WEBHOOK_SECRET_FILE")]
    pub webhook_secret_file: Option<PathBuf>,
    /// Seconds after which a request to the webhook is given up and retried [default: 30]
    #[arg(long, env = "WEBHOOK_TIMEOUT")]
    pub webhook_timeout: Option<String>,
    /// A TOML file with labels of rooms and their webhooks
    #[arg(long, env = "BRIDGE_LABELS_FILE")]
    pub labels_file: Option<PathBuf>,
    /// Cross-signing of the bot's device: create, reset or off [default: create]
    #[arg(long, env = "BRIDGE_CROSS_SIGNING")]
    pub cross_signing: Option<String>,
    /// Users and servers whose invitations are accepted, such as `@alice:example.org,*.example.org`
    /// [default: all]
    #[arg(long, env = "BRIDGE_INVITE_ALLOW")]
    pub invite_allow: Option<String>,
    /// Bridges whose devices may speak for their ghosts, such as `@metabot:example.org=@meta_*:example.org`
    /// [default: none]
    #[arg(long, env = "BRIDGE_TRUSTED_BRIDGES")]
    pub trusted_bridges: Option<String>,
    /// The refresh token that belongs to the access token, if it has one
    #[arg(long, env = "MATRIX_REFRESH_TOKEN", hide_env_values = true)]
    pub refresh_token: Option<SecretString>,
    /// A file with the refresh token
    #[arg(long, env = "MATRIX_REFRESH_TOKEN_FILE")]
    pub refresh_token_file: Option<PathBuf>,
    /// Whether room keys are backed up on the homeserver: true or false
    /// [default: whether a recovery key is given]
    #[arg(long, env = "BRIDGE_KEY_BACKUP")]
    pub key_backup: Option<String>,
    /// Recovery key of the key backup [default: a new one, printed once]
    #[arg(long, env = "BRIDGE_RECOVERY_KEY", hide_env_values = true)]
    pub recovery_key: Option<SecretString>,
    /// A file with the recovery key
    #[arg(long, env = "BRIDGE_RECOVERY_KEY_FILE")]
    pub recovery_key_file: Option<PathBuf>,
    /// Log more; RUST_LOG overrides
    #[arg(long, short)]
    pub verbose: bool,
    /// A template for the document that is sent to the webhook
    #[arg(long, env = "WEBHOOK_TEMPLATE_FILE")]
    pub webhook_template_file: Option<PathBuf>,
    /// Whether reactions are delivered: true or false [default: false]
    #[arg(long, env = "BRIDGE_REACTIONS")]
    pub reactions: Option<String>,
    /// What documents say about attachments besides name, type and size: none, keys or download
    /// [default: none]
    #[arg(long, env = "BRIDGE_ATTACHMENTS")]
    pub attachments: Option<String>,
    /// Log lines as text or json [default: text]
    #[arg(long, env = "BRIDGE_LOG_FORMAT")]
    pub log_format: Option<String>,
    /// Bearer token that /metrics requires [default: none]
    #[arg(long, env = "BRIDGE_METRICS_TOKEN", hide_env_values = true)]
    pub metrics_token: Option<SecretString>,
    /// A file with the bearer token that /metrics requires
    #[arg(long, env = "BRIDGE_METRICS_TOKEN_FILE")]
    pub metrics_token_file: Option<PathBuf>,
    /// Bearer token of the API; without it the API is off
    #[arg(long, env = "BRIDGE_API_TOKEN", hide_env_values = true)]
    pub api_token: Option<SecretString>,
    /// A file with the bearer token of the API
    #[arg(long, env = "BRIDGE_API_TOKEN_FILE")]
    pub api_token_file: Option<PathBuf>,
    /// Address of the API, or a port of the loopback interface [default: 127.0.0.1:9091]
    #[arg(long, env = "BRIDGE_API_LISTEN")]
    pub api_listen: Option<String>,
    /// Requests per second that the API serves [default: 10]
    #[arg(long, env = "BRIDGE_API_RATE_LIMIT")]
    pub api_rate_limit: Option<String>,
    /// Messages of each room that are kept for the API [default: 100]
    #[arg(long, env = "BRIDGE_API_MAX_MESSAGES")]
    pub api_max_messages: Option<String>,
    /// Seconds for which messages are kept for the API [default: 604800]
    #[arg(long, env = "BRIDGE_API_MAX_AGE")]
    pub api_max_age: Option<String>,
    /// Size of the largest attachment that the API serves, in bytes [default: 52428800]
    #[arg(long, env = "BRIDGE_ATTACHMENT_MAX_BYTES")]
    pub attachment_max_bytes: Option<String>,
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do instead of running the bridge.
#[derive(Subcommand)]
pub enum Command {
    /// Show dead letters or send them again, beside a running bridge. Needs only the database's settings
    /// and MATRIX_USER or STORE_ACCOUNT
    DeadLetters {
        #[command(subcommand)]
        command: DeadLetterCommand,
    },
}

#[derive(Subcommand)]
pub enum DeadLetterCommand {
    /// List the dead letters, oldest first, one per line, with the reason
    List {
        /// A JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Send dead letters again
    Resend {
        /// Their event ids
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        event_ids: Vec<String>,
        /// All of them
        #[arg(long)]
        all: bool,
    },
}
