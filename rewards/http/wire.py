"""What the client and the server of a reward say to each other: safetensors bytes with a metadata header, no pickle.

A request is the body of ``POST /score``. Its metadata holds ``flowrl_reward``, the version of this format, and
``prompts``, a JSON list of B texts. Its tensors are those of a `flowrl.types.RewardInput`:

========== ======================= ==========================================================================
tensor     shape                   for
========== ======================= ==========================================================================
seeds      [B] int64               every reward
latents    [B, ...] float32        latent rewards
embeds     [B or 1, L, D] floating latent rewards; one row stands for a text that all samples share
pooled     [B or 1, P] floating    latent rewards
pixels     [B, 3, H, W] float32    pixel rewards
========== ======================= ==========================================================================

The answer holds the same version and one tensor, ``scores`` [B] float32, NaN for a sample that could not be scored.
``GET /reward`` answers with a `Description` as JSON, `trained_on` a `flowrl.types.TrainedOn` or null. Whatever is added
to either gives the format another version.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from flowrl.types import RewardInput, TextCondition, TrainedOn

VERSION = 2
CONTENT_TYPE = "application/x-safetensors"
MAX_BYTES = 256 * 2**20  # of a request, unless the server says another number
_VERSION_KEY = "flowrl_reward"
_FLOATING = (torch.float32, torch.float16, torch.bfloat16)
_DIMENSIONS = {"seeds": 1, "embeds": 3, "pooled": 2, "pixels": 4, "scores": 1}
_LATENT, _PIXEL = {"seeds", "latents", "embeds", "pooled"}, {"seeds", "pixels"}


class WireError(ValueError):
    """A body that is none of this format; the message says what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a server says of its reward.

    Example: ``Description(name="hpsv3", input_kind="pixel", trained_on=None, batch_size=16, max_bytes=2**28)``
    """

    name: str
    input_kind: Literal["latent", "pixel"]
    trained_on: TrainedOn | None  # of a latent reward: its latent space, and what else is known
    batch_size: int
    max_bytes: int  # the largest request that the server takes
    version: int = VERSION

    def encode(self) -> bytes:
        """The JSON object that `decode_description` reads."""
        return json.dumps(asdict(self)).encode()


def decode_description(body: bytes) -> Description:
    """Read what `Description.encode` wrote; raises WireError when it is anything else, or of another version."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise WireError(f"not JSON: {error}") from None
    if not isinstance(found, dict) or "version" not in found:
        raise WireError("not the description of a reward")
    if found["version"] != VERSION:
        raise WireError(f"of format version {found['version']!r}, not {VERSION}; use the same flowrl on both sides")
    try:
        if found["trained_on"] is not None:
            found["trained_on"] = TrainedOn(**found["trained_on"])
        description = Description(**found)
    except (KeyError, TypeError) as error:
        raise WireError(f"not the description of a reward: {error}") from None
    if not _is_sound(description):
        raise WireError(f"not the description of a reward: {found}")
    return description


def _is_sound(description: Description) -> bool:
    """Whether all that a description says is of the kind that it should be."""
    kinds: list[tuple[object, type | tuple[type, ...]]] = [
        (description.name, str),
        (description.trained_on, TrainedOn if description.input_kind == "latent" else type(None)),
        (description.batch_size, int),
        (description.max_bytes, int),
    ]
    if (trained := description.trained_on) is not None:
        kinds += [(trained.latent_space, str), (trained.max_aspect, (int, float))]
        kinds += [(number, int) for number in (trained.text_length, trained.image_size, trained.bucket_step)]
    return (
        all(isinstance(value, kind) for value, kind in kinds)
        and description.input_kind in ("latent", "pixel")
        and description.batch_size >= 1
    )


def encode_request(batch: RewardInput) -> bytes:
    """The body for a batch; a condition that was expanded from one row travels as that row."""
    tensors = {"seeds": batch.seeds.to(torch.int64)}
    if batch.latents is not None:
        tensors["latents"] = batch.latents.float()
    if batch.condition is not None:
        tensors |= {"embeds": _one_if_shared(batch.condition.embeds), "pooled": _one_if_shared(batch.condition.pooled)}
    if batch.pixels is not None:
        tensors["pixels"] = batch.pixels.float()
    return _encode(tensors, {"prompts": json.dumps(batch.prompts)})


def decode_request(body: bytes) -> RewardInput:
    """The batch of a body, a shared condition expanded to every sample; raises WireError, which says what is wrong."""
    tensors, metadata = _decode(body)
    if tensors.keys() not in (_LATENT, _PIXEL):
        raise WireError(f"the tensors must be {sorted(_LATENT)} or {sorted(_PIXEL)}, got {sorted(tensors)}")
    prompts = _prompts(metadata)
    size = len(prompts)
    seeds = _tensor(tensors, "seeds", (torch.int64,), (size,))
    if "pixels" in tensors:
        pixels = _tensor(tensors, "pixels", (torch.float32,), (size,))
        if pixels.shape[1] != 3:
            raise WireError(f"pixels must be [B, 3, H, W], got {list(pixels.shape)}")
        return RewardInput(prompts=prompts, seeds=seeds, pixels=pixels)
    condition = TextCondition(
        embeds=_tensor(tensors, "embeds", _FLOATING, (size, 1)).expand(size, -1, -1),
        pooled=_tensor(tensors, "pooled", _FLOATING, (size, 1)).expand(size, -1),
    )
    latents = _tensor(tensors, "latents", (torch.float32,), (size,))
    return RewardInput(prompts=prompts, seeds=seeds, latents=latents, condition=condition)


def encode_scores(scores: torch.Tensor) -> bytes:
    """The answer with scores [B]."""
    return _encode({"scores": scores.float()}, {})


def decode_scores(body: bytes, size: int) -> torch.Tensor:
    """The scores [size] float32 of an answer; raises WireError when it holds anything else."""
    tensors, _ = _decode(body)
    if tensors.keys() != {"scores"}:
        raise WireError(f"an answer must hold scores alone, got {sorted(tensors)}")
    return _tensor(tensors, "scores", (torch.float32,), (size,))


def _one_if_shared(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:1] if tensor.stride(0) == 0 else tensor


def _encode(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(plain, metadata={_VERSION_KEY: str(VERSION), **metadata})


def _decode(body: bytes) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the metadata of safetensors bytes of this version."""
    try:
        tensors = load(body)
        header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
    except (SafetensorError, ValueError, KeyError) as error:  # KeyError: a dtype that torch lacks
        raise WireError(f"the body is not safetensors: {error}") from None
    metadata = header.get("__metadata__") or {}
    if metadata.get(_VERSION_KEY) != str(VERSION):
        found = metadata.get(_VERSION_KEY)
        raise WireError(f"the metadata must hold {_VERSION_KEY} = {str(VERSION)!r}, got {found!r}")
    return tensors, metadata


def _prompts(metadata: dict[str, Any]) -> tuple[str, ...]:
    try:
        prompts = json.loads(metadata.get("prompts", ""))
    except (ValueError, RecursionError):
        raise WireError("the metadata must hold prompts, a JSON list of texts") from None
    if not isinstance(prompts, list) or not prompts or not all(isinstance(text, str) for text in prompts):
        raise WireError("the metadata must hold prompts, a JSON list of at least one text")
    return tuple(prompts)


def _tensor(
    tensors: dict[str, torch.Tensor], name: str, dtypes: tuple[torch.dtype, ...], sizes: tuple[int, ...]
) -> torch.Tensor:
    """The tensor of a name, if its dtype, its number of dimensions and its first size are among those allowed."""
    tensor = tensors[name]
    if tensor.dtype not in dtypes:
        raise WireError(f"{name} must be {' or '.join(map(_dtype_name, dtypes))}, got {_dtype_name(tensor.dtype)}")
    wanted = _DIMENSIONS.get(name)
    if wanted not in (None, tensor.ndim) or tensor.ndim == 0 or len(tensor) not in sizes or tensor.numel() == 0:
        dimensions = f" of {wanted} dimensions" if wanted else ""
        rows = " or ".join(str(size) for size in dict.fromkeys(sizes))
        raise WireError(f"{name} must be a tensor{dimensions} with {rows} rows, got {list(tensor.shape)}")
    return tensor


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
