#!/usr/bin/env bash
# Installs the servers that the tests start for themselves: databases and brokers from Debian's packages. What is there
# already is left alone, and nothing is started: tests use what runs, and start what does not. `make test` calls it.
set -euo pipefail

fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# program or file -> package
wanted=(
    "/usr/lib/postgresql/*/bin/initdb:postgresql"
    "/usr/sbin/pgbouncer:pgbouncer"
    "redis-server:redis-server"
    "rabbitmq-server:rabbitmq-server"
    "ip:iproute2"
)

is_there() {
    case $1 in
        /*) compgen -G "$1" >/dev/null ;;
        *) command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] ;;
    esac
}

missing=()
for entry in "${wanted[@]}"; do
    is_there "${entry%%:*}" || missing+=("${entry##*:}")
done
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    fail "the tests need servers that are not installed: ${missing[*]}
  Fix:  install them with your system's package manager (Debian, Ubuntu: sudo apt-get install ${missing[*]})"
fi
printf '==> installing what the tests run against with apt-get: %s\n' "${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
