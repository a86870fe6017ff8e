-- The bridge's state besides the keys. `account` is the first column of every key, because several
-- bots may share a database. The text of a message is stored only if the message was sent
-- unencrypted, and only until it is delivered.

CREATE TABLE sync_positions (
    account       text NOT NULL PRIMARY KEY,
    next_batch    text NOT NULL,
    -- The next free value of events.position and gaps.position.
    next_position bigint NOT NULL,
    synced_at     timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE rooms (
    account       text NOT NULL,
    room_id       text NOT NULL,
    membership    text NOT NULL CHECK (membership IN ('invited', 'joined', 'left')),
    encrypted     boolean NOT NULL DEFAULT false,
    -- False: the member list must be fetched, because membership changes may have been missed.
    members_known boolean NOT NULL DEFAULT false,
    -- Filling a gap stops at this event if the homeserver's history does not end earlier.
    last_event_id text,
    PRIMARY KEY (account, room_id)
);

-- A gap in a room's history, between the last event received and `position`. It is filled backwards
-- (backfill); events of the room at or after `position` are not delivered until it is closed.
CREATE TABLE gaps (
    account       text NOT NULL,
    room_id       text NOT NULL,
    position      bigint NOT NULL,
    -- Pagination token of the next page; pages go back in time.
    from_token    text NOT NULL,
    -- The sync position before the gap; NULL: fill back to the bot's own join.
    to_token      text,
    stop_event_id text,
    -- Number of events stored so far; their places are -1, -2, … at the gap's position.
    filled        bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (account, room_id, position)
);

CREATE TABLE events (
    account     text NOT NULL,
    event_id    text NOT NULL,
    room_id     text NOT NULL,
    -- Events of a room are ordered by (position, place); place is 0 except within a gap.
    position    bigint NOT NULL,
    place       bigint NOT NULL DEFAULT 0,
    -- pending: to be decrypted and delivered; waiting: its key is missing; failed: dead letter.
    state       text NOT NULL DEFAULT 'pending'
                CHECK (state IN ('pending', 'waiting', 'failed', 'delivered', 'redacted')),
    -- The Megolm session of an encrypted event.
    session_id  text,
    -- The event as received, still encrypted if it was; NULL once delivered or redacted.
    -- bytea, because json rejects some input that a hostile sender may produce.
    event       bytea,
    received_at timestamptz NOT NULL DEFAULT now(),
    done_at     timestamptz,
    rejections  integer NOT NULL DEFAULT 0,
    retry_at    timestamptz,
    failure     text,
    -- In room versions 1 and 2 the sender chooses the event id, so two rooms may share one.
    PRIMARY KEY (account, room_id, event_id)
);

CREATE INDEX events_pending ON events (account, room_id, position, place) WHERE state = 'pending';
CREATE INDEX events_waiting ON events (account, session_id) WHERE state = 'waiting';
CREATE INDEX events_waiting_in_room ON events (account, room_id, position, place)
    WHERE state = 'waiting';
CREATE INDEX events_failed ON events (account) WHERE state = 'failed';
CREATE INDEX events_done ON events (account, done_at) WHERE state IN ('delivered', 'redacted');
