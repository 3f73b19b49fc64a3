#!/usr/bin/env bash
# Engine, images and the stack of compose.yaml; returns when /readyz says 200.
#
#   --metrics    Prometheus too, on 127.0.0.1:9090
#   --as-built   start the images that are there instead of building what is missing
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly READY_SECONDS=180

as_built=false
image_options=()
for option in "$@"; do
    case "$option" in
        --metrics)
            image_options=(--metrics)
            export COMPOSE_PROFILES=metrics
            ;;
        --as-built) as_built=true ;;
        *) die "unknown option $option" ;;
    esac
done

check_stack_settings
# Prometheus, which is nobody in particular, reads these in their place.
if [[ -n ${COMPOSE_PROFILES:-} ]]; then
    hidden=$(find "$ROOT/deploy/prometheus" ! -perm -o+r -o -type d ! -perm -o+x)
    [[ -z $hidden ]] || die "Prometheus could not read its configuration" "chmod -R o+rX $ROOT/deploy/prometheus"
fi
"$ROOT/scripts/engine.sh"
if ! $as_built; then "$ROOT/scripts/images.sh" "${image_options[@]}"; fi
find_compose
export_stack_variables

say "starting the stack"
"${compose[@]}" up --detach --no-build --remove-orphans </dev/null
# One that ran already takes up rules and jobs that changed; one that has just started may not listen to signals yet.
if [[ -n ${COMPOSE_PROFILES:-} ]]; then "${compose[@]}" kill -s HUP prometheus </dev/null || note "it reads its configuration as it starts"; fi

# find_address: sets address to where the service is published; to nothing while it is being started again.
find_address() {
    address=$("${compose[@]}" port service 9385 2>/dev/null) || address=
    # A stack published on every interface is asked on the loopback.
    address=${address/#0.0.0.0:/127.0.0.1:}
    address=${address/#\[::\]:/[::1]:}
}

# get PATH: status code, then body, of a GET; bare machines have no curl.
get() (
    host=${address%:*} host=${host#[} host=${host%]}
    exec 3<>"/dev/tcp/$host/${address##*:}" || exit 1
    printf 'GET %s HTTP/1.0\r\nHost: %s\r\n\r\n' "$1" "$address" >&3
    read -r -t 5 _ status _ <&3 && printf '%s\n' "$status"
    timeout 5 sed '1,/^\r$/d' <&3
) 2>/dev/null

service=$("${compose[@]}" ps --quiet service)
# look_at_starts: sets starts to how often the engine has started the service again, and ended_with to its last exit code.
look_at_starts() {
    read -r starts ended_with < <(docker inspect --format '{{.RestartCount}} {{.State.ExitCode}}' "$service" 2>/dev/null) ||
        starts=0 ended_with=0
}
look_at_starts
readonly STARTS_BEFORE=$starts

# refuses_its_settings: whether the service ended with the exit code for that, which no further start will change. Not one
# that ended before: a file that it reads may have been mended since.
refuses_its_settings() {
    look_at_starts
    ((starts > STARTS_BEFORE && ended_with == 2))
}

find_address
say "waiting for /readyz"
deadline=$((SECONDS + READY_SECONDS))
last=
until answer=$(get /readyz) && [[ ${answer%%$'\n'*} == 200 ]]; do
    answer=${answer//$'\n'/ }
    if [[ ${answer:=no answer yet} != "$last" ]]; then
        note "$answer"
        last=$answer
    fi
    if refuses_its_settings; then
        "${compose[@]}" logs --no-color --tail 5 service >&2 || true
        die "the service refuses its settings" "the end of its log is above; mend .env and run this again, or make down"
    fi
    if ((SECONDS >= deadline)); then
        "${compose[@]}" ps >&2 || true
        "${compose[@]}" logs --no-color --tail 60 >&2 || true
        die "the service was not ready within $READY_SECONDS s" "the end of its log is above; make down clears the stack away"
    fi
    sleep 1
    if [[ -z $address ]]; then find_address; fi
done

code=$(printf 'def main(name):\n    return {"hello": name}\n' | base64 -w 0)
with_key=
if [[ -n $(setting SANDBOX_API_KEYS_FILE) ]]; then with_key=" -H 'X-API-Key: YOUR-KEY'"; fi
cat <<MESSAGE

The sandbox is ready at http://$address
Try it:

  curl -s http://$address/run -H 'Content-Type: application/json'$with_key \\
    -d '{"language": "python", "code_b64": "$code", "arguments": {"name": "world"}}'

MESSAGE
if [[ ${COMPOSE_PROFILES:-} == metrics ]]; then note "Prometheus: http://$("${compose[@]}" port prometheus 9090)"; fi
