#!/usr/bin/env bash
# Train on several nodes: starts Ray on each, then exactly `flowrl train ...` on the first. `--help` says more.
set -euo pipefail

usage() {
    cat <<'END'
usage: launch/multinode.sh --hosts a,b,c [options] CONFIG [overrides]
       launch/multinode.sh --srun [options] CONFIG [overrides]        (in a SLURM batch script)
       launch/multinode.sh ... --matrix MANIFEST --element INDEX [overrides]

Starts Ray on every node, trains with `flowrl train CONFIG [overrides] placement.ray_address=HOST:PORT` on the first,
and ends what it started on all of them, whatever happens. The exit code is that of `flowrl train`.

  --hosts a,b,c  this machine first; the others are reached by `ssh`, without a password
  --srun         the nodes of the SLURM allocation, reached by `srun`
  --node-ip IP   the address at which the other nodes reach this one; by default the one that faces the second node
  --timeout S    how long to wait for the nodes; by default 300 seconds
  --matrix       what follows is for `flowrl matrix` in place of `flowrl train`

SIGTERM, SIGUSR1, SIGHUP and Ctrl-C are passed on to `flowrl train` alone, which ends after its step with a checkpoint.
Every node needs the same checkout and environment at the same paths; what differs is an error. Nodes must reach each
other at any port: Ray, NCCL and gloo take free ones, so that several runs can share a node. A token of this run alone
guards them; it goes to the nodes by the stdin of ssh. So do PATH, PYTHONPATH, LD_LIBRARY_PATH, OMP_NUM_THREADS and
whatever begins with FLOWRL_, HF_, NCCL_, GLOO_ or TORCH_. FLOWRL_SSH names another command than ssh, options included.
END
}

fail() {
    echo "error: $*" >&2
    exit 1
}

hosts=() srun='' node_ip='' timeout=300 verb=()
while (($#)); do
    case $1 in
        --srun) srun=yes ;;
        --matrix) verb=(--matrix) ;;
        --hosts | --node-ip | --timeout)
            (($# > 1)) || fail "$1 takes a value; see --help"
            case $1 in
                --hosts) IFS=, read -r -a hosts <<<"$2" ;;
                --node-ip) node_ip=$2 ;;
                --timeout) timeout=$2 ;;
            esac
            shift
            ;;
        -h | --help) usage && exit ;;
        --resume) break ;; # of `flowrl train`
        -*) fail "unknown option $1; see --help" ;;
        *) break ;;
    esac
    shift
done
(($#)) || fail "no CONFIG is given; see --help"
if [[ -n $srun ]]; then
    ((${#hosts[@]} == 0)) || fail "give either --hosts or --srun"
    [[ -n ${SLURM_JOB_NODELIST:-} ]] || fail "--srun: this is no SLURM allocation; give --hosts"
    mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    [[ ${SLURMD_NODENAME:-} == "${hosts[0]}" ]] ||
        fail "--srun: this is not ${hosts[0]}, the first node of the allocation; call it from a batch script"
fi
((${#hosts[@]})) || fail "give --hosts a,b,c, this machine first, or --srun in a SLURM allocation"
command -v flowrl >/dev/null || fail "there is no flowrl on the PATH: activate the environment in which it is installed"
launch=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [[ -z $node_ip ]] && ((${#hosts[@]} > 1)); then
    node_ip=$(python - "${hosts[0]}" "${hosts[1]}" "$srun" <<'END'
import socket, sys

first, second, srun = sys.argv[1:]
try:
    if not srun:
        with socket.socket() as probe:
            probe.bind((first, 0))
except OSError:
    sys.exit(f"error: {first} is not this machine: call this script on the first of --hosts")
try:
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        probe.connect((second, 9))  # sends nothing
        print(probe.getsockname()[0])
except OSError as error:
    sys.exit(f"error: no way from this machine to {second}: {error}; give --node-ip")
END
    )
fi

# A mistake in the configuration is told before Ray is started anywhere.
[[ $1 == --resume || -n ${verb[*]} ]] || flowrl show "$@" >/dev/null

umask 077
folder=$(mktemp -d "/tmp/flowrl-$$-XXXXXXXX")
nodes=() driver='' came=''
python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$folder/token"
mkfifo "$folder/alive"
# The one end is open for as long as this script lives; the nodes hold the other, and end when it says so.
exec {alive}<>"$folder/alive"
exec {listen}<"$folder/alive"

# shellcheck disable=SC2329 # the traps below call it, and the next
end_nodes() {
    trap '' TERM INT HUP USR1
    exec {alive}>&-
    for node in "${nodes[@]}"; do
        for _ in {1..200}; do
            kill -0 "$node" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL -- "-$node" 2>/dev/null || true
    done
    rm -rf "$folder"
}
# shellcheck disable=SC2329
pass_on() { # SIGNAL
    came=$1
    [[ -n $driver ]] || exit $((128 + $(kill -l "$1")))
    kill -s "$1" "$driver" 2>/dev/null || true
}
trap end_nodes EXIT
trap 'pass_on TERM' TERM
trap 'pass_on INT' INT
trap 'pass_on HUP' HUP
trap 'pass_on USR1' USR1

handed_over() { # what a node reads from its stdin, which then stays open
    printf 'RAY_AUTH_TOKEN=%s\0' "$(<"$folder/token")"
    env -0 | grep -zE '^(PATH|PYTHONPATH|LD_LIBRARY_PATH|OMP_NUM_THREADS|(FLOWRL|HF|NCCL|GLOO|TORCH)_[A-Za-z0-9_]*)='
    printf '\0'
    exec cat <&"$listen" {alive}>&-
}

run_node() { # INDEX OPTIONS: until it ends
    local host=${hosts[$1]} command
    printf -v command '%q ' "$launch/ray/node.sh" --stdin "${@:2}"
    command="cd $(printf %q "$PWD") && exec $command"
    if (($1 == 0)); then
        bash -c "$command"
    elif [[ -n $srun ]]; then
        srun --nodes=1 --ntasks=1 --overlap "--nodelist=$host" bash -c "$command"
    else
        # shellcheck disable=SC2086
        ${FLOWRL_SSH:-ssh} -o BatchMode=yes -o ConnectTimeout=20 -o ServerAliveInterval=30 "$host" "$command"
    fi < <(handed_over) {alive}>&-
}

start_node() { # INDEX OPTIONS
    : >"$folder/$1.out"
    set -m # a process group of its own, so that Ctrl-C reaches this script alone
    run_node "$@" {alive}>&- >"$folder/$1.out" 2>"$folder/$1.err" &
    set +m
    nodes[$1]=$!
}

is_ready() { grep -q '^ready ' "$folder/$1.out"; }

check_versions() {
    sed -n 's/^versions //p' "$folder"/*.out | python -c '
import sys
from flowrl.doctor.versions import VersionReport, differences

found = differences([VersionReport.from_json(line) for line in sys.stdin])
if found:
    sys.exit("error: the nodes differ; install the same everywhere:\n" + "\n".join(found))'
}

await_nodes() { # INDEX ...: until all are part of the cluster
    local index missing until=$((SECONDS + timeout))
    while :; do
        missing=()
        for index in "$@"; do
            is_ready "$index" && continue
            if ! kill -0 "${nodes[$index]}" 2>/dev/null; then
                check_versions
                sed "s/^/${hosts[$index]}: /" "$folder/$index.err" >&2
                fail "${hosts[$index]}: the node ended before it was ready"
            fi
            missing+=("${hosts[$index]}")
        done
        ((${#missing[@]})) || break
        ((SECONDS < until)) || fail "not there within $timeout s: ${missing[*]}; --timeout waits longer"
        sleep 0.2
    done
    check_versions
}

start_node 0 --head ${node_ip:+--node-ip "$node_ip"}
await_nodes 0
address=$(sed -n 's/^ready //p' "$folder/0.out")
for ((index = 1; index < ${#hosts[@]}; index++)); do
    start_node "$index" --address "$address"
done
await_nodes "${!hosts[@]}"
echo "Ray: ${#hosts[@]} nodes at $address"

export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/token
unset RAY_AUTH_TOKEN
set -m
"$launch/ray/train.sh" --address "$address" "${verb[@]}" "$@" </dev/null {alive}>&- &
driver=$!
set +m
while :; do
    came=''
    code=0
    wait "$driver" || code=$?
    [[ -n $came ]] || break # a signal ends the waiting, not the driver
done
exit "$code"
