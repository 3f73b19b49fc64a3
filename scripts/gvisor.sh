#!/usr/bin/env bash
# Install gVisor's runsc and register it with the Docker engine, so that SANDBOX_RUNTIME=runsc (and auto) can use it.
#
# One that is registered with other arguments is somebody's and stays as it is: containers of others run under it.
#
# SANDBOX_RUNSC          use this runsc instead of installing one
# SANDBOX_DAEMON_CONFIG  the engine's configuration file (default /etc/docker/daemon.json)
# SANDBOX_DAEMON_PIDFILE the engine's pid file (default /var/run/docker.pid)
# SANDBOX_DEBIAN_MIRROR  where a runsc newer than this system's is taken from (default http://deb.debian.org/debian)
# DOCKER_HOST            is respected; for another engine than the local one, set the two SANDBOX_DAEMON_* too
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly CONFIG="${SANDBOX_DAEMON_CONFIG:-/etc/docker/daemon.json}"
readonly PIDFILE="${SANDBOX_DAEMON_PIDFILE:-/var/run/docker.pid}"
readonly TARGET=/usr/local/bin/runsc
readonly KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
# Debian 12 carries a runsc of 2022, which fails on current kernels.
readonly OLDEST=20240000
readonly RELOAD_SECONDS=20

# release_of RUNSC: its date as a number, e.g. 20240729; 0 when it does not run.
release_of() {
    local date
    date=$(timeout 10 "$1" --version 2>/dev/null | grep -oE '20[0-9]{6}' | head -n 1) || true
    printf '%s\n' "${date:-0}"
}

is_new_enough() { [[ -x $1 ]] && (($(release_of "$1") >= OLDEST)); }

# Debian's signed package of a newer suite; only its one static binary is taken, nothing is installed from that suite.
download_runsc() {
    local work mirror=${SANDBOX_DEBIAN_MIRROR:-http://deb.debian.org/debian}
    is_apt_root || die "installing runsc needs root on Debian or Ubuntu" \
        "install gVisor yourself (https://gvisor.dev/docs/user_guide/install/) and run this again, or set SANDBOX_RUNSC"
    [[ -r $KEYRING ]] || apt_install debian-archive-keyring
    say "taking runsc from Debian trixie"
    work=$(mktemp -d)
    mkdir -p "$work"/{sources,lists/partial,cache/archives/partial,root}
    printf 'Types: deb\nURIs: %s\nSuites: trixie\nComponents: main\nSigned-By: %s\n' "$mirror" "$KEYRING" \
        >"$work/sources/trixie.sources"
    local apt=(-q -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$work/sources" -o "Dir::State::lists=$work/lists"
        -o Dir::State::status=/dev/null -o "Dir::Cache=$work/cache" -o Acquire::Languages=none -o Acquire::Retries=2
        # As root: the folder is ours alone.
        -o APT::Sandbox::User=root)
    if ! (cd "$work" && timeout 300 apt-get "${apt[@]}" update && timeout 300 apt-get "${apt[@]}" download runsc) \
        >"$work/log" 2>&1 </dev/null; then
        tail -n 15 "$work/log" >&2
        rm -rf "$work"
        die "runsc could not be downloaded from $mirror"
    fi
    dpkg-deb --extract "$work"/runsc_*.deb "$work/root"
    install -m 0755 "$work/root/usr/bin/runsc" "$TARGET.new"
    rm -rf "$work"
    is_new_enough "$TARGET.new" || die "the runsc of $mirror does not run here" "$("$TARGET.new" --version 2>&1 | head -n 3)"
    mv "$TARGET.new" "$TARGET"
}

find_runsc() {
    if [[ -n ${SANDBOX_RUNSC:-} ]]; then
        is_new_enough "$SANDBOX_RUNSC" || die "SANDBOX_RUNSC=$SANDBOX_RUNSC does not run, or is older than 2024"
        runsc=$(realpath "$SANDBOX_RUNSC")
        return
    fi
    for runsc in "$TARGET" "$(command -v runsc || true)"; do
        if is_new_enough "$runsc"; then return; fi
    done
    download_runsc
    runsc=$TARGET
}

knows_runsc() { timeout 20 docker info --format '{{json .Runtimes}}' 2>/dev/null | grep -q '"runsc"'; }

# Prints the merged configuration; nothing where a runsc of somebody else's is there. systrap: gVisor's kvm platform needs
# nested virtualisation and can hang a host without it. network=none: engines before 23 do not pass on that a container has
# no network.
merge_config() {
    python3 - "$CONFIG" "$1" <<'PYTHON'
import json, os, sys

path, runsc = sys.argv[1:]
config = {}
if os.path.exists(path):
    with open(path) as file:
        config = json.loads(file.read() or "{}")
ours = ["--platform=systrap", "--network=none"]
runtimes = config.setdefault("runtimes", {})
if runtimes.get("runsc", {}).get("runtimeArgs", ours) == ours:
    runtimes["runsc"] = {"path": runsc, "runtimeArgs": ours}
    print(json.dumps(config, indent=2))
PYTHON
}

reload_engine() {
    if [[ -d /run/systemd/system && -z ${SANDBOX_DAEMON_PIDFILE:-} ]]; then
        systemctl reload docker.service
        return
    fi
    [[ -r $PIDFILE ]] || die "the engine's pid file $PIDFILE is not there" \
        "set SANDBOX_DAEMON_PIDFILE, or reload the engine yourself (SIGHUP); $CONFIG is written"
    kill -HUP "$(<"$PIDFILE")"
}

register() {
    local merged target deadline=$((SECONDS + RELOAD_SECONDS))
    have python3 || die "python3 is needed to edit $CONFIG"
    merged=$(merge_config "$1") || die "$CONFIG could not be read as JSON"
    if [[ -z $merged ]]; then
        note "the runsc that $CONFIG registers has other arguments than ours (--platform=systrap --network=none) and stays as it is"
        return
    fi
    if [[ -r $CONFIG && $merged == "$(<"$CONFIG")" ]] && knows_runsc; then return; fi
    say "registering $1 in $CONFIG"
    mkdir -p "$(dirname "$CONFIG")"
    # In its place, whoever owns it and wherever a link leads.
    target=$(realpath -m "$CONFIG")
    printf '%s\n' "$merged" >"$target.new"
    if [[ -e $target ]]; then chown --reference="$target" "$target.new" && chmod --reference="$target" "$target.new"; fi
    mv "$target.new" "$target"
    reload_engine
    until knows_runsc; do
        ((SECONDS < deadline)) || die "the engine does not list runsc ${RELOAD_SECONDS} s after its reload" \
            "is it the engine at ${DOCKER_HOST:-unix:///var/run/docker.sock}, and does it read $CONFIG?"
        sleep 0.2
    done
}

# One container from whatever image of ours is there; an engine without images is believed.
try_it() {
    local image
    for image in sandbox-svc/base sandbox-svc/python; do
        docker image inspect "$image" >/dev/null 2>&1 || continue
        timeout 60 docker run --rm --runtime runsc --network none --log-driver none --entrypoint /bin/true "$image" ||
            die "runsc is registered, but a container does not start with it" "see the engine's log"
        return
    done
}

have docker || die "the docker client is not installed" "run scripts/engine.sh first"
timeout 10 docker version >/dev/null 2>&1 || die "no Docker engine answers" "run scripts/engine.sh first"
find_runsc
register "$runsc"
try_it
note "gVisor $(release_of "$runsc") ($runsc)"
