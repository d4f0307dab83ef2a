"""The pocket world: its grammar, its renderer, and an oracle that sees each flaw in the part that it concerns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowrl.base.embedded import embedded
from flowrl.config import ConfigError, RewardSpec
from flowrl.pocket import oracle
from flowrl.pocket.oracle_reward import OracleReward
from flowrl.pocket.prompt_sets import COUNTS, make_prompts, prompt_file
from flowrl.pocket.render import FLAWS, Layout, draw, place, render
from flowrl.pocket.scene import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES, Scene, Thing, all_scenes, vocabulary
from flowrl.reward_loading import preflight
from flowrl.types import RewardInput

THINGS = st.builds(
    Thing,
    size=st.sampled_from(SIZES),
    colour=st.sampled_from(tuple(COLOURS)),
    shape=st.sampled_from(SHAPES),
)
SINGLES = st.builds(Scene, things=st.tuples(THINGS), relation=st.none(), background=st.sampled_from(tuple(BACKGROUNDS)))
DOUBLES = st.builds(
    Scene,
    things=st.tuples(THINGS, THINGS).filter(lambda pair: pair[0].colour != pair[1].colour),
    relation=st.sampled_from(tuple(RELATIONS)),
    background=st.sampled_from(tuple(BACKGROUNDS)),
)


def some_scenes(count: int = 96, seed: int = 0) -> list[Scene]:
    scenes = all_scenes(test=False)
    order = torch.randperm(len(scenes), generator=torch.Generator().manual_seed(seed))
    singles = [scene for scene in scenes if scene.relation is None][: count // 6]
    return singles + [scenes[i] for i in order[: count - len(singles)].tolist()]


def drawn(scenes: list[Scene], flaw: str | None = None, strength: float = 1.0, seed: int = 3) -> torch.Tensor:
    """Renderings of the scenes, all with the same flaw; the layouts depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    layout: Layout = place(scenes, generator)
    if flaw is not None:
        layout = replace(layout, flaw=layout.flaw | {flaw: torch.full((len(scenes),), strength)})
    return draw(layout, generator)


def means(images: torch.Tensor, scenes: list[Scene]) -> dict[str, float]:
    scores = oracle.score(images, scenes)
    return {name: value.mean().item() for name, value in (scores.parts() | {"total": scores.total}).items()}


@given(scene=SINGLES | DOUBLES)
@settings(max_examples=100, deadline=None)
def test_every_scene_reads_back_from_its_prompt(scene: Scene) -> None:
    assert Scene.parse(str(scene)) == scene
    assert Scene.parse(f"  {str(scene).replace(' ', '  ')} ") == scene
    assert set(str(scene).split()) <= set(vocabulary())


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a cat",
        "a large red circle",
        "a large red circle above a small red square on sand",
        "a red large circle on sand",
    ],
)
def test_other_prompts_are_refused_with_the_grammar(prompt: str) -> None:
    with pytest.raises(ValueError, match=r"is not in the pocket grammar: expected 'a SIZE COLOUR SHAPE") as error:
        Scene.parse(prompt)
    assert repr(prompt) in str(error.value)
    assert "purple" in str(error.value)


def test_training_and_held_out_prompts_are_apart() -> None:
    train, test = ({str(scene) for scene in all_scenes(test=split)} for split in (False, True))
    assert not train & test
    assert {Scene.parse(prompt).is_test for prompt in test} == {True}
    assert len(train) + len(test) == 36 * 4 + (36 * 36 - 6 * 36) * 4 * 4  # singles and pairs of different colours
    assert 0.09 < len(test) / (len(train) + len(test)) < 0.11


def test_prompt_files_are_what_the_function_makes() -> None:
    for split, count in COUNTS.items():
        prompts = prompt_file(split).read_text(encoding="utf-8").splitlines()
        assert prompts == make_prompts(split)
        assert len(set(prompts)) == count
        assert {Scene.parse(prompt).is_test for prompt in prompts} == {split == "eval"}
    with pytest.raises(ValueError, match=r"must be one of \('train', 'eval'\), got 'test'"):
        prompt_file("test")


def test_a_true_rendering_scores_near_the_top() -> None:
    scenes = some_scenes()
    scores = oracle.score(drawn(scenes), scenes)
    assert scores.total.mean() > 0.95
    assert scores.total.min() > 0.8
    assert scores.attributes.mean() > 0.97
    assert scores.relation.min() > 0.99
    assert all(value.min() >= 0 and value.max() <= 1 for value in scores.parts().values())
    weighted = sum(oracle.WEIGHTS[name] * value for name, value in scores.parts().items())
    torch.testing.assert_close(scores.total, weighted)


def test_rendering_follows_its_generator() -> None:
    scenes = some_scenes(8)
    first = render(scenes, torch.Generator().manual_seed(1), clean_share=0.5)
    assert torch.equal(first, render(scenes, torch.Generator().manual_seed(1), clean_share=0.5))
    assert not torch.equal(first, render(scenes, torch.Generator().manual_seed(2), clean_share=0.5))
    assert first.shape == (8, 3, 64, 64)
    assert first.min() >= 0
    assert first.max() <= 1


def other(options: tuple[str, ...], *taken: str) -> str:
    return next(option for option in options if option not in taken)


def with_first(scene: Scene, thing: Thing) -> Scene:
    return replace(scene, things=(thing, *scene.things[1:]))


@pytest.mark.parametrize("word", ["size", "shape", "background"])
def test_a_changed_attribute_lowers_the_attributes_and_little_else(word: str) -> None:
    scenes = some_scenes()
    if word == "background":
        wrong = [replace(scene, background=other(tuple(BACKGROUNDS), scene.background)) for scene in scenes]
    elif word == "size":
        wrong = [with_first(s, replace(s.things[0], size=other(SIZES, s.things[0].size))) for s in scenes]
    else:
        wrong = [with_first(s, replace(s.things[0], shape=other(SHAPES, s.things[0].shape))) for s in scenes]
    true, false = means(drawn(scenes), scenes), means(drawn(wrong), scenes)
    assert true["attributes"] - false["attributes"] > 0.08
    for part in ("relation", "shape", "cleanliness"):
        assert abs(true[part] - false[part]) < 0.03, part


def test_a_changed_colour_is_a_thing_that_is_missing_and_one_too_many() -> None:
    scenes = some_scenes()
    wrong = [
        with_first(s, replace(s.things[0], colour=other(tuple(COLOURS), *(thing.colour for thing in s.things))))
        for s in scenes
    ]
    true, false = means(drawn(scenes), scenes), means(drawn(wrong), scenes)
    assert all(true[part] - false[part] > 0.2 for part in oracle.PARTS)


def test_the_opposite_relation_lowers_the_relation_alone() -> None:
    opposite = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
    scenes = [scene for scene in some_scenes() if scene.relation is not None]
    wrong = [replace(scene, relation=opposite[str(scene.relation)]) for scene in scenes]
    true, false = oracle.score(drawn(scenes), scenes), oracle.score(drawn(wrong), scenes)
    assert false.relation.max() < 0.05
    for part in ("attributes", "shape", "cleanliness"):
        assert abs(true.parts()[part].mean() - false.parts()[part].mean()) < 0.02, part


def test_swapped_colours_are_seen_as_wrong_binding() -> None:
    scenes = [s for s in some_scenes() if s.relation is not None and s.things[0].shape != s.things[1].shape]
    swapped = [
        replace(
            s,
            things=(
                replace(s.things[0], colour=s.things[1].colour),
                replace(s.things[1], colour=s.things[0].colour),
            ),
        )
        for s in scenes
    ]
    true, false = means(drawn(scenes), scenes), means(drawn(swapped), scenes)
    assert true["attributes"] - false["attributes"] > 0.2
    assert true["relation"] - false["relation"] > 0.9


@pytest.mark.parametrize(
    ("flaw", "part", "least"),
    [
        ("blur", "cleanliness", 0.2),
        ("muddy", "cleanliness", 0.2),
        ("stray", "cleanliness", 0.2),
        ("ragged", "shape", 0.15),
    ],
)
def test_each_flaw_lowers_its_part_and_more_of_it_lowers_it_more(flaw: str, part: str, least: float) -> None:
    assert flaw in FLAWS
    scenes = some_scenes(48)
    clean, half, whole = (means(drawn(scenes, flaw, strength), scenes) for strength in (0.0, 0.5, 1.0))
    assert clean[part] - whole[part] > least
    assert clean[part] > half[part] > whole[part]
    assert clean["total"] > half["total"] > whole["total"]
    assert clean["relation"] - whole["relation"] < 0.15  # a thing too muddy to be told is nowhere


def test_pixel_noise_lowers_the_cleanliness() -> None:
    scenes = some_scenes(48)
    images = drawn(scenes)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    scores = [means(images + level * noise, scenes)["cleanliness"] for level in (0.0, 0.05, 0.15)]
    assert scores[0] > scores[1] + 0.1 > scores[2] + 0.2


def test_an_empty_image_has_no_things() -> None:
    scenes = some_scenes(12)
    blank = [scene for scene in scenes if scene.background == "snow"]
    image = torch.tensor(BACKGROUNDS["snow"])[None, :, None, None].expand(len(blank), 3, 64, 64) / 255
    scores = oracle.score(image, blank)
    assert scores.shape.max() == 0
    assert scores.attributes.max() <= 0.25  # the background alone


def test_images_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"needs images \[2, 3, 64, 64\] for 2 prompts, got \[1, 3, 64, 64\]"):
        oracle.score(torch.zeros(1, 3, 64, 64), some_scenes(12)[:2])


def test_the_oracle_as_a_reward() -> None:
    scenes = some_scenes(12)
    images = drawn(scenes, "blur")
    judged = oracle.score(images, scenes)
    batch = RewardInput(prompts=tuple(map(str, scenes)), seeds=torch.zeros(12, dtype=torch.int64), pixels=images)
    assert torch.equal(OracleReward()(batch), judged.total)
    shape = OracleReward(part="shape")
    assert torch.equal(shape(batch), judged.shape)
    assert (OracleReward().name, shape.name, shape.input_kind, shape.latent_space) == (
        "oracle",
        "oracle_shape",
        "pixel",
        None,
    )
    with pytest.raises(ValueError, match=r"part must be one of .*, got 'beauty'"):
        OracleReward(part="beauty")
    with pytest.raises(ConfigError, match=r"do not fit reward 'oracle': oracle: part must be one of .*, got 'beauty'"):
        preflight(RewardSpec(name="oracle", options={"part": "beauty"}))
    with pytest.raises(ValueError, match=r"prompt 'a cat' is not in the pocket grammar"):
        OracleReward()(replace(batch, prompts=("a cat",) * 12))
    with pytest.raises(ValueError, match=r"the batch must hold pixels"):
        OracleReward()(replace(batch, pixels=None, latents=torch.zeros(12, 16, 8, 8)))


def test_unknown_checkpoints_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be one of \('sd35', 'dit_reward', 'hpsv3'\), got 'sd3'"):
        embedded("sd3")
