#!/usr/bin/env bash
# Stop the stack and remove every sandbox it may have left behind, as after a crash.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

if ! have docker || ! timeout 10 docker version >/dev/null 2>&1; then
    note "no Docker engine answers, so nothing runs"
    exit 0
fi
find_compose
export_stack_variables
"${compose[@]}" down --remove-orphans </dev/null

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

left=()
while IFS=$'\t' read -r id state owner; do
    # A sandbox ends by itself once its owner lets go of its input.
    if [[ $state == exited || $state == dead ]] || owner_is_gone "$owner"; then left+=("$id"); fi
done < <(docker ps --all --filter label=sandbox_svc.service=sandbox_svc \
    --format '{{.ID}}	{{.State}}	{{.Label "sandbox_svc.host"}}')
if ((${#left[@]})); then
    say "removing ${#left[@]} sandboxes that were left behind"
    docker rm --force --volumes "${left[@]}" >/dev/null || note "those named were being removed already"
fi
