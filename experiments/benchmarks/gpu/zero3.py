"""DiT-Reward as a ZeRO-3 gang of one rank against the plain network: what the sharding itself costs."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

from experiments.benchmarks.gpu import networks
from experiments.benchmarks.gpu.record import Case, Deviation
from experiments.benchmarks.gpu.reward_paths import Score, dit_score, latents
from experiments.benchmarks.gpu.setting import Setting
from experiments.benchmarks.gpu.timing import measure
from flowrl.actors.sharding import join_gang, shard

SCORES = "largest |score difference|"
_TIMEOUT_S = 60.0


def run(setting: Setting) -> Iterator[Case]:
    """Each batch size plain and then sharded, with how far the scores are apart."""
    if find_spec("deepspeed") is None:
        yield Case(name="ZeRO-3 of one rank", outcome="skipped", reason="deepspeed is not installed")
        return
    network = networks.dit_reward(setting)
    plain = dit_score(setting, network)
    counted = {}
    for count in setting.sizes.reward_batches:
        counted[count] = _scored(f"plain, batch {count}", plain, setting, count, None)
        yield counted[count]
    expected = {count: plain(latents(setting, count)) for count in counted}
    _join_alone(setting)
    sharded = dit_score(setting, shard(network))
    for count, of_plain in counted.items():
        case = _scored(f"ZeRO-3 of one rank, batch {count}", sharded, setting, count, of_plain.flops)
        apart = (sharded(latents(setting, count)) - expected[count]).abs().max().item()
        yield replace(case, deviations=(Deviation(what=SCORES, value=apart),))


def _scored(name: str, score: Score, setting: Setting, count: int, flops: int | None) -> Case:
    return measure(name, partial(score, latents(setting, count)), setting, images=count, flops=flops)


def _join_alone(setting: Setting) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    join_gang(setting.device.type, _TIMEOUT_S)
