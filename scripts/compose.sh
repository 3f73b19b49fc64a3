#!/usr/bin/env bash
# Compose for the stack, with what compose.yaml needs filled in: scripts/compose.sh logs -f service
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

find_compose
export_stack_variables
exec "${compose[@]}" "$@"
