-- ownership.guard (int8, bytea, _text, _int8, _bytea)
/* ownership.guard */ SELECT "bots".guard($1, $2, $3, $4, $5);

-- ownership.count_commit (int8, _text, _int8, _bytea, bytea)
/* ownership.count_commit */ SELECT "bots".count_commit($1, $2, $3, $4, $5);

-- ownership.fence (int8, bytea, text, int8, bytea, bytea)
/* ownership.fence */ SELECT commits, last_transaction, maintenance FROM "bots".fence($1, $2, $3, $4, $5, $6);

-- account_owners.get (int8)
/* account_owners.get */ SELECT o.token, o.name, o.since,
    coalesce(p.alive, 0), l.lane, l.commits, l.last_transaction,
    p.process, p.host, p.pid, p.started, o.instance
FROM "bots".accounts a
LEFT JOIN "bots".account_owners o ON o.account_id = $1
LEFT JOIN "bots".account_lanes l ON l.account_id = $1
LEFT JOIN LATERAL (
    SELECT b.process, b.host, b.pid, b.started, count(*) OVER () AS alive
    FROM "bots".account_handles h JOIN "bots".heartbeats b ON b.id = h.heartbeat_id
    WHERE h.account_id = $1 AND b.alive_until > clock_timestamp()
    LIMIT 1) p ON true
WHERE a.id = $1;

-- ownership.claim (int8, bytea, bytea, _text, _int8, bool, text, bytea, bytea, float8, text, bytea, bytea, int8, int8)
/* ownership.claim */ SELECT granted, commits, last, maintenance FROM "bots".claim($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15);

-- heartbeats.renew (bytea, float8, _int8)
/* heartbeats.renew */ SELECT account_id, token, lane, commits, maintenance FROM "bots".renew_heartbeat($1, $2, $3);

-- account_handles.release (int8, bytea)
/* account_handles.release */ SELECT "bots".release($1, $2);

-- lease_locks.take (int8, text, bytea, bytea, float8, bytea)
/* lease_locks.take */ SELECT "bots".take_lease($1, $2, $3, $4, $5, $6);

-- accounts.insert (text, int2, bytea, int2)
/* accounts.insert */ INSERT INTO "bots".accounts (name, secret_kind, cipher, cipher_written_by)
SELECT $1, $2, $3, $4 FROM "bots".require_begun() ON CONFLICT (name) DO NOTHING;

-- accounts.insert_next (text, int2, bytea, int2)
/* accounts.insert_next */ INSERT INTO "bots".accounts (id, name, secret_kind, cipher, cipher_written_by)
OVERRIDING SYSTEM VALUE
SELECT (SELECT coalesce(max(id), 0) + 1 FROM "bots".accounts), $1, $2, $3, $4
FROM "bots".require_begun() ON CONFLICT (name) DO NOTHING;

-- account_data.get_one (int8, int2)
/* account_data.get_one */ SELECT data FROM "bots".account_data
WHERE account_id = $1 AND item = $2;

-- account_data.prefetch (int8, _int2)
/* account_data.prefetch */ SELECT item, data FROM "bots".account_data WHERE account_id = $1 AND item = ANY ($2);

-- account_data.upsert (int8, _int2, _bytea)
/* account_data.upsert */ INSERT INTO "bots".account_data (account_id, item, data)
SELECT o.account_id, u.item, u.data
FROM "bots".account_owners o CROSS JOIN unnest($2, $3) AS u (item, data)
WHERE o.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text
ON CONFLICT (account_id, item) DO UPDATE SET data = excluded.data;

-- account_data.delete (int8, _int2)
/* account_data.delete */ DELETE FROM "bots".account_data
WHERE account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text AND item = ANY ($2);

-- backup_versions.insert (int8, _bytea)
/* backup_versions.insert */ INSERT INTO "bots".backup_versions (account_id, generation, version)
SELECT o.account_id,
       (SELECT coalesce(max(generation), 0) FROM "bots".backup_versions WHERE account_id = $1)
           + row_number() OVER (), u.version
FROM "bots".account_owners o CROSS JOIN unnest($2) AS u (version)
WHERE o.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text
  AND NOT EXISTS (SELECT FROM "bots".backup_versions v
                  WHERE v.account_id = $1 AND v.version = u.version AND NOT v.retired);

-- backup_versions.retire (int8)
/* backup_versions.retire */ UPDATE "bots".backup_versions SET retired = true
WHERE account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text AND NOT retired;

-- custom_values.get (int8, bytea)
/* custom_values.get */ SELECT data FROM "bots".custom_values
WHERE account_id = $1 AND key = $2;

-- custom_values.upsert (int8, _bytea, _bytea)
/* custom_values.upsert */ INSERT INTO "bots".custom_values (account_id, key, data)
SELECT o.account_id, u.key, u.data
FROM "bots".account_owners o CROSS JOIN unnest($2, $3) AS u (key, data)
WHERE o.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text
ON CONFLICT (account_id, key) DO UPDATE SET data = excluded.data;

-- custom_values.delete (int8, _bytea)
/* custom_values.delete */ DELETE FROM "bots".custom_values
WHERE account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text AND key = ANY ($2);

-- devices.get (int8, bytea, bytea)
/* devices.get */ SELECT data FROM "bots".devices
WHERE account_id = $1 AND user_id = $2 AND device_id = $3;

-- devices.by_user (int8, bytea)
/* devices.by_user */ SELECT device_id, data FROM "bots".devices
WHERE account_id = $1 AND user_id = $2;

-- devices.keys (int8, int8)
/* devices.keys */ SELECT string_agg(substring(sha256(k.key) FOR 8), ''::bytea)
FROM (SELECT user_id AS key
      FROM "bots".devices WHERE account_id = $1 LIMIT $2) k;

-- devices.upsert (int8, _bytea, _bytea, _bytea)
/* devices.upsert */ INSERT INTO "bots".devices (account_id, user_id, device_id, data)
SELECT o.account_id, u.user_id, u.device_id, u.data
FROM "bots".account_owners o CROSS JOIN unnest($2, $3, $4) AS u (user_id, device_id, data)
WHERE o.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text
ON CONFLICT (account_id, user_id, device_id) DO UPDATE SET data = excluded.data;

-- devices.delete (int8, _bytea, _bytea)
/* devices.delete */ DELETE FROM "bots".devices d USING unnest($2, $3) AS u (user_id, device_id)
WHERE d.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text
  AND d.user_id = u.user_id
  AND d.device_id = u.device_id;

-- encrypted_rooms.get (int8, bytea)
/* encrypted_rooms.get */ SELECT data FROM "bots".encrypted_rooms
WHERE account_id = $1 AND room_id = $2;

-- encrypted_rooms.upsert (int8, _bytea, _bytea)
/* encrypted_rooms.upsert */ INSERT INTO "bots".encrypted_rooms (account_id, room_id, data)
SELECT o.account_id, u.room_id, u.data
FROM "bots".account_owners o CROSS JOIN unnest($2, $3) AS u (room_id, data)
WHERE o.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text
ON CONFLICT (account_id, room_id) DO UPDATE SET data = excluded.data;

-- user_identities.get (int8, bytea)
/* user_identities.get */ SELECT data FROM "bots".user_identities
WHERE account_id = $1 AND user_id = $2;

-- user_identities.keys (int8, int8)
/* user_identities.keys */ SELECT string_agg(substring(sha256(k.key) FOR 8), ''::bytea)
FROM (SELECT user_id AS key
      FROM "bots".user_identities WHERE account_id = $1 LIMIT $2) k;

-- user_identities.upsert (int8, _bytea, _bytea)
/* user_identities.upsert */ INSERT INTO "bots".user_identities (account_id, user_id, data)
SELECT o.account_id, u.user_id, u.data
FROM "bots".account_owners o CROSS JOIN unnest($2, $3) AS u (user_id, data)
WHERE o.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text
ON CONFLICT (account_id, user_id) DO UPDATE SET data = excluded.data;

-- megolm_inbound_sessions.get (int8, bytea, bytea)
/* megolm_inbound_sessions.get */ SELECT s.data, s.backup_generation > 0 AND EXISTS (
    SELECT FROM "bots".backup_versions v
    WHERE v.account_id = $1 AND v.generation = s.backup_generation AND NOT v.retired)
FROM "bots".megolm_inbound_sessions s
WHERE s.account_id = $1 AND s.room_id = $2 AND s.session_id = $3;

-- megolm_inbound_sessions.keys (int8, int8)
/* megolm_inbound_sessions.keys */ SELECT string_agg(substring(sha256(k.key) FOR 8), ''::bytea)
FROM (SELECT room_id || session_id AS key
      FROM "bots".megolm_inbound_sessions WHERE account_id = $1 LIMIT $2) k;

-- megolm_inbound_sessions.all (int8)
/* megolm_inbound_sessions.all */ SELECT s.room_id, s.session_id, s.data, s.backup_generation > 0 AND EXISTS (
    SELECT FROM "bots".backup_versions v
    WHERE v.account_id = $1 AND v.generation = s.backup_generation AND NOT v.retired)
FROM "bots".megolm_inbound_sessions s
WHERE s.account_id = $1;

-- megolm_inbound_sessions.after (int8, bytea, bytea, int8)
/* megolm_inbound_sessions.after */ SELECT s.room_id, s.session_id, s.data, s.backup_generation > 0 AND EXISTS (
    SELECT FROM "bots".backup_versions v
    WHERE v.account_id = $1 AND v.generation = s.backup_generation AND NOT v.retired)
FROM "bots".megolm_inbound_sessions s
WHERE s.account_id = $1 AND (s.room_id, s.session_id) > ($2, $3)
ORDER BY s.room_id, s.session_id LIMIT $4;

-- megolm_inbound_sessions.by_room (int8, bytea)
/* megolm_inbound_sessions.by_room */ SELECT s.room_id, s.session_id, s.data, s.backup_generation > 0 AND EXISTS (
    SELECT FROM "bots".backup_versions v
    WHERE v.account_id = $1 AND v.generation = s.backup_generation AND NOT v.retired)
FROM "bots".megolm_inbound_sessions s
WHERE s.account_id = $1 AND s.room_id = $2;

-- megolm_inbound_sessions.by_sender (int8, bytea, int2, bytea, int8)
/* megolm_inbound_sessions.by_sender */ SELECT s.room_id, s.session_id, s.data, s.backup_generation > 0 AND EXISTS (
    SELECT FROM "bots".backup_versions v
    WHERE v.account_id = $1 AND v.generation = s.backup_generation AND NOT v.retired)
FROM "bots".megolm_inbound_sessions s
WHERE s.account_id = $1 AND s.sender_key = $2 AND s.sender_data_type = $3 AND s.session_id > $4
ORDER BY s.session_id FETCH FIRST $5 ROWS WITH TIES;

-- megolm_inbound_sessions.senders (int8, int8)
/* megolm_inbound_sessions.senders */ SELECT string_agg(substring(sha256(k.key) FOR 8), ''::bytea)
FROM (SELECT sender_key || int8send(sender_data_type) AS key
      FROM "bots".megolm_inbound_sessions WHERE account_id = $1 LIMIT $2) k;

-- megolm_inbound_sessions.for_backup (int8, bytea, int8)
/* megolm_inbound_sessions.for_backup */ WITH current AS (
    SELECT coalesce((SELECT generation FROM "bots".backup_versions
                     WHERE account_id = $1 AND version = $2 AND NOT retired), 0) AS generation)
(SELECT s.room_id, s.session_id, s.data, s.backup_generation > 0 AND EXISTS (
    SELECT FROM "bots".backup_versions v
    WHERE v.account_id = $1 AND v.generation = s.backup_generation AND NOT v.retired)
FROM "bots".megolm_inbound_sessions s
WHERE s.account_id = $1 AND s.backup_generation < greatest(1, (SELECT generation FROM current))
ORDER BY s.backup_generation LIMIT $3)
UNION ALL
(SELECT s.room_id, s.session_id, s.data, s.backup_generation > 0 AND EXISTS (
    SELECT FROM "bots".backup_versions v
    WHERE v.account_id = $1 AND v.generation = s.backup_generation AND NOT v.retired)
FROM "bots".megolm_inbound_sessions s
WHERE s.account_id = $1 AND s.backup_generation > (SELECT generation FROM current) AND s.backup_generation > 0
ORDER BY s.backup_generation LIMIT $3)
LIMIT $3;

-- megolm_inbound_sessions.counts (int8, bytea)
/* megolm_inbound_sessions.counts */ SELECT count(*), count(*) FILTER (WHERE s.backup_generation = (
    SELECT generation FROM "bots".backup_versions
    WHERE account_id = $1 AND version = $2 AND NOT retired))
FROM "bots".megolm_inbound_sessions s WHERE s.account_id = $1;

-- megolm_inbound_sessions.upsert (int8, _bytea, _bytea, _bytea, _int4, _bytea, _int4, _bytea)
/* megolm_inbound_sessions.upsert */ INSERT INTO "bots".megolm_inbound_sessions AS s
    (account_id, room_id, session_id, sender_key, sender_data_type, backup_generation, data)
SELECT o.account_id, u.room_id, u.session_id, u.sender_key, u.sender_data_type,
       coalesce(v.generation, u.otherwise), u.data
FROM "bots".account_owners o
CROSS JOIN unnest($2, $3, $4, $5, $6, $7, $8)
    AS u (room_id, session_id, sender_key, sender_data_type, version, otherwise, data)
LEFT JOIN "bots".backup_versions v
    ON v.account_id = $1 AND v.version = u.version AND NOT v.retired
WHERE o.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text
ON CONFLICT (account_id, room_id, session_id) DO UPDATE SET
    sender_key = excluded.sender_key, sender_data_type = excluded.sender_data_type,
    backup_generation = CASE WHEN excluded.backup_generation < 0 THEN s.backup_generation
                             ELSE excluded.backup_generation END,
    data = excluded.data;

-- megolm_inbound_sessions.mark_backed_up (int8, _bytea, _bytea, _bytea)
/* megolm_inbound_sessions.mark_backed_up */ UPDATE "bots".megolm_inbound_sessions s SET backup_generation = v.generation
FROM unnest($2, $3, $4) AS u (room_id, session_id, version)
JOIN "bots".backup_versions v ON v.account_id = $1 AND v.version = u.version AND NOT v.retired
WHERE current_setting('matrix_sdk.tx') = $1::text
  AND s.account_id = $1 AND s.room_id = u.room_id AND s.session_id = u.session_id;

-- key_requests.get (int8, bytea)
/* key_requests.get */ SELECT request_id, data, sent_out FROM "bots".key_requests WHERE account_id = $1 AND request_id = $2;

-- key_requests.by_info (int8, bytea)
/* key_requests.by_info */ SELECT request_id, data, sent_out FROM "bots".key_requests WHERE account_id = $1 AND info = $2 LIMIT 1;

-- key_requests.unsent (int8)
/* key_requests.unsent */ SELECT request_id, data, sent_out FROM "bots".key_requests WHERE account_id = $1 AND NOT sent_out;

-- key_requests.delete_older (int8, _bytea, _bytea)
/* key_requests.delete_older */ DELETE FROM "bots".key_requests
WHERE account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text AND (info = ANY ($2) OR request_id = ANY ($3));

-- key_requests.insert (int8, _bytea, _bytea, _bool, _bytea)
/* key_requests.insert */ INSERT INTO "bots".key_requests (account_id, info, request_id, sent_out, data)
SELECT o.account_id, u.info, u.request_id, u.sent_out, u.data
FROM "bots".account_owners o
CROSS JOIN unnest($2, $3, $4, $5) AS u (info, request_id, sent_out, data)
WHERE o.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text;

-- key_requests.delete (int8, _bytea)
/* key_requests.delete */ DELETE FROM "bots".key_requests
WHERE account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text AND request_id = ANY ($2);

-- message_hashes.get (int8, bytea)
/* message_hashes.get */ SELECT 1 FROM "bots".message_hashes
WHERE account_id = $1 AND hash = $2;

-- message_hashes.keys (int8, int8)
/* message_hashes.keys */ SELECT string_agg(substring(sha256(k.key) FOR 8), ''::bytea)
FROM (SELECT hash AS key
      FROM "bots".message_hashes WHERE account_id = $1 LIMIT $2) k;

-- message_hashes.insert (int8, _bytea)
/* message_hashes.insert */ INSERT INTO "bots".message_hashes (account_id, hash)
SELECT o.account_id, u.hash
FROM "bots".account_owners o CROSS JOIN unnest($2) AS u (hash)
WHERE o.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text
ON CONFLICT (account_id, hash) DO NOTHING;

-- olm_sessions.get (int8, bytea, bytea, bytea)
/* olm_sessions.get */ SELECT session_id, data FROM "bots".olm_sessions WHERE account_id = $1 AND sender_key = $2
UNION ALL
SELECT NULL, data FROM "bots".devices WHERE account_id = $1 AND user_id = $3 AND device_id = $4;

-- olm_sessions.prefetch (int8, _bytea)
/* olm_sessions.prefetch */ SELECT sender_key, session_id, data FROM "bots".olm_sessions
WHERE account_id = $1 AND sender_key = ANY ($2);

-- olm_sessions.keys (int8, int8)
/* olm_sessions.keys */ SELECT string_agg(substring(sha256(k.key) FOR 8), ''::bytea)
FROM (SELECT sender_key AS key
      FROM "bots".olm_sessions WHERE account_id = $1 LIMIT $2) k;

-- olm_sessions.upsert (int8, _bytea, _bytea, _bytea)
/* olm_sessions.upsert */ INSERT INTO "bots".olm_sessions (account_id, sender_key, session_id, data)
SELECT o.account_id, u.sender_key, u.session_id, u.data
FROM "bots".account_owners o CROSS JOIN unnest($2, $3, $4) AS u (sender_key, session_id, data)
WHERE o.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text
ON CONFLICT (account_id, sender_key, session_id) DO UPDATE SET data = excluded.data;

-- megolm_outbound_sessions.get (int8, bytea)
/* megolm_outbound_sessions.get */ SELECT data FROM "bots".megolm_outbound_sessions
WHERE account_id = $1 AND room_id = $2;

-- megolm_outbound_sessions.upsert (int8, _bytea, _bytea)
/* megolm_outbound_sessions.upsert */ INSERT INTO "bots".megolm_outbound_sessions (account_id, room_id, data)
SELECT o.account_id, u.room_id, u.data
FROM "bots".account_owners o CROSS JOIN unnest($2, $3) AS u (room_id, data)
WHERE o.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text
ON CONFLICT (account_id, room_id) DO UPDATE SET data = excluded.data;

-- room_key_bundles.get (int8, bytea, bytea)
/* room_key_bundles.get */ SELECT data FROM "bots".room_key_bundles
WHERE account_id = $1 AND room_id = $2 AND sender_user = $3;

-- room_key_bundles.upsert (int8, _bytea, _bytea, _bytea)
/* room_key_bundles.upsert */ INSERT INTO "bots".room_key_bundles (account_id, room_id, sender_user, data)
SELECT o.account_id, u.room_id, u.sender_user, u.data
FROM "bots".account_owners o CROSS JOIN unnest($2, $3, $4) AS u (room_id, sender_user, data)
WHERE o.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text
ON CONFLICT (account_id, room_id, sender_user) DO UPDATE SET data = excluded.data;

-- pending_key_bundles.get (int8, bytea)
/* pending_key_bundles.get */ SELECT data FROM "bots".pending_key_bundles
WHERE account_id = $1 AND room_id = $2;

-- pending_key_bundles.upsert (int8, _bytea, _bytea)
/* pending_key_bundles.upsert */ INSERT INTO "bots".pending_key_bundles (account_id, room_id, data)
SELECT o.account_id, u.room_id, u.data
FROM "bots".account_owners o CROSS JOIN unnest($2, $3) AS u (room_id, data)
WHERE o.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text
ON CONFLICT (account_id, room_id) DO UPDATE SET data = excluded.data;

-- pending_key_bundles.delete (int8, _bytea)
/* pending_key_bundles.delete */ DELETE FROM "bots".pending_key_bundles
WHERE account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text AND room_id = ANY ($2);

-- pending_key_bundles.all (int8)
/* pending_key_bundles.all */ SELECT room_id, data FROM "bots".pending_key_bundles WHERE account_id = $1;

-- backed_up_rooms.get (int8, bytea)
/* backed_up_rooms.get */ SELECT 1 FROM "bots".backed_up_rooms
WHERE account_id = $1 AND room_id = $2;

-- backed_up_rooms.insert (int8, _bytea)
/* backed_up_rooms.insert */ INSERT INTO "bots".backed_up_rooms (account_id, room_id)
SELECT o.account_id, u.room_id
FROM "bots".account_owners o CROSS JOIN unnest($2) AS u (room_id)
WHERE o.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text
ON CONFLICT (account_id, room_id) DO NOTHING;

-- secrets_inbox.by_name (int8, bytea)
/* secrets_inbox.by_name */ SELECT secret_hash, data FROM "bots".secrets_inbox WHERE account_id = $1 AND secret_name = $2;

-- secrets_inbox.upsert (int8, _bytea, _bytea, _bytea)
/* secrets_inbox.upsert */ INSERT INTO "bots".secrets_inbox (account_id, secret_name, secret_hash, data)
SELECT o.account_id, u.secret_name, u.secret_hash, u.data
FROM "bots".account_owners o CROSS JOIN unnest($2, $3, $4) AS u (secret_name, secret_hash, data)
WHERE o.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text
ON CONFLICT (account_id, secret_name, secret_hash) DO UPDATE SET data = excluded.data;

-- secrets_inbox.delete (int8, _bytea)
/* secrets_inbox.delete */ DELETE FROM "bots".secrets_inbox
WHERE account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text AND secret_name = ANY ($2);

-- size.estimate (int8, _text)
/* size.estimate */ SELECT coalesce(sum(pg_total_relation_size(c.oid) * coalesce(
    s.freqs[array_position(s.vals, $1)],
    (1 - coalesce((SELECT sum(f) FROM unnest(s.freqs) f), 0))
        / nullif(greatest(s.accounts - coalesce(cardinality(s.vals), 0), 1), 0),
    1 / (SELECT greatest(count(*), 1) FROM "bots".accounts)::float8)), 0)::int8
FROM pg_class c
LEFT JOIN LATERAL (
    SELECT most_common_vals::text::int8[] AS vals, most_common_freqs::float8[] AS freqs,
           CASE WHEN n_distinct < 0 THEN -n_distinct * c.reltuples ELSE n_distinct END AS accounts
    FROM pg_stats
    WHERE schemaname = c.relnamespace::regnamespace::text AND tablename = c.relname
      AND attname = 'account_id'
) s ON true
WHERE c.relkind = 'r' AND c.relname = ANY ($2) AND c.relnamespace = (
    SELECT t.relnamespace FROM pg_class t JOIN "bots".accounts a ON a.tableoid = t.oid
    WHERE a.id = $1);

-- sync_tokens.get (int8)
/* sync_tokens.get */ SELECT data FROM "bots".sync_tokens WHERE account_id = $1;

-- sync_tokens.upsert (int8, _bytea)
/* sync_tokens.upsert */ INSERT INTO "bots".sync_tokens (account_id, data)
SELECT o.account_id, u.data
FROM "bots".account_owners o CROSS JOIN unnest($2) AS u (data)
WHERE o.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text
ON CONFLICT (account_id) DO UPDATE SET data = excluded.data, updated_at = excluded.updated_at;

-- tracked_users.all (int8)
/* tracked_users.all */ SELECT user_id, data FROM "bots".tracked_users
WHERE account_id = $1;

-- tracked_users.upsert (int8, _bytea, _bytea)
/* tracked_users.upsert */ INSERT INTO "bots".tracked_users (account_id, user_id, data)
SELECT o.account_id, u.user_id, u.data
FROM "bots".account_owners o CROSS JOIN unnest($2, $3) AS u (user_id, data)
WHERE o.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text
ON CONFLICT (account_id, user_id) DO UPDATE SET data = excluded.data;

-- withheld_sessions.get (int8, bytea, bytea)
/* withheld_sessions.get */ SELECT data FROM "bots".withheld_sessions
WHERE account_id = $1 AND room_id = $2 AND session_id = $3;

-- withheld_sessions.by_room (int8, bytea)
/* withheld_sessions.by_room */ SELECT session_id, data FROM "bots".withheld_sessions WHERE account_id = $1 AND room_id = $2;

-- withheld_sessions.upsert (int8, _bytea, _bytea, _bytea)
/* withheld_sessions.upsert */ INSERT INTO "bots".withheld_sessions (account_id, room_id, session_id, data)
SELECT o.account_id, u.room_id, u.session_id, u.data
FROM "bots".account_owners o CROSS JOIN unnest($2, $3, $4) AS u (room_id, session_id, data)
WHERE o.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text
ON CONFLICT (account_id, room_id, session_id) DO UPDATE SET data = excluded.data;

