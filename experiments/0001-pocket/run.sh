#!/usr/bin/env bash
# Both pocket arms with three seeds each, one after the other, then the table. About 20 minutes a seed on two cores.
set -euo pipefail
cd "$(dirname "$0")/../.."

for seed in 0 1 2; do
    for arm in ditreward hpsv3; do
        flowrl train "configs/pocket/$arm.yaml" "run.seed=$seed" "run.name=pocket-$arm-$seed" run.overwrite=true
    done
done
python experiments/0001-pocket/table.py runs/pocket-{ditreward,hpsv3}-[012] | tee experiments/0001-pocket/table.md
python experiments/0001-pocket/picture.py experiments/0001-pocket/picture.png runs/pocket-{ditreward,hpsv3}-[012]
