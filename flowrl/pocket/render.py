"""Draws scenes as images with exact anti-aliased shapes, and adds the flaws that pocket training data has."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from flowrl.pocket.scene import BACKGROUNDS, COLOURS, IMAGE_SIZE, RELATIONS, SHAPES, Scene

RADIUS = {"small": 8.0, "large": 13.0}  # pixels
FLAWS = ("blur", "muddy", "ragged", "stray")
_PALETTE = torch.tensor([*COLOURS.values(), *BACKGROUNDS.values()], dtype=torch.float32) / 255
_COLOUR_INDEX = {name: i for i, name in enumerate([*COLOURS, *BACKGROUNDS])}
_MUD = torch.tensor([0.45, 0.40, 0.36])
_MAX_STRAYS = 4


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where and how the things of B scenes are drawn. Positions and radii in pixels; slot 1 may be unused."""

    centre: torch.Tensor  # [B, 2, 2] float32, (x, y) of each thing
    radius: torch.Tensor  # [B, 2] float32, 0 = not drawn
    shape: torch.Tensor  # [B, 2] int64, index into SHAPES
    colour: torch.Tensor  # [B, 2] int64, index into the palette
    background: torch.Tensor  # [B] int64, index into the palette
    flaw: dict[str, torch.Tensor]  # name -> [B] float32 strength in [0, 1]


def palette() -> torch.Tensor:
    """The colours of things, then of backgrounds: [10, 3] float32 in [0, 1]."""
    return _PALETTE.clone()


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def place(scenes: list[Scene], generator: torch.Generator) -> Layout:
    """A random, flawless layout for each scene that agrees with its words."""
    batch = len(scenes)
    middle = (IMAGE_SIZE - 1) / 2
    centre = middle + _uniform((batch, 2, 2), -4.0, 4.0, generator)
    radius = _uniform((batch, 2), 0.94, 1.06, generator)
    shape = torch.zeros(batch, 2, dtype=torch.int64)
    colour = torch.zeros(batch, 2, dtype=torch.int64)
    background = torch.tensor([_COLOUR_INDEX[scene.background] for scene in scenes])
    jitter = _uniform((batch,), -1.5, 1.5, generator)
    for b, scene in enumerate(scenes):
        for k in range(2):
            if k >= len(scene.things):
                radius[b, k] = 0.0
                continue
            thing = scene.things[k]
            radius[b, k] *= RADIUS[thing.size]
            shape[b, k] = SHAPES.index(thing.shape)
            colour[b, k] = _COLOUR_INDEX[thing.colour]
        if scene.relation is not None:
            axis = torch.tensor(RELATIONS[scene.relation], dtype=torch.float32)
            gap = 2.0 + radius[b].sum() / 2
            shift = torch.stack([gap, -gap])[:, None] * axis
            # Along the relation the pair is centred as a whole; across it each thing keeps its own offset.
            across = (1 - axis.abs()) * (centre[b] - middle)
            centre[b] = middle + shift + across + jitter[b] * axis
    none = torch.zeros(batch)
    return Layout(
        centre=centre,
        radius=radius,
        shape=shape,
        colour=colour,
        background=background,
        flaw={name: none.clone() for name in FLAWS},
    )


def add_flaws(layout: Layout, generator: torch.Generator, *, clean_share: float) -> Layout:
    """Give each layout no flaw with probability `clean_share`, else one or two of FLAWS at random strength."""
    batch = layout.radius.shape[0]
    count = torch.where(torch.rand(batch, generator=generator) < clean_share, 0, 1)
    count = count * (1 + (torch.rand(batch, generator=generator) < 0.4).long())
    order = torch.rand(batch, len(FLAWS), generator=generator).argsort(1).argsort(1)
    strength = _uniform((batch, len(FLAWS)), 0.35, 1.0, generator) * (order < count[:, None])
    return replace(layout, flaw={name: strength[:, i] for i, name in enumerate(FLAWS)})


def signed_distance(dx: torch.Tensor, dy: torch.Tensor, radius: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
    """Distance in pixels to the outline of each shape, negative inside; all arguments broadcast together."""
    circle = torch.hypot(dx, dy) - radius
    square = torch.maximum(dx.abs(), dy.abs()) - 0.88 * radius
    # Equilateral, pointing up, with its centre of mass at the origin.
    slope = 0.866 * dx.abs() - 0.5 * dy
    triangle = torch.maximum(slope, dy) - 0.62 * radius
    return torch.where(shape == 0, circle, torch.where(shape == 1, square, triangle))


def _smooth_noise(batch: int, cells: int, generator: torch.Generator) -> torch.Tensor:
    coarse = torch.randn(batch, 1, cells, cells, generator=generator)
    return F.interpolate(coarse, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", align_corners=False)[:, 0]


def _blur(images: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    offsets = torch.arange(-5, 6, dtype=torch.float32)
    kernel = torch.exp(-(offsets**2) / (2 * sigma[:, None].clamp(min=1e-3) ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)
    batch, channels, height, width = images.shape
    flat = images.reshape(1, batch * channels, height, width)
    flat = F.conv2d(F.pad(flat, (5, 5, 0, 0), mode="replicate"), kernel[:, None, None, :], groups=batch * channels)
    flat = F.conv2d(F.pad(flat, (0, 0, 5, 5), mode="replicate"), kernel[:, None, :, None], groups=batch * channels)
    return torch.where((sigma > 0)[:, None, None, None], flat.reshape(images.shape), images)


def draw(layout: Layout, generator: torch.Generator) -> torch.Tensor:
    """Images [B, 3, 64, 64] float32 in [0, 1]; `generator` feeds the random texture of the flaws only."""
    batch = layout.radius.shape[0]
    grid = torch.arange(IMAGE_SIZE, dtype=torch.float32)
    x, y = grid[None, None, :], grid[None, :, None]
    mud = 0.55 * layout.flaw["muddy"][:, None, None]
    images = _PALETTE[layout.background][:, :, None, None].expand(-1, -1, IMAGE_SIZE, IMAGE_SIZE)
    images = torch.lerp(images, _MUD[None, :, None, None], 0.5 * mud[..., None])
    for k in (1, 0):
        wobble = 2.2 * layout.flaw["ragged"][:, None, None] * _smooth_noise(batch, 14, generator)
        distance = signed_distance(
            x - layout.centre[:, k, 0, None, None],
            y - layout.centre[:, k, 1, None, None],
            layout.radius[:, k, None, None],
            layout.shape[:, k, None, None],
        )
        cover = (0.5 - distance - wobble).clamp(0, 1) * (layout.radius[:, k] > 0)[:, None, None]
        patch = mud * (0.7 + 0.5 * _smooth_noise(batch, 5, generator)).clamp(0, 1)
        ink = torch.lerp(_PALETTE[layout.colour[:, k]][:, :, None, None], _MUD[None, :, None, None], patch[:, None])
        images = torch.lerp(images, ink, cover[:, None])
    for _ in range(_MAX_STRAYS):
        spot = _uniform((batch, 2), 3, IMAGE_SIZE - 4, generator)
        size = _uniform((batch,), 1.2, 3.6, generator)
        ink = _PALETTE[torch.randint(0, len(COLOURS), (batch,), generator=generator)]
        shown = torch.rand(batch, generator=generator) < layout.flaw["stray"]
        distance = torch.hypot(x - spot[:, 0, None, None], y - spot[:, 1, None, None]) - size[:, None, None]
        cover = (0.5 - distance).clamp(0, 1) * shown[:, None, None]
        images = torch.lerp(images, ink[:, :, None, None], cover[:, None])
    return _blur(images, 2.2 * layout.flaw["blur"]).clamp(0, 1)


def render(scenes: list[Scene], generator: torch.Generator, *, clean_share: float = 1.0) -> torch.Tensor:
    """Random images of the scenes, flawless unless `clean_share` is below 1: [B, 3, 64, 64] float32 in [0, 1]."""
    layout = place(scenes, generator)
    if clean_share < 1.0:
        layout = add_flaws(layout, generator, clean_share=clean_share)
    return draw(layout, generator)
