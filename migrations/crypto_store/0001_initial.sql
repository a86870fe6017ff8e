-- The crypto store's first schema.
--
-- Reasons for its shape:
-- * account_id leads every key and index, so that one database serves many accounts and a
--   distributed PostgreSQL can place an account on one node.
-- * Ids are bytea: text refuses NUL bytes, which hostile ids contain, and bytea order does not
--   change with a collation. With encryption they are 32-byte keyed hashes, and data is sealed.
-- * Only the small tables have foreign keys: these cost 2 to 3 microseconds a row.
-- docs/schema.md lists for every column what writes it and whether it is clear, hashed or sealed.
-- migrations/README.md has the rules for these files: one statement a message, separated by blank
-- lines.

-- One row per item: the Olm account, the private cross-signing identity, the backup decryption
-- key, the backup version, the dehydrated device's pickle key. Apart from `accounts`, because the
-- Olm account is wide and is rewritten by every sync.
CREATE TABLE {schema}.account_data (
    account_id bigint NOT NULL REFERENCES {schema}.accounts ON DELETE CASCADE,
    item smallint NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (account_id, item)
) WITH (fillfactor = 50);

-- Small and updated by every sync, so apart from the wide Olm account.
CREATE TABLE {schema}.sync_tokens (
    account_id bigint PRIMARY KEY REFERENCES {schema}.accounts ON DELETE CASCADE,
    data bytea NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

CREATE TABLE {schema}.olm_sessions (
    account_id bigint NOT NULL,
    sender_key bytea NOT NULL,
    session_id bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    data bytea NOT NULL,
    PRIMARY KEY (account_id, sender_key, session_id)
) WITH (fillfactor = 80);

CREATE TABLE {schema}.message_hashes (
    account_id bigint NOT NULL,
    hash bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account_id, hash)
);

-- The room is part of the key: a session of the same id that claims another room must not replace
-- this one.
CREATE TABLE {schema}.megolm_inbound_sessions (
    account_id bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    -- The generation, in backup_versions, of the backup that holds the session; 0 or less: none.
    backup_generation integer NOT NULL,
    sender_data_type smallint NOT NULL,
    room_id bytea NOT NULL,
    session_id bytea NOT NULL,
    sender_key bytea NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (account_id, room_id, session_id)
);

CREATE INDEX megolm_inbound_sessions_by_sender
    ON {schema}.megolm_inbound_sessions (account_id, sender_key, sender_data_type);

-- Not a partial index: which generation counts as backed up is a parameter.
CREATE INDEX megolm_inbound_sessions_by_backup
    ON {schema}.megolm_inbound_sessions (account_id, backup_generation);

-- Backup versions as small integers (generations): a reset retires the version and updates no session.
CREATE TABLE {schema}.backup_versions (
    account_id bigint NOT NULL REFERENCES {schema}.accounts ON DELETE CASCADE,
    generation integer NOT NULL CHECK (generation > 0),
    version bytea NOT NULL,
    retired boolean NOT NULL DEFAULT false,
    PRIMARY KEY (account_id, generation)
);

CREATE UNIQUE INDEX backup_versions_by_version
    ON {schema}.backup_versions (account_id, version) WHERE NOT retired;

CREATE TABLE {schema}.megolm_outbound_sessions (
    account_id bigint NOT NULL,
    room_id bytea NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (account_id, room_id)
) WITH (fillfactor = 50);

CREATE TABLE {schema}.devices (
    account_id bigint NOT NULL,
    user_id bytea NOT NULL,
    device_id bytea NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (account_id, user_id, device_id)
);

CREATE TABLE {schema}.user_identities (
    account_id bigint NOT NULL,
    user_id bytea NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (account_id, user_id)
);

CREATE TABLE {schema}.tracked_users (
    account_id bigint NOT NULL,
    user_id bytea NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (account_id, user_id)
);

CREATE TABLE {schema}.encrypted_rooms (
    account_id bigint NOT NULL,
    room_id bytea NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (account_id, room_id)
);

-- One request per secret: a request for the same info replaces the older one.
CREATE TABLE {schema}.key_requests (
    account_id bigint NOT NULL REFERENCES {schema}.accounts ON DELETE CASCADE,
    request_id bytea NOT NULL,
    info bytea NOT NULL,
    sent_out boolean NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    data bytea NOT NULL,
    PRIMARY KEY (account_id, request_id)
);

CREATE INDEX key_requests_by_info ON {schema}.key_requests (account_id, info);

CREATE INDEX key_requests_unsent ON {schema}.key_requests (account_id) WHERE NOT sent_out;

CREATE TABLE {schema}.withheld_sessions (
    account_id bigint NOT NULL,
    room_id bytea NOT NULL,
    session_id bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    data bytea NOT NULL,
    PRIMARY KEY (account_id, room_id, session_id)
);

-- Keyed by a hash of the secret itself, so that the same secret twice is one entry although its
-- sealed form differs each time.
CREATE TABLE {schema}.secrets_inbox (
    account_id bigint NOT NULL REFERENCES {schema}.accounts ON DELETE CASCADE,
    secret_name bytea NOT NULL,
    secret_hash bytea NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (account_id, secret_name, secret_hash)
);

CREATE TABLE {schema}.room_key_bundles (
    account_id bigint NOT NULL,
    room_id bytea NOT NULL,
    sender_user bytea NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (account_id, room_id, sender_user)
);

CREATE TABLE {schema}.pending_key_bundles (
    account_id bigint NOT NULL,
    room_id bytea NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (account_id, room_id)
);

-- Rooms of which all keys have been downloaded from the backup.
CREATE TABLE {schema}.backed_up_rooms (
    account_id bigint NOT NULL,
    room_id bytea NOT NULL,
    PRIMARY KEY (account_id, room_id)
);

-- The application's and the SDK's own values; nothing of this crate is kept here.
CREATE TABLE {schema}.custom_values (
    account_id bigint NOT NULL REFERENCES {schema}.accounts ON DELETE CASCADE,
    key bytea NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (account_id, key)
) WITH (fillfactor = 80);

-- Rows that do not decode, set aside by an operator so that they block no backup and no export: as they were, to be
-- put back.
CREATE TABLE {schema}.quarantined_rows (
    account_id bigint NOT NULL REFERENCES {schema}.accounts ON DELETE CASCADE,
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    table_name text COLLATE "C" NOT NULL,
    reason text NOT NULL,
    quarantined_at timestamptz NOT NULL DEFAULT now(),
    contents jsonb NOT NULL,
    PRIMARY KEY (account_id, id)
);
