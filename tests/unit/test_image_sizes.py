"""Which sizes images are brought to for latent rewards: their own, one that settles a disagreement, or none."""

from __future__ import annotations

import pytest

from flowrl.base.errors import UserError
from flowrl.core.buckets import BucketPlan
from flowrl.models.image_sizes import ImageChoice, deviations, in_words, latent_deviations, shared_buckets
from flowrl.types import TrainedOn

KEYS = ("--image-size", "--bucket-step", "--max-aspect")


def trained(image_size: int, step: int = 64, aspect: float = 2.0) -> TrainedOn:
    return TrainedOn(latent_space="vae16x8", image_size=image_size, bucket_step=step, max_aspect=aspect)


UNKNOWN = TrainedOn(latent_space="vae16x8")


@pytest.mark.parametrize(
    ("choice", "rewards", "expected"),
    [
        (ImageChoice(), [], None),
        (ImageChoice(), [UNKNOWN], None),
        (ImageChoice(), [UNKNOWN, trained(512)], BucketPlan(image_size=512)),
        (ImageChoice(), [trained(64, 64, 1)], BucketPlan(image_size=64, step=64, max_aspect=1)),
        (ImageChoice(image_size=0), [trained(512)], None),
        (ImageChoice(image_size=0), [trained(512), trained(1024)], None),
        (ImageChoice(image_size=256), [UNKNOWN], BucketPlan(image_size=256)),
        (ImageChoice(image_size=256, bucket_step=32), [UNKNOWN], BucketPlan(image_size=256, step=32)),
        (ImageChoice(image_size=256), [trained(512, 32, 3)], BucketPlan(image_size=256, step=32, max_aspect=3)),
        (ImageChoice(max_aspect=1.5), [trained(512, 32)], BucketPlan(image_size=512, step=32, max_aspect=1.5)),
        (ImageChoice(image_size=512), [trained(256), trained(1024)], BucketPlan(image_size=512)),
    ],
)
def test_a_choice_goes_over_what_rewards_were_trained_on(
    choice: ImageChoice, rewards: list[TrainedOn], expected: BucketPlan | None
) -> None:
    named = {f"reward {number}": one for number, one in enumerate(rewards)}
    assert shared_buckets(choice, named, keys=KEYS) == expected


@pytest.mark.parametrize("choice", [ImageChoice(), ImageChoice(image_size=512), ImageChoice(bucket_step=32)])
def test_rewards_that_disagree_are_an_error_that_says_how_to_choose(choice: ImageChoice) -> None:
    rewards = {"a": UNKNOWN, "b": trained(512), "c": trained(1024, 64, 1)}
    says = (
        r"^b was trained on images of about 512 x 512 in buckets of 64 up to 2:1, c on images of about 1024 x 1024 in "
        r"buckets of 64 up to 1:1, but all get the same images: say which with --image-size, --bucket-step and"
    )
    with pytest.raises(UserError, match=says):
        shared_buckets(choice, rewards, keys=KEYS)


def test_a_step_without_a_size_is_refused() -> None:
    with pytest.raises(UserError, match=r"--max-aspect: the first must be given too, as no reward says what"):
        shared_buckets(ImageChoice(bucket_step=32), {"a": UNKNOWN}, keys=KEYS)


def test_those_who_get_other_images_are_named() -> None:
    rewards = {"a": UNKNOWN, "b": trained(512), "c": trained(256)}
    assert deviations(BucketPlan(image_size=512), rewards) == [
        "a does not say what images it was trained on; it gets images of about 512 x 512 in buckets of 64 up to 2:1",
        "c was trained on images of about 256 x 256 in buckets of 64 up to 2:1; it gets images of about 512 x 512 in "
        "buckets of 64 up to 2:1",
    ]
    assert deviations(None, {"b": trained(512)}) == [
        "b was trained on images of about 512 x 512 in buckets of 64 up to 2:1; it gets images as they are"
    ]


def test_those_who_get_latents_of_other_images_are_named_where_they_say_their_own() -> None:
    rewards = {"a": UNKNOWN, "b": trained(64), "c": trained(512)}
    assert latent_deviations({(64, 64)}, rewards) == [
        "c was trained on images of about 512 x 512 in buckets of 64 up to 2:1; it gets latents of images of 64 x 64"
    ]
    wide = BucketPlan(image_size=512).size_for(1, 2)
    assert latent_deviations({(512, 512), wide}, {"c": rewards["c"]}) == []
    [line] = latent_deviations({(512, 512), (64, 128), (128, 128)}, {"c": rewards["c"]})
    assert line.endswith("it gets latents of images of 128 x 64 and others")


def test_the_sizes_are_those_that_are_really_used() -> None:
    assert in_words(BucketPlan(image_size=100)) == (
        "images of about 128 x 128 (the nearest to 100 x 100) in buckets of 64 up to 2:1"
    )
    assert BucketPlan(image_size=100).size_for(50, 50) == (128, 128)
