"""DeepSpeed ZeRO: gradients and moments spread over the ranks (stage 2), and all weights as well (stage 3)."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import distributed

from flowrl.actors.sharding import Cut, stage3_settings
from flowrl.actors.strategies.whole_adapter import adamw
from flowrl.config import OptimSection
from flowrl.protocols import Policy

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Zero(ABC):
    """By DeepSpeed itself: below accelerate each process on the CPU takes itself for the only one, and `backward`
    would also step, before anyone has looked at the numbers.

    Half precision stays off, since it would cast the adapter too: frozen weights keep the dtype they were loaded in.
    """

    def __init__(self, policy: Policy, optim: OptimSection, zero_optimization: dict[str, Any]) -> None:
        self._named = dict(policy.trainable())
        self._adamw = adamw(self._named.values(), optim)
        self._settings = self._adamw.state_dict()["param_groups"]
        self._config = {
            "train_micro_batch_size_per_gpu": 1,
            "managed_gradient_accumulation": False,  # a step comes when it is asked for
            "gradient_clipping": optim.clip_norm,
            "zero_optimization": {
                # A buffer of so many numbers; the default is 2 GB.
                "reduce_bucket_size": sum(parameter.numel() for parameter in self._named.values()),
                **zero_optimization,
            },
        }

    def _wrap(self, policy: Policy) -> None:
        """Give the policy's module to DeepSpeed, with its weights as this stage has them."""
        import deepspeed

        # DeepSpeed calls collectives by names that torch is about to change; hundreds of times per step.
        warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)
        self._wrapped, *_ = deepspeed.initialize(model=policy.module, optimizer=self._adamw, config=self._config)
        self._optimizer = self._wrapped.optimizer
        self._wrapped.eval()  # returns nothing
        policy.module = self._wrapped
        self._keep()

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """Gradients are exchanged in every backward pass, as each rank keeps a part of them alone."""
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a loss."""
        self._wrapped.backward(loss)

    def step(self) -> float:
        """Clip the gradient and step; DeepSpeed itself takes no step when the norm over all ranks is not finite."""
        self._wrapped.step()
        if not self._wrapped.was_step_applied():
            return math.nan
        self._keep()
        return float(self._wrapped.get_global_grad_norm())

    def forget(self) -> None:
        """Drop the gradients, which DeepSpeed does by itself only in a step."""
        self._optimizer.zero_grad()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Weights that changed take the place of those that the optimizer has."""
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(self._named.values()), modifier_rank=0):
            yield
        self._optimizer.refresh_fp32_params()
        self._keep()

    def moments(self) -> dict[str, Any]:
        """Gathered from all ranks, on the CPU."""
        from deepspeed.utils import safe_get_full_optimizer_state

        held = self._adamw.state.get(self._parts()[0])
        if held is None:  # as before the first step
            return {"state": {}, "param_groups": self._settings}
        state = {
            index: {
                "step": held["step"].cpu(),
                **{key: safe_get_full_optimizer_state(parameter, key).cpu() for key in _MOMENTS},
            }
            for index, parameter in enumerate(self._named.values())
        }
        return {"state": state, "param_groups": self._settings}

    def load_moments(self, state: dict[str, Any]) -> None:
        """Each rank takes its part of them."""
        self._adamw.state.clear()
        saved = state["state"]
        if not saved:
            return
        for part in self._parts():
            zeros = {key: torch.zeros_like(part) for key in _MOMENTS}
            self._adamw.state[part] = {"step": saved[0]["step"].clone(), **zeros}
        self._link_moments()
        for index, parameter in enumerate(self._named.values()):
            for key in _MOMENTS:
                self._load_moment(parameter, key, saved[index][key])

    @abstractmethod
    def adapter(self) -> dict[str, torch.Tensor]:
        """The whole adapter by name."""

    @abstractmethod
    def _parts(self) -> list[torch.Tensor]:
        """This rank's parts of the adapter as DeepSpeed holds them: flat, and what its optimizer works on."""

    @abstractmethod
    def _keep(self) -> None:
        """Have the whole adapter at hand after it changed."""

    @abstractmethod
    def _link_moments(self) -> None:
        """Have DeepSpeed know the moments that were just put into its optimizer."""

    @abstractmethod
    def _load_moment(self, parameter: torch.nn.Parameter, key: str, value: torch.Tensor) -> None:
        """Put one whole moment, of the shape of its parameter, where this rank has its part."""


class Zero2(Zero):
    """Stage 2: every rank has all weights."""

    def __init__(self, policy: Policy, optim: OptimSection) -> None:
        super().__init__(policy, optim, {"stage": 2})
        self._wrap(policy)

    def adapter(self) -> dict[str, torch.Tensor]:
        """The parameters themselves."""
        return {name: parameter.detach() for name, parameter in self._named.items()}

    def forget(self) -> None:
        """Also the parts of gradients that DeepSpeed has summed."""
        super().forget()
        self._optimizer.all_grad_tensors.clear()

    def _parts(self) -> list[torch.Tensor]:
        parts: list[torch.Tensor] = self._optimizer.single_partition_of_fp32_groups
        return parts

    def _keep(self) -> None:
        """They are."""

    def _link_moments(self) -> None:
        """As DeepSpeed does in its first step."""
        self._optimizer._hp_optimizer_states_linked = False
        self._optimizer._lazy_init_hp_params_optimizer_state()

    def _load_moment(self, parameter: torch.nn.Parameter, key: str, value: torch.Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        safe_set_full_optimizer_state(parameter, value, key)


class Zero3(Zero):
    """Stage 3: every rank has a part of the weights, and a copy of the adapter."""

    def __init__(self, policy: Policy, optim: OptimSection, device: str) -> None:
        super().__init__(policy, optim, stage3_settings())
        self._copy: dict[str, torch.Tensor] = {}
        _cut(policy.module, torch.device(device), self._config)
        self._wrap(policy)

    def adapter(self) -> dict[str, torch.Tensor]:
        """The copy."""
        return self._copy

    def _parts(self) -> list[torch.Tensor]:
        parts: list[torch.Tensor] = self._optimizer.fp32_partitioned_groups_flat
        return parts

    def _keep(self) -> None:
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(self._named.values())):
            self._copy = {name: parameter.detach().clone() for name, parameter in self._named.items()}

    def _link_moments(self) -> None:
        """They are linked by themselves."""

    def _load_moment(self, parameter: torch.nn.Parameter, key: str, value: torch.Tensor) -> None:
        from deepspeed.utils import safe_set_local_optimizer_state

        held: torch.Tensor = parameter.ds_tensor  # type: ignore[attr-defined]  # added by DeepSpeed
        safe_set_local_optimizer_state(parameter, _part_of_rank(value, held.numel()), key)


def _cut(module: torch.nn.Module, device: torch.device, config: dict[str, Any]) -> None:
    """Have every rank keep its part of each parameter on the device, one parameter after the other.

    DeepSpeed does so by itself, but takes a module that is on the device, and receives what the first rank sends in
    place: weights that are pages of a file would become a copy of the whole model on every other rank.
    """
    cut = Cut(device, config)
    for parameter in module.parameters():
        place = cut.place(parameter.shape, parameter.dtype)
        place.copy_(parameter.data)
        parameter.data = place
        cut(parameter)
    for buffer in module.buffers():
        buffer.data = buffer.data.to(device)


def _part_of_rank(value: torch.Tensor, size: int) -> torch.Tensor:
    """The part [size] of a tensor that this rank holds; the last ones are filled up with zeros."""
    padded = torch.nn.functional.pad(value.flatten(), (0, size * distributed.get_world_size() - value.numel()))
    return padded.narrow(0, size * distributed.get_rank(), size)
