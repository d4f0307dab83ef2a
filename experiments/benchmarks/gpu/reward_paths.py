"""The ways from a latent to its score: read as it is, or decoded first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from experiments.benchmarks.gpu import case_names, networks
from experiments.benchmarks.gpu.record import Case
from experiments.benchmarks.gpu.setting import Setting
from experiments.benchmarks.gpu.timing import free, measure
from flowrl.models.sd3 import SD3Decoder, SD3ImageEncoder
from rewards.dit_reward.model import sample_noise
from rewards.hpsv3.model import ChatBatch
from rewards.hpsv3.preprocess import patchify

Score = Callable[[torch.Tensor], torch.Tensor]


def run(setting: Setting) -> Iterator[Case]:
    """The decoder alone, then every path; no path has the weights of another beside it."""
    yield from _decoding(setting)
    free()
    yield from _dit_reward(setting)
    free()
    yield from _hpsv3(setting)


def dit_score(setting: Setting, network: Callable[..., torch.Tensor]) -> Score:
    """Latents [B, C, h, w] to scores [B] by DiT-Reward, noise and condition brought to the device as in a run."""
    text = networks.condition(setting, 1)

    def score(latents: torch.Tensor) -> torch.Tensor:
        device, count = latents.device, len(latents)
        noise = sample_noise(torch.arange(count), tuple(latents.shape[1:])).to(device)
        embeds = text.embeds.to(device).expand(count, -1, -1)
        with torch.no_grad():
            return network(latents, noise, embeds, text.pooled.to(device).expand(count, -1))[:, 0]

    return score


def latents(setting: Setting, count: int) -> torch.Tensor:
    """Random latents [count, C, h, w] float32 on the device."""
    draw = torch.Generator(setting.device).manual_seed(3)
    return torch.randn(count, *setting.sizes.latent_shape, generator=draw, device=setting.device)


def _decoding(setting: Setting) -> Iterator[Case]:
    decode = SD3Decoder(networks.vae(setting)).decode
    for count in setting.sizes.reward_batches:
        given = latents(setting, count)
        yield measure(case_names.decode(count), partial(decode, given), setting, images=count)


def _dit_reward(setting: Setting) -> Iterator[Case]:
    score = dit_score(setting, networks.dit_reward(setting))
    yield from _path(case_names.LATENT, setting, score, partial(latents, setting))
    vae = networks.vae(setting)
    decode, encode = SD3Decoder(vae).decode, SD3ImageEncoder(vae, 1).encode
    yield from _path(case_names.PIXEL, setting, lambda pixels: score(encode(pixels)), partial(_pixels, setting))
    yield from _path(case_names.DECODED, setting, lambda x: score(encode(decode(x))), partial(latents, setting))


def _hpsv3(setting: Setting) -> Iterator[Case]:
    language, network = setting.sizes.language, networks.hpsv3(setting)

    def score(pixels: torch.Tensor) -> torch.Tensor:
        chats = _chats(setting, len(pixels)).to(pixels.device)
        with torch.no_grad():
            return network(chats, *patchify(pixels, language.patches))[:, 0]

    yield from _path(case_names.HPSV3, setting, score, partial(_pixels, setting))
    decode = SD3Decoder(networks.vae(setting)).decode
    yield from _path(case_names.HPSV3_DECODED, setting, lambda x: score(decode(x)), partial(latents, setting))


def _path(name: str, setting: Setting, score: Score, inputs: Callable[[int], torch.Tensor]) -> Iterator[Case]:
    for count in setting.sizes.reward_batches:
        given = inputs(count)
        yield measure(case_names.reward(name, count), partial(score, given), setting, images=count)


def _pixels(setting: Setting, count: int) -> torch.Tensor:
    draw = torch.Generator(setting.device).manual_seed(4)
    side = setting.sizes.image_size
    return torch.rand(count, 3, side, side, generator=draw, device=setting.device)


def _chats(setting: Setting, count: int) -> ChatBatch:
    """Chats [count, L] of the real length: a few tokens, the image, then text up to the token that is read."""
    sizes = setting.sizes
    language = sizes.language
    last, length = language.text["vocab_size"] - 1, language.chat_tokens
    num_image = language.patches.num_tokens(sizes.image_size, sizes.image_size)
    draw = torch.Generator().manual_seed(5)
    ids = torch.randint(0, last - 8, (count, length), generator=draw)
    is_image = torch.zeros(count, length, dtype=torch.int64)
    is_image[:, 8 : 8 + num_image] = 1
    ids[is_image.bool()] = last - 2
    ids[:, 7], ids[:, 8 + num_image], ids[:, -6] = last - 5, last - 4, last
    return ChatBatch(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        image_mask=is_image,
        reward_position=torch.full((count,), length - 6),
    )
