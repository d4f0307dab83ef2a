"""Stable Diffusion 3 and 3.5: text encoders, transformer with LoRA, and image decoder, each loaded on its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from flowrl.base.errors import CheckpointError
from flowrl.base.weight_files import read_json
from flowrl.core.latent_space import factor_of, latent_space_of
from flowrl.core.schedule import flow_match_sigmas
from flowrl.models import lora, quantised, sd3_attention
from flowrl.models.load_part import check_part, load_part
from flowrl.models.sd3_folder import TOKENIZERS, check_folder, listed_parts, text_digest
from flowrl.types import Quantisation, TextCondition

_TEXT_ENCODERS = {
    "text_encoder": CLIPTextModelWithProjection,
    "text_encoder_2": CLIPTextModelWithProjection,
    "text_encoder_3": T5EncoderModel,
}


@contextmanager
def _silent() -> Iterator[None]:
    """Within the context diffusers speaks of errors alone."""
    before = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(before)


class SD3Policy:
    """The transformer with its adapter, behind the Policy protocol."""

    def __init__(
        self,
        transformer: SD3Transformer2DModel,
        *,
        shift: float,
        latent_space: str,
        latent_shape: tuple[int, ...],
    ) -> None:
        self.module: torch.nn.Module = transformer
        self.transformer = transformer
        self.latent_space = latent_space
        self.latent_shape = latent_shape
        self._sigmas = cache(lambda num_steps: flow_match_sigmas(num_steps, shift=shift))

    def sigmas(self, num_steps: int) -> torch.Tensor:
        """The noise levels of a run: [num_steps + 1] float32 on the CPU, equal to the diffusers scheduler's."""
        return self._sigmas(num_steps)

    def velocity(
        self,
        latents: torch.Tensor,
        sigma: torch.Tensor,
        condition: TextCondition,
        negative: TextCondition,
        guidance_scale: float,
    ) -> torch.Tensor:
        """eps - x0 for latents [B, C, h, w] at sigma []: float32; u + g (c - u) from one forward of [u; c]."""
        batch = latents.shape[0]
        guided = guidance_scale != 1.0
        branches = [negative, condition] if guided else [condition]
        dtype, device = self.transformer.dtype, latents.device
        embeds = torch.cat([b.embeds.to(device, dtype).expand(batch, -1, -1) for b in branches])
        pooled = torch.cat([b.pooled.to(device, dtype).expand(batch, -1) for b in branches])
        output = self.module(
            hidden_states=torch.cat([latents] * len(branches)).to(dtype),
            timestep=(1000 * sigma).to(device).expand(batch * len(branches)),
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            return_dict=False,
        )[0].float()
        if not guided:
            return output
        unconditional, conditional = output.chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

    def reference(self) -> AbstractContextManager[None]:
        """Within the context the adapter is off: the base model."""
        return lora.disabled(self.transformer)

    def attach_adapter(self, *, rank: int, alpha: int, targets: list[str], seed: int) -> None:
        """Freeze the transformer and add a LoRA adapter; raises ValueError when a target names no layer."""
        lora.attach(self.transformer, rank=rank, alpha=alpha, targets=targets, seed=seed)

    def checkpoint_activations(self) -> None:
        """Keep the input of each block alone for a backward pass."""
        self.transformer.enable_gradient_checkpointing()

    def trainable(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """The adapter's parameters by name."""
        return lora.trainable(self.transformer)

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter as diffusers' `load_lora_weights` reads it."""
        lora.save(self.transformer, folder)

    def load_adapter(self, folder: Path) -> None:
        """Copy what `save_adapter` wrote into the attached adapter; raises ValueError when it does not fit."""
        lora.load(self.transformer, folder)


class SD3PromptEncoder:
    """The three text encoders; a text becomes 77 (or the tokenizer's length) + max_sequence_length tokens.

    Where there is no T5, its tokens are zeros, as in the diffusers pipeline.
    """

    def __init__(self, pipeline: StableDiffusion3Pipeline, max_sequence_length: int, device: str) -> None:
        self._pipeline = pipeline
        self._device = torch.device(device)
        self._max_sequence_length = max_sequence_length

    def encode(self, text: str) -> TextCondition:
        """The condition of one text: embeds [1, L, D] and pooled [1, P] on the CPU."""
        # Texts are cut where the encoders end, as in all use of this family; said for each, it would bury all else.
        with torch.no_grad(), _silent():
            embeds, _, pooled, _ = self._pipeline.encode_prompt(
                text,
                None,
                None,
                device=self._device,
                do_classifier_free_guidance=False,
                max_sequence_length=self._max_sequence_length,
            )
        return TextCondition(embeds=embeds.cpu(), pooled=pooled.cpu())

    def cuts(self, text: str) -> bool:
        """Whether the end of a text reaches no encoder, as it is too long for the one that reads furthest."""
        pipeline = self._pipeline
        if pipeline.text_encoder_3 is None:
            tokenizer, most = pipeline.tokenizer, pipeline.tokenizer_max_length
        else:
            tokenizer, most = pipeline.tokenizer_3, self._max_sequence_length
        return len(tokenizer(text, truncation=True, max_length=most + 1).input_ids) > most


class SD3Decoder:
    """The VAE's decoder, in float32."""

    def __init__(self, vae: AutoencoderKL) -> None:
        self._vae = vae

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Model-scaled latents [B, C, h, w] to pixels [B, 3, H, W] float32 in [0, 1] on the VAE's device."""
        config = self._vae.config
        raw = latents.to(self._vae.device).float() / config.scaling_factor + config.shift_factor
        with torch.no_grad():
            return (self._vae.decode(raw, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)


class SD3ImageEncoder:
    """The VAE's encoder, in float32."""

    def __init__(self, vae: AutoencoderKL, multiple: int) -> None:
        self._vae = vae
        self._multiple = multiple  # of pixels that one patch of the transformer covers

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [B, 3, H, W] in [0, 1] to (mode of the VAE - shift) * scaling, [B, C, h, w] float32, on the VAE's
        device; raises ValueError when no latents are made for images of that size."""
        height, width = pixels.shape[-2:]
        if height % self._multiple or width % self._multiple:
            raise ValueError(
                f"an image of {width} x {height} pixels has no latents: width and height must be multiples of "
                f"{self._multiple}; scale or crop it"
            )
        config = self._vae.config
        with torch.no_grad():
            mode = self._vae.encode(2 * pixels.to(self._vae.device).float() - 1).latent_dist.mode()
        return (mode - config.shift_factor) * config.scaling_factor


class SD3:
    """The family: how each part is loaded from a diffusers folder."""

    @staticmethod
    def check(path: Path) -> None:
        """Raise CheckpointError unless the folder can be loaded as this family; of weights the headers are read."""
        check_folder(path)
        check_part(SD3Transformer2DModel, path / "transformer")
        check_part(AutoencoderKL, path / "vae")

    @staticmethod
    def latent_space(path: Path) -> str:
        """The name of the latent space, from the VAE's config."""
        return latent_space_of(AutoencoderKL.load_config(path / "vae"))

    @staticmethod
    def text_length(path: Path, max_sequence_length: int) -> int:
        """The tokens of a text condition: those of CLIP, then `max_sequence_length` of T5."""
        clip = read_json(path / "text_encoder" / "config.json")["max_position_embeddings"]
        return int(clip) + max_sequence_length

    @staticmethod
    def text_encoders(path: Path) -> str:
        """A digest of the text encoders' weights and settings and of the tokenizers' files."""
        return text_digest(path)

    @staticmethod
    def check_options(*, quantisation: Quantisation, attention: str, dtype: torch.dtype, device: str) -> None:
        """Raise UserError when a package that `load_policy` would need is not installed, or the CPU cannot do it.

        No GPU is touched: memory of it would be taken as long as the process lives.
        """
        quantised.check_installed(quantisation)
        if device == "cpu":
            sd3_attention.check_backend(attention, dtype=dtype, device=device)
        else:
            sd3_attention.check_package(attention)

    @staticmethod
    def load_policy(
        path: Path,
        *,
        image_size: int,
        dtype: torch.dtype,
        device: str,
        to_be_cut: bool = False,
        quantisation: Quantisation = "none",
        attention: str = sd3_attention.NATIVE,
    ) -> SD3Policy:
        """The transformer without an adapter, by `quantised.quantise` and `sd3_attention.use_backend`.

        With `to_be_cut` its weights are left on the CPU, where they are pages of the files, for a strategy that gives
        the device a part of each. Raises CheckpointError on weights that are not all there, and on a schedule or an
        image size that it cannot have; UserError when the device cannot do what the options ask for.
        """
        scheduler = FlowMatchEulerDiscreteScheduler.load_config(path / "scheduler")
        if scheduler.get("use_dynamic_shifting"):
            raise CheckpointError(
                f"{path}/scheduler/scheduler_config.json: use_dynamic_shifting is true, but Stable Diffusion 3 "
                "schedules have a fixed shift; is this another model's folder?"
            )
        factor = factor_of(AutoencoderKL.load_config(path / "vae"))
        at_once = quantisation == "none" and not to_be_cut  # whole, the weights might have no room on the device
        transformer = load_part(SD3Transformer2DModel, path / "transformer", dtype, device if at_once else "cpu")
        quantised.quantise(transformer, quantisation, device=device)
        transformer = transformer.to("cpu" if to_be_cut else device).eval()
        step = factor * transformer.config.patch_size
        largest = transformer.config.pos_embed_max_size * step
        if image_size % step or image_size > largest:
            raise CheckpointError(
                f"model.image_size must be a multiple of {step} and at most {largest} for {path}, got {image_size}"
            )
        with _silent():  # the switch says at each use that it may change
            sd3_attention.use_backend(transformer, attention, device)
        return SD3Policy(
            transformer,
            shift=scheduler["shift"],
            latent_space=SD3.latent_space(path),
            latent_shape=(transformer.config.in_channels, image_size // factor, image_size // factor),
        )

    @staticmethod
    def load_encoder(path: Path, *, max_sequence_length: int, dtype: torch.dtype, device: str) -> SD3PromptEncoder:
        """Tokenizers and text encoders only; raises CheckpointError on weights that are not all there."""
        listed = listed_parts(path, (*_TEXT_ENCODERS, *TOKENIZERS))
        encoders = {
            part: load_part(kind, path / part, dtype, device) for part, kind in _TEXT_ENCODERS.items() if part in listed
        }
        left_out = {part: None for part in (*_TEXT_ENCODERS, *TOKENIZERS) if part not in listed}
        pipeline = StableDiffusion3Pipeline.from_pretrained(
            path, transformer=None, vae=None, **encoders, **left_out, dtype=dtype
        ).to(device)
        if pipeline.text_encoder_3 is None:  # the width of its zeros is read from the transformer's config
            settings = SD3Transformer2DModel.load_config(path / "transformer")
            with torch.device("meta"):
                pipeline.register_modules(transformer=SD3Transformer2DModel.from_config({**settings, "num_layers": 1}))
        return SD3PromptEncoder(pipeline, max_sequence_length, device)

    @staticmethod
    def load_decoder(path: Path, *, device: str) -> SD3Decoder:
        """The VAE, in float32 whatever the policy's dtype: half precision shows in its images."""
        return SD3Decoder(load_part(AutoencoderKL, path / "vae", torch.float32, device))

    @staticmethod
    def load_image_encoder(path: Path, *, device: str) -> SD3ImageEncoder:
        """The VAE, in float32 as for decoding."""
        vae = load_part(AutoencoderKL, path / "vae", torch.float32, device)
        factor = factor_of(vae.config)
        patch = SD3Transformer2DModel.load_config(path / "transformer")["patch_size"]
        return SD3ImageEncoder(vae, factor * patch)
