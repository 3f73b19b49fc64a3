#!/usr/bin/env bash
# Make .venv from requirements-dev.lock, every file checked against its hash, with the service installed editable.
# PYTHON: the interpreter to use (default /usr/bin/python3, else python3 from PATH), 3.11 or newer.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

readonly STAMP=.venv/.locked

if [[ -z ${PYTHON:-} && ! -x /usr/bin/python3 ]] && ! have python3; then
    is_apt_root || die "python3 is missing" "install Python 3.11 or newer, or name one with PYTHON=..."
    apt_install python3
fi
if [[ -n ${PYTHON:-} ]]; then
    python=$PYTHON
elif [[ -x /usr/bin/python3 ]]; then
    python=/usr/bin/python3
else
    python=python3
fi
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "$python is older than Python 3.11" "name a newer one with PYTHON=..."

# Of pyproject.toml only what an installation shows: a linter's option is no reason to make .venv again.
want=$("$python" -c 'import sys; print(sys.executable, sys.version)'; cat requirements-dev.lock; sed '/^\[tool\./,$d' pyproject.toml)
want=$(printf '%s' "$want" | sha256sum | cut -d' ' -f1)
if [[ -x .venv/bin/sandbox-svc && $(cat "$STAMP" 2>/dev/null) == "$want" ]]; then
    exit 0
fi

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    is_apt_root || die "$python has no venv module" "install it (Debian: apt-get install python3-venv)"
    apt_install python3-venv
fi
say "making .venv with $("$python" --version)"
"$python" -m venv --clear .venv
pip=(.venv/bin/python -m pip install -qq --disable-pip-version-check --no-input)
"${pip[@]}" --require-hashes --only-binary :all: --requirement requirements-dev.lock
"${pip[@]}" --no-deps --no-build-isolation --no-index --editable .
printf '%s\n' "$want" >"$STAMP"
note ".venv/bin/sandbox-svc"
