-- When the homeserver told of an invitation: refusals are given some time.
ALTER TABLE rooms ADD COLUMN invited_at timestamptz NOT NULL DEFAULT now();

-- How many pages of a gap were fetched, and how many of them were empty: it is given up in the end.
ALTER TABLE gaps ADD COLUMN pages integer NOT NULL DEFAULT 0;
ALTER TABLE gaps ADD COLUMN empty_pages integer NOT NULL DEFAULT 0;

-- Its pages begin at the newest event, and have not come down to the events behind it yet.
ALTER TABLE gaps ADD COLUMN from_newest boolean NOT NULL DEFAULT false;

-- Which event each index of a Megolm session was used for. The same ciphertext under another event id
-- is a replay. Kept as long as the session is, so never pruned.
CREATE TABLE message_indices (
    account       text NOT NULL,
    session_id    text NOT NULL,
    message_index bigint NOT NULL,
    room_id       text NOT NULL,
    event_id      text NOT NULL,
    PRIMARY KEY (account, session_id, message_index, room_id)
);
