#!/usr/bin/env bash
# Makes the files of secrets/ that compose.yaml and kubernetes.yaml name. Existing ones are kept.
#   make-secrets.sh [HOST]           HOST: the name of the database server, default postgres
# Asks for the bot's Matrix password.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
host=${1:-postgres}

# Containers read the files as other users; the directory keeps the host's users out.
mkdir -p secrets
chmod 700 secrets
cd secrets

# keep FILE: stores standard input, unless FILE exists.
keep() {
  if [ -s "$1" ]; then cat >/dev/null; else cat >"$1"; fi
  chmod 444 "$1"
}

if [ ! -s matrix_password ]; then
  IFS= read -rsp 'Matrix password of the bot: ' password
  echo
  [ -n "$password" ] || { echo 'the password is empty' >&2; exit 1; }
  keep matrix_password <<<"$password"
fi
for name in postgres_password owner_password bot_password backup_password store_passphrase webhook_token api_token; do
  openssl rand -hex 32 | keep "$name"
done
for role in owner bot; do
  keep "${role}_url" <<<"postgres://matrix_sdk_$role:$(<"${role}_password")@$host/bridge?sslmode=verify-full&sslrootcert=/run/secrets/ca.crt"
done

# A certificate for ten years, of an authority whose key is not kept.
if [ ! -s server.crt ]; then
  new=$(mktemp --directory)
  trap 'rm -rf "$new"' EXIT
  for name in ca server; do
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$new/$name.key"
  done
  openssl req -x509 -new -key "$new/ca.key" -days 3650 -subj '/CN=webhook bridge database' -out "$new/ca.crt" \
    -addext 'basicConstraints=critical,CA:TRUE' -addext 'keyUsage=critical,keyCertSign'
  openssl req -new -key "$new/server.key" -subj "/CN=$host" -out "$new/server.csr"
  printf 'subjectAltName=DNS:%s,DNS:localhost\nextendedKeyUsage=serverAuth\n' "$host" >"$new/extensions"
  openssl x509 -req -in "$new/server.csr" -CA "$new/ca.crt" -CAkey "$new/ca.key" -CAcreateserial -days 3650 \
    -extfile "$new/extensions" -out "$new/server.crt"
  for name in ca.crt server.crt server.key; do keep "$name" <"$new/$name"; done
fi
echo 'secrets/ is complete. Keep a copy of store_passphrase elsewhere: without it the backups are worthless.'
