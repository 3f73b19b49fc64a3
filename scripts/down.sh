#!/usr/bin/env bash
# Stop the stack and remove every sandbox it may have left behind, as after a crash.
#
#   --only-stack   leave alone what else is left on this engine, which may be another service's
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

only_stack=false
case "${1:-}" in
    '') ;;
    --only-stack) only_stack=true ;;
    *) die "unknown option $1" ;;
esac

host=$(engine_host)
if ! have docker; then
    note "Docker is not installed, so nothing runs"
    exit 0
fi
if ! trouble=$(timeout 20 docker version --format '{{.Server.Version}}' 2>&1 >/dev/null); then
    if [[ $host == unix://* && ! -e ${host#unix://} ]]; then
        note "there is no ${host#unix://}, so no engine and no stack runs"
        exit 0
    fi
    # Anything else is no proof that nothing runs.
    die "the stack may still run: the engine at $host does not answer" "${trouble:-no answer within 20 s}"
fi
find_compose
forget_stack_settings
export_stack_variables
# What is started on request stops with the rest.
export COMPOSE_PROFILES=metrics
"${compose[@]}" down --remove-orphans </dev/null
if $only_stack; then exit 0; fi

# owner_is_gone BIRTHMARK: whether the process that made a sandbox has ended for certain. The label sandbox_svc.host
# holds "boot pid-namespace pid start-time". Another service on this engine, started by hand, keeps its sandboxes.
owner_is_gone() {
    local boot namespace pid started link
    read -r boot namespace pid started <<<"$1"
    # Only root sees every namespace; and of another machine's processes nothing is known.
    [[ $EUID -eq 0 && $boot == "$(cat /proc/sys/kernel/random/boot_id)" ]] || return 1
    if [[ $namespace == "$(readlink /proc/self/ns/pid)" ]]; then
        [[ $(sed 's/.*) //' "/proc/$pid/stat" 2>/dev/null | cut -d ' ' -f 20) != "$started" ]]
        return
    fi
    for link in /proc/[0-9]*/ns/pid; do
        [[ $(readlink "$link") != "$namespace" ]] || return 1
    done
}

# ended_lately ID: its owner, if it has one, may still want to know how it ended (`ENDED_SECONDS` of the service).
ended_lately() {
    local ended
    ended=$(docker inspect --format '{{.State.FinishedAt}}' "$1" 2>/dev/null) && (($(date +%s) - $(date -d "$ended" +%s) <= 60))
}

# A sandbox ends by itself once its owner lets go of its input.
deadline=$((SECONDS + 65))
while :; do
    left=() running=0 waits=false
    while IFS=$'\t' read -r id state owner; do
        if owner_is_gone "$owner"; then
            left+=("$id")
        elif [[ $state == exited || $state == dead ]]; then
            if ended_lately "$id"; then waits=true; else left+=("$id"); fi
        else
            running=$((running + 1))
        fi
    done < <(docker ps --all --filter label=sandbox_svc.service=sandbox_svc \
        --format '{{.ID}}	{{.State}}	{{.Label "sandbox_svc.host"}}')
    if ((${#left[@]})); then
        say "removing ${#left[@]} sandboxes that were left behind"
        docker rm --force --volumes "${left[@]}" >/dev/null || note "those named were being removed already"
    fi
    if ! $waits || ((SECONDS >= deadline)); then break; fi
    sleep 2
done
if ((running)); then
    note "$running sandboxes run on, which another service may own: docker ps --filter label=sandbox_svc.service=sandbox_svc"
    [[ $EUID -eq 0 ]] || note "root can tell, and removes those whose owner is gone"
fi
