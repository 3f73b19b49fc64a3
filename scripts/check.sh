#!/usr/bin/env bash
# Linters, formatter and types over everything that is written by hand; changes nothing, runs all before it fails.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"
scripts/venv.sh

failed=()
step() {
    local tool=$1
    say "$*"
    shift
    ".venv/bin/$tool" "$@" || failed+=("$tool")
}
step ruff check src tests bench images scripts
step ruff format --check src tests bench images scripts
step mypy
if [[ -x .venv/bin/shellcheck ]]; then
    step shellcheck --external-sources scripts/*.sh .ci/run
else
    note "no shellcheck for $(uname -m): the shell scripts were not looked at"
fi
((${#failed[@]} == 0)) || die "failed: ${failed[*]}"
