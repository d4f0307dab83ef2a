"""Checks of several nodes: they can be reached, and all have the same versions and files."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from flowrl.doctor.finding import Check, Entry, Finding, fine, note, problem
from flowrl.doctor.machine import Machine
from flowrl.doctor.versions import VersionReport, differences, version_report

SUBJECT = "Other nodes"
_PATIENCE_S = 3.0
_SSH_S, _CLUSTER_S = 30.0, 90.0


def node_checks(
    machine: Machine, hosts: Sequence[str], paths: Sequence[str]
) -> Generator[Entry, None, list[VersionReport]]:
    """Nodes that ssh reaches, and how they differ from this one; returns the reports of this one and of those.

    `paths` are files that every node must have.
    """
    yield _entry("own name", partial(own_name, machine))
    with ThreadPoolExecutor(max_workers=16) as pool:
        answers = list(pool.map(lambda host: ask_by_ssh(host, paths), hosts))
    reports = [version_report(), *(answer for answer in answers if isinstance(answer, VersionReport))]
    for host, answer in zip(hosts, answers, strict=True):
        yield _entry(host, partial(node_state, answer))
    if len(reports) > 1:
        yield _entry("versions", partial(equal_versions, reports))
    return reports


def cluster_checks(machine: Machine, address: str, paths: Sequence[str]) -> Generator[Entry, None, list[VersionReport]]:
    """A Ray cluster answers, and its nodes are equal to this one; returns the reports of all that answered."""
    reached = _entry("address", partial(reachable, address))
    yield reached
    if reached.finding.verdict != "ok":
        return []
    answers = ask_cluster(address, paths)
    if isinstance(answers, Finding):
        yield Entry(subject=SUBJECT, name="cluster", finding=answers)
        return []
    reports = [answer for _, answer in answers if isinstance(answer, VersionReport)]
    if len(answers) > 1:
        yield _entry("own name", partial(own_name, machine))
    for node, answer in answers:
        yield _entry(node, partial(node_state, answer))
    yield _entry("versions", partial(equal_versions, [version_report(), *reports]))
    return reports


def reachable(address: str) -> Finding:
    """Something listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return problem(
            f"{address!r} is not HOST:PORT",
            "give the address that `launch/ray/node.sh --head` printed on the first node, such as 10.0.0.1:6379",
        )
    began = time.perf_counter()
    try:
        with socket.create_connection((host, int(port)), timeout=_PATIENCE_S):
            return fine(f"{address} answers in {1000 * (time.perf_counter() - began):.1f} ms")
    except socket.gaierror:
        return problem(f"no machine is called {host!r} here", f"getent hosts {host}    # or give its number, the IP")
    except ConnectionRefusedError:
        return problem(
            f"{host} is up, but nothing listens at port {port}",
            f"start the cluster there, on {host}: launch/ray/node.sh --head --port {port}    # --help says more",
        )
    except OSError as error:
        return problem(
            f"{address} cannot be reached: {error}",
            f"ping {host}    # must answer; if it does, a firewall keeps port {port} closed between the nodes",
        )


def own_name(machine: Machine) -> Finding:
    """The machine's own name must not lead to itself alone: gloo tells others to meet it there."""
    if machine.address and not machine.address.startswith("127."):
        return fine(f"{machine.host} is {machine.address}")
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return fine(f"GLOO_SOCKET_IFNAME={os.environ['GLOO_SOCKET_IFNAME']}")
    return note(
        f"{machine.host} stands for {machine.address or 'no address'} here, where other nodes cannot meet it",
        "on every node, name the network card that leads to the others (ip -brief address lists them), before Ray is "
        "started: export GLOO_SOCKET_IFNAME=eth0 NCCL_SOCKET_IFNAME=eth0",
    )


def node_state(answer: VersionReport | Finding) -> Finding:
    """One node: what it has, or why it gave no answer."""
    if isinstance(answer, Finding):
        return answer
    kinds = {name: answer.gpus.count(name) for name in answer.gpus}
    gpus = ", ".join(f"{count} x {name}" for name, count in kinds.items()) or "no GPU"
    driver = f", driver {answer.driver}" if answer.driver else ""
    if answer.missing:
        return problem(
            f"{answer.host}, {gpus}{driver}; not there: {', '.join(answer.missing)}",
            f"every node reads them: put them on a disk that all nodes share, or copy them: "
            f"rsync -aR {answer.missing[0]} {answer.host}:/",
        )
    return fine(f"{answer.host}, {gpus}{driver}")


def equal_versions(reports: Sequence[VersionReport]) -> Finding:
    """All nodes have the same Python, packages and code of flowrl; else actors fail, or compute other numbers."""
    found = differences(reports)
    if found:
        return problem(
            "; ".join(found),
            "install the same on every node; in the same checkout of flowrl (git pull) on each: "
            "python -m pip install --constraint constraints.txt --editable .",
        )
    return fine(f"equal on all nodes: {', '.join(f'{name} {version}' for name, version in reports[0].versions[:4])}")


def ask_by_ssh(host: str, paths: Sequence[str]) -> VersionReport | Finding:
    """The report of a node, made there by the same Python in the same folder; a finding where that fails.

    FLOWRL_SSH names another command than ssh, options included, as for launch/multinode.sh.
    """
    ssh = (os.environ.get("FLOWRL_SSH") or "ssh").split()
    remote = shlex.join([sys.executable, "-m", "flowrl.doctor.versions", *paths])
    by_hand = shlex.join([*ssh, host, "true"])
    options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={_PATIENCE_S:.0f}"]
    try:
        done = subprocess.run(
            [*ssh, *options, host, f"cd {shlex.quote(os.getcwd())} && {remote}"],
            capture_output=True,
            text=True,
            timeout=_SSH_S,
            check=False,
        )
    except FileNotFoundError:
        advice = "apt-get install openssh-client" if ssh == ["ssh"] else "put right or unset FLOWRL_SSH, which names it"
        return problem(f"there is no program {ssh[0]} here", advice)
    except subprocess.TimeoutExpired:
        return problem(f"no answer in {_SSH_S:.0f} s", f"{by_hand}    # must come back at once")
    if done.returncode == 0:
        try:
            return VersionReport.from_json(done.stdout.splitlines()[-1])
        except (ValueError, IndexError):
            return problem(f"answers {done.stdout[-200:]!r}, which is no report", "install the same flowrl there")
    said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    if "ermission denied" in said:
        return problem(f"refuses: {said}", f"let this user in without a password: ssh-copy-id {host}")
    if done.returncode == 255:  # ssh's own failures
        return problem(f"cannot be reached: {said}", f"{by_hand}    # must work; check the name and the network")
    return problem(
        f"flowrl does not answer there: {said}",
        f"install it on {host} in the same place as here, {os.getcwd()} with {sys.executable}, or share that folder",
    )


def ask_cluster(address: str, paths: Sequence[str]) -> list[tuple[str, VersionReport | Finding]] | Finding:
    """The reports of all nodes of a Ray cluster, each after its address; a finding where it cannot be joined."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "flowrl.doctor.cluster", address, *paths],
            capture_output=True,
            text=True,
            timeout=_CLUSTER_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return problem(
            f"{address} listens, but Ray cannot join it in {_CLUSTER_S:.0f} s",
            f"ray status --address {address}    # on the first node; both must have one token (RAY_AUTH_TOKEN_PATH)",
        )
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        advice = (
            "use the same versions of Ray and Python here and there"
            if "ersion mismatch" in said
            else "this machine must be a node of the cluster itself: run here first "
            f"launch/ray/node.sh --address {address}; export RAY_AUTH_MODE=token, and "
            "RAY_AUTH_TOKEN_PATH=FILE with the token of the other nodes"
        )
        return problem(f"cannot join: {said[:400]}", advice)
    return [_answer(line) for line in done.stdout.splitlines() if line.startswith("{")]


def _entry(name: str, look: Callable[[], Finding]) -> Entry:
    return Check(subject=SUBJECT, name=name, look=look).made()


def _answer(line: str) -> tuple[str, VersionReport | Finding]:
    fields = json.loads(line)
    if not fields["failed"]:
        return fields["node"], VersionReport.from_json(fields["said"])
    if fields["late"]:
        return fields["node"], problem(
            fields["said"],
            f"timeout 10 ssh {fields['node']} df    # must come back at once: a shared disk that hangs, most likely; "
            "or take the node out of the cluster: on it, ray stop",
        )
    return fields["node"], problem(
        f"flowrl does not answer there: {fields['said'][:300]}",
        "install the same flowrl on every node, and start Ray there from that environment",
    )
