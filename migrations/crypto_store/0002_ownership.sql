-- One account, one owner: two processes that write with one Olm account corrupt it.
--
-- The newest owner wins. Each write transaction calls guard() first, which fails it as a whole when
-- the owner's token is no longer the account's. The token is random, for numbers repeat after a
-- restore or a failover. Row locks order takeovers and transactions: guard() takes the owner's row
-- FOR SHARE, and only takeovers update it.

-- Tells databases apart: a process keeps one heartbeat in each.
CREATE TABLE {schema}.instance (
    id bytea NOT NULL DEFAULT uuid_send(gen_random_uuid()),
    only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one)
);
INSERT INTO {schema}.instance DEFAULT VALUES;

CREATE TABLE {schema}.account_owners (
    account_id bigint PRIMARY KEY REFERENCES {schema}.accounts ON DELETE CASCADE,
    token bytea NOT NULL,
    -- Several processes hold this token, under the SDK's own lock.
    shared boolean NOT NULL,
    -- Label, host and process, for people. In clear.
    name text COLLATE "C" NOT NULL,
    since timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);

-- One row a process, whatever the number of its accounts: its heartbeat.
CREATE TABLE {schema}.processes (
    id bytea PRIMARY KEY,
    alive_until timestamptz NOT NULL
) WITH (fillfactor = 50);

-- Who has an account open; an owner is alive while its process is, and its row is here.
CREATE TABLE {schema}.openings (
    account_id bigint NOT NULL REFERENCES {schema}.accounts ON DELETE CASCADE,
    id bytea NOT NULL,
    process_id bytea NOT NULL,
    PRIMARY KEY (account_id, id)
);

-- The small row that a sync writes anyway holds what every commit changes: a count, by which a
-- restored backup is known, and the id of the last transaction, which tells whether one whose answer
-- was lost took effect.
ALTER TABLE {schema}.sync_tokens
    ALTER COLUMN data DROP NOT NULL,
    ADD COLUMN commits bigint NOT NULL DEFAULT 0,
    ADD COLUMN last_transaction bytea,
    -- Raised by whoever changes the account's rows beside its owner, which then drops its cache.
    ADD COLUMN maintenance bigint NOT NULL DEFAULT 0;
INSERT INTO {schema}.sync_tokens (account_id) SELECT id FROM {schema}.accounts
    ON CONFLICT DO NOTHING;

-- Fails the transaction unless `owner` owns the account and the database has seen all the commits
-- that `owner` has. Opens the gate for the statements that follow in the same transaction: each of
-- them asks for the setting, which ends with the transaction.
CREATE FUNCTION {schema}.guard(account bigint, owner bytea, seen bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS {body}
BEGIN
    PERFORM FROM {schema}.account_owners o
        WHERE o.account_id = account AND o.token = owner FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the account has another owner' USING ERRCODE = 'MX001';
    END IF;
    PERFORM FROM {schema}.sync_tokens t WHERE t.account_id = account AND t.commits >= seen;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the database is older than what its owner has seen' USING ERRCODE = 'MX002';
    END IF;
    PERFORM set_config('matrix_sdk.tx', account::text, true);
END
{body};

-- Takes the account over and returns its token, or none and who keeps it. `wanted` is the new token;
-- `held`, when it is not null, holds the tokens of which the account must still have one, and `seen`
-- the commits it must have had. The lock on the owner's row waits for the transaction that its owner
-- has open.
CREATE FUNCTION {schema}.claim(
    account bigint, wanted bytea, held bytea[], seen bigint, share boolean, polite boolean,
    owner_name text, opening bytea, process bytea, lifetime double precision,
    OUT token bytea, OUT commits bigint, OUT owner text, OUT since timestamptz, OUT stored bytea,
    OUT instance bytea, OUT maintenance bigint
)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS {body}
DECLARE
    has_owner boolean;
    is_shared boolean;
    is_alive boolean;
BEGIN
    INSERT INTO {schema}.sync_tokens (account_id) VALUES (account) ON CONFLICT DO NOTHING;
    INSERT INTO {schema}.account_owners AS o (account_id, token, shared, name)
        VALUES (account, wanted, share, owner_name) ON CONFLICT DO NOTHING;
    SELECT o.token, o.shared, o.name, o.since INTO stored, is_shared, owner, since
        FROM {schema}.account_owners o WHERE o.account_id = account FOR UPDATE;
    SELECT t.commits, t.maintenance INTO commits, maintenance
        FROM {schema}.sync_tokens t WHERE t.account_id = account;
    SELECT i.id INTO instance FROM {schema}.instance i;
    is_alive := EXISTS (
        SELECT FROM {schema}.openings o JOIN {schema}.processes p ON p.id = o.process_id
        WHERE o.account_id = account AND o.id <> opening AND p.alive_until > clock_timestamp());
    IF commits < seen OR held IS NOT NULL AND stored <> wanted AND stored <> ALL (held)
        OR is_alive AND (polite OR share) AND NOT (share AND is_shared) THEN
        RETURN;
    END IF;
    IF share AND is_shared THEN
        token := stored;
        DELETE FROM {schema}.openings o WHERE o.account_id = account AND NOT EXISTS (
            SELECT FROM {schema}.processes p
            WHERE p.id = o.process_id AND p.alive_until > clock_timestamp());
    ELSE
        token := wanted;
        DELETE FROM {schema}.openings o WHERE o.account_id = account;
        UPDATE {schema}.account_owners o
            SET token = wanted, shared = share, name = owner_name, since = clock_timestamp()
            WHERE o.account_id = account;
    END IF;
    INSERT INTO {schema}.openings (account_id, id, process_id) VALUES (account, opening, process)
        ON CONFLICT DO NOTHING;
    DELETE FROM {schema}.processes p WHERE p.alive_until < clock_timestamp() - interval '1 day';
    INSERT INTO {schema}.processes AS p (id, alive_until)
        VALUES (process, clock_timestamp() + lifetime * interval '1 millisecond')
        ON CONFLICT (id) DO UPDATE SET alive_until = greatest(p.alive_until, excluded.alive_until);
END
{body};

-- After a COMMIT without an answer: gives the account a new token, so that the transaction can no
-- longer begin, waits for it if it has begun, and tells whether it was committed.
CREATE FUNCTION {schema}.settle(account bigint, held bytea, wanted bytea, transaction bytea)
RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS {body}
BEGIN
    UPDATE {schema}.account_owners o SET token = wanted
        WHERE o.account_id = account AND o.token IN (held, wanted);
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the account has another owner' USING ERRCODE = 'MX001';
    END IF;
    RETURN EXISTS (SELECT FROM {schema}.sync_tokens t
                   WHERE t.account_id = account AND t.last_transaction = transaction);
END
{body};
