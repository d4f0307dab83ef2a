#!/usr/bin/env bash
# Trains every reward of the pocket table, evaluates them side by side, and writes the table and the picture.
# About 80 minutes of one core; whatever is finished is not done again.
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
flowrl="${FLOWRL:-.venv/bin/flowrl}"

# train CONFIG [SHARE]: the reward of configs/reward/pocket/CONFIG.yaml on a share of the comparisons.
train() {
    local name="pocket-$1${2:+-$2}" folder
    folder="runs/reward-$name"
    if [ -d "$folder/reward" ]; then
        echo "$folder/reward is there already, whatever made it: not trained again" >&2
        return
    elif [ -f "$folder/config.yaml" ]; then
        "$flowrl" reward train --resume "$folder"
    else
        "$flowrl" reward train "configs/reward/pocket/$1.yaml" "run.name=$name" "data.share=${2:-1}"
    fi
}

"$flowrl" pocket preferences --out runs/pocket-preferences
for config in ${CONFIGS:-full lora frozen hpsv3 random-full random-frozen}; do
    train "$config"
done
for config in ${GROWTH:-full lora frozen hpsv3}; do
    train "$config" 0.25
    train "$config" 0.5
done

"$flowrl" reward eval configs/reward/eval/pocket.yaml
"$flowrl" reward eval experiments/0002-pocket-rewards/growth.yaml
"${PYTHON:-.venv/bin/python}" experiments/0002-pocket-rewards/table.py
