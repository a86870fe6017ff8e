-- A room's events in order, whatever their state: its newest ones, and those after a gap.
CREATE INDEX events_in_room ON events (account, room_id, position, place);

-- Messages without their key block a room if they are recent; there may be many old ones.
DROP INDEX events_waiting_in_room;
CREATE INDEX events_waiting_by_age ON events (account, room_id, received_at)
    WHERE state = 'waiting';

-- The message was stored for the API: a repeated attempt must not store it again after it was pruned.
ALTER TABLE events ADD COLUMN sealed boolean NOT NULL DEFAULT false;
