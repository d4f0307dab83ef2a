"""Every key of a run's configuration, with its type and default. How a file becomes one is in `flowrl.config`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from omegaconf import MISSING

from flowrl.algorithms.configs import FlowGRPOConfig
from flowrl.base.embedded import POCKET

LearnerStrategy = Literal["ddp", "fsdp2", "zero2", "zero3"]
CUTTING: tuple[LearnerStrategy, ...] = ("fsdp2", "zero3")  # each learner has a part of the frozen weights


@dataclass
class RunSection:
    """What the run is called, where it writes, and how long it goes on."""

    name: str = ""  # empty: the config file's name and the time, such as ditreward-20260131-154500
    dir: str = "runs/${run.name}"
    seed: int = 0
    steps: int = 60  # 0 evaluates only
    overwrite: bool = False  # start anew in a directory that exists


@dataclass
class ModelSection:
    """The policy that is trained."""

    family: str = "sd3"
    path: str = POCKET  # a diffusers folder, or "pocket" for the embedded one
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    image_size: int = 64  # pixels, height and width
    max_sequence_length: int = 14  # T5 tokens; the same in rollout, training and reward
    # Keep one activation per block in the update and compute the others again: a seventeenth of the memory of
    # SD3.5-Large for a third more computing, and the same numbers.
    gradient_checkpointing: bool = False
    # The frozen weights of the blocks in 8 bits, or in 4 (NormalFloat), for small GPUs; the adapter stays float32.
    quantisation: Literal["none", "int8", "int4"] = "none"
    attention: str = "native"  # a backend of diffusers by its name, such as flash or flex; native is torch's choice
    lora_rank: int = 32
    lora_alpha: int = 64
    lora_targets: list[str] = field(
        default_factory=lambda: [
            "attn.to_q",
            "attn.to_k",
            "attn.to_v",
            "attn.to_out.0",
            "attn.add_q_proj",
            "attn.add_k_proj",
            "attn.add_v_proj",
            "attn.to_add_out",
        ]
    )


@dataclass
class DataSection:
    """Where prompts come from: text files with one prompt per line, or "pocket" for the embedded ones."""

    train_prompts: str = POCKET
    eval_prompts: str = POCKET
    condition_cache: str = ""  # a folder where text conditions are kept for this run and others; empty: nowhere
    # Load the text encoders only to encode the prompts of so many steps at once, then free them; 0: they stay loaded.
    encode_ahead: int = 0


@dataclass
class RolloutSection:
    """How images are sampled for training."""

    prompts_per_step: int = 12
    group_size: int = 16
    num_steps: int = 10
    guidance_scale: float = 4.5
    samples_per_forward: int = 0  # of a group, in rollout and in replay alike; 0 = the whole group

    @property
    def forward_size(self) -> int:
        """How many samples of a group share a forward."""
        return self.samples_per_forward or self.group_size


@dataclass
class RewardSpec:
    """One reward: by registered name, entry point or dotted path, how it enters the sum, and its own options.

    The sum that is trained on adds weight * normalised((score + shift) * scale); the score itself is logged as it is.
    A watched reward enters no sum, whatever stands here.
    """

    name: str = MISSING
    weight: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)
    shift: float = 0.0
    scale: float = 1.0  # published ones: 0.1 for HPSv3/10; shift 2 and scale 0.25 for ImageReward's (r + 2)/4
    normalise: Literal["none", "group"] = "none"  # "group": z-scores within the samples of a prompt
    label: str = ""  # in metrics and reports; empty: the name, or of a dotted path the class

    @property
    def metric_name(self) -> str:
        """What the metrics of this reward are keyed by."""
        return self.label or self.name.rpartition(":")[2]


@dataclass
class RewardsSection:
    """What is trained on, and what is only watched at evaluations."""

    train: list[RewardSpec] = field(default_factory=list)
    watch: list[RewardSpec] = field(default_factory=list)
    max_invalid_fraction: float = 0.05  # of a step's samples without a finite score; above it the run stops


@dataclass
class OptimSection:
    """AdamW on the adapter."""

    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    ema_decay: float = 0.9
    ema_every: int = 8  # inner steps between two applications of the moving average


@dataclass
class PlacementSection:
    """Which processes there are and where they run."""

    # "local": all in one process. "split": each actor on a device of its own. "fused": so too, and the learners also
    # sample. "colocated": the roles share the devices.
    mode: Literal["local", "split", "fused", "colocated"] = "split"
    num_rollouts: int = 2  # of split and colocated; of that 0: the learners also sample, on one copy of the model
    num_scorers: int = 2
    num_learners: int = 2
    # What is cut over the learners: ddp nothing, zero2 gradients and moments, fsdp2 frozen weights, zero3 everything
    # (but from forward to backward pass all weights are there, unless model.gradient_checkpointing).
    learner_strategy: LearnerStrategy = "ddp"
    shard_scorer: bool = True  # ZeRO-3 over the scorers; false = replicas
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1  # torch threads of each actor; results on the CPU are bit-equal only at the same number
    ray_address: str = "local"  # "local" starts Ray for this run; host:port joins a cluster
    # The roles have the devices in turn: frozen weights are in the host's memory while their role has nothing to do,
    # but for rewards that are spread over scorers. The text encoders' turn is data.encode_ahead.
    offload: bool = False
    timeout_s: float = 300.0  # until an actor answers a call, and until the ranks of a gang have met in a collective

    @property
    def learners(self) -> int:
        """How many learners there are."""
        return 1 if self.mode == "local" else self.num_learners

    @property
    def learners_cut_weights(self) -> bool:
        """Whether each learner has a part of the frozen weights."""
        return self.learner_strategy in CUTTING

    @property
    def scorers_are_a_gang(self) -> bool:
        """Whether rewards that can be are spread over the scorers."""
        return self.shard_scorer and self.mode != "local"

    @property
    def learners_sample(self) -> bool:
        """Whether the learners do the rollouts as well, each on its one copy of the base model."""
        return self.mode in ("local", "fused") or (self.mode == "colocated" and self.num_rollouts == 0)


@dataclass
class EvalSection:
    """Held-out evaluation: fixed prompts and noise, ODE sampling."""

    every: int = 20
    num_prompts: int = 64
    samples_per_prompt: int = 4
    num_steps: int = 10
    guidance_scale: float = 4.5
    weights: Literal["policy", "ema"] = "policy"
    seed: int = 1234
    grid_prompts: int = 8

    def due(self, step: int, steps: int) -> bool:
        """Whether a run of so many steps is evaluated after one: its start, each multiple of `every`, and its end."""
        return step == 0 or (self.every > 0 and (step % self.every == 0 or step == steps))


@dataclass
class CheckpointSection:
    """Resumable state."""

    every: int = 20
    keep: int = 2


@dataclass
class GateSection:
    """What stops a run whose numbers cannot be trusted."""

    max_ratio_absdev: float = 1e-5  # of the first inner step of a step; exactly 0 is expected on the CPU


@dataclass
class RunConfig:
    """Everything that defines a run."""

    run: RunSection = field(default_factory=RunSection)
    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    rollout: RolloutSection = field(default_factory=RolloutSection)
    rewards: RewardsSection = field(default_factory=RewardsSection)
    algorithm: FlowGRPOConfig = field(default_factory=FlowGRPOConfig)
    optim: OptimSection = field(default_factory=OptimSection)
    placement: PlacementSection = field(default_factory=PlacementSection)
    eval: EvalSection = field(default_factory=EvalSection)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    gate: GateSection = field(default_factory=GateSection)
