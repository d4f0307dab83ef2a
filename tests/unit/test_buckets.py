"""Aspect-ratio buckets: their sizes, which image goes where, and how an image is brought to its size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from flowrl.base.errors import UserError
from flowrl.core.buckets import BucketPlan, fit


def test_the_sizes_of_the_default_plan() -> None:
    sizes = BucketPlan().sizes()
    assert {(512, 512), (448, 576), (576, 448), (384, 704), (704, 384)} <= set(sizes)
    assert len(set(sizes)) == len(sizes)
    for height, width in sizes:
        assert height % 64 == width % 64 == 0
        assert max(height, width) <= 2 * min(height, width)
        assert 0.85 < height * width / 512**2 < 1.15
        assert (width, height) in sizes


def test_the_smallest_plans() -> None:
    assert BucketPlan(image_size=32, step=16).sizes() == [(32, 32)]
    assert BucketPlan(image_size=48, step=16).sizes() == [(32, 64), (48, 48), (64, 32)]
    assert BucketPlan(max_aspect=1.0).sizes() == [(512, 512)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"step": 0}, r"step must be a multiple of 16, the pixels of one token, got 0"),
        ({"step": 24}, r"step must be a multiple of 16, the pixels of one token, got 24"),
        ({"image_size": 8, "step": 16}, r"image_size must be at least 16, the pixels of one token, got 8"),
        ({"image_size": 32}, r"image_size must be at least step = 64, the shortest side of a bucket, got 32"),
        ({"max_aspect": 0.5}, r"max_aspect must be at least 1, got 0.5"),
        ({"max_aspect": float("nan")}, r"max_aspect must be at least 1, got nan"),
    ],
)
def test_what_makes_no_buckets_is_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        BucketPlan(**values)


@pytest.mark.parametrize(
    ("image", "bucket"),
    [
        ((1024, 1024), (512, 512)),
        ((64, 64), (512, 512)),
        ((900, 1160), (448, 576)),
        ((1160, 900), (576, 448)),
        ((100, 1000), (384, 704)),  # longer than any bucket: the longest
        ((1000, 100), (704, 384)),
    ],
)
def test_an_image_goes_to_the_nearest_aspect(image: tuple[int, int], bucket: tuple[int, int]) -> None:
    assert BucketPlan().size_for(*image) == bucket


def test_an_image_of_the_buckets_size_is_left_as_it_is() -> None:
    image = torch.randint(0, 256, (3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fit(image, (32, 48)), image.float() / 255)


def test_what_is_too_long_loses_its_ends_and_nothing_is_stretched() -> None:
    image = torch.zeros(3, 32, 96, dtype=torch.uint8)
    image[:, :, 32:64] = 200  # the middle third
    assert torch.equal(fit(image, (32, 32)), torch.full((3, 32, 32), 200 / 255))
    assert torch.equal(fit(image.transpose(1, 2), (32, 32)), torch.full((3, 32, 32), 200 / 255))


def test_scaling_is_bicubic_with_antialiasing_within_the_range_of_a_byte() -> None:
    checks = (torch.arange(64)[:, None] // 8 + torch.arange(64)[None, :] // 8) % 2
    image = (255 * checks).to(torch.uint8).expand(3, 64, 64)
    found = fit(image, (24, 24))
    plain = F.interpolate(image[None].float() / 255, (24, 24), mode="bicubic", antialias=True, align_corners=False)[0]
    assert plain.max() > 1  # bicubic overshoots at edges
    assert torch.equal(found, plain.clamp(0, 1))
    assert found.min() == 0
    assert found.max() == 1


def test_odd_sizes_cover_the_bucket() -> None:
    for height, width in ((33, 77), (1, 3), (500, 7), (47, 48)):
        found = fit(torch.full((3, height, width), 100, dtype=torch.uint8), (32, 48))
        assert found.shape == (3, 32, 48)
        torch.testing.assert_close(found, torch.full_like(found, 100 / 255))
