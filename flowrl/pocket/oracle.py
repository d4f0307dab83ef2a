"""The truth of the pocket world: scores any image against its prompt by measuring what is in it.

Every part lies in [0, 1], higher is better. The colours of a prompt's things say which pixels belong to which thing;
its shape and size are found by matching the thing's mask with ideal shapes of all radii around its centre.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F

from flowrl.pocket.render import RADIUS, palette, signed_distance
from flowrl.pocket.scene import BACKGROUNDS, COLOURS, IMAGE_SIZE, RELATIONS, SHAPES, SIZES, Scene

PARTS = ("attributes", "relation", "shape", "cleanliness")
WEIGHTS = {"attributes": 0.3, "relation": 0.2, "shape": 0.25, "cleanliness": 0.25}
_COLOUR_NAMES = [*COLOURS, *BACKGROUNDS]
_SHARPNESS = 120.0  # of the soft assignment of pixels to colours; keeps slate and green, the closest pair, apart
_WINDOW = 40
_RADII = torch.arange(5.0, 17.0)
_SHIFTS = (-2, -1, 0, 1, 2)
# Measured on true renderings: the ideal-shape overlap and the palette closeness that a flawless image reaches.
_IOU_RANGE = (0.55, 0.93)
_CLOSENESS_RANGE = (0.55, 0.97)


@dataclass(frozen=True, kw_only=True)
class OracleScores:
    """Scores of B images against their prompts; each field [B] float32 in [0, 1]."""

    attributes: torch.Tensor  # the right size, colour and shape on the right thing, and the right background
    relation: torch.Tensor  # the two things stand as the prompt says; 1 where it says nothing
    shape: torch.Tensor  # outlines agree with an ideal shape, whichever it is
    cleanliness: torch.Tensor  # pure colours, no blur, nothing that does not belong
    total: torch.Tensor  # the weighted mean of the parts

    def parts(self) -> dict[str, torch.Tensor]:
        """The named parts, without the total."""
        return {name: value for name, value in vars(self).items() if name != "total"}


@cache
def _templates() -> torch.Tensor:
    """Ideal masks [shapes * radii * shifts^2, window^2], shape-major, around the window's centre."""
    offset = torch.arange(_WINDOW, dtype=torch.float32) - _WINDOW // 2
    shift = torch.tensor(_SHIFTS, dtype=torch.float32)
    dx = offset[None, :] - shift[:, None, None]
    dy = offset[:, None] - shift[:, None, None]
    rows = []
    for shape in range(len(SHAPES)):
        for radius in _RADII:
            distance = signed_distance(dx[None], dy[:, None], radius, torch.tensor(shape))
            rows.append((0.5 - distance).clamp(0, 1).reshape(len(_SHIFTS) ** 2, -1))
    return torch.cat(rows)


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """How the masks of M things match ideal shapes."""

    area: torch.Tensor  # [M] pixels
    centre: torch.Tensor  # [M, 2] (x, y)
    iou: torch.Tensor  # [M, shapes] best overlap of each shape over radii and shifts
    radius: torch.Tensor  # [M, shapes] the radius that gives it


def _robust_centre(mask: torch.Tensor) -> torch.Tensor:
    """The centre of mass (x, y) of each mask [M, 64, 64], re-weighted so that far specks do not pull it."""
    grid = torch.arange(IMAGE_SIZE, dtype=torch.float32)
    weight = mask
    for _ in range(4):
        total = weight.sum((1, 2)).clamp(min=1e-6)
        x = (weight.sum(1) * grid).sum(1) / total
        y = (weight.sum(2) * grid).sum(1) / total
        distance = torch.hypot(grid[None, None, :] - x[:, None, None], grid[None, :, None] - y[:, None, None])
        weight = mask * torch.exp(-((distance / 14.0) ** 2))
    return torch.stack([x, y], 1)


def _fit_shapes(mask: torch.Tensor) -> _Fit:
    centre = _robust_centre(mask)
    half = _WINDOW // 2
    padded = F.pad(mask, (half, half, half, half))
    corner = centre.round().long().clamp(0, IMAGE_SIZE - 1)
    rows = corner[:, 1, None] + torch.arange(_WINDOW)
    columns = corner[:, 0, None] + torch.arange(_WINDOW)
    window = padded[torch.arange(len(mask))[:, None, None], rows[:, :, None], columns[:, None, :]]
    templates = _templates()
    overlap = window.flatten(1) @ templates.T
    area = mask.sum((1, 2))
    union = area[:, None] + templates.sum(1) - overlap
    iou = (overlap / union.clamp(min=1e-6)).reshape(len(mask), len(SHAPES), len(_RADII), -1).amax(3)
    best, index = iou.max(2)
    return _Fit(area=area, centre=centre, iou=best, radius=_RADII[index])


def _ramp(value: torch.Tensor, low: float, high: float) -> torch.Tensor:
    return ((value - low) / (high - low)).clamp(0, 1)


def score(images: torch.Tensor, scenes: list[Scene]) -> OracleScores:
    """Score images [B, 3, 64, 64] in [0, 1] against their scenes; raises ValueError on another size or count."""
    if images.shape != (len(scenes), 3, IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(
            f"the oracle needs images [{len(scenes)}, 3, {IMAGE_SIZE}, {IMAGE_SIZE}] for {len(scenes)} prompts, "
            f"got {list(images.shape)}"
        )
    images = images.float().cpu().clamp(0, 1)
    squared = (images[:, None] - palette()[None, :, :, None, None]).square().sum(2)
    assigned = torch.softmax(-_SHARPNESS * squared, 1)  # [B, colours, 64, 64]
    wanted = [(b, k, thing) for b, scene in enumerate(scenes) for k, thing in enumerate(scene.things)]
    owner = torch.tensor([b for b, _, _ in wanted])
    slot = torch.tensor([k for _, k, _ in wanted])
    colour = torch.tensor([_COLOUR_NAMES.index(thing.colour) for _, _, thing in wanted])
    shape = torch.tensor([SHAPES.index(thing.shape) for _, _, thing in wanted])
    size = torch.tensor([SIZES.index(thing.size) for _, _, thing in wanted])
    fit = _fit_shapes(assigned[owner, colour])

    present = _ramp(fit.area, 25, 90) * _ramp(fit.iou.amax(1), 0.25, 0.5)
    others = fit.iou.scatter(1, shape[:, None], -1.0).amax(1)
    right = fit.iou.gather(1, shape[:, None])[:, 0]
    shape_right = _ramp(right - others, -0.04, 0.03)
    radius = fit.radius.gather(1, shape[:, None])[:, 0]
    middle = (RADIUS["small"] + RADIUS["large"]) / 2
    size_right = _ramp(torch.where(size == 1, radius - middle, middle - radius), -1.5, 1.5)
    background = torch.tensor([_COLOUR_NAMES.index(scene.background) for scene in scenes])
    ground = assigned[:, len(COLOURS) :].sum((2, 3))
    background_right = ground[torch.arange(len(scenes)), background - len(COLOURS)] / ground.sum(1).clamp(min=1.0)

    num_things = torch.zeros(len(scenes)).index_add(0, owner, torch.ones(len(owner)))

    def per_image(values: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(scenes)).index_add(0, owner, values) / num_things

    attributes = (3 * per_image(present * (1 + shape_right + size_right) / 3) + background_right) / 4
    shape_quality = per_image(present * _ramp(fit.iou.amax(1), *_IOU_RANGE))

    centre = torch.zeros(len(scenes), 2, 2)
    centre[owner, slot] = fit.centre
    seen = torch.ones(len(scenes), 2).index_put((owner, slot), present).amin(1)
    axis = torch.tensor([RELATIONS[scene.relation] if scene.relation else (0, 0) for scene in scenes])
    apart = ((centre[:, 0] - centre[:, 1]) * axis).sum(1)
    relation = torch.where(axis.abs().sum(1) > 0, seen * _ramp(apart, -6, 10), torch.ones(len(scenes)))

    closeness = torch.exp(-squared.amin(1) / 0.012).mean((1, 2))
    belongs = torch.zeros(len(scenes), len(COLOURS)).index_put((owner, colour), torch.ones(()))
    strangers = (_eroded((assigned[:, : len(COLOURS)] * (1 - belongs)[:, :, None, None]).sum(1))).sum((1, 2))
    loose = torch.zeros(len(scenes)).index_add(0, owner, _outside(_eroded(assigned[owner, colour]), fit))
    stray = torch.exp(-(strangers + loose) / 25)
    cleanliness = _ramp(closeness, *_CLOSENESS_RANGE) * stray

    parts = {"attributes": attributes, "relation": relation, "shape": shape_quality, "cleanliness": cleanliness}
    total = sum((WEIGHTS[name] * value for name, value in parts.items()), torch.zeros(len(scenes)))
    return OracleScores(**parts, total=total)


def _eroded(mask: torch.Tensor) -> torch.Tensor:
    """Masks [M, 64, 64] less the one-pixel seams that anti-aliasing leaves where two colours meet."""
    return -F.max_pool2d(-mask[:, None], 3, stride=1, padding=1)[:, 0]


def _outside(mask: torch.Tensor, fit: _Fit) -> torch.Tensor:
    """Pixels [M] of a thing's colour that lie well away from the thing."""
    grid = torch.arange(IMAGE_SIZE, dtype=torch.float32)
    reach = 1.3 * fit.radius.gather(1, fit.iou.argmax(1, keepdim=True)) + 2.5
    dx = grid[None, None, :] - fit.centre[:, 0, None, None]
    dy = grid[None, :, None] - fit.centre[:, 1, None, None]
    return (mask * (torch.hypot(dx, dy) > reach[:, :, None])).sum((1, 2))
