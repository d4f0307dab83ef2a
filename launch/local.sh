#!/usr/bin/env bash
# Train on this machine: exports what actors inherit, then exactly `flowrl train ...`.
#   launch/local.sh configs/pocket/ditreward.yaml run.steps=20
set -euo pipefail

# Ray joins a cluster that it finds in the environment; a local run must not.
unset RAY_ADDRESS
export TOKENIZERS_PARALLELISM=false
exec flowrl train "$@"
