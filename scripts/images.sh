#!/usr/bin/env bash
# Build every image: base and builder, one per language folder (images/*/manifest.json) and per profile of one
# (images/*/profiles/*/requirements.txt), service, redis.
#
#   --refresh          take a new Debian base and rebuild everything without the layer cache (security updates)
#   --metrics          build prometheus too, for the stack's profile of that name
# SANDBOX_BASE_IMAGE     start from this image instead of debian:trixie-slim
# SANDBOX_DEBIAN_MIRROR  mirror for a base that is bootstrapped here (default http://deb.debian.org/debian)
# SANDBOX_BUILD_NETWORK  network of the build steps (default host: the host's resolver and loopback proxies work)
# HTTP_PROXY, HTTPS_PROXY, NO_PROXY, PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_TRUSTED_HOST and NPM_CONFIG_REGISTRY
# are handed to the build where they are set; none of them reaches a final image.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

readonly DEBIAN=debian:trixie-slim
# The same system, bootstrapped here; a name of our own, since it is not the registry's image.
readonly LOCAL_DEBIAN=sandbox-svc/debian:trixie-slim
readonly PULL_SECONDS=120
readonly BOOTSTRAP_SECONDS=600
readonly BUILD_SECONDS=1800

refresh=false
metrics=false
for option in "$@"; do
    case "$option" in
        --refresh) refresh=true ;;
        --metrics) metrics=true ;;
        *) die "unknown option $option" ;;
    esac
done

has_image() { docker image inspect "$1" >/dev/null 2>&1; }

bootstrap_debian() {
    local mirror=${SANDBOX_DEBIAN_MIRROR:-http://deb.debian.org/debian} keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    local work option
    if ! have mmdebstrap || [[ ! -r $keyring ]]; then
        is_apt_root || die "$DEBIAN cannot be pulled, and bootstrapping it needs mmdebstrap and debian-archive-keyring" \
            "install both, or make $DEBIAN available to the engine (docker load), or set SANDBOX_BASE_IMAGE"
        apt_install mmdebstrap debian-archive-keyring
    fi
    say "bootstrapping Debian trixie with mmdebstrap"
    work=$(mktemp -d)
    # Documentation stays out, as in Debian's slim images, and for packages installed later too; copyrights stay in.
    local options=(--dpkgopt='path-include=/usr/share/doc/*/copyright')
    for option in '/usr/share/doc/*' '/usr/share/info/*' '/usr/share/linda/*' '/usr/share/lintian/overrides/*' \
        '/usr/share/locale/*' '/usr/share/man/*' '/usr/share/groff/*'; do
        options=(--dpkgopt="path-exclude=$option" "${options[@]}")
    done
    cat >"$work/debian.sources" <<SOURCES
Types: deb
URIs: $mirror
Suites: trixie trixie-updates
Components: main
Signed-By: $keyring

Types: deb
URIs: ${mirror}-security
Suites: trixie-security
Components: main
Signed-By: $keyring
SOURCES
    if ! timeout "$BOOTSTRAP_SECONDS" mmdebstrap --quiet --variant=minbase --include=tzdata "${options[@]}" \
        trixie "$work/root.tar" "$work/debian.sources" </dev/null >"$work/log" 2>&1; then
        tail -n 25 "$work/log" >&2
        rm -rf "$work"
        die "mmdebstrap could not bootstrap Debian trixie from $mirror"
    fi
    docker import --change 'CMD ["bash"]' "$work/root.tar" "$LOCAL_DEBIAN" >/dev/null
    rm -rf "$work"
}

# Sets base to an image of Debian trixie: the one named, a pulled one, or one bootstrapped here.
find_debian() {
    base=${SANDBOX_BASE_IMAGE:-}
    if [[ -n $base ]]; then
        if $refresh || ! has_image "$base"; then
            docker pull "$base" || has_image "$base" || die "SANDBOX_BASE_IMAGE=$base is not to be had"
        fi
        return
    fi
    if ! $refresh; then
        # The newer one: a refresh that found no registry bootstrapped one, and must not be undone by what was pulled before.
        base=$(for base in "$DEBIAN" "$LOCAL_DEBIAN"; do
            if has_image "$base"; then echo "$(date -d "$(docker image inspect --format '{{.Created}}' "$base")" +%s) $base"; fi
        done | sort -rn | head -n 1 | cut -d ' ' -f 2)
        if [[ -n $base ]]; then return; fi
    fi
    base=$DEBIAN
    say "pulling $DEBIAN"
    if ! timeout "$PULL_SECONDS" docker pull --quiet "$DEBIAN" >/dev/null 2>&1 </dev/null; then
        note "no registry in reach"
        bootstrap_debian
        base=$LOCAL_DEBIAN
    fi
}

# build TAG CONTEXT DOCKERFILE [OPTION...]: shows the steps; on failure, the end of the whole output.
build() {
    local tag=$1 context=$2 file=$3 start=$SECONDS log
    shift 3
    say "image $tag"
    log=$(mktemp)
    if ! timeout "$BUILD_SECONDS" docker build "${common[@]}" "$@" --tag "$tag" --file "$file" "$context" </dev/null 2>&1 |
        tee "$log" | { grep --line-buffered -E '^(Step [0-9]+/|#[0-9]+ \[)' | cut -c -110 | sed -u 's/^/    /' >&2 || true; }; then
        tail -n 40 "$log" >&2
        rm -f "$log"
        die "image $tag could not be built"
    fi
    rm -f "$log"
    note "$tag: $((SECONDS - start)) s, $(($(docker image inspect --format '{{.Size}}' "$tag") / 1000000)) MB"
}

common=(--network "${SANDBOX_BUILD_NETWORK:-host}")
if $refresh; then common+=(--no-cache); fi
for variable in HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy; do
    if [[ -n ${!variable:-} ]]; then common+=(--build-arg "$variable"); fi
done
registries=()
for variable in PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST NPM_CONFIG_REGISTRY; do
    if [[ -n ${!variable:-} ]]; then registries+=(--build-arg "$variable"); fi
done
# With buildx: the engine's own builder, which sees the images built just before. Without: the classic one.
if docker buildx version >/dev/null 2>&1; then
    export BUILDX_BUILDER=default BUILDKIT_PROGRESS=plain
else
    export DOCKER_BUILDKIT=0
    # Else the classic builder leaves the container of a step that failed.
    common+=(--force-rm)
fi

mkdir -p images/.host
if [[ -r /etc/ssl/certs/ca-certificates.crt ]]; then
    # Same content, same time stamp: the layer cache holds.
    cmp -s /etc/ssl/certs/ca-certificates.crt images/.host/ca-certificates.crt ||
        install -m 0644 /etc/ssl/certs/ca-certificates.crt images/.host/ca-certificates.crt
fi

find_debian
build sandbox-svc/base:latest images images/base/Dockerfile --target base --build-arg BASE="$base"
build sandbox-svc/builder:latest images images/base/Dockerfile --target builder --build-arg BASE="$base"
begun=' '
# build_language NAME: after the languages whose images its Dockerfile names; once.
build_language() {
    local language=$1 folder=images/$1 needed bases
    if [[ $begun == *" $language "* ]]; then return; fi
    begun+="$language "
    mapfile -t bases < <(sed -n 's|.*sandbox-svc/\([a-z0-9_-]*\):latest.*|\1|p' "$folder/Dockerfile")
    for needed in "${bases[@]}"; do
        if [[ -e images/$needed/manifest.json ]]; then build_language "$needed"; fi
    done
    build "sandbox-svc/$language:latest" images "$folder/Dockerfile" "${registries[@]}" \
        --label "sandbox_svc.language=$language" \
        --label "sandbox_svc.manifest=$(sed 's/^[[:space:]]*//' "$folder/manifest.json" | tr -d '\n')"
}
for manifest in images/*/manifest.json; do
    build_language "$(basename "$(dirname "$manifest")")"
done
# Profiles: a language with more packages, served under a name of its own.
for requirements in images/*/profiles/*/requirements.txt; do
    [[ -e $requirements ]] || continue
    folder=$(dirname "$requirements")
    profile=$(basename "$folder")
    language=$(basename "${folder%/profiles/*}")
    [[ -e images/$language/profile.Dockerfile ]] || die "$language has no profiles: images/$language/profile.Dockerfile is missing"
    [[ $profile =~ ^[a-z][a-z0-9]{0,15}$ ]] || die "profile $folder needs a name of at most 16 letters and digits"
    manifests=("images/$language/manifest.json")
    if [[ -e $folder/manifest.json ]]; then manifests+=("$folder/manifest.json"); fi
    # The host may have no Python; the base has.
    manifest=$(cat "${manifests[@]}" | docker run --rm --interactive --network none --entrypoint python3 \
        sandbox-svc/base:latest -I -c "$(cat images/base/profile_manifest.py)" "$profile") ||
        die "profile $folder has no usable manifest.json"
    build "sandbox-svc/$language-$profile:latest" images "images/$language/profile.Dockerfile" "${registries[@]}" \
        --build-arg PROFILE="$profile" --build-arg MANIFEST="$manifest" \
        --label "sandbox_svc.language=$language-$profile" --label "sandbox_svc.profile=$profile" \
        --label "sandbox_svc.manifest=$manifest"
done
build sandbox-svc/service:latest . images/service/Dockerfile "${registries[@]}"
build sandbox-svc/redis:latest images images/redis/Dockerfile
if $metrics; then build sandbox-svc/prometheus:latest images images/prometheus/Dockerfile; fi
