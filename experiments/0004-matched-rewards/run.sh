#!/usr/bin/env bash
# Answers experiments/matched/rewards.yaml on the pocket profile: two arms, three seeds, a look every five steps.
# It took 95 minutes on two cores that other work shared (2026-11-22); whatever is finished is not done again. It is in
# the folder of make matched, whose settings are others: move one away before the other.
set -euo pipefail
cd "$(dirname "$0")/../.."
flowrl="${FLOWRL:-.venv/bin/flowrl}"
folder=runs/rewards-pocket
here=experiments/0004-matched-rewards

"$flowrl" matrix experiments/matched/rewards.yaml --run \
    eval.every=5 eval.num_prompts=96 eval.samples_per_prompt=4 checkpoint.every=5 checkpoint.keep=8
"$flowrl" judge "$folder" --judge oracle
"$flowrl" report "$folder"
cp "$folder"/{experiment.yaml,manifest.jsonl,report.html} "$folder"/report/{curves.csv,differences.csv,result.json} "$here"
rm -rf "$here/figures"
cp -r "$folder/report/figures" "$here"
