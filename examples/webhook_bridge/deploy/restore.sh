#!/usr/bin/env bash
# Restores a backup into a database that init-db.sql has made, as a superuser. The private key is read from stdin.
#   restore.sh FILE <identity.txt
# The database is that of libpq's variables; PGDATABASE is bridge by default. Stop the bridge first.
set -euo pipefail

[ $# = 1 ] || { sed -n '2,4s/^# *//p' "$0"; exit 2; }
export PGDATABASE=${PGDATABASE:-bridge}
tables=$(psql --no-psqlrc --tuples-only --no-align --command \
  "SELECT count(*) FROM pg_tables WHERE schemaname IN ('matrix_sdk', 'webhook_bridge')")
if [ "$tables" != 0 ]; then
  echo "the database $PGDATABASE has $tables tables already: drop it (dropdb --force $PGDATABASE), and run init-db.sql" >&2
  exit 1
fi

# In one transaction: a damaged file, or a wrong key, leaves the database empty.
age --decrypt --identity - "$1" |
  pg_restore --dbname="$PGDATABASE" --clean --if-exists --single-transaction --exit-on-error
cat <<'END'
Restored. The keys in it are older than the device: do not continue with that device. Set STORE_ACCOUNT to a new
name, start the bridge, and log the old device out. Without that the bridge exits with code 9.
END
