"""Which sizes images are brought to before latent rewards read them: as in the training of these, or as a user says."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from flowrl.base.errors import UserError
from flowrl.core.bucket_rules import bucket_fault
from flowrl.core.buckets import BucketPlan
from flowrl.types import TrainedOn

_FIELDS = ("image_size", "bucket_step", "max_aspect")


@dataclass(frozen=True, kw_only=True)
class ImageChoice:
    """What a user says of the sizes; None leaves it to the rewards.

    Example: ``ImageChoice(image_size=0)`` takes images as they are.
    """

    image_size: int | None = None  # pixels of the side of a square; 0 takes images as they are
    bucket_step: int | None = None  # pixels
    max_aspect: float | None = None

    def over(self, plan: BucketPlan | None, *, keys: tuple[str, str, str] = _FIELDS) -> BucketPlan | None:
        """The buckets of a reward with what was said in place of its own; None takes images as they are.

        Raises UserError, in terms of `keys`, when there can be no such buckets.
        """
        size = self.image_size
        if size == 0 or (size is None and plan is None):
            return None
        plan = plan or BucketPlan()
        size = plan.image_size if size is None else size
        step = plan.step if self.bucket_step is None else self.bucket_step
        aspect = plan.max_aspect if self.max_aspect is None else self.max_aspect
        if fault := bucket_fault(size, step, aspect, keys=keys):
            raise UserError(fault)
        return replace(plan, image_size=size, step=step, max_aspect=aspect)


def buckets_of(trained: TrainedOn) -> BucketPlan | None:
    """The buckets of a reward's training; None where they are not known."""
    if not trained.image_size:
        return None
    return BucketPlan(image_size=trained.image_size, step=trained.bucket_step, max_aspect=trained.max_aspect)


def shared_buckets(
    choice: ImageChoice, trained: Mapping[str, TrainedOn], *, keys: tuple[str, str, str]
) -> BucketPlan | None:
    """The buckets for latent rewards that all read the same images; None takes images as they are.

    `trained` says of each reward, by label, what it was trained on; `keys` are what the user's choice is made with.
    Raises UserError when the rewards were trained on different ones, and the choice does not settle it, and when there
    can be no such buckets.
    """
    words = f"{keys[0]}, {keys[1]} and {keys[2]}"
    known = {label: plan for label, one in trained.items() if (plan := buckets_of(one)) is not None}
    if not known:
        if choice.image_size is None and (choice.bucket_step is not None or choice.max_aspect is not None):
            raise UserError(f"{words}: the first must be given too, as no reward says what it was trained on")
        return choice.over(None, keys=keys)
    first = next(iter(known))
    for label, plan in known.items():
        if choice.over(plan, keys=keys) != choice.over(known[first], keys=keys):
            raise UserError(
                f"{first} was trained on {in_words(known[first])}, {label} on {in_words(plan)}, but all get the "
                f"same images: say which with {words}, or take the rewards one at a time"
            )
    return choice.over(known[first], keys=keys)


def deviations(plan: BucketPlan | None, trained: Mapping[str, TrainedOn]) -> list[str]:
    """A line for each reward that gets other images than those of its training, or does not say what these were."""
    lines = []
    for label, one in trained.items():
        own = buckets_of(one)
        if own is None:
            lines.append(f"{label} does not say what images it was trained on; it gets {in_words(plan)}")
        elif own != plan:
            lines.append(f"{label} was trained on {in_words(own)}; it gets {in_words(plan)}")
    return lines


def latent_deviations(sizes: Collection[tuple[int, int]], trained: Mapping[str, TrainedOn]) -> list[str]:
    """A line for each reward that gets latents of images of other sizes than those of its training, as far as it says
    what these were.

    `sizes` are the (height, width) in pixels of the images that the latents stand for.
    """
    lines = []
    for label, one in trained.items():
        own = buckets_of(one)
        if own is None or not (others := sorted(set(sizes) - set(own.sizes()))):
            continue
        height, width = others[0]
        more = " and others" if len(others) > 1 else ""
        lines.append(f"{label} was trained on {in_words(own)}; it gets latents of images of {width} x {height}{more}")
    return lines


def in_words(plan: BucketPlan | None) -> str:
    """What images are like that are brought to these buckets."""
    if plan is None:
        return "images as they are"
    asked = "" if plan.side == plan.image_size else f" (the nearest to {plan.image_size} x {plan.image_size})"
    return f"images of about {plan.side} x {plan.side}{asked} in buckets of {plan.step} up to {plan.max_aspect:g}:1"
