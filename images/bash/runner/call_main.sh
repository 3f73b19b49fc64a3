# Calls main of the script $1: standard input is its arguments as JSON, what it writes to descriptor 3 is its result.
# Descriptor 3 of this process is the channel of the supervisor: kind, length (u32, big endian), payload.
exec 9>&3 3>&- 8>&1

__report() {
    local LC_ALL=C size length
    size=${#2}
    printf -v length '\\x%02x' $((size >> 24 & 255)) $((size >> 16 & 255)) $((size >> 8 & 255)) $((size & 255))
    # shellcheck disable=SC2059  # the format is ours: only so does printf write NULs
    printf "$1$length%s" "$2" >&9
}

__finish() {
    __report D "$1"
    # The supervisor reads the peak of memory and kills us; a process that has ended shows none.
    sleep 0.25
    exit "$1"
}

shopt -s inherit_errexit
__file=$1
set --
# shellcheck disable=SC1090
. "./$__file"
if ! declare -F main >/dev/null; then
    echo 'the program defines no function named main' >&2
    __report E '{"type": "Error", "message": "the program defines no function named main", "line": null}'
    __finish 1
fi
__result=$(main 3>&1 >&8 8>&- 9>&-)
__code=$?
if ((__code == 0)); then __report R "${__result:-null}"; fi
__finish "$__code"
