#!/usr/bin/env bash
# Train on a Ray cluster that is up already: exactly `flowrl train ... placement.ray_address=HOST:PORT`.
#   launch/ray/train.sh --address HOST:PORT CONFIG [overrides]
#   launch/ray/train.sh --address HOST:PORT --matrix MANIFEST --element INDEX [overrides]     one run of an experiment
# The cluster's token is in the file RAY_AUTH_TOKEN_PATH, or is RAY_AUTH_TOKEN; RAY_AUTH_MODE=disabled says it has none.
set -euo pipefail

if [[ ${1:-} != --address || $# -lt 3 ]]; then
    echo "usage: launch/ray/train.sh --address HOST:PORT CONFIG [overrides]" >&2
    exit 2
fi
address=$2
shift 2
verb=train
if [[ $1 == --matrix ]]; then
    verb=matrix
    shift
fi
unset RAY_ADDRESS
export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token}
export TOKENIZERS_PARALLELISM=false
exec flowrl "$verb" "$@" "placement.ray_address=$address"
