-- Roles, database, schemas and grants, as docs/operations.md describes them. Run as a superuser:
--   psql --file=init-db.sql
-- It may be run again: after the first migration, which it then protects from the bot, and to change passwords.
-- Passwords are read from these files; by default from /run/secrets.

\set ON_ERROR_STOP on

-- Passwords do not belong in the server's log.
SET log_statement = 'none';
SET log_min_error_statement = 'panic';
SET log_min_duration_statement = -1;

\set owner_password `cat "${OWNER_PASSWORD_FILE:-/run/secrets/owner_password}"`
\set bot_password `cat "${BOT_PASSWORD_FILE:-/run/secrets/bot_password}"`
\set backup_password `cat "${BACKUP_PASSWORD_FILE:-/run/secrets/backup_password}"`
SELECT :'owner_password' <> '' AND :'bot_password' <> '' AND :'backup_password' <> '' AS has_passwords \gset
\if :has_passwords
\else
    \warn 'init-db.sql: a password is empty: set OWNER_PASSWORD_FILE, BOT_PASSWORD_FILE and BACKUP_PASSWORD_FILE'
    SELECT 1 / 0 AS "a password is missing";
\endif

SELECT format('CREATE ROLE %I LOGIN', name)
FROM unnest(ARRAY['matrix_sdk_owner', 'matrix_sdk_bot', 'matrix_sdk_backup']) AS name
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec
ALTER ROLE matrix_sdk_owner PASSWORD :'owner_password';
ALTER ROLE matrix_sdk_bot PASSWORD :'bot_password';
ALTER ROLE matrix_sdk_backup PASSWORD :'backup_password';

SELECT 'CREATE DATABASE bridge' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'bridge') \gexec
REVOKE ALL ON DATABASE bridge FROM PUBLIC;
GRANT CONNECT ON DATABASE bridge TO matrix_sdk_owner, matrix_sdk_bot, matrix_sdk_backup;

\connect bridge
SET client_min_messages = 'warning';
REVOKE ALL ON SCHEMA public FROM PUBLIC;
CREATE SCHEMA IF NOT EXISTS matrix_sdk AUTHORIZATION matrix_sdk_owner;
CREATE SCHEMA IF NOT EXISTS webhook_bridge AUTHORIZATION matrix_sdk_owner;
GRANT USAGE ON SCHEMA matrix_sdk, webhook_bridge TO matrix_sdk_bot, matrix_sdk_backup;

ALTER DEFAULT PRIVILEGES FOR ROLE matrix_sdk_owner IN SCHEMA matrix_sdk, webhook_bridge
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO matrix_sdk_bot;
ALTER DEFAULT PRIVILEGES FOR ROLE matrix_sdk_owner IN SCHEMA matrix_sdk, webhook_bridge
    GRANT SELECT ON TABLES TO matrix_sdk_backup;
ALTER DEFAULT PRIVILEGES FOR ROLE matrix_sdk_owner IN SCHEMA matrix_sdk, webhook_bridge
    GRANT SELECT ON SEQUENCES TO matrix_sdk_backup;

-- The bot reads, but does not write, what was migrated.
SELECT format('REVOKE INSERT, UPDATE, DELETE ON %I.schema_migrations FROM matrix_sdk_bot', schema)
FROM unnest(ARRAY['matrix_sdk', 'webhook_bridge']) AS schema
WHERE to_regclass(schema || '.schema_migrations') IS NOT NULL \gexec
