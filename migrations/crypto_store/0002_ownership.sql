-- One account, one owner: two processes that write with one Olm account corrupt it.
--
-- The newest owner wins. Each write transaction begins with guard(), which fails it as a whole when
-- the owner's token is no longer the account's, and ends with count_commit(), which compares and
-- swaps the account's count of commits. The token is random, for numbers repeat after a restore or a
-- failover. Row locks order takeovers and transactions: guard() takes the owner's row FOR SHARE, and
-- only takeovers and resolve() update it.
--
-- Own SQLSTATEs: MX001 another owner token, MX002 another count of commits, MX003 no transaction of
-- ours (its BEGIN was lost).

CREATE TABLE {schema}.account_owners (
    account_id bigint PRIMARY KEY REFERENCES {schema}.accounts ON DELETE CASCADE,
    token bytea NOT NULL,
    -- Label, host and process, for people. In clear.
    name text COLLATE "C" NOT NULL,
    since timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);

-- One row a heartbeat: a process has one for each server, schema and runtime that it uses, whatever
-- the number of its accounts.
CREATE TABLE {schema}.processes (
    id bytea PRIMARY KEY,
    alive_until timestamptz NOT NULL
) WITH (fillfactor = 50);

-- Who has an account open; an owner is alive while its heartbeat is, and its row is here.
CREATE TABLE {schema}.openings (
    account_id bigint NOT NULL REFERENCES {schema}.accounts ON DELETE CASCADE,
    id bytea NOT NULL,
    process_id bytea NOT NULL,
    PRIMARY KEY (account_id, id)
);

-- The small row that a sync writes anyway holds what every commit changes: a count, by which a
-- restored backup and a late attempt are known, and the id of the last transaction, which tells
-- whether one whose answer was lost took effect.
ALTER TABLE {schema}.sync_tokens
    ALTER COLUMN data DROP NOT NULL,
    ADD COLUMN commits bigint NOT NULL DEFAULT 0,
    ADD COLUMN last_transaction bytea,
    -- Raised by whatever changes the account's rows beside its owner, which then drops its cache.
    ADD COLUMN maintenance bigint NOT NULL DEFAULT 0;
INSERT INTO {schema}.sync_tokens (account_id) SELECT id FROM {schema}.accounts
    ON CONFLICT DO NOTHING;

-- Fails a statement that lost its BEGIN: it would have the session's isolation level and commit by
-- itself. Under any level but READ COMMITTED, one that waited for a lock would decide by the state
-- from before it waited.
CREATE FUNCTION {schema}.require_begun() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS {body}
BEGIN
    IF current_setting('matrix_sdk.begun', true) IS DISTINCT FROM 'on' THEN
        RAISE EXCEPTION 'the transaction was not begun' USING ERRCODE = 'MX003';
    END IF;
    -- PostgreSQL 17 and newer: a limit of the role's that would end transactions which wait.
    IF current_setting('transaction_timeout', true) <> '0' THEN
        PERFORM set_config('transaction_timeout', '0', true);
    END IF;
END
{body};

-- First statement of a write transaction: fails it unless `owner` is the account's token and, where
-- `seen` is not null, the count of commits is the one that the owner knows. That count is only an
-- early look: count_commit() decides. Sets the transaction marker that each write asks for, and that
-- ends with the transaction.
CREATE FUNCTION {schema}.guard(account bigint, owner bytea, seen bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS {body}
BEGIN
    PERFORM {schema}.require_begun();
    PERFORM FROM {schema}.account_owners o
        WHERE o.account_id = account AND o.token = owner FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the account has another owner' USING ERRCODE = 'MX001';
    END IF;
    IF seen IS NOT NULL THEN
        PERFORM FROM {schema}.sync_tokens t WHERE t.account_id = account AND t.commits = seen;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'the count of commits is not the one its owner has seen'
                USING ERRCODE = 'MX002';
        END IF;
    END IF;
    PERFORM set_config('matrix_sdk.tx', account::text, true);
END
{body};

-- Last statement of a write transaction: only the owner that knows the exact count of commits gets
-- past it, so no late attempt, former owner, copied token or cloned process writes anything.
CREATE FUNCTION {schema}.count_commit(
    account bigint, seen bigint, transaction bytea, OUT commits bigint, OUT maintenance bigint
)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS {body}
BEGIN
    IF current_setting('matrix_sdk.tx', true) IS DISTINCT FROM account::text THEN
        RAISE EXCEPTION 'the transaction was not begun' USING ERRCODE = 'MX003';
    END IF;
    UPDATE {schema}.sync_tokens t SET commits = t.commits + 1, last_transaction = transaction
        WHERE t.account_id = account AND t.commits = seen
        RETURNING t.commits, t.maintenance INTO commits, maintenance;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the count of commits is not the one its owner has seen'
            USING ERRCODE = 'MX002';
    END IF;
END
{body};

-- Takes the account over, if its token is `expected` (null: it never had an owner) or already
-- `wanted`, it has at least `seen` commits, and, with `must_be_free`, no owner is alive. A claim that
-- arrives late finds another token and takes nothing. The lock on the owner's row waits for the
-- transaction that the owner has open.
CREATE FUNCTION {schema}.claim(
    account bigint, expected bytea, wanted bytea, seen bigint, must_be_free boolean,
    owner_name text, opening bytea, heartbeat bytea, lifetime double precision,
    OUT granted boolean, OUT commits bigint, OUT maintenance bigint
)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS {body}
DECLARE
    stored bytea;
BEGIN
    PERFORM {schema}.require_begun();
    INSERT INTO {schema}.sync_tokens (account_id) VALUES (account) ON CONFLICT DO NOTHING;
    IF expected IS NULL THEN
        INSERT INTO {schema}.account_owners (account_id, token, name)
            VALUES (account, wanted, owner_name) ON CONFLICT DO NOTHING;
    END IF;
    SELECT o.token INTO stored
        FROM {schema}.account_owners o WHERE o.account_id = account FOR UPDATE;
    SELECT t.commits, t.maintenance INTO commits, maintenance
        FROM {schema}.sync_tokens t WHERE t.account_id = account;
    granted := coalesce((stored = wanted OR stored = expected) AND commits >= seen, false)
        AND NOT (must_be_free AND EXISTS (
            SELECT FROM {schema}.openings o JOIN {schema}.processes p ON p.id = o.process_id
            WHERE o.account_id = account AND o.id <> opening
                AND p.alive_until > clock_timestamp()));
    IF NOT granted THEN
        RETURN;
    END IF;
    UPDATE {schema}.account_owners o
        SET token = wanted, name = owner_name, since = clock_timestamp()
        WHERE o.account_id = account;
    DELETE FROM {schema}.openings o WHERE o.account_id = account;
    INSERT INTO {schema}.openings (account_id, id, process_id) VALUES (account, opening, heartbeat);
    DELETE FROM {schema}.processes p WHERE p.alive_until < clock_timestamp() - interval '1 day';
    INSERT INTO {schema}.processes AS p (id, alive_until)
        VALUES (heartbeat, clock_timestamp() + lifetime * interval '1 millisecond')
        ON CONFLICT (id) DO UPDATE SET alive_until = greatest(p.alive_until, excluded.alive_until);
END
{body};

-- Lets the next opener have the account without waiting for the heartbeat's end. The lock waits for a
-- claim of the same opening that is still on its way.
CREATE FUNCTION {schema}.release(account bigint, opening bytea) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS {body}
BEGIN
    PERFORM {schema}.require_begun();
    PERFORM FROM {schema}.account_owners o WHERE o.account_id = account FOR SHARE;
    DELETE FROM {schema}.openings o WHERE o.account_id = account AND o.id = opening;
END
{body};

-- After a COMMIT without an answer: gives the account a new token, so that the transaction can no
-- longer begin, waits for it if it has begun, and tells how many commits there are and whether it is
-- the last of them.
CREATE FUNCTION {schema}.resolve(
    account bigint, held bytea, wanted bytea, transaction bytea,
    OUT commits bigint, OUT is_last boolean
)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS {body}
BEGIN
    PERFORM {schema}.require_begun();
    UPDATE {schema}.account_owners o SET token = wanted
        WHERE o.account_id = account AND o.token IN (held, wanted);
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the account has another owner' USING ERRCODE = 'MX001';
    END IF;
    SELECT t.commits, coalesce(t.last_transaction = transaction, false) INTO commits, is_last
        FROM {schema}.sync_tokens t WHERE t.account_id = account;
END
{body};
