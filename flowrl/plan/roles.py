"""What each role of a run holds and does, put together from the costs of its parts."""

from __future__ import annotations

from flowrl.base.amounts import count
from flowrl.config import RunConfig
from flowrl.models.image_parts import TOGETHER
from flowrl.plan.costs import Costs
from flowrl.plan.memory import MemoryPart, RoleMemory
from flowrl.plan.reward_cost import RewardCost
from flowrl.seating import seating

# DeepSpeed's defaults for ZeRO-3, in numbers: so many may be whole at a time, and so many are fetched ahead.
_LIVE, _AHEAD = 10**9, 5 * 10**7


def roles_of(costs: Costs) -> tuple[RoleMemory, ...]:
    """One entry for each role that has actors."""
    config, policy, seats = costs.config, costs.policy, seating(costs.config.placement)
    frozen = MemoryPart(name=f"frozen weights, {_precision(config)}", size=policy.weight_bytes, leaves=True)
    samples = count(costs.work.samples_per_forward, "sample")
    sampling = MemoryPart(name=f"sampling, {samples}", size=policy.sample_rise)
    held, update = learner_parts(costs)
    encoder, scorer = _encoder(costs, seats.encoder), _scorer(costs, seats.scorers)
    if config.placement.learners_sample:
        both = RoleMemory(role="learner that samples", seats=seats.learners, held=held, in_turn=(sampling, update))
        return encoder, both, scorer
    adapter = MemoryPart(name="adapter, float32", size=policy.adapter_bytes)
    return (
        encoder,
        RoleMemory(role="rollout", seats=seats.rollouts, held=(frozen, adapter), in_turn=(sampling,)),
        scorer,
        RoleMemory(role="learner", seats=seats.learners, held=held, in_turn=(update,)),
    )


def learner_parts(costs: Costs) -> tuple[tuple[MemoryPart, ...], MemoryPart]:
    """What a learner holds, and its update, by how the learners share the model.

    Inferred of DeepSpeed: with ZeRO a whole adapter, its average and a bucket of its size on each rank, and gradients,
    moments and a copy of the adapter cut over all.
    """
    config, policy, ranks = costs.config, costs.policy, costs.work.learners
    strategy = config.placement.learner_strategy
    checkpointing = "each block computed again" if config.model.gradient_checkpointing else "all activations kept"
    samples = count(costs.work.samples_per_forward, "sample")
    update = MemoryPart(name=f"update, {samples}, {checkpointing}", size=policy.update_rise)
    name = f"frozen weights, {_precision(config)}"
    if not config.placement.learners_cut_weights:
        frozen = MemoryPart(name=name, size=policy.weight_bytes, leaves=True)
    else:
        cut = policy.weight_bytes - policy.buffer_bytes
        size = policy.buffer_bytes + cut // ranks
        frozen = MemoryPart(name=f"1/{ranks} of the {name}", size=size, leaves=True)
        itemsize = costs.geometry.dtype.itemsize
        whole = cut if not config.model.gradient_checkpointing else min(cut, (_LIVE + _AHEAD) * itemsize)
        # FSDP2 has the block at work, the next one, and what is outside of blocks.
        outside = cut - policy.block_bytes * int(costs.model.transformer["num_layers"])
        gathered = whole if strategy == "zero3" else min(cut, 2 * policy.block_bytes + max(0, outside))
        update = MemoryPart(name=f"{update.name}, weights gathered", size=policy.update_rise + gathered)
    if strategy in ("ddp", "fsdp2"):
        training = MemoryPart(name="adapter, gradients, 2 moments, average", size=policy.training_bytes)
    else:
        rest = {"zero2": 4, "zero3": 5}[strategy]
        name = f"adapter, average, bucket, 1/{ranks} of the rest"
        training = MemoryPart(name=name, size=round((3 + rest / ranks) * policy.adapter_bytes))
    return (frozen, training), update


def _encoder(costs: Costs, seats: tuple[int, ...]) -> RoleMemory:
    dtype = costs.config.model.dtype
    size = costs.model.text_encoder_parameters * costs.geometry.dtype.itemsize
    encoders = MemoryPart(name=f"text encoders, {dtype}", size=size)
    stays = costs.config.data.encode_ahead == 0
    return RoleMemory(
        role="encoder",
        seats=seats,
        held=(encoders,) if stays else (),
        in_turn=() if stays else (encoders,),
        not_counted="encoding",
    )


def _scorer(costs: Costs, seats: tuple[int, ...]) -> RoleMemory:
    images, ranks = _decoded_together(costs), len(seats)
    held = [MemoryPart(name="VAE, float32", size=costs.image.weight_bytes)] if images else []
    decoding = MemoryPart(name=f"decoding {count(images, 'image')}", size=costs.image.rise * images)
    in_turn = [decoding] if images else []
    unknown = []
    for reward in costs.rewards:
        if reward.cost is None:
            unknown.append(reward.name)
            continue
        spread = is_spread(costs.config, reward.cost)
        size = reward.cost.whole_bytes + reward.cost.spread_bytes // (ranks if spread else 1)
        name = f"{reward.name}, 1/{ranks} of its weights" if spread and ranks > 1 else f"{reward.name}, weights"
        held.append(MemoryPart(name=name, size=size, leaves=not spread))
        batch = min(reward.cost.samples, costs.config.rollout.group_size)
        rise = reward.cost.rise * batch // reward.cost.samples + gathered_bytes(costs, reward.cost)
        in_turn.append(MemoryPart(name=f"scoring by {reward.name}, {count(batch, 'sample')}", size=rise))
    return RoleMemory(
        role="scorer",
        seats=seats,
        held=tuple(held),
        in_turn=tuple(in_turn),
        not_counted=", ".join(unknown),
    )


def is_spread(config: RunConfig, reward: RewardCost) -> bool:
    """Whether a reward's weights are cut over the scorers."""
    placement = config.placement
    return placement.scorers_are_a_gang and reward.spread_bytes > 0


def gathered_bytes(costs: Costs, reward: RewardCost) -> int:
    """The weights of a reward that a scorer of a gang has whole for a moment."""
    if not is_spread(costs.config, reward) or costs.work.scorers == 1:
        return 0
    itemsize = reward.spread_bytes / reward.spread_parameters
    return min(reward.spread_bytes, round((_LIVE + _AHEAD) * itemsize))


def _precision(config: RunConfig) -> str:
    quantisation = config.model.quantisation
    return config.model.dtype if quantisation == "none" else f"{quantisation} and {config.model.dtype}"


def _decoded_together(costs: Costs) -> int:
    """How many images a scorer decodes in one call at the most: of a group of a step, or of an evaluation."""
    config = costs.config
    in_steps = config.rollout.group_size if costs.steps_decode else 0
    in_evaluations = config.eval.samples_per_prompt if costs.evaluations_decode else 0
    return min(TOGETHER, max(in_steps, in_evaluations))
