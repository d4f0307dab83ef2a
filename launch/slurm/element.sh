#!/usr/bin/env bash
# One element of a SLURM array: trains the run of its line of a manifest, or goes on with it. `--help` says more.
set -euo pipefail

usage() {
    cat <<'END'
usage: exec launch/slurm/element.sh [options] MANIFEST          (the last line of a batch script)

Trains with `flowrl matrix MANIFEST --element $SLURM_ARRAY_TASK_ID`; several nodes by way of launch/multinode.sh.

  --grace S         how long before the time limit USR1 comes, as in #SBATCH --signal=B:USR1@S; by default 900 seconds
  --max-restarts N  how often the element may be started again; by default 100 times
  --by-srun         start Ray and the driver as steps of the job also on one node, as a container of pyxis needs it

USR1 and TERM go to the driver alone, which ends after its step with a checkpoint. Then this element, if it is not
finished and was not cancelled, is requeued, and goes on by itself. So it is, too, with its last checkpoint, when three
quarters of the grace have passed and the driver is still at work. An attempt that got no further than the one before
is the last: it ends with an error.
END
}

fail() {
    echo "error: $*" >&2
    exit 1
}

grace=900 most=100 by_srun=''
while (($#)); do
    case $1 in
        --grace | --max-restarts)
            (($# > 1)) || fail "$1 takes a value; see --help"
            case $1 in
                --grace) grace=$2 ;;
                --max-restarts) most=$2 ;;
            esac
            shift
            ;;
        --by-srun) by_srun=yes ;;
        -h | --help) usage && exit ;;
        -*) fail "unknown option $1; see --help" ;;
        *) break ;;
    esac
    shift
done
(($# == 1)) || fail "give one MANIFEST; see --help"
[[ -n ${SLURM_ARRAY_TASK_ID:-} ]] || fail "this is no element of a SLURM array; see --help"
manifest=$1 index=$SLURM_ARRAY_TASK_ID
element=${SLURM_ARRAY_JOB_ID}_$index # SLURM_JOB_ID of one element is that of the whole array
launch=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

driver='' timer='' came='' interrupted='' requeued=''

requeue() {
    local state
    state=$(squeue --noheader --jobs="$element" --format=%T)
    if [[ $state != RUNNING ]]; then # cancelled, or requeued by SLURM itself
        echo "$element: not requeued, for it is ${state:-gone}"
        return
    fi
    echo "$element: requeued"
    requeued=yes
    scontrol requeue "$element" || fail "$element could not be requeued; submit the experiment again to go on"
}
# shellcheck disable=SC2329 # the traps below call these two
pass_on() { # SIGNAL
    interrupted=yes
    came=$1
    echo "$element: $1 at $(date +%T)"
    [[ -z $driver ]] || kill -s "$1" "$driver" 2>/dev/null || true
    if [[ $1 == USR1 && -z $timer ]]; then
        (
            trap 'kill "$nap"; exit' TERM
            sleep $((grace * 3 / 4)) &
            nap=$!
            wait "$nap"
            kill -ALRM $$
        ) &
        timer=$!
    fi
}
# shellcheck disable=SC2329
too_late() {
    interrupted=yes
    [[ -n $requeued ]] || {
        echo "$element: no checkpoint $((grace * 3 / 4)) s after the signal; the last one has to do"
        requeue
    }
}
trap 'pass_on USR1' USR1
trap 'pass_on TERM' TERM
trap too_late ALRM
trap '[[ -z $timer ]] || kill "$timer" 2>/dev/null || true' EXIT

# What Ray would join, and what srun no longer takes from the job by itself.
unset RAY_ADDRESS
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} TOKENIZERS_PARALLELISM=false

python -m flowrl.slurm.attempt begin "$manifest" "$index" "${SLURM_RESTART_COUNT:-0}" "$most"
command=(flowrl matrix "$manifest" --element "$index" placement.ray_address=local)
if [[ -n $by_srun ]] || ((SLURM_JOB_NUM_NODES > 1)); then
    command=("$launch/multinode.sh" --srun --matrix "$manifest" --element "$index")
fi
code=0
if [[ -z $came ]]; then # bash waits for a signal only where it waits for a background process
    "${command[@]}" </dev/null &
    driver=$!
    while :; do
        interrupted='' code=0
        wait "$driver" || code=$?
        [[ -n $interrupted ]] || break
    done
fi
((code == 0)) || [[ -n $came && $code -gt 128 ]] || exit "$code" # stopped by a signal before there was a step to save
[[ -z $requeued ]] || exit 0
state=$(python -m flowrl.slurm.attempt state "$manifest" "$index")
[[ $state != finished ]] || exit 0
requeue
