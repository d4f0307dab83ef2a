"""Prompt files and the order in which prompts are taken."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowrl.config import ConfigError
from flowrl.data import PromptOrder, read_prompts
from flowrl.types import Prompt


def prompts(count: int) -> list[Prompt]:
    return [Prompt(id=i, text=f"prompt {i}") for i in range(count)]


def written(folder: Path, content: bytes) -> Path:
    path = folder / "prompts.txt"
    path.write_bytes(content)
    return path


def test_a_line_is_a_prompt_and_its_number_the_id(tmp_path: Path) -> None:
    path = written(tmp_path, "a cat\n\n  a dog \r\nça va, 猫\n".encode())
    found = read_prompts(path, "data.train_prompts")
    assert [(prompt.id, prompt.text) for prompt in found] == [(0, "a cat"), (2, "a dog"), (3, "ça va, 猫")]


def test_equal_lines_are_prompts_of_their_own(tmp_path: Path) -> None:
    assert [prompt.id for prompt in read_prompts(written(tmp_path, b"a\na\n"), "k")] == [0, 1]


def test_a_byte_order_mark_is_not_part_of_the_first_prompt(tmp_path: Path) -> None:
    assert read_prompts(written(tmp_path, "\ufeffa cat".encode()), "k")[0].text == "a cat"


def test_only_line_ends_end_a_prompt(tmp_path: Path) -> None:
    path = written(tmp_path, "one\u2028still one\x0cstill one\r\ntwo".encode())
    assert [prompt.id for prompt in read_prompts(path, "k")] == [0, 1]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "prompts.txt holds no prompt; it needs one per line"),
        (b"\n \n\t\n", "holds no prompt"),
        (b"good\nbad \xff\xfe\n", r"is not UTF-8 text \(line 2\); save it as UTF-8"),
        ("a\n".encode("utf-16"), r"is not UTF-8 text \(line 1\)"),
    ],
)
def test_a_file_that_is_no_prompt_file_names_key_file_and_line(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as raised:
        read_prompts(written(tmp_path, content), "data.train_prompts")
    assert str(raised.value).startswith("data.train_prompts: ")


def test_a_file_that_is_missing_or_a_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.eval_prompts: no such prompt file: .*absent\.txt"):
        read_prompts(tmp_path / "absent.txt", "data.eval_prompts")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_prompts(tmp_path, "data.eval_prompts")


def test_a_step_s_prompts_depend_on_seed_and_step_alone() -> None:
    forwards = PromptOrder(prompts(20), per_step=4, seed=3)
    taken = [forwards.take(step) for step in range(1, 13)]
    backwards = PromptOrder(prompts(20), per_step=4, seed=3)
    assert [backwards.take(step) for step in range(12, 0, -1)] == taken[::-1]
    assert [PromptOrder(prompts(20), per_step=4, seed=4).take(step) for step in range(1, 13)] != taken


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 5))
def test_no_prompt_comes_twice_in_a_pass(count: int, per_step: int, seed: int) -> None:
    if per_step > count:
        return
    order = PromptOrder(prompts(count), per_step=per_step, seed=seed)
    steps = count // per_step
    for number in range(2):
        ids = [prompt.id for step in range(steps) for prompt in order.take(number * steps + step + 1)]
        assert len(ids) == len(set(ids)) == steps * per_step


def test_a_pass_takes_every_prompt_and_the_next_one_in_another_order() -> None:
    order = PromptOrder(prompts(20), per_step=5, seed=0)
    first = [prompt.id for step in range(1, 5) for prompt in order.take(step)]
    second = [prompt.id for step in range(5, 9) for prompt in order.take(step)]
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second


def test_the_texts_ahead_are_those_of_the_later_steps_of_a_block() -> None:
    order = PromptOrder(prompts(20), per_step=4, seed=3)
    for step in range(1, 13):
        last = 4 * -(-step // 4)  # blocks of steps 1 to 4, 5 to 8, 9 to 12
        expected = [prompt.text for later in range(step + 1, last + 1) for prompt in order.take(later)]
        assert order.texts_ahead(step, 4) == expected
        assert order.texts_ahead(step, 0) == order.texts_ahead(step, 1) == []


def test_prompts_that_a_pass_leaves_over_come_in_others() -> None:
    order = PromptOrder(prompts(7), per_step=3, seed=0)
    assert {prompt.id for step in range(1, 13) for prompt in order.take(step)} == set(range(7))


def test_more_prompts_per_step_than_there_are_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"at most the number of training prompts = 3, got 4; add prompts or lower"):
        PromptOrder(prompts(3), per_step=4, seed=0)
