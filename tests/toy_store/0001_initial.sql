-- A second store, to show that one can move in.

CREATE TABLE {schema}.toy_state (
    account_id bigint NOT NULL,
    room_id bytea NOT NULL,
    kind text COLLATE "C" NOT NULL,
    state_key bytea NOT NULL,
    position bigint NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (account_id, room_id, kind, state_key)
);

CREATE TABLE {schema}.toy_profiles (
    account_id bigint NOT NULL,
    user_id bytea NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (account_id, user_id)
);
