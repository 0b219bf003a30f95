#!/usr/bin/env bash
# Builds `.venv` from the lock files and installs this package into it, editable. Says each phase in one line.
# Safe to interrupt: what is half done is finished, or made anew, by the next run. `make` calls it when a lock file
# or pyproject.toml has changed; PYTHON=/path/to/python chooses another interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
trap 'echo "interrupted; the same command carries on from here" >&2; exit 130' INT TERM

say() { printf '==> %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }
is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3 python3.12 python3.13 python3.14}; do
        if is_recent "$candidate"; then command -v "$candidate"; return; fi
    done
    if [ -n "${PYTHON:-}" ]; then fail "PYTHON=$PYTHON is not a Python of version 3.11 or later"; fi
    fail "Python 3.11 or later is needed; python3 is $(python3 --version 2>&1 || true).
  Fix:  install python3.11 or later with your system's package manager, or set PYTHON=/path/to/python"
}

# Debian and Ubuntu keep the part of Python that makes environments in a package of its own.
ensure_venv_module() {
    if "$1" -c 'import ensurepip, venv' 2>/dev/null; then return; fi
    local package
    package=$("$1" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        fail "$1 cannot make virtual environments.
  Fix:  install your system's package for it (Debian, Ubuntu: sudo apt-get install $package)"
    fi
    say "installing $package with apt-get ($1 cannot make virtual environments without it)"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$package" >/dev/null
}

if ! { is_recent .venv/bin/python && .venv/bin/python -m pip --version; } >/dev/null 2>&1; then
    python=$(find_python)
    ensure_venv_module "$python"
    say "making .venv with $("$python" --version) ($python)"
    "$python" -m venv --clear .venv
fi

# Twice quiet: errors are shown, and warnings about how this machine's pip is configured are not.
pip() { .venv/bin/python -m pip --disable-pip-version-check -qq "$@"; }

say "installing what requirements-dev.lock pins ($(grep -c '^[a-zA-Z].*==' requirements-dev.lock) packages; half a minute)"
pip install --no-compile --require-hashes -r requirements-dev.lock
for lock in examples/*/requirements.lock; do
    if [ -e "$lock" ]; then
        say "installing what $lock pins"
        pip install --no-compile --no-deps --require-hashes -r "$lock"  # a lock is complete, and its overrides stand
    fi
done

say "installing this package (editable)"
pip install --no-deps --no-build-isolation -e .

say "compiling bytecode"
# Some packages carry templates that are not Python; that one of those does not compile is no failure.
.venv/bin/python -m compileall -qq -j 0 .venv/lib src || true
touch .venv/.installed
