# Calls main of the script $1: standard input is its arguments as JSON, what it writes to descriptor 3 is its result.
# Descriptor 3 of this process is the channel of the supervisor: kind, length (u32, big endian), payload. Descriptor 198
# is an empty file for the result: at the end of a pipe we would wait for whatever main left running.
exec 199>&3 3>&- 197>&2 2>/dev/null # what bash has to say of this script is no news to the author of the other

__report() {
    local LC_ALL=C size length
    size=${#2}
    printf -v length '\\x%02x' $((size >> 24 & 255)) $((size >> 16 & 255)) $((size >> 8 & 255)) $((size & 255))
    # shellcheck disable=SC2059  # the format is ours: only so does printf write NULs
    printf "$1$length%s" "$2" >&199
}

__fail() {
    local words=${2//\\/\\\\}
    words=${words//\"/\\\"}
    __report E "{\"type\": \"$1\", \"message\": \"${words//[[:cntrl:]]/ }\", \"line\": $3}"
}

# Patterns of extglob are no error where nobody turns it on either.
__check_syntax() { /bin/bash -O extglob -n "$__path" 2>&1; }

__file=$1
__path=$PWD/$__file

# In a process of its own, so that the script leaves in any way it likes, its EXIT trap included, and spoils nothing here.
(
    BASH_ARGV0=$__file
    set --
    # Not as a condition, in which `set -e` of the script would do nothing.
    # shellcheck disable=SC1090
    . "./$__file" 198>&- 199>&-
    # shellcheck disable=SC2181
    if [[ $? != 0 ]] && ! __check_syntax >/dev/null; then exit 1; fi
    if ! builtin declare -F main >/dev/null; then
        builtin echo 'the program defines no function named main' >&2
        __fail Error 'the program defines no function named main' null
        exit 1
    fi
    builtin echo >&198 # from now on there is a result, be it none
    main 3>&198 198>&- 199>&-
) 2>&197 197>&-
__code=$?

if [[ -s /dev/fd/198 ]]; then
    if ((__code == 0)); then
        __result=$(</dev/fd/198)
        __result=${__result#$'\n'}
        __report R "${__result:-null}"
    fi
elif ((__code != 0)) && ! __words=$(__check_syntax); then
    __words=${__words%%$'\n'*}
    __words=${__words#"$__path: line "}
    __words=${__words:0:4000}
    if [[ $__words =~ ^([0-9]+):\ (.*) ]]; then
        __fail SyntaxError "${BASH_REMATCH[2]}" "${BASH_REMATCH[1]}"
    fi
fi
__report D "$__code"
# The supervisor reads the peak of memory and kills us; a process that has ended shows none.
sleep 0.25
exit "$__code"
