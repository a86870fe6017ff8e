-- The event's key was missing, which is counted once. The database may have the column: for a short time
-- the first migration made it.
ALTER TABLE events ADD COLUMN IF NOT EXISTS waited boolean NOT NULL DEFAULT false;
