#!/usr/bin/env bash
# Renew every lock file of Python packages within the ranges of pyproject.toml, requirements-openapi.in and
# images/*/requirements.in.
# The one of npm: `npm install --package-lock-only --ignore-scripts` in images/nodejs.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --disable-pip-version-check 'uv>=0.9,<1'

# --universal: one file for every platform and Python from the named version on. No address is written into it.
lock() { "$work/venv/bin/uv" pip compile --quiet --universal --upgrade --generate-hashes --no-header --no-annotate "$@"; }

# What the service's image holds: the exporter of spans too, which is imported only where a collector is configured.
lock --python-version 3.11 --extra otel pyproject.toml --output-file requirements.lock
lock --python-version 3.11 --extra dev --constraint requirements.lock pyproject.toml --output-file requirements-dev.lock
lock --python-version 3.11 requirements-openapi.in --output-file requirements-openapi.lock
for source in images/*/requirements.in; do
    lock --python-version 3.13 "$source" --output-file "${source%.in}.txt"
done
lock --python-version 3.11 tests/hostile/fuzz-requirements.in --output-file tests/hostile/fuzz-requirements.txt
