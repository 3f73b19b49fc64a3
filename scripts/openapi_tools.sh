#!/usr/bin/env bash
# Make .venv-openapi from requirements-openapi.lock, every file checked against its hash: the tools that hold the service
# to its OpenAPI document. Comes after venv.sh, whose interpreter it uses.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

readonly STAMP=.venv-openapi/.locked

want=$(
    .venv/bin/python -c 'import sys; print(sys.version)'
    cat requirements-openapi.lock
)
want=$(printf '%s' "$want" | sha256sum | cut -d' ' -f1)
if [[ $(cat "$STAMP" 2>/dev/null) == "$want" ]]; then exit 0; fi

say "making .venv-openapi"
.venv/bin/python -m venv --clear .venv-openapi
.venv-openapi/bin/python -m pip install -qq --disable-pip-version-check --no-input --require-hashes \
    --only-binary :all: --requirement requirements-openapi.lock || die "the tools could not be installed"
printf '%s\n' "$want" >"$STAMP"
