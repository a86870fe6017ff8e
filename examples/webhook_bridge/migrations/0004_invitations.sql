-- Who invited the bot, while it has not joined: an allow-list may refuse it.
ALTER TABLE rooms ADD COLUMN inviter text;

-- The room replaces one that this user upgraded: it is joined without an invitation.
ALTER TABLE rooms ADD COLUMN upgraded_by text;
