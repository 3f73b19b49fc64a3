#!/usr/bin/env bash
# Everything that the tests need (.venv, engine, images, redis-server), then pytest with the arguments given.
#
#   --in-lanes   as the first argument: the soak too, and two pytests at a time, since most tests wait most of the time
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

scripts/venv.sh
scripts/openapi_tools.sh || note "the tests of the OpenAPI document will say so and skip"
scripts/engine.sh
scripts/images.sh
# The hostile suite runs under every runtime that the engine has. Registering one changes the engine's configuration, so
# this is only done where engines are ours to install; without gVisor one test says so and skips.
if is_apt_root && [[ ${DOCKER_HOST:-unix:///var/run/docker.sock} == unix:///var/run/docker.sock ]]; then
    scripts/gvisor.sh || note "gVisor could not be installed: the tests run under runc only, and one of them says so"
fi
if ! have redis-server; then
    # Only the binary is wanted; the tests start their own, and the package's service would hold the port.
    if is_apt_root; then
        apt_install redis-server
    else
        note "redis-server is missing: the tests that need it will say so and skip"
    fi
fi
if ! have curl; then
    if is_apt_root; then
        apt_install curl
    else
        note "curl is missing: the tests of examples that use it will say so and skip"
    fi
fi
if ! have chromedriver; then
    # For the tests of the page; without it they say so and skip.
    if is_apt_root; then
        apt_install chromium chromium-driver
    else
        note "chromium and chromedriver are missing: the tests of the page will say so and skip"
    fi
fi
if [[ ${1:-} != --in-lanes ]]; then exec .venv/bin/python -m pytest "$@"; fi
shift
# What has an engine of its own, and what has none.
readonly ELSEWHERE=(tests/faults tests/unit)
# What a soak beside it does not disturb.
readonly STURDY=(tests/supervisor tests/contract tests/browser)

# second_lane: the soak, then ELSEWHERE.
second_lane() {
    local failed=0
    .venv/bin/python -m pytest -m soak || failed=1
    .venv/bin/python -m pytest "$@" "${ELSEWHERE[@]}" || failed=1
    return "$failed"
}

# first_lane: STURDY, then all that is neither there nor in the other lane.
first_lane() {
    local failed=0 other=("${STURDY[@]}" "${ELSEWHERE[@]}")
    .venv/bin/python -m pytest "$@" "${STURDY[@]}" || failed=1
    .venv/bin/python -m pytest "$@" "${other[@]/#/--ignore=}" || failed=1
    return "$failed"
}

log=$(mktemp)
trap 'rm -f "$log"' EXIT
failed=0
second_lane "$@" >"$log" 2>&1 </dev/null &
second=$!
say "the first of two lanes; what the other one says follows when both are done"
first_lane "$@" || failed=1
say "the second lane: the soak, ${ELSEWHERE[*]}"
wait "$second" || failed=1
cat "$log"
exit "$failed"
