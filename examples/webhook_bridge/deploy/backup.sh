#!/usr/bin/env bash
# Dumps the bridge's database, encrypted for BACKUP_RECIPIENT: once, or every SECONDS.
#   backup.sh [SECONDS]
# The database is that of libpq's variables (PGHOST, PGUSER, PGDATABASE, …), its password is in PGPASSWORD_FILE.
# BACKUP_RECIPIENT: a public key of age. BACKUP_DIR: default /backups. BACKUP_KEEP: how many files are kept, default 14.
set -euo pipefail
umask 077

directory=${BACKUP_DIR:-/backups} keep=${BACKUP_KEEP:-14} every=${1:-}
: "${BACKUP_RECIPIENT:?set it to the public key that age-keygen printed}"
[[ $keep =~ ^[1-9][0-9]*$ ]] || { echo "BACKUP_KEEP is '$keep': set it to a whole number above 0" >&2; exit 2; }
[ -z "${PGPASSWORD_FILE:-}" ] || PGPASSWORD=$(<"$PGPASSWORD_FILE")
export PGPASSWORD PGDATABASE=${PGDATABASE:-bridge}

backup() {
  local file
  file=$directory/bridge-$(date --utc +%Y%m%dT%H%M%SZ).dump.age
  # The whole database in one snapshot: keys and messages belong together.
  pg_dump --format=custom --no-password | age --recipient "$BACKUP_RECIPIENT" --output "$file.part"
  mv "$file.part" "$file"
  echo "$file: $(stat --format=%s "$file") bytes"
  find "$directory" -maxdepth 1 -name 'bridge-*.dump.age' | sort | head --lines="-$keep" | xargs --no-run-if-empty rm
}

rm -f "$directory"/bridge-*.part
backup
while [ -n "$every" ]; do
  sleep "$every"
  backup
done
