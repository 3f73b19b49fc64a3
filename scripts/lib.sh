# shellcheck shell=bash
# Shared by the scripts in this folder; sourced, never run.

# Else `cd` looks elsewhere for what is named here, and prints what it found.
unset CDPATH
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
    compose+=(--project-name "$(stack_name)" --file "$ROOT/compose.yaml" --project-directory "$ROOT")
}

stack_name() {
    local name
    name=$(setting COMPOSE_PROJECT_NAME)
    printf '%s' "${name:-sandbox-svc}"
}

# setting NAME: its value as compose sees it, from the environment or else from .env. It must not miss what compose takes,
# or the stack would have a file of keys and start without keys.
setting() {
    if [[ -n ${!1+set} ]]; then
        printf '%s' "${!1}"
    else
        env_lines | sed -nE "s/^\s*(export\s+)?$1\s*[=:]\s*//p" | tail -n 1 |
            sed -E "s/^'([^']*)'.*\$/\1/; t; s/^\"([^\"]*)\".*\$/\1/; t; s/(^|\s+)#.*\$//; s/\s+\$//"
    fi
}

# names_in_env: the SANDBOX_* variables that .env sets.
names_in_env() { env_lines | sed -nE 's/^\s*(export\s+)?(SANDBOX_\w+)\s*[=:].*/\2/p'; }

# env_lines: .env without what editors of Windows add to it, which Compose does without too.
env_lines() { [[ ! -r $ROOT/.env ]] || LC_ALL=C sed -e '1s/^\xef\xbb\xbf//' -e 's/\r$//' "$ROOT/.env"; }

# is_handed_on NAME: whether compose.yaml does anything with a variable.
is_handed_on() { grep -qE "\\$\{$1:-|^ +$1:\$" "$ROOT/compose.yaml"; }

# is_address TEXT: whether a port can be published on it; on the default where it is empty.
is_address() { [[ $1 =~ ^([0-9.]*|\[[0-9a-fA-F:]+\])$ ]]; }

# seconds DURATION: whole seconds, rounded up, of what the service takes for a duration (20s, 1m30s, 500ms, 20).
seconds() {
    local text=${1,,} fraction=0
    if [[ $text =~ ^[0-9]+(\.[0-9]+)?$ ]]; then text+=s; fi
    [[ -n $text && $text =~ ^(([0-9]+)h)?(([0-9]+)m)?(([0-9]+)(\.[0-9]+)?s)?(([0-9]+)ms)?$ ]] || return 1
    if [[ ${BASH_REMATCH[7]:-} == *[1-9]* ]]; then fraction=1; fi
    printf '%d' $((10#${BASH_REMATCH[2]:-0} * 3600 + 10#${BASH_REMATCH[4]:-0} * 60 + 10#${BASH_REMATCH[6]:-0} +
        fraction + (10#${BASH_REMATCH[9]:-0} + 999) / 1000))
}

# The service's own default of SANDBOX_DRAIN_TIMEOUT; after the drain an engine that does not answer can cost 45 s.
readonly DRAIN_DEFAULT=15s
readonly AFTER_DRAIN_SECONDS=45

# engine_host: the address of the engine that the client asks: by DOCKER_HOST, or else by its context (Docker Desktop and
# rootless engines make one), or else the default.
engine_host() {
    local host=${DOCKER_HOST:-}
    if [[ -z $host ]] && have docker; then
        host=$(timeout 10 docker context inspect --format '{{.Endpoints.docker.Host}}' 2>/dev/null) || host=
    fi
    printf '%s' "${host:-unix:///var/run/docker.sock}"
}

# Exports what compose.yaml cannot know by itself: the engine's socket and its group, and how
# long the service may take to stop. Judges nothing, so that a stack can be looked at and stopped whatever became of its
# settings; check_stack_settings does.
export_stack_variables() {
    local drain host
    host=$(engine_host)
    [[ $host == unix://* ]] || die "the stack needs the engine's socket, and $host is none" \
        "run the service on the host instead: .venv/bin/sandbox-svc serve"
    SANDBOX_STACK_SOCKET=${host#unix://}
    [[ -S $SANDBOX_STACK_SOCKET ]] || die "the engine's socket $SANDBOX_STACK_SOCKET is not there" "DOCKER_HOST names another one"
    SANDBOX_STACK_GID=$(stat -L -c %g "$SANDBOX_STACK_SOCKET")
    drain=$(seconds "$(setting SANDBOX_DRAIN_TIMEOUT)" || seconds "$DRAIN_DEFAULT")
    SANDBOX_STACK_STOP_GRACE=$(seconds "$(setting SANDBOX_STACK_STOP_GRACE)" || printf '%d' $((drain + AFTER_DRAIN_SECONDS + 15)))s
    export SANDBOX_STACK_SOCKET SANDBOX_STACK_GID SANDBOX_STACK_STOP_GRACE
}

# What compose.yaml is refused for as a whole when it makes no sense, with a value that does. A stack must stop whatever
# became of its settings.
forget_stack_settings() {
    export SANDBOX_API_KEYS_FILE='' SANDBOX_HOST=127.0.0.1 SANDBOX_PORT=9385 SANDBOX_STACK_CPUS=0 SANDBOX_STACK_PROMETHEUS_PORT=9090
}

# Refuses what would start a stack that does not work, or one that is killed while it ends.
check_stack_settings() {
    local name keys drain grace least
    # The service is not told of them, so it cannot refuse a slip.
    for name in $(names_in_env); do
        # Those of `sandbox-svc run` may well stand there too.
        [[ $name == SANDBOX_CLIENT_* ]] || is_handed_on "$name" || die "$name in .env is no setting of the stack and would have no effect" \
            ".env.example has all of them; Redis and the engine's socket are the stack's own"
    done
    is_address "$(setting SANDBOX_HOST)" || die "SANDBOX_HOST=$(setting SANDBOX_HOST) is not an address of this host such as 127.0.0.1 or [::1]"
    for name in SANDBOX_PORT SANDBOX_STACK_PROMETHEUS_PORT; do
        [[ $(setting "$name") =~ ^[0-9]{0,5}$ ]] || die "$name=$(setting "$name") is not a number of a port"
    done
    [[ $(setting SANDBOX_STACK_CPUS) =~ ^([0-9]+(\.[0-9]+)?)?$ ]] || die "SANDBOX_STACK_CPUS=$(setting SANDBOX_STACK_CPUS) is not a number such as 1.5"
    keys=$(setting SANDBOX_API_KEYS_FILE)
    # The engine would make a folder of a file that is missing, and take a relative path for a volume.
    [[ -z $keys || ($keys == /* && -f $keys) ]] || die "SANDBOX_API_KEYS_FILE=$keys is not the absolute path of a file"
    drain=$(setting SANDBOX_DRAIN_TIMEOUT)
    least=$(seconds "${drain:-$DRAIN_DEFAULT}") || die "SANDBOX_DRAIN_TIMEOUT=$drain is not a duration such as 20s"
    least=$((least + AFTER_DRAIN_SECONDS))
    grace=$(setting SANDBOX_STACK_STOP_GRACE)
    [[ -z $grace ]] || seconds "$grace" >/dev/null || die "SANDBOX_STACK_STOP_GRACE=$grace is not a duration such as 90s"
    [[ -z $grace || $(seconds "$grace") -gt $least ]] ||
        die "SANDBOX_STACK_STOP_GRACE=$grace is too short: a stop takes up to $least s" \
            "SANDBOX_DRAIN_TIMEOUT and $AFTER_DRAIN_SECONDS s for the containers; leave it out to have it chosen"
}
