# What the bash image promises to run.
set -euo pipefail
((BASH_VERSINFO[0] == 5))
[[ $(jq -c '.a + 1' <<<'{"a": 41}') == 42 ]]
[[ $(awk 'BEGIN { print toupper("x") }') == X ]]
[[ $(bc <<<'2 ^ 10') == 1024 ]]
