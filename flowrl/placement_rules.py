"""The rules about where the roles of a run live and what memory they have, one function each, named for the rule."""

from __future__ import annotations

from flowrl.base.config_tree import require
from flowrl.config_sections import RunConfig


def learners_that_share_weights_only_train(config: RunConfig) -> None:
    """Each forward pass of a model that is cut over the learners takes all of them, but they sample apart."""
    placement, strategy = config.placement, config.placement.learner_strategy
    require(
        strategy == "ddp" or placement.mode != "local",
        f"placement.learner_strategy must be ddp with placement.mode local, which has one learner, got {strategy}",
    )
    require(
        not (placement.learners_cut_weights and placement.learners_sample),
        f"placement.learner_strategy {strategy} cuts the model over the learners, so that none can sample alone: it "
        f"needs rollouts beside them, of which placement.mode {placement.mode} has none; use split, or colocated with "
        "placement.num_rollouts, or ddp or zero2",
    )
    require(
        not (placement.learners_cut_weights and placement.offload),
        f"placement.learner_strategy {strategy} keeps its parts of the model on the devices: set "
        "placement.offload=false, or use ddp or zero2",
    )


def rounded_weights_are_whole(config: RunConfig) -> None:
    """A base of 8 or 4 bits is small enough for each device, and its scales are not cut."""
    quantisation, strategy = config.model.quantisation, config.placement.learner_strategy
    require(
        quantisation == "none" or not config.placement.learners_cut_weights,
        f"model.quantisation {quantisation} needs placement.learner_strategy ddp or zero2, which leave the model whole "
        f"on each learner, got {strategy}",
    )


def somebody_samples(config: RunConfig) -> None:
    """Without rollouts the learners sample, which they do in these modes alone."""
    placement = config.placement
    require(
        placement.num_rollouts > 0 or placement.mode != "split",
        "placement.num_rollouts must be at least 1 with placement.mode split, got 0; with fused or colocated the "
        "learners can sample",
    )


def only_shared_devices_are_left(config: RunConfig) -> None:
    """Weights that leave a device that no other role uses make room for nobody."""
    placement = config.placement
    require(
        not placement.offload or placement.mode in ("local", "colocated"),
        f"placement.offload needs placement.mode colocated, where roles share devices, or local, got {placement.mode}",
    )
    require(
        not (placement.offload and placement.scorers_are_a_gang and placement.num_scorers == 1),
        "placement.offload leaves rewards that are spread over scorers where they are; of one scorer let them leave: "
        "set placement.shard_scorer=false",
    )


def conditions_made_ahead_are_kept(config: RunConfig) -> None:
    """What is encoded before it is needed has to be somewhere until then."""
    data = config.data
    require(
        not data.encode_ahead or bool(data.condition_cache),
        f"data.encode_ahead = {data.encode_ahead} needs a folder in data.condition_cache, such as "
        "data.condition_cache=data/conditions",
    )


def half_precision_needs_cuda(config: RunConfig) -> None:
    """float16 arithmetic is not offered on the CPU."""
    require(
        not (config.model.dtype == "float16" and config.placement.device == "cpu"),
        "model.dtype float16 needs placement.device cuda; use float32 or bfloat16 on the CPU",
    )


def a_cluster_has_an_address(config: RunConfig) -> None:
    """Ray is started for the run, or joined where it listens."""
    address = config.placement.ray_address
    host, _, port = address.rpartition(":")
    require(
        address == "local" or (bool(host) and port.isdecimal() and 0 < int(port) < 2**16),
        f"placement.ray_address must be local, or HOST:PORT of the head of a Ray cluster, got {address!r}",
    )


PLACEMENT_RULES = [
    learners_that_share_weights_only_train,
    rounded_weights_are_whole,
    somebody_samples,
    only_shared_devices_are_left,
    conditions_made_ahead_are_kept,
    half_precision_needs_cuda,
    a_cluster_has_an_address,
]
