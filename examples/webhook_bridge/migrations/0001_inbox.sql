-- What the bridge keeps between runs, beside the keys. `account` leads every key: several bots may
-- share a database. Message text is here only for messages that were not encrypted in the first
-- place, and only until they are delivered.

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
    -- False: the member list must be fetched (again), for membership changes were not all seen.
    members_known boolean NOT NULL DEFAULT false,
    -- Where filling a gap ends, if the homeserver does not end it by itself.
    last_event_id text,
    PRIMARY KEY (account, room_id)
);

-- A gap in a room's history, between what was seen before and `position`; it is filled backwards,
-- and events of the room at or after `position` wait until it is closed.
CREATE TABLE gaps (
    account       text NOT NULL,
    room_id       text NOT NULL,
    position      bigint NOT NULL,
    -- The next page begins here and goes back in time.
    from_token    text NOT NULL,
    -- The sync position before the gap; NULL: back to our own join.
    to_token      text,
    stop_event_id text,
    -- How many events were stored so far; they are at places -1, -2, … of the gap's position.
    filled        bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (account, room_id, position)
);

CREATE TABLE events (
    account     text NOT NULL,
    event_id    text NOT NULL,
    room_id     text NOT NULL,
    -- The room's order is (position, place): place is 0 except in a gap.
    position    bigint NOT NULL,
    place       bigint NOT NULL DEFAULT 0,
    -- pending: to be decrypted and delivered; waiting: its key has not come; failed: parked.
    state       text NOT NULL DEFAULT 'pending'
                CHECK (state IN ('pending', 'waiting', 'failed', 'delivered', 'redacted')),
    -- The Megolm session of an encrypted event.
    session_id  text,
    -- The event as the homeserver sent it, so still encrypted if it was; NULL once it is done.
    -- bytea, because json refuses some of what a hostile sender may write.
    event       bytea,
    received_at timestamptz NOT NULL DEFAULT now(),
    done_at     timestamptz,
    rejections  integer NOT NULL DEFAULT 0,
    retry_at    timestamptz,
    failure     text,
    -- In rooms of versions 1 and 2 an id is its sender's choice, and may be in two rooms.
    PRIMARY KEY (account, room_id, event_id)
);

CREATE INDEX events_pending ON events (account, room_id, position, place) WHERE state = 'pending';
CREATE INDEX events_waiting ON events (account, session_id) WHERE state = 'waiting';
CREATE INDEX events_waiting_in_room ON events (account, room_id, position, place)
    WHERE state = 'waiting';
CREATE INDEX events_failed ON events (account) WHERE state = 'failed';
CREATE INDEX events_done ON events (account, done_at) WHERE state IN ('delivered', 'redacted');
