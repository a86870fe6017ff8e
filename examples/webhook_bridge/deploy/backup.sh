#!/usr/bin/env bash
# Dumps the bridge's database, encrypted for BACKUP_RECIPIENT: once, or whenever the newest is SECONDS old.
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
  # Of those up to this one: others are from a time when the clock was wrong, and would take its place.
  find "$directory" -maxdepth 1 -name 'bridge-*.dump.age' | sort |
    awk -v made="$file" '!past { print } $0 == made { past = 1 }' | head --lines="-$keep" | xargs --no-run-if-empty rm
}

# Seconds until the next backup is due: a restart must not make one, for which an older day's would be removed.
rest() {
  local now newest age
  now=$(date +%s)
  # A file that is newer than now is from a time when the clock was wrong.
  newest=$(find "$directory" -maxdepth 1 -name 'bridge-*.dump.age' ! -newermt "@$now.999999999" -printf '%T@\n' |
    sort --numeric-sort | tail --lines=1)
  newest=${newest:-0}
  age=$((now - ${newest%.*}))
  echo $((age > every ? 0 : every - age))
}

# What a killed one has left; another one may be running.
find "$directory" -maxdepth 1 -name 'bridge-*.part' -mmin +1440 -delete
if [ -z "$every" ]; then
  backup
  exit
fi
while true; do
  sleep "$(rest)"
  backup
done
