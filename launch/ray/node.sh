#!/usr/bin/env bash
# One node of a Ray cluster with token authentication, for as long as this script runs. `--help` says more.
set -euo pipefail

usage() {
    cat <<'END'
usage: launch/ray/node.sh --head [--port PORT] [--node-ip IP]
       launch/ray/node.sh --address HOST:PORT [--node-ip IP]

Runs one node of a Ray cluster until it is ended (Ctrl-C, SIGTERM), and then ends what it started, nothing else.
Prints "ready HOST:PORT", the address of the cluster, once the node is part of it.

  --head               the first node of a new cluster
  --port PORT          where it listens; by default a free port
  --address HOST:PORT  join the cluster whose head said that it is ready there
  --node-ip IP         the address at which the other nodes reach this one; by default the one that Ray finds
  --stdin              for launch/multinode.sh: take the environment from stdin (NAME=VALUE pairs, each ended by a zero
                       byte, an empty one last), print "versions" and what is installed here, and end when stdin does

The token that all nodes and runs of the cluster show is in the file RAY_AUTH_TOKEN_PATH, or is RAY_AUTH_TOKEN.
END
}

fail() {
    echo "error: $*" >&2
    exit 1
}

head='' address='' port=0 node_ip='' stdin=''
while (($#)); do
    case $1 in
        --head) head=yes ;;
        --stdin) stdin=yes ;;
        --address | --port | --node-ip)
            (($# > 1)) || fail "$1 takes a value; see --help"
            case $1 in
                --address) address=$2 ;;
                --port) port=$2 ;;
                --node-ip) node_ip=$2 ;;
            esac
            shift
            ;;
        -h | --help) usage && exit ;;
        *) fail "unknown option $1; see --help" ;;
    esac
    shift
done
if [[ -n $head && -n $address ]] || [[ -z $head && -z $address ]]; then
    fail "give either --head or --address HOST:PORT; see --help"
fi

umask 077
folder=$(mktemp -d "/tmp/flowrl-$$-XXXXXXXX") # short: sockets live in it
ray='' watch=''

# shellcheck disable=SC2329 # the trap below calls it
end_node() {
    trap '' TERM INT HUP
    if [[ -n $ray ]]; then
        kill -TERM "$ray" 2>/dev/null || true
        for _ in {1..100}; do
            kill -0 "$ray" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL "$ray" 2>/dev/null || true # what it started dies with it
        wait "$ray" 2>/dev/null || true
    fi
    [[ -z $watch ]] || kill "$watch" 2>/dev/null || true
    rm -rf "$folder"
}
trap end_node EXIT
trap 'exit 0' TERM INT HUP

if [[ -n $stdin ]]; then
    while IFS= read -r -d '' pair && [[ -n $pair ]]; do
        export "${pair?}"
    done
    printf '%s' "${RAY_AUTH_TOKEN:?}" >"$folder/token"
    export RAY_AUTH_TOKEN_PATH=$folder/token
    unset RAY_AUTH_TOKEN
    {
        while read -r; do :; done
        kill -TERM $$
    } <&0 &
    watch=$!
    versions=$(python -m flowrl.doctor.versions) || fail "flowrl cannot be imported in $PWD by $(command -v python)"
    echo "versions $versions"
fi

command -v ray >/dev/null || fail "there is no ray on the PATH: activate the environment in which flowrl is installed"
[[ -n ${RAY_AUTH_TOKEN:-} || -s ${RAY_AUTH_TOKEN_PATH:-/nowhere} ]] ||
    fail "there is no token: make one with \`(umask 077; openssl rand -hex 32 >FILE)\`, bring the file to every node," \
        "and export RAY_AUTH_TOKEN_PATH=FILE"
export RAY_AUTH_MODE=token
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0
# As flowrl itself starts Ray for a run on one machine.
export RAY_worker_niceness=${RAY_worker_niceness:-0}
export RAY_worker_register_timeout_seconds=${RAY_worker_register_timeout_seconds:-180}
export RAY_enable_metrics_collection=${RAY_enable_metrics_collection:-0}
unset RAY_ADDRESS

# 0 lets whoever listens take a free port, so that nodes of several clusters can share a machine.
options=(
    --block "--temp-dir=$folder" "--num-cpus=$(nproc)" --disable-usage-stats --dashboard-agent-listen-port=0
    --min-worker-port=0 --max-worker-port=0
)
[[ -z $node_ip ]] || options+=("--node-ip-address=$node_ip")

start() { # in the background; succeeds when the node is part of the cluster
    rm -f "$folder/ray_current_cluster"
    ray start "${options[@]}" "$@" </dev/null >"$folder/ray.log" 2>&1 &
    ray=$!
    until [[ -s $folder/ray_current_cluster ]]; do
        kill -0 "$ray" 2>/dev/null || return 1
        sleep 0.1
    done
}

free_port() { # of Ray's client server, which takes no 0
    python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
}

if [[ -n $head ]]; then
    for _ in {1..3}; do # another program may take the port in between
        start --head "--port=$port" --include-dashboard=false "--ray-client-server-port=$(free_port)" && break
    done
else
    start "--address=$address" || true
fi
if [[ -s $folder/ray_current_cluster ]]; then
    echo "ready $(<"$folder/ray_current_cluster")"
    wait "$ray" || true
    echo "error: Ray ended on this node:" >&2
else
    echo "error: Ray could not be started on this node:" >&2
fi
tail -n 15 "$folder/ray.log" >&2
exit 1
