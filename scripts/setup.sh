#!/bin/sh
# Creates .venv from the lock files (hashes checked) and installs this checkout into it. Says in one sentence
# what is missing, and leaves nothing half-made behind.
set -u
cd "$(dirname "$0")/.." || exit 4
PYTHON=${PYTHON:-python3}
STAMP=.venv/.complete
LOCKS="requirements-build.lock requirements.lock"

die() { printf 'error: %s\n  %s\n' "$1" "$2" >&2; exit 4; }

command -v "$PYTHON" >/dev/null 2>&1 || die "$PYTHON is not installed" "on Debian: apt-get install python3 python3-venv"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "$("$PYTHON" --version 2>&1) is too old: Python 3.11 or newer is needed" "name another one: make setup PYTHON=python3.12"
"$PYTHON" -c 'import venv, ensurepip' 2>/dev/null ||
    die "this Python has no venv module" "on Debian: apt-get install python3-venv"

want=$({ "$PYTHON" --version; cat $LOCKS pyproject.toml; } | "$PYTHON" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
[ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$want" ] && exit 0
[ -L .venv ] && exit 0   # somebody's own environment, kept as it is
[ -w . ] || die "$(pwd) is read-only" "clone into a folder that you may write to"

undo() { rm -rf .venv .venv-setup.log; }
trap 'undo; exit 130' INT TERM HUP
run() {
    "$@" >.venv-setup.log 2>&1 && return 0
    what=$(grep -iE 'error|no space|could not' .venv-setup.log | tail -n 1)
    undo
    die "set-up stopped: ${what:-$1 failed}" "the package index must be reachable once; then run make setup again"
}
rm -rf .venv
printf 'setting up .venv with %s ...\n' "$("$PYTHON" --version)" >&2
run "$PYTHON" -m venv .venv
pip=".venv/bin/python -m pip --disable-pip-version-check --quiet"
run $pip install --require-hashes --only-binary :all: -r requirements-build.lock
run $pip install --require-hashes --no-build-isolation -r requirements.lock
run $pip install --no-deps --no-build-isolation -e .
rm -f .venv-setup.log
printf '%s\n' "$want" >"$STAMP"
