-- ownership.guard (int8, bytea, _text, _int8, _bytea)
SELECT /* ownership.guard */ "bots".guard($1, $2, $3, $4, $5);

-- ownership.count_commit (int8, _text, _int8, _bytea, bytea)
SELECT /* ownership.count_commit */ "bots".count_commit($1, $2, $3, $4, $5);

-- ownership.fence (int8, bytea, text, int8, bytea, bytea)
SELECT /* ownership.fence */ commits, last_transaction, maintenance FROM "bots".fence($1, $2, $3, $4, $5, $6);

-- account_lanes.is_current (int8, bytea, text, int8, bytea)
SELECT /* account_lanes.is_current */ FROM "bots".account_owners o JOIN "bots".account_lanes l ON l.account_id = o.account_id
WHERE o.account_id = $1 AND o.token = $2 AND l.lane = $3 AND l.commits = $4
  AND l.last_transaction IS NOT DISTINCT FROM $5 AND NOT pg_is_in_recovery();

-- account_owners.get (int8)
SELECT /* account_owners.get */ o.token, o.name, o.since,
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

-- account_owners.get_by_name (text)
SELECT /* account_owners.get_by_name */ o.token, o.name, o.since,
    coalesce(p.alive, 0), l.lane, l.commits, l.last_transaction,
    p.process, p.host, p.pid, p.started, o.instance
FROM "bots".accounts a
LEFT JOIN "bots".account_owners o ON o.account_id = (SELECT id FROM "bots".accounts WHERE name = $1)
LEFT JOIN "bots".account_lanes l ON l.account_id = (SELECT id FROM "bots".accounts WHERE name = $1)
LEFT JOIN LATERAL (
    SELECT b.process, b.host, b.pid, b.started, count(*) OVER () AS alive
    FROM "bots".account_handles h JOIN "bots".heartbeats b ON b.id = h.heartbeat_id
    WHERE h.account_id = (SELECT id FROM "bots".accounts WHERE name = $1) AND b.alive_until > clock_timestamp()
    LIMIT 1) p ON true
WHERE a.id = (SELECT id FROM "bots".accounts WHERE name = $1);

-- ownership.claim (int8, bytea, bytea, _text, _int8, bool, text, bytea, bytea, float8, text, bytea, bytea, int8, int8)
SELECT /* ownership.claim */ granted, commits, last, maintenance FROM "bots".claim($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15);

-- heartbeats.renew (bytea, float8, _int8)
SELECT /* heartbeats.renew */ account_id, token, lane, commits, maintenance FROM "bots".renew_heartbeat($1, $2, $3);

-- account_handles.release (int8, bytea)
SELECT /* account_handles.release */ "bots".release($1, $2);

-- lease_locks.take (int8, text, bytea, bytea, float8, bytea)
SELECT /* lease_locks.take */ "bots".take_lease($1, $2, $3, $4, $5, $6);

-- accounts.probe (text)
SELECT /* accounts.probe */ current_setting('server_version_num')::int4 / 10000, pg_is_in_recovery(),
       current_setting('default_transaction_read_only') = 'on', current_user::text,
       current_setting('fsync') = 'on' AND current_setting('synchronous_commit') <> 'off',
       m.parts, m.versions, m.compatible_with, a.id, a.secret_kind, a.cipher, a.cipher_written_by
FROM (SELECT array_agg(part) AS parts, array_agg(version) AS versions,
             array_agg(compatible_with) AS compatible_with
      FROM (SELECT part, max(version) AS version, max(compatible_with) AS compatible_with
            FROM "bots".schema_migrations GROUP BY part) p) m
LEFT JOIN "bots".accounts a ON a.name = $1;

-- accounts.insert (text, int2, bytea, int2)
INSERT /* accounts.insert */ INTO "bots".accounts (name, secret_kind, cipher, cipher_written_by)
SELECT $1, $2, $3, $4 FROM "bots".require_begun() ON CONFLICT (name) DO NOTHING;

-- accounts.insert_next (text, int2, bytea, int2)
INSERT /* accounts.insert_next */ INTO "bots".accounts (id, name, secret_kind, cipher, cipher_written_by)
OVERRIDING SYSTEM VALUE
SELECT (SELECT coalesce(max(id), 0) + 1 FROM "bots".accounts), $1, $2, $3, $4
FROM "bots".require_begun() ON CONFLICT (name) DO NOTHING;

-- account_data.get_one (int8, int2)
SELECT /* account_data.get_one */ data FROM "bots".account_data
WHERE account_id = $1 AND item = $2;

-- account_data.prefetch (int8, _int2)
SELECT /* account_data.prefetch */ item, data FROM "bots".account_data WHERE account_id = $1 AND item = ANY ($2);

-- account_data.upsert (int8, _int2, _bytea)
INSERT /* account_data.upsert */ INTO "bots".account_data (account_id, item, data)
SELECT o.account_id, u.item, u.data
FROM "bots".account_owners o CROSS JOIN unnest($2, $3) AS u (item, data)
WHERE o.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text
ON CONFLICT (account_id, item) DO UPDATE SET data = excluded.data;

-- account_data.delete (int8, _int2)
DELETE /* account_data.delete */ FROM "bots".account_data
WHERE account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text AND item = ANY ($2);

-- backup_versions.insert (int8, _bytea)
INSERT /* backup_versions.insert */ INTO "bots".backup_versions (account_id, generation, version)
SELECT o.account_id,
       (SELECT coalesce(max(generation), 0) FROM "bots".backup_versions WHERE account_id = $1)
           + row_number() OVER (), u.version
FROM "bots".account_owners o CROSS JOIN unnest($2) AS u (version)
WHERE o.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text
  AND NOT EXISTS (SELECT FROM "bots".backup_versions v
                  WHERE v.account_id = $1 AND v.version = u.version AND NOT v.retired);

-- backup_versions.retire (int8)
UPDATE /* backup_versions.retire */ "bots".backup_versions SET retired = true
WHERE account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text AND NOT retired;

-- custom_values.get (int8, bytea)
SELECT /* custom_values.get */ data FROM "bots".custom_values
WHERE account_id = $1 AND key = $2;

-- custom_values.upsert (int8, _bytea, _bytea)
INSERT /* custom_values.upsert */ INTO "bots".custom_values (account_id, key, data)
SELECT o.account_id, u.key, u.data
FROM "bots".account_owners o CROSS JOIN unnest($2, $3) AS u (key, data)
WHERE o.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text
ON CONFLICT (account_id, key) DO UPDATE SET data = excluded.data;

-- custom_values.delete (int8, _bytea)
DELETE /* custom_values.delete */ FROM "bots".custom_values
WHERE account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text AND key = ANY ($2);

-- devices.get (int8, bytea, bytea)
SELECT /* devices.get */ data FROM "bots".devices
WHERE account_id = $1 AND user_id = $2 AND device_id = $3;

-- devices.by_user (int8, bytea)
SELECT /* devices.by_user */ device_id, data FROM "bots".devices
WHERE account_id = $1 AND user_id = $2;

-- devices.few (int8, int8, int8)
SELECT /* devices.few */ user_id, device_id, data
FROM (SELECT *, count(*) OVER () AS number, sum(coalesce(octet_length(data), 0) + 0) OVER () AS bytes
      FROM (SELECT user_id, device_id, data FROM "bots".devices
            WHERE account_id = $1 LIMIT $2 + 1) few) few
WHERE number <= $2 AND bytes <= $3;

-- devices.keys (int8, int8)
SELECT /* devices.keys */ string_agg(substring(sha256(k.key) FOR 8), ''::bytea)
FROM (SELECT user_id AS key
      FROM "bots".devices WHERE account_id = $1 LIMIT $2) k;

-- devices.upsert (int8, _bytea, _bytea, _bytea)
INSERT /* devices.upsert */ INTO "bots".devices (account_id, user_id, device_id, data)
SELECT o.account_id, u.user_id, u.device_id, u.data
FROM "bots".account_owners o CROSS JOIN unnest($2, $3, $4) AS u (user_id, device_id, data)
WHERE o.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text
ON CONFLICT (account_id, user_id, device_id) DO UPDATE SET data = excluded.data;

-- devices.delete (int8, _bytea, _bytea)
DELETE /* devices.delete */ FROM "bots".devices d USING unnest($2, $3) AS u (user_id, device_id)
WHERE d.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text
  AND d.user_id = u.user_id
  AND d.device_id = u.device_id;

-- encrypted_rooms.get (int8, bytea)
SELECT /* encrypted_rooms.get */ data FROM "bots".encrypted_rooms
WHERE account_id = $1 AND room_id = $2;

-- encrypted_rooms.upsert (int8, _bytea, _bytea)
INSERT /* encrypted_rooms.upsert */ INTO "bots".encrypted_rooms (account_id, room_id, data)
SELECT o.account_id, u.room_id, u.data
FROM "bots".account_owners o CROSS JOIN unnest($2, $3) AS u (room_id, data)
WHERE o.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text
ON CONFLICT (account_id, room_id) DO UPDATE SET data = excluded.data;

-- user_identities.get (int8, bytea)
SELECT /* user_identities.get */ data FROM "bots".user_identities
WHERE account_id = $1 AND user_id = $2;

-- user_identities.few (int8, int8, int8)
SELECT /* user_identities.few */ user_id, data
FROM (SELECT *, count(*) OVER () AS number, sum(coalesce(octet_length(data), 0) + 0) OVER () AS bytes
      FROM (SELECT user_id, data FROM "bots".user_identities
            WHERE account_id = $1 LIMIT $2 + 1) few) few
WHERE number <= $2 AND bytes <= $3;

-- user_identities.keys (int8, int8)
SELECT /* user_identities.keys */ string_agg(substring(sha256(k.key) FOR 8), ''::bytea)
FROM (SELECT user_id AS key
      FROM "bots".user_identities WHERE account_id = $1 LIMIT $2) k;

-- user_identities.upsert (int8, _bytea, _bytea)
INSERT /* user_identities.upsert */ INTO "bots".user_identities (account_id, user_id, data)
SELECT o.account_id, u.user_id, u.data
FROM "bots".account_owners o CROSS JOIN unnest($2, $3) AS u (user_id, data)
WHERE o.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text
ON CONFLICT (account_id, user_id) DO UPDATE SET data = excluded.data;

-- megolm_inbound_sessions.get (int8, bytea, bytea)
SELECT /* megolm_inbound_sessions.get */ s.data, s.backup_generation > 0 AND EXISTS (
    SELECT FROM "bots".backup_versions v
    WHERE v.account_id = $1 AND v.generation = s.backup_generation AND NOT v.retired)
FROM "bots".megolm_inbound_sessions s
WHERE s.account_id = $1 AND s.room_id = $2 AND s.session_id = $3;

-- megolm_inbound_sessions.keys (int8, int8)
SELECT /* megolm_inbound_sessions.keys */ string_agg(substring(sha256(k.key) FOR 8), ''::bytea)
FROM (SELECT room_id || session_id AS key
      FROM "bots".megolm_inbound_sessions WHERE account_id = $1 LIMIT $2) k;

-- megolm_inbound_sessions.all (int8)
SELECT /* megolm_inbound_sessions.all */ s.room_id, s.session_id, s.data, s.backup_generation > 0 AND EXISTS (
    SELECT FROM "bots".backup_versions v
    WHERE v.account_id = $1 AND v.generation = s.backup_generation AND NOT v.retired)
FROM "bots".megolm_inbound_sessions s
WHERE s.account_id = $1;

-- megolm_inbound_sessions.few (int8, int8, int8)
SELECT /* megolm_inbound_sessions.few */ room_id, session_id, data, is_backed_up
FROM (SELECT *, count(*) OVER () AS number, sum(octet_length(data)) OVER () AS bytes
      FROM (SELECT s.room_id, s.session_id, s.data, s.backup_generation > 0 AND EXISTS (
    SELECT FROM "bots".backup_versions v
    WHERE v.account_id = $1 AND v.generation = s.backup_generation AND NOT v.retired)
FROM "bots".megolm_inbound_sessions s
WHERE s.account_id = $1 LIMIT $2 + 1) few (room_id, session_id, data, is_backed_up)) few
WHERE number <= $2 AND bytes <= $3;

-- megolm_inbound_sessions.after (int8, bytea, bytea, int8)
SELECT /* megolm_inbound_sessions.after */ s.room_id, s.session_id, s.data, s.backup_generation > 0 AND EXISTS (
    SELECT FROM "bots".backup_versions v
    WHERE v.account_id = $1 AND v.generation = s.backup_generation AND NOT v.retired)
FROM "bots".megolm_inbound_sessions s
WHERE s.account_id = $1 AND (s.room_id, s.session_id) > ($2, $3)
ORDER BY s.room_id, s.session_id LIMIT $4;

-- megolm_inbound_sessions.by_room (int8, bytea)
SELECT /* megolm_inbound_sessions.by_room */ s.room_id, s.session_id, s.data, s.backup_generation > 0 AND EXISTS (
    SELECT FROM "bots".backup_versions v
    WHERE v.account_id = $1 AND v.generation = s.backup_generation AND NOT v.retired)
FROM "bots".megolm_inbound_sessions s
WHERE s.account_id = $1 AND s.room_id = $2;

-- megolm_inbound_sessions.by_sender (int8, bytea, int2, bytea, int8)
SELECT /* megolm_inbound_sessions.by_sender */ s.room_id, s.session_id, s.data, s.backup_generation > 0 AND EXISTS (
    SELECT FROM "bots".backup_versions v
    WHERE v.account_id = $1 AND v.generation = s.backup_generation AND NOT v.retired)
FROM "bots".megolm_inbound_sessions s
WHERE s.account_id = $1 AND s.sender_key = $2 AND s.sender_data_type = $3 AND s.session_id > $4
ORDER BY s.session_id FETCH FIRST $5 ROWS WITH TIES;

-- megolm_inbound_sessions.senders (int8, int8)
SELECT /* megolm_inbound_sessions.senders */ string_agg(substring(sha256(k.key) FOR 8), ''::bytea)
FROM (SELECT sender_key || int8send(sender_data_type) AS key
      FROM "bots".megolm_inbound_sessions WHERE account_id = $1 LIMIT $2) k;

-- megolm_inbound_sessions.for_backup (int8, bytea, int8)
WITH /* megolm_inbound_sessions.for_backup */ current AS (
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
SELECT /* megolm_inbound_sessions.counts */ count(*), count(*) FILTER (WHERE s.backup_generation = (
    SELECT generation FROM "bots".backup_versions
    WHERE account_id = $1 AND version = $2 AND NOT retired))
FROM "bots".megolm_inbound_sessions s WHERE s.account_id = $1;

-- megolm_inbound_sessions.upsert (int8, _bytea, _bytea, _bytea, _int4, _bytea, _int4, _bytea)
INSERT /* megolm_inbound_sessions.upsert */ INTO "bots".megolm_inbound_sessions AS s
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
UPDATE /* megolm_inbound_sessions.mark_backed_up */ "bots".megolm_inbound_sessions s SET backup_generation = v.generation
FROM unnest($2, $3, $4) AS u (room_id, session_id, version)
JOIN "bots".backup_versions v ON v.account_id = $1 AND v.version = u.version AND NOT v.retired
WHERE current_setting('matrix_sdk.tx') = $1::text
  AND s.account_id = $1 AND s.room_id = u.room_id AND s.session_id = u.session_id;

-- key_requests.get (int8, bytea)
SELECT /* key_requests.get */ request_id, data, sent_out FROM "bots".key_requests WHERE account_id = $1 AND request_id = $2;

-- key_requests.by_info (int8, bytea)
SELECT /* key_requests.by_info */ request_id, data, sent_out FROM "bots".key_requests WHERE account_id = $1 AND info = $2 LIMIT 1;

-- key_requests.unsent (int8)
SELECT /* key_requests.unsent */ request_id, data, sent_out FROM "bots".key_requests WHERE account_id = $1 AND NOT sent_out;

-- key_requests.delete_older (int8, _bytea, _bytea)
DELETE /* key_requests.delete_older */ FROM "bots".key_requests
WHERE account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text AND (info = ANY ($2) OR request_id = ANY ($3));

-- key_requests.insert (int8, _bytea, _bytea, _bool, _bytea)
INSERT /* key_requests.insert */ INTO "bots".key_requests (account_id, info, request_id, sent_out, data)
SELECT o.account_id, u.info, u.request_id, u.sent_out, u.data
FROM "bots".account_owners o
CROSS JOIN unnest($2, $3, $4, $5) AS u (info, request_id, sent_out, data)
WHERE o.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text;

-- key_requests.delete (int8, _bytea)
DELETE /* key_requests.delete */ FROM "bots".key_requests
WHERE account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text AND request_id = ANY ($2);

-- message_hashes.get (int8, bytea)
SELECT /* message_hashes.get */ 1 FROM "bots".message_hashes
WHERE account_id = $1 AND hash = $2;

-- message_hashes.keys (int8, int8)
SELECT /* message_hashes.keys */ string_agg(substring(sha256(k.key) FOR 8), ''::bytea)
FROM (SELECT hash AS key
      FROM "bots".message_hashes WHERE account_id = $1 LIMIT $2) k;

-- message_hashes.insert (int8, _bytea)
INSERT /* message_hashes.insert */ INTO "bots".message_hashes (account_id, hash)
SELECT o.account_id, u.hash
FROM "bots".account_owners o CROSS JOIN unnest($2) AS u (hash)
WHERE o.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text
ON CONFLICT (account_id, hash) DO NOTHING;

-- olm_sessions.get (int8, bytea, bytea, bytea)
SELECT /* olm_sessions.get */ session_id, data FROM "bots".olm_sessions WHERE account_id = $1 AND sender_key = $2
UNION ALL
SELECT NULL, data FROM "bots".devices WHERE account_id = $1 AND user_id = $3 AND device_id = $4;

-- olm_sessions.prefetch (int8, _bytea)
SELECT /* olm_sessions.prefetch */ sender_key, session_id, data FROM "bots".olm_sessions
WHERE account_id = $1 AND sender_key = ANY ($2);

-- olm_sessions.keys (int8, int8)
SELECT /* olm_sessions.keys */ string_agg(substring(sha256(k.key) FOR 8), ''::bytea)
FROM (SELECT sender_key AS key
      FROM "bots".olm_sessions WHERE account_id = $1 LIMIT $2) k;

-- olm_sessions.upsert (int8, _bytea, _bytea, _bytea)
INSERT /* olm_sessions.upsert */ INTO "bots".olm_sessions (account_id, sender_key, session_id, data)
SELECT o.account_id, u.sender_key, u.session_id, u.data
FROM "bots".account_owners o CROSS JOIN unnest($2, $3, $4) AS u (sender_key, session_id, data)
WHERE o.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text
ON CONFLICT (account_id, sender_key, session_id) DO UPDATE SET data = excluded.data;

-- megolm_outbound_sessions.get (int8, bytea)
SELECT /* megolm_outbound_sessions.get */ data FROM "bots".megolm_outbound_sessions
WHERE account_id = $1 AND room_id = $2;

-- megolm_outbound_sessions.upsert (int8, _bytea, _bytea)
INSERT /* megolm_outbound_sessions.upsert */ INTO "bots".megolm_outbound_sessions (account_id, room_id, data)
SELECT o.account_id, u.room_id, u.data
FROM "bots".account_owners o CROSS JOIN unnest($2, $3) AS u (room_id, data)
WHERE o.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text
ON CONFLICT (account_id, room_id) DO UPDATE SET data = excluded.data;

-- room_key_bundles.get (int8, bytea, bytea)
SELECT /* room_key_bundles.get */ data FROM "bots".room_key_bundles
WHERE account_id = $1 AND room_id = $2 AND sender_user = $3;

-- room_key_bundles.upsert (int8, _bytea, _bytea, _bytea)
INSERT /* room_key_bundles.upsert */ INTO "bots".room_key_bundles (account_id, room_id, sender_user, data)
SELECT o.account_id, u.room_id, u.sender_user, u.data
FROM "bots".account_owners o CROSS JOIN unnest($2, $3, $4) AS u (room_id, sender_user, data)
WHERE o.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text
ON CONFLICT (account_id, room_id, sender_user) DO UPDATE SET data = excluded.data;

-- pending_key_bundles.get (int8, bytea)
SELECT /* pending_key_bundles.get */ data FROM "bots".pending_key_bundles
WHERE account_id = $1 AND room_id = $2;

-- pending_key_bundles.upsert (int8, _bytea, _bytea)
INSERT /* pending_key_bundles.upsert */ INTO "bots".pending_key_bundles (account_id, room_id, data)
SELECT o.account_id, u.room_id, u.data
FROM "bots".account_owners o CROSS JOIN unnest($2, $3) AS u (room_id, data)
WHERE o.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text
ON CONFLICT (account_id, room_id) DO UPDATE SET data = excluded.data;

-- pending_key_bundles.delete (int8, _bytea)
DELETE /* pending_key_bundles.delete */ FROM "bots".pending_key_bundles
WHERE account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text AND room_id = ANY ($2);

-- pending_key_bundles.all (int8)
SELECT /* pending_key_bundles.all */ room_id, data FROM "bots".pending_key_bundles WHERE account_id = $1;

-- backed_up_rooms.get (int8, bytea)
SELECT /* backed_up_rooms.get */ 1 FROM "bots".backed_up_rooms
WHERE account_id = $1 AND room_id = $2;

-- backed_up_rooms.insert (int8, _bytea)
INSERT /* backed_up_rooms.insert */ INTO "bots".backed_up_rooms (account_id, room_id)
SELECT o.account_id, u.room_id
FROM "bots".account_owners o CROSS JOIN unnest($2) AS u (room_id)
WHERE o.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text
ON CONFLICT (account_id, room_id) DO NOTHING;

-- secrets_inbox.by_name (int8, bytea)
SELECT /* secrets_inbox.by_name */ secret_hash, data FROM "bots".secrets_inbox WHERE account_id = $1 AND secret_name = $2;

-- secrets_inbox.upsert (int8, _bytea, _bytea, _bytea)
INSERT /* secrets_inbox.upsert */ INTO "bots".secrets_inbox (account_id, secret_name, secret_hash, data)
SELECT o.account_id, u.secret_name, u.secret_hash, u.data
FROM "bots".account_owners o CROSS JOIN unnest($2, $3, $4) AS u (secret_name, secret_hash, data)
WHERE o.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text
ON CONFLICT (account_id, secret_name, secret_hash) DO UPDATE SET data = excluded.data;

-- secrets_inbox.delete (int8, _bytea)
DELETE /* secrets_inbox.delete */ FROM "bots".secrets_inbox
WHERE account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text AND secret_name = ANY ($2);

-- size.estimate (int8, _text)
SELECT /* size.estimate */ coalesce(sum(pg_total_relation_size(c.oid) * coalesce(
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
SELECT /* sync_tokens.get */ data FROM "bots".sync_tokens WHERE account_id = $1;

-- sync_tokens.upsert (int8, _bytea)
INSERT /* sync_tokens.upsert */ INTO "bots".sync_tokens (account_id, data)
SELECT o.account_id, u.data
FROM "bots".account_owners o CROSS JOIN unnest($2) AS u (data)
WHERE o.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text
ON CONFLICT (account_id) DO UPDATE SET data = excluded.data, updated_at = excluded.updated_at;

-- tracked_users.all (int8)
SELECT /* tracked_users.all */ user_id, data FROM "bots".tracked_users
WHERE account_id = $1;

-- tracked_users.upsert (int8, _bytea, _bytea)
INSERT /* tracked_users.upsert */ INTO "bots".tracked_users (account_id, user_id, data)
SELECT o.account_id, u.user_id, u.data
FROM "bots".account_owners o CROSS JOIN unnest($2, $3) AS u (user_id, data)
WHERE o.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text
ON CONFLICT (account_id, user_id) DO UPDATE SET data = excluded.data;

-- withheld_sessions.get (int8, bytea, bytea)
SELECT /* withheld_sessions.get */ data FROM "bots".withheld_sessions
WHERE account_id = $1 AND room_id = $2 AND session_id = $3;

-- withheld_sessions.by_room (int8, bytea)
SELECT /* withheld_sessions.by_room */ session_id, data FROM "bots".withheld_sessions WHERE account_id = $1 AND room_id = $2;

-- withheld_sessions.upsert (int8, _bytea, _bytea, _bytea)
INSERT /* withheld_sessions.upsert */ INTO "bots".withheld_sessions (account_id, room_id, session_id, data)
SELECT o.account_id, u.room_id, u.session_id, u.data
FROM "bots".account_owners o CROSS JOIN unnest($2, $3, $4) AS u (room_id, session_id, data)
WHERE o.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text
ON CONFLICT (account_id, room_id, session_id) DO UPDATE SET data = excluded.data;

