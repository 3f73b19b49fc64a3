# shellcheck shell=bash
# Shared by the scripts in this folder; sourced, never run.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly ROOT

say() { printf '%s\n' "==> $*" >&2; }
note() { printf '%s\n' "    $*" >&2; }
die() {
    printf '%s\n' "error: $1" >&2
    shift
    (($# == 0)) || printf '       %s\n' "$@" >&2
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

is_apt_root() { [[ $EUID -eq 0 ]] && have apt-get; }

# apt_install PACKAGE...: install what is missing; quiet unless it fails. Needs is_apt_root.
apt_install() {
    local missing=() package log
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    say "installing ${missing[*]} (apt)"
    log=$(mktemp)
    # One retry: an index that changed between update and install is the usual reason for a failure.
    for _ in 1 2; do
        if { apt-get update && DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 \
            apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=120 "${missing[@]}"; } >"$log" 2>&1 </dev/null; then
            rm -f "$log"
            return 0
        fi
    done
    tail -n 25 "$log" >&2
    rm -f "$log"
    die "apt-get could not install ${missing[*]}"
}

# Sets compose to the command that drives compose.yaml: Compose v2 where it works, else docker-compose 1.29.
find_compose() {
    if docker compose version >/dev/null 2>&1; then
        compose=(docker compose)
    elif have docker-compose; then
        compose=(docker-compose)
    else
        is_apt_root || die "Docker Compose is missing" "install the Compose plugin of Docker, or Debian's docker-compose"
        # Ubuntu's plain docker-compose does not run on its own Python any more; Debian has no docker-compose-v2.
        if apt-cache show docker-compose-v2 >/dev/null 2>&1; then
            apt_install docker-compose-v2
        else
            apt_install docker-compose
        fi
        if docker compose version >/dev/null 2>&1; then compose=(docker compose); else compose=(docker-compose); fi
    fi
    compose+=(--project-name "${COMPOSE_PROJECT_NAME:-sandbox-svc}" --file "$ROOT/compose.yaml" --project-directory "$ROOT")
}

# setting NAME: its value as compose sees it, from the environment or else from .env.
setting() {
    if [[ -n ${!1+set} ]]; then
        printf '%s' "${!1}"
    elif [[ -r $ROOT/.env ]]; then
        sed -n "s/^$1=//p" "$ROOT/.env" | tail -n 1
    fi
}

# Exports what compose.yaml cannot know by itself: the engine's socket and its group, and whether there are API keys.
export_stack_variables() {
    local keys
    case "${DOCKER_HOST:-unix:///var/run/docker.sock}" in
        unix://*) SANDBOX_STACK_SOCKET=${DOCKER_HOST:-unix:///var/run/docker.sock} ;;
        *) die "the stack needs the engine's socket, and DOCKER_HOST=$DOCKER_HOST is none" \
            "run the service on the host instead: .venv/bin/sandbox-svc serve" ;;
    esac
    SANDBOX_STACK_SOCKET=${SANDBOX_STACK_SOCKET#unix://}
    SANDBOX_STACK_GID=$(stat -L -c %g "$SANDBOX_STACK_SOCKET")
    SANDBOX_STACK_API_KEYS=
    keys=$(setting SANDBOX_API_KEYS_FILE)
    if [[ -n $keys ]]; then
        # The engine would make a folder of a file that is missing, and take a relative path for a volume.
        [[ $keys == /* && -f $keys ]] || die "SANDBOX_API_KEYS_FILE=$keys is not the absolute path of a file"
        SANDBOX_STACK_API_KEYS=/run/sandbox-svc/api-keys
    fi
    export SANDBOX_STACK_SOCKET SANDBOX_STACK_GID SANDBOX_STACK_API_KEYS
}
