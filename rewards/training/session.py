"""One optimizer over one or many devices: accelerate, kept in one place."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, broadcast_object_list, gather_object, parse_flag_from_env
from torch.nn.parallel import DistributedDataParallel

from flowrl.base.errors import UserError
from rewards.training.config import OptimSection, RewardTrainConfig
from rewards.training.trainable import TrainableReward


def join_processes() -> PartialState:
    """Meet the other processes of this training, if there are any; raises UserError when they cannot be met."""
    processes = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if processes.num_processes != launched:
        raise UserError(
            f"{launched} processes were launched, but accelerate found no device for each of them: each would train "
            "alone; set ACCELERATE_USE_CPU=true to train on the CPU, or launch one process"
        )
    return processes


def agree_on_folder(config: RewardTrainConfig) -> None:
    """Give all processes the main one's name and folder, which may hold the time of its start."""
    shared = [config.run.name, config.run.dir]
    broadcast_object_list(shared)
    config.run.name, config.run.dir = shared


LOWER_RATES = (
    "begin a new training with a lower optim.lr_backbone or optim.lr_head, since --resume goes on with the rates that "
    "a training began with"
)


class TrainingError(UserError):
    """A training whose numbers went wrong; its checkpoints are those of the steps before."""


class InParts(torch.nn.Module):
    """Calls a network on several sets of inputs, each of one shape, in one forward pass of its own.

    One pass, because what spreads a network over devices must see all ranks make the same ones.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, parts: Sequence[tuple[Any, ...]]) -> list[torch.Tensor]:
        return [self.network(*part) for part in parts]


class Session:
    """A reward model with its optimizer, on one device, over several (DDP), or sharded (DeepSpeed ZeRO).

    How it is spread is accelerate's business: `accelerate launch` and its config file say so. `batch_size` is that of
    the batches that are dealt, in comparisons over all ranks.
    """

    def __init__(self, trainable: TrainableReward, config: RewardTrainConfig, *, batch_size: int) -> None:
        optim = config.optim
        self.accelerator = Accelerator(
            mixed_precision="bf16" if config.model.precision == "bfloat16" else "no",
            step_scheduler_with_optimizer=False,
        )
        world = self.accelerator.num_processes
        self.num_micro = math.ceil(batch_size / (optim.micro_batch_size * world))
        self.accelerator.gradient_accumulation_steps = self.num_micro
        self.trainable = trainable
        self.is_sharded = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        self._clip_norm = optim.clip_norm
        if self.is_sharded:
            self._configure_deepspeed(optim)
        groups = _groups(trainable, optim)
        self._base_rates = [group["lr"] for group in groups]
        optimizer = torch.optim.AdamW(groups, betas=optim.betas)
        self.network, self.optimizer = self.accelerator.prepare(InParts(trainable.module), optimizer)
        if isinstance(self.network, DistributedDataParallel):
            self.network.broadcast_buffers = False  # they are tables of positions, which never change
        self.learning = {name: p for name, p in trainable.module.named_parameters() if p.requires_grad}

    def _configure_deepspeed(self, optim: OptimSection) -> None:
        """Give DeepSpeed what the configuration says; its own file or accelerate's says how weights are spread."""
        if optim.ema_decay:
            raise UserError("optim.ema_decay must be 0 with DeepSpeed, whose weights are spread over the devices")
        # DeepSpeed calls collectives by names that torch is about to change; hundreds of times per step.
        warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)
        settings = self.accelerator.state.deepspeed_plugin.deepspeed_config
        settings["train_micro_batch_size_per_gpu"] = optim.micro_batch_size
        settings["gradient_accumulation_steps"] = self.num_micro
        settings["gradient_clipping"] = optim.clip_norm
        settings["data_types"] = {"grad_accum_dtype": "fp32"}  # by default sums over micro-batches would be bfloat16
        settings["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True  # or nothing can be exported

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return torch.device(self.accelerator.device)

    @property
    def rank(self) -> int:
        """Of this process."""
        return int(self.accelerator.process_index)

    @property
    def world(self) -> int:
        """How many processes there are."""
        return int(self.accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return bool(self.accelerator.is_main_process)

    def set_rate(self, factor: float) -> None:
        """Make every learning rate its base rate times `factor`."""
        for group, base in zip(self.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = base * factor

    @contextmanager
    def micro_step(self) -> Iterator[None]:
        """Around the forward and backward pass of one micro-batch; gradients are exchanged after a step's last."""
        with self.accelerator.accumulate(self.network):
            yield

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of this rank's part of a step's loss; parts are summed over micro-batches and ranks."""
        # What is below divides by the number of micro-batches, and averages gradients over ranks.
        loss = loss * (self.num_micro * self.world)
        if self.is_sharded:
            # Not through accelerate, which would also step, before anyone has looked at the loss.
            self.network.set_gradient_accumulation_boundary(self.accelerator.sync_gradients)
            self.network.backward(loss)
        else:
            self.accelerator.backward(loss)

    def step(self) -> float:
        """After a step's last micro-batch: clip, step, and return the norm of the gradient before clipping.

        Raises TrainingError when the gradient is not finite; only with DeepSpeed the weights have then been changed.
        """
        if self.is_sharded:  # DeepSpeed clips, steps, and forgets the gradient
            self.network.step()
            return _finite(float(self.network.get_global_grad_norm()))
        norm = _finite(float(torch.nn.utils.clip_grad_norm_(self.learning.values(), self._clip_norm)))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def gather(self, part: list[tuple[torch.Tensor, torch.Tensor]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """What all ranks have, on all ranks."""
        return part if self.world == 1 else list(gather_object(part))

    def sum(self, value: float) -> float:
        """The sum of a number over all ranks."""
        total = self.accelerator.reduce(torch.tensor(value, device=self.device, dtype=torch.float64), reduction="sum")
        return float(total)

    def wait(self) -> None:
        """Until every rank has come here."""
        self.accelerator.wait_for_everyone()

    def any(self, flag: bool) -> bool:
        """Whether it holds on some rank."""
        return flag if self.world == 1 else self.sum(float(flag)) > 0

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The whole state dict of the reward's network; where weights are sharded, on the main process alone.

        Every rank must call it.
        """
        if not self.is_sharded:
            return dict(self.trainable.module.state_dict())
        state = self.accelerator.get_state_dict(self.network) or {}
        # Copies, as DeepSpeed may hand out parts of one buffer that holds all weights.
        return {key.removeprefix("network."): state.pop(key).clone() for key in list(state)}


def _finite(norm: float) -> float:
    if not math.isfinite(norm):
        raise TrainingError(f"the norm of the gradient is {norm}; {LOWER_RATES}")
    return norm


def _groups(trainable: TrainableReward, optim: OptimSection) -> list[dict[str, Any]]:
    """Parameter groups: head or backbone, decaying or not; empty ones are left out."""
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in trainable.module.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = optim.lr_head if name.startswith(trainable.head_prefixes) else optim.lr_backbone
        decay = 0.0 if any(part in name for part in trainable.no_decay) else optim.weight_decay
        groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": parameters, "lr": rate, "weight_decay": decay} for (rate, decay), parameters in groups.items()]
