#!/usr/bin/env bash
# Coverage-guided search for bytes that break a parser: tests/hostile/fuzz.py with the arguments given.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

readonly LOCK=tests/hostile/fuzz-requirements.txt
scripts/venv.sh
# Beside .venv and not in it: 130 MiB that no test needs, and there are no wheels but for Linux on x86-64.
if ! cmp -s "$LOCK" .fuzz/lib/.locked; then
    say "installing the fuzzer"
    rm -rf .fuzz/lib
    .venv/bin/python -m pip install -qq --disable-pip-version-check --no-input --no-deps --require-hashes \
        --only-binary :all: --target .fuzz/lib --requirement "$LOCK" || die "there is no wheel of the fuzzer for this machine"
    cp "$LOCK" .fuzz/lib/.locked
fi
PYTHONPATH=.fuzz/lib:src:images:. exec .venv/bin/python -m tests.hostile.fuzz "$@"
