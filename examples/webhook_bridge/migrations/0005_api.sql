-- The last messages, for the API, if it is on. `sealed` is the decrypted message, encrypted with a key of
-- the key store.
CREATE TABLE api_messages (
    account   text NOT NULL,
    -- The cursor: ids grow with the commits.
    id        bigint GENERATED ALWAYS AS IDENTITY,
    room_id   text NOT NULL,
    event_id  text NOT NULL,
    label     text,
    stored_at timestamptz NOT NULL DEFAULT now(),
    sealed    bytea NOT NULL,
    PRIMARY KEY (account, room_id, event_id)
);

CREATE INDEX api_messages_of_room ON api_messages (account, room_id, id);
CREATE INDEX api_messages_of_label ON api_messages (account, label, id);
CREATE INDEX api_messages_by_age ON api_messages (account, stored_at);
