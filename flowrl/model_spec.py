"""Which model the actors of a run load, where from and onto what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from flowrl.base.dtypes import torch_dtype
from flowrl.base.embedded import folder_of
from flowrl.base.errors import CheckpointError, UserError
from flowrl.config import ModelSection, RunConfig
from flowrl.protocols import Policy, PolicyFamily
from flowrl.registry import resolve


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Which model the actors of a run load, and onto what."""

    section: ModelSection
    path: Path  # of the diffusers folder
    seed: int  # of the run; the adapter's start depends on it
    device: str
    threads: int

    @classmethod
    def of(cls, config: RunConfig) -> ModelSpec:
        """That of a run; raises UserError, naming the key, when its folder is not one or a package lacks."""
        spec = cls(
            section=config.model,
            path=folder_of(config.model.path, "sd35"),
            seed=config.run.seed,
            device=config.placement.device,
            threads=config.placement.threads,
        )
        spec.check()
        return spec

    @property
    def family(self) -> PolicyFamily:
        """The loaders of the model's family."""
        family, _ = resolve("policy", self.section.family)
        checked: PolicyFamily = family
        return checked

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the frozen weights."""
        return torch_dtype(self.section.dtype)

    @property
    def latent_space(self) -> str:
        """The name of the space of the policy's latents."""
        return self.family.latent_space(self.path)

    def check(self) -> None:
        """Raise UserError, before anything starts, when the model cannot be loaded as the section says."""
        try:
            self.family.check(self.path)
        except UserError as error:
            raise CheckpointError(f"model.path: {error.problem}", advice=error.advice) from error
        except ValueError as error:
            raise CheckpointError(f"model.path: {error}") from error
        section = self.section
        self.family.check_options(
            quantisation=section.quantisation, attention=section.attention, dtype=self.dtype, device=self.device
        )

    def prepare_process(self) -> None:
        """Settings of the whole process that results depend on."""
        torch.set_num_threads(self.threads)

    def load_policy(self, *, to_be_cut: bool = False) -> Policy:
        """The policy with a fresh adapter, equal on every actor of the run; `to_be_cut` leaves it on the CPU."""
        section = self.section
        policy = self.family.load_policy(
            self.path,
            image_size=section.image_size,
            dtype=self.dtype,
            device=self.device,
            to_be_cut=to_be_cut,
            quantisation=section.quantisation,
            attention=section.attention,
        )
        policy.attach_adapter(
            rank=section.lora_rank, alpha=section.lora_alpha, targets=section.lora_targets, seed=self.seed
        )
        if section.gradient_checkpointing:
            policy.checkpoint_activations()
        return policy
