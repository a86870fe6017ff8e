# Sourced by check-deploy and e2e, after setup.sh.

# promtool and age: unpacked, because Debian's package of Prometheus starts a server.
need_age_and_promtool() {
  local tools=$cache/deploy-tools suite
  if ! command -v promtool >/dev/null || ! command -v age >/dev/null; then
    # Elsewhere the checks that need them say so.
    if [ ! -x "$tools/usr/bin/age" ] && grep -qx 'ID=debian' /etc/os-release; then
      suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
      step "Unpacking promtool and age" unpack_suite "$tools" "$suite" prometheus age
    fi
    PATH=$PATH:$tools/usr/bin
  fi
}
