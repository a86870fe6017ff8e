-- When the invitation was received: a refused join is retried for a limited time.
ALTER TABLE rooms ADD COLUMN invited_at timestamptz NOT NULL DEFAULT now();

-- Number of pages fetched for a gap, and how many of them were empty: both are limited.
ALTER TABLE gaps ADD COLUMN pages integer NOT NULL DEFAULT 0;
ALTER TABLE gaps ADD COLUMN empty_pages integer NOT NULL DEFAULT 0;

-- True while paging started at the room's newest event and has not reached the events after the gap.
ALTER TABLE gaps ADD COLUMN from_newest boolean NOT NULL DEFAULT false;

-- The event that used each message index of a Megolm session. The same ciphertext under another event
-- id is a replay. Never pruned, because sessions are never deleted.
CREATE TABLE message_indices (
    account       text NOT NULL,
    session_id    text NOT NULL,
    message_index bigint NOT NULL,
    room_id       text NOT NULL,
    event_id      text NOT NULL,
    PRIMARY KEY (account, session_id, message_index, room_id)
);
