#!/usr/bin/env bash
# Make sure that a Docker engine answers: use the one that runs, else install and start Debian's.
#
# DOCKER_HOST is respected: where it is set, nothing is installed or started.
# SANDBOX_ENGINE_LOG: log of an engine started here (default /var/log/sandbox-svc-dockerd.log).
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly LOG="${SANDBOX_ENGINE_LOG:-/var/log/sandbox-svc-dockerd.log}"
readonly START_SECONDS=60

answers() { have docker && timeout 10 docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

# why_not: the client's own words. Never fails, as it is asked when the client does.
why_not() {
    if have docker; then
        timeout 10 docker version 2>&1 >/dev/null | tail -n 3 || true
    else
        echo 'the docker client is not installed'
    fi
}

install_engine() {
    local packages=(docker.io ca-certificates iptables)
    # Debian 13 split the client off; --no-install-recommends would leave it out.
    if ! have docker && apt-cache show docker-cli >/dev/null 2>&1; then packages+=(docker-cli); fi
    apt_install "${packages[@]}"
    if ! have docker; then apt_install docker-cli; fi
}

start_engine() {
    if [[ -d /run/systemd/system ]]; then
        say "starting docker.service"
        systemctl start docker.service
        return
    fi
    # Without systemd nobody may have mounted the control groups.
    if ! mountpoint -q /sys/fs/cgroup; then
        mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 /sys/fs/cgroup || die "cannot mount the control groups at /sys/fs/cgroup"
    fi
    say "starting dockerd (log: $LOG)"
    # setsid and closed descriptors: the engine outlives this shell, its terminal and a CI step's pipes.
    setsid --fork dockerd >>"$LOG" 2>&1 </dev/null
}

wait_for_engine() {
    local deadline=$((SECONDS + START_SECONDS))
    until answers; do
        if ((SECONDS >= deadline)); then
            [[ -r $LOG ]] && tail -n 20 "$LOG" >&2
            die "the Docker engine did not answer within ${START_SECONDS} s" "$(why_not)"
        fi
        sleep 0.5
    done
}

if ! answers; then
    if [[ -n ${DOCKER_HOST:-} ]]; then
        die "no Docker engine answers at DOCKER_HOST=$DOCKER_HOST" "start it, or unset DOCKER_HOST to use the local one" "$(why_not)"
    fi
    if [[ $(why_not) == *[Pp]'ermission denied'* ]]; then
        die "the Docker engine runs, but this user may not use it" "sudo usermod -aG docker $(id -un)   (then log in again), or run make as root"
    fi
    if ! is_apt_root; then
        die "no Docker engine answers, and only root on Debian or Ubuntu can install and start one here" \
            "run make as root, or install Docker (https://docs.docker.com/engine/install/) and start it," \
            "or point DOCKER_HOST at an engine"
    fi
    if ! have dockerd || ! have docker; then install_engine; fi
    # Installing docker.io under systemd starts it.
    if ! answers; then start_engine; fi
    wait_for_engine
fi
note "Docker engine $(docker version --format '{{.Server.Version}} (API {{.Server.APIVersion}})')"
