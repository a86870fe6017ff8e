-- What a room's label follows from besides its id: who invited the bot, and a member that a rule for
-- ghosts matched. Not columns of `rooms`, whose rows for invitations are deleted.
CREATE TABLE room_origins (
    account text NOT NULL,
    room_id text NOT NULL,
    inviter text,
    ghost   text,
    PRIMARY KEY (account, room_id)
);
