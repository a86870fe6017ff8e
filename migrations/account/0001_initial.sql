-- The engine's schema: accounts, who owns them, and what each of their lanes has committed.
--
-- One account, one owner: two processes that write to one account corrupt it. The newest owner
-- wins. Each write transaction begins with guard(), which fails it as a whole when the owner token is
-- no longer the account's, and ends with count_commit(), which compares and swaps the position of
-- each lane that the transaction writes in. Tokens are random, because numbers repeat after a restore
-- or a failover. Row locks order takeovers and transactions: guard() takes the owner's row FOR SHARE,
-- and only takeovers update it.
--
-- Own SQLSTATEs: MX001 another owner token, MX002 another position of a lane, MX003 no begun
-- transaction (its BEGIN was lost).
--
-- docs/schema.md lists for every column what writes it and whether it is clear, hashed or sealed.
-- migrations/README.md has the rules for these files: one statement a message, separated by blank
-- lines.

CREATE TABLE {schema}.accounts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- The operator's label for the account, in clear.
    name text COLLATE "C" NOT NULL UNIQUE,
    -- What seals the cipher: 0 nothing (the account is plain), 1 a passphrase, 2 a key, 3 a key that the
    -- application wraps.
    secret_kind smallint NOT NULL CHECK (secret_kind BETWEEN 0 AND 3),
    -- The account's own encryption keys, sealed. Deleting them makes the account unreadable.
    cipher bytea CHECK ((cipher IS NULL) = (secret_kind = 0)),
    -- The minor version of the crate that wrote the cipher: newer ones change its form.
    cipher_written_by smallint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE {schema}.account_owners (
    account_id bigint PRIMARY KEY REFERENCES {schema}.accounts ON DELETE CASCADE,
    token bytea NOT NULL,
    -- Label, host and process id, for operators. In clear.
    name text COLLATE "C" NOT NULL,
    since timestamptz NOT NULL,
    -- The operator's name for the one process that it may be, in clear. Who opens under it does not wait.
    instance text COLLATE "C"
) WITH (fillfactor = 50);

-- One row for each store: its writer lane. The count of commits reveals a rollback of the database;
-- together with the id of the last transaction it is the position that the next commit
-- compares and swaps, so that no late attempt, copied token or cloned process writes anything.
CREATE TABLE {schema}.account_lanes (
    account_id bigint NOT NULL REFERENCES {schema}.accounts ON DELETE CASCADE,
    lane text COLLATE "C" NOT NULL,
    commits bigint NOT NULL DEFAULT 0,
    -- Id of the last commit, or of the fence that followed it.
    last_transaction bytea,
    -- Increased by anything but the owner that changes the lane's rows, so that the owner drops its cache.
    maintenance bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (account_id, lane)
) WITH (fillfactor = 50);

-- One row for each process, server, schema and runtime, whatever the number of accounts.
CREATE TABLE {schema}.heartbeats (
    id bytea PRIMARY KEY,
    alive_until timestamptz NOT NULL,
    -- The process: a random id, a hash of its host and its namespaces, its number, and its start in
    -- clock ticks. Another process of the host sees by them that it has ended. Null where unknown.
    process bytea,
    host bytea,
    pid bigint,
    started bigint
) WITH (fillfactor = 50);

-- Open account handles: an owner is alive while it has a row here and its heartbeat has not expired.
CREATE TABLE {schema}.account_handles (
    account_id bigint NOT NULL REFERENCES {schema}.accounts ON DELETE CASCADE,
    id bytea NOT NULL,
    heartbeat_id bytea NOT NULL,
    PRIMARY KEY (account_id, id)
);

CREATE TABLE {schema}.lease_locks (
    account_id bigint NOT NULL REFERENCES {schema}.accounts ON DELETE CASCADE,
    -- Part of the key, because stores choose their lease keys independently.
    lane text COLLATE "C" NOT NULL,
    key bytea NOT NULL,
    holder bytea NOT NULL,
    -- By the server's clock_timestamp().
    expires_at timestamptz NOT NULL,
    -- Increases when the holder changes.
    generation bigint NOT NULL,
    PRIMARY KEY (account_id, lane, key)
) WITH (fillfactor = 50);

-- Fails a statement whose BEGIN was lost: it would run at the session's isolation level and commit by
-- itself. At any level but READ COMMITTED, a statement that waited for a lock would see the state from
-- before the wait.
CREATE FUNCTION {schema}.require_begun() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS {body}
BEGIN
    IF current_setting('matrix_sdk.begun', true) IS DISTINCT FROM 'on' THEN
        RAISE EXCEPTION 'the transaction was not begun' USING ERRCODE = 'MX003';
    END IF;
    -- PostgreSQL 17 and newer: the role's limit would end transactions that wait for a lock.
    IF current_setting('transaction_timeout', true) <> '0' THEN
        PERFORM set_config('transaction_timeout', '0', true);
    END IF;
END
{body};

-- First statement of a write transaction: fails it unless `owner` is the account's token and, where
-- `lanes` is not null, each of them is at the position that its owner knows. The check of the
-- positions is preliminary: count_commit() decides. Sets the transaction marker that each write
-- requires; it ends with the transaction. The owner is checked by a query of its own, which reads the row
-- again after it has waited for a takeover; the positions are read after that.
CREATE FUNCTION {schema}.guard(
    account bigint, owner bytea, lanes text[], seen bigint[], last bytea[]
) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS {body}
BEGIN
    PERFORM {schema}.require_begun();
    PERFORM FROM {schema}.account_owners o
        WHERE o.account_id = account AND o.token = owner FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the account has another owner' USING ERRCODE = 'MX001';
    END IF;
    FOR i IN 1 .. coalesce(cardinality(lanes), 0) LOOP
        PERFORM FROM {schema}.account_lanes l
            WHERE l.account_id = account AND l.lane = lanes[i] AND l.commits = seen[i]
                AND l.last_transaction IS NOT DISTINCT FROM last[i];
        IF NOT FOUND THEN
            RAISE EXCEPTION 'a lane is not at the position its owner has seen'
                USING ERRCODE = 'MX002';
        END IF;
    END LOOP;
    PERFORM set_config('matrix_sdk.tx', account::text, true);
END
{body};

-- Last statement of a write transaction: fails unless the caller knows the exact position of each
-- lane. Callers pass the lanes in the order of their names, which prevents deadlocks.
CREATE FUNCTION {schema}.count_commit(
    account bigint, lanes text[], seen bigint[], last bytea[], transaction bytea,
    OUT maintenance bigint[]
)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS {body}
DECLARE
    raised bigint;
BEGIN
    IF current_setting('matrix_sdk.tx', true) IS DISTINCT FROM account::text THEN
        RAISE EXCEPTION 'the transaction was not begun' USING ERRCODE = 'MX003';
    END IF;
    FOR i IN 1 .. cardinality(lanes) LOOP
        UPDATE {schema}.account_lanes l
            SET commits = l.commits + 1, last_transaction = transaction
            WHERE l.account_id = account AND l.lane = lanes[i] AND l.commits = seen[i]
                AND l.last_transaction IS NOT DISTINCT FROM last[i]
            RETURNING l.maintenance INTO raised;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'a lane is not at the position its owner has seen'
                USING ERRCODE = 'MX002';
        END IF;
        maintenance[i] := raised;
    END LOOP;
END
{body};

-- After a COMMIT without an answer, and before a lane is reopened: changes the lane's position, so that
-- a transaction begun at the old one can no longer be counted. The row lock waits for a transaction that
-- is about to commit. A late attempt finds another position and changes nothing. Always writes, so that
-- its own COMMIT waits for a synchronous standby, which then has all earlier commits too.
CREATE FUNCTION {schema}.fence(
    account bigint, owner bytea, of_lane text, seen bigint, last bytea, wanted bytea,
    OUT commits bigint, OUT last_transaction bytea, OUT maintenance bigint
)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS {body}
BEGIN
    PERFORM {schema}.guard(account, owner, NULL, NULL, NULL);
    UPDATE {schema}.account_lanes l
        SET last_transaction = CASE
            WHEN l.commits = seen AND l.last_transaction IS NOT DISTINCT FROM last THEN wanted
            ELSE l.last_transaction END
        WHERE l.account_id = account AND l.lane = of_lane
        RETURNING l.commits, l.last_transaction, l.maintenance
        INTO commits, last_transaction, maintenance;
END
{body};

-- Takes the account over, if its token is `expected` (null: it never had an owner) or already
-- `wanted`, its lanes have at least as many commits as `seen`, and, with `must_be_free`, no owner is
-- alive. A claim that arrives late finds another token and has no effect. The lock on the owner's row
-- waits for the owner's open transactions.
CREATE FUNCTION {schema}.claim(
    account bigint, expected bytea, wanted bytea, lanes text[], seen bigint[],
    must_be_free boolean, owner_name text, handle bytea, heartbeat bytea,
    lifetime double precision,
    instance text, process bytea, host bytea, pid bigint, started bigint,
    OUT granted boolean, OUT commits bigint[], OUT last bytea[], OUT maintenance bigint[]
)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS {body}
DECLARE
    stored bytea;
    moment timestamptz;
BEGIN
    PERFORM {schema}.require_begun();
    INSERT INTO {schema}.account_lanes (account_id, lane)
        SELECT account, u.lane FROM unnest(lanes) AS u (lane) ON CONFLICT DO NOTHING;
    IF expected IS NULL THEN
        moment := clock_timestamp();
        INSERT INTO {schema}.account_owners (account_id, token, name, since)
            VALUES (account, wanted, owner_name, moment) ON CONFLICT DO NOTHING;
    END IF;
    SELECT o.token INTO stored
        FROM {schema}.account_owners o WHERE o.account_id = account FOR UPDATE;
    moment := clock_timestamp();
    SELECT array_agg(l.commits ORDER BY u.place), array_agg(l.last_transaction ORDER BY u.place),
            array_agg(l.maintenance ORDER BY u.place), bool_and(l.commits >= u.commits)
        INTO commits, last, maintenance, granted
        FROM unnest(lanes, seen) WITH ORDINALITY AS u (lane, commits, place)
        JOIN {schema}.account_lanes l ON l.account_id = account AND l.lane = u.lane;
    granted := coalesce((stored = wanted OR stored = expected) AND granted, false)
        AND NOT (must_be_free AND EXISTS (
            SELECT FROM {schema}.account_handles o JOIN {schema}.heartbeats p
                ON p.id = o.heartbeat_id
            WHERE o.account_id = account AND o.id <> handle AND p.alive_until > moment));
    IF NOT granted THEN
        RETURN;
    END IF;
    UPDATE {schema}.account_owners o
        SET token = wanted, name = owner_name, since = moment, instance = claim.instance
        WHERE o.account_id = account;
    DELETE FROM {schema}.account_handles o WHERE o.account_id = account;
    INSERT INTO {schema}.account_handles (account_id, id, heartbeat_id)
        VALUES (account, handle, heartbeat);
    DELETE FROM {schema}.heartbeats p WHERE p.alive_until < moment - interval '1 day';
    INSERT INTO {schema}.heartbeats AS p (id, alive_until, process, host, pid, started)
        VALUES (heartbeat, moment + lifetime * interval '1 millisecond',
            claim.process, claim.host, claim.pid, claim.started)
        ON CONFLICT (id) DO UPDATE SET alive_until = greatest(p.alive_until, excluded.alive_until);
END
{body};

-- Releases the account, so that the next opener need not wait for the heartbeat to expire. The lock
-- waits for a claim of the same handle that is still in flight.
CREATE FUNCTION {schema}.release(account bigint, handle bytea) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS {body}
BEGIN
    PERFORM {schema}.require_begun();
    PERFORM FROM {schema}.account_owners o WHERE o.account_id = account FOR SHARE;
    DELETE FROM {schema}.account_handles o WHERE o.account_id = account AND o.id = handle;
END
{body};

-- Renews a heartbeat, and returns the owner token and the lanes' counters of its accounts. A heartbeat
-- lost in a crash is harmless, so it does not wait for the disk.
CREATE FUNCTION {schema}.renew_heartbeat(heartbeat bytea, lifetime double precision, accounts bigint[])
RETURNS TABLE (account_id bigint, token bytea, lane text, commits bigint, maintenance bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS {body}
DECLARE
    until timestamptz := clock_timestamp() + lifetime * interval '1 millisecond';
BEGIN
    PERFORM {schema}.require_begun();
    PERFORM set_config('synchronous_commit', 'off', true);
    INSERT INTO {schema}.heartbeats AS h (id, alive_until) VALUES (heartbeat, until)
        ON CONFLICT (id) DO UPDATE SET alive_until = excluded.alive_until;
    RETURN QUERY
        SELECT o.account_id, o.token, l.lane, l.commits, l.maintenance
        FROM {schema}.account_owners o
        JOIN {schema}.account_lanes l ON l.account_id = o.account_id
        WHERE o.account_id = ANY (accounts);
END
{body};

-- Takes or extends a lease; null when another holder has it. A transaction of its own, neither queued
-- behind saves nor part of a scope. Uses clock_timestamp(), as now() is the transaction's start.
CREATE FUNCTION {schema}.take_lease(
    account bigint, of_lane text, lease_key bytea, wanted_by bytea, duration double precision,
    owner bytea
) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS {body}
DECLARE
    moment timestamptz;
    until timestamptz;
    taken bigint;
BEGIN
    PERFORM {schema}.guard(account, owner, NULL, NULL, NULL);
    -- Locked before the clock is read: during the wait the lease can change, and time passes.
    PERFORM FROM {schema}.lease_locks l
        WHERE l.account_id = account AND l.lane = of_lane AND l.key = lease_key FOR UPDATE;
    moment := clock_timestamp();
    until := moment + duration * interval '1 millisecond';
    INSERT INTO {schema}.lease_locks AS l (account_id, lane, key, holder, expires_at, generation)
        VALUES (account, of_lane, lease_key, wanted_by, until, 1)
        ON CONFLICT (account_id, lane, key) DO UPDATE SET
            holder = excluded.holder,
            expires_at = excluded.expires_at,
            generation = CASE
                WHEN l.holder = excluded.holder THEN l.generation ELSE l.generation + 1 END
        WHERE l.holder = excluded.holder OR l.expires_at <= moment
        RETURNING l.generation INTO taken;
    RETURN taken;
END
{body};
