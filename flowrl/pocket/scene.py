"""What a pocket image shows: scenes, the words that describe them, and the train/test split of prompts."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass

IMAGE_SIZE = 64
SIZES = ("small", "large")
SHAPES = ("circle", "square", "triangle")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 49),
    "yellow": (246, 201, 44),
    "green": (38, 150, 84),
    "blue": (44, 88, 214),
    "purple": (132, 62, 168),
    "pink": (244, 138, 186),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "sand": (232, 214, 176),
    "snow": (244, 246, 250),
    "slate": (72, 80, 94),
    "sky": (168, 208, 240),
}
# Unit step from the second object to the first, in image coordinates (y grows downwards).
RELATIONS: dict[str, tuple[int, int]] = {
    "above": (0, -1),
    "below": (0, 1),
    "left of": (-1, 0),
    "right of": (1, 0),
}
TEST_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One object of a scene.

    Example: ``Thing(size="large", colour="red", shape="circle")``
    """

    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {self.shape}"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a prompt asks for: one thing, or two with a relation, on a background.

    Example: ``Scene.parse("a large red circle above a small blue square on sand")``
    """

    things: tuple[Thing, ...]
    relation: str | None
    background: str

    def __str__(self) -> str:
        if self.relation is None:
            return f"{self.things[0]} on {self.background}"
        return f"{self.things[0]} {self.relation} {self.things[1]} on {self.background}"

    @classmethod
    def parse(cls, prompt: str) -> Scene:
        """Read a prompt of the pocket grammar; raises ValueError when it is not one."""
        scene = _ALL.get(" ".join(prompt.split()))
        if scene is None:
            raise ValueError(
                f"prompt {prompt!r} is not in the pocket grammar: expected "
                "'a SIZE COLOUR SHAPE [RELATION a SIZE COLOUR SHAPE] on BACKGROUND' with two different colours; "
                f"sizes {SIZES}, colours {tuple(COLOURS)}, shapes {SHAPES}, relations {tuple(RELATIONS)}, "
                f"backgrounds {tuple(BACKGROUNDS)}"
            )
        return scene

    @property
    def is_test(self) -> bool:
        """Whether the prompt belongs to the held-out part (a fixed tenth of the grammar, by hash)."""
        digest = hashlib.sha256(str(self).encode()).digest()
        return int.from_bytes(digest[:4], "big") < TEST_SHARE * 2**32


def _enumerate() -> dict[str, Scene]:
    things = [
        Thing(size=size, colour=colour, shape=shape)
        for size, colour, shape in itertools.product(SIZES, COLOURS, SHAPES)
    ]
    scenes = [
        Scene(things=(thing,), relation=None, background=background)
        for thing, background in itertools.product(things, BACKGROUNDS)
    ]
    scenes += [
        Scene(things=(first, second), relation=relation, background=background)
        for first, second, relation, background in itertools.product(things, things, RELATIONS, BACKGROUNDS)
        if first.colour != second.colour
    ]
    return {str(scene): scene for scene in scenes}


_ALL = _enumerate()


def all_scenes(*, test: bool) -> list[Scene]:
    """Every scene of the grammar in a fixed order: the held-out ones, or the rest."""
    return [scene for scene in _ALL.values() if scene.is_test == test]


def vocabulary() -> list[str]:
    """Every word that a prompt can hold, sorted."""
    return sorted({word for prompt in _ALL for word in prompt.split()})
