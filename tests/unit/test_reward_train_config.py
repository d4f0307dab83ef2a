"""The configuration of a reward training: its defaults, its rules, and what is said of keys that do not exist."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from flowrl.base.config_file import diff_configs, dump_config
from flowrl.base.config_tree import ConfigError
from rewards.training.config import RewardTrainConfig, check, load
from rewards.training.loop import rate_factor

PAIRS = {"format": "jsonl", "path": "pairs.jsonl"}


def write(folder: Path, **sections: object) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"data": {"store": "prepared"}, **sections}), encoding="utf-8")
    return path


def test_the_defaults_are_the_papers() -> None:
    config = RewardTrainConfig()
    section, optim = config.dit_reward, config.optim
    assert section.layers == [15, 23, 28, 37]
    assert section.head_dims == [1536, 512]
    assert section.pooling == "mean"
    assert section.text_features is False
    assert len(section.sigmas) == 1
    assert 0 < section.sigmas[0] < 0.1
    assert optim.warmup_ratio == 0.05
    assert optim.epochs in (2, 3)
    assert optim.max_steps == 0
    assert optim.lr_head > optim.lr_backbone > 0
    assert (config.model.kind, config.model.mode, config.model.init) == ("dit_reward", "full", "pretrained")
    assert (config.loss.kind, config.loss.draws, config.loss.tie_threshold) == ("bradley_terry", 1000, 5.0)


def test_the_rate_rises_over_a_twentieth_and_stays() -> None:
    optim = RewardTrainConfig().optim
    factors = [rate_factor(step, 200, optim) for step in range(200)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10:] == [1.0] * 190
    assert rate_factor(0, 1, optim) == 1.0
    optim.warmup_ratio, optim.hold_ratio, optim.final_lr_share = 0.0, 0.5, 0.1
    falling = [rate_factor(step, 200, optim) for step in range(200)]
    assert falling[:101] == [1.0] * 101
    assert falling[150] == pytest.approx(0.55)
    assert falling[199] == pytest.approx(0.1, abs=1e-3)
    assert sorted(falling, reverse=True) == falling


def test_a_file_and_overrides_come_over_the_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, optim={"lr_head": 3e-4}, data={"store": "prepared", "train": [PAIRS | {"weight": 2}]})
    config = load(path, ["optim.epochs=3", "dit_reward.layers=[1,2]", "optim.betas=[0.8,0.9]", "run.name=007"])
    assert (config.optim.lr_head, config.optim.epochs) == (3e-4, 3)
    assert config.dit_reward.layers == [1, 2]
    assert tuple(config.optim.betas) == (0.8, 0.9)
    assert (config.run.name, config.run.dir) == ("007", "runs/reward-007")
    assert config.data.train[0].weight == 2
    assert config.data.train[0].title == "jsonl"
    named = load(path)
    assert named.run.name.startswith("mine-2")
    assert named.run.dir == f"runs/reward-{named.run.name}"


def test_what_is_written_down_is_read_back(tmp_path: Path) -> None:
    path = write(tmp_path, data={"store": "prepared", "train": [PAIRS], "validation": [PAIRS]}, run={"name": "a"})
    config = load(path, ["model.path=${data.store}/base"])
    assert config.model.path == "prepared/base"
    (tmp_path / "written.yaml").write_text(dump_config(config), encoding="utf-8")
    assert diff_configs(load(tmp_path / "written.yaml"), config) == {}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr=1e-4", r"unknown key 'optim\.lr'; valid: optim.lr_head, optim.lr_backbone"),
        ("optim.warmup_rate=0.1", r"optim\.warmup_rate.*did you mean 'optim.warmup_ratio'\?"),
        ("dit_reward.sigma=[0.1]", r"dit_reward\.sigma.*did you mean 'dit_reward.sigmas'\?"),
        ("dat.store=x", r"dat.*did you mean 'data"),
        ("optim.epochs=many", r"optim\.epochs must be an integer"),
        ("model.mode=half", r"model\.mode must be one of"),
        ("dit_reward.layers=3", r"dit_reward\.layers"),
        ("data.train=[{format: jsonl, path: x, wieght: 2}]", r"wieght.*did you mean"),
        ("data.train=[{format: csv, path: x}]", r"data\.train\[0\]\.format must be one of"),
        ("data.train=[{format: jsonl}]", r"data\.train\[0\]\.path"),
        ("optim.epochs", r"override 'optim.epochs' must read key=value"),
    ],
)
def test_a_key_or_value_that_cannot_be_is_named(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(write(tmp_path), [override])


RULES: list[tuple[dict[str, object], str]] = [
    ({"optim.epochs": 0}, r"optim.epochs or optim.max_steps must be above 0, got 0 and 0"),
    ({"model.kind": "hpsv3", "model.mode": "lora"}, r"model.mode must be full for hpsv3, got lora"),
    ({"model.kind": "hpsv3", "model.mode": "frozen"}, r"model.mode must be full for hpsv3, got frozen"),
    ({"model.kind": "hpsv3", "model.init": "random"}, r"model.init must be pretrained .* for hpsv3"),
    ({"model.kind": "hpsv3", "model.gradient_checkpointing": True}, r"gradient_checkpointing false for hpsv3"),
    ({"model.init": "random", "model.mode": "lora"}, r"model.mode must be full or frozen where model.init is random"),
    ({"loss.kind": "uncertainty", "loss.ties": "rao_kupper"}, r"loss.ties must be drop or soft with loss.kind=uncert"),
    ({"model.kind": "hpsv3", "loss.ties": "rao_kupper"}, r"loss.ties must be drop or soft for hpsv3, got rao_kupper"),
    ({"data.store": " "}, r"data.store must name a folder"),
    ({"data.share": 0.0}, r"data.share must lie in \(0, 1\], got 0"),
    ({"data.share": 1.5}, r"data.share must lie in \(0, 1\], got 1.5"),
    ({"optim.betas": [0.9, 1.0]}, r"optim.betas must lie in \[0, 1\), got \[0.9, 1.0\]"),
    ({"optim.ema_decay": 1.0}, r"optim.ema_decay must be below 1, got 1"),
    ({"optim.clip_norm": 0.0}, r"optim.clip_norm must be positive, got 0"),
    ({"loss.tie_threshold": 1.0}, r"loss.tie_threshold must be above 1, got 1"),
    ({"data.train": [PAIRS, PAIRS]}, r"data.train: each source must have a name of its own, got jsonl, jsonl; set na"),
    ({"data.train": [PAIRS | {"weight": 0}]}, r"data.train\[0\].weight must be over 0"),
    ({"data.validation": [PAIRS | {"share": 2}]}, r"data.validation\[0\].share must lie in \(0, 1\]"),
    *(
        ({key: -1}, rf"{key} must be at least 0, got -1")
        for key in (
            "run.seed",
            "optim.lr_head",
            "optim.lr_backbone",
            "optim.weight_decay",
            "optim.max_steps",
            "eval.every",
            "eval.max_comparisons",
        )
    ),
    *(
        ({key: 0}, rf"{key} must be at least 1, got 0")
        for key in (
            "model.lora_rank",
            "data.max_aspect",
            "data.max_sequence_length",
            "data.encode_batch",
            "loss.draws",
            "optim.batch_size",
            "optim.micro_batch_size",
            "eval.batch_size",
            "checkpoint.every",
            "checkpoint.keep",
        )
    ),
    ({"data.image_size": 15, "data.bucket_step": 16}, r"data\.image_size must be at least 16, the pixels of one token"),
    ({"data.image_size": 48}, r"data\.image_size must be at least data\.bucket_step = 64, .*, got 48"),
    *(
        ({"data.bucket_step": step}, rf"data\.bucket_step must be a multiple of 16, .*, got {step}")
        for step in (0, 8, 24)
    ),
    *(
        ({key: value}, rf"{key} must lie in \[0, 1\], got {value}")
        for key in (
            "data.max_bad_share",
            "optim.warmup_ratio",
            "optim.hold_ratio",
            "optim.final_lr_share",
            "optim.ema_decay",
        )
        for value in (-0.5, 1.5)
    ),
]


@pytest.mark.parametrize(("values", "message"), RULES, ids=[" ".join(values) for values, _ in RULES])
def test_each_rule_is_applied(tmp_path: Path, values: dict[str, object], message: str) -> None:
    path = write(tmp_path)
    assert load(path).data.store == "prepared"  # nothing else is wrong
    overrides = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    with pytest.raises(ConfigError, match=message):
        load(path, overrides)


def test_two_sources_of_one_format_with_names_are_fine(tmp_path: Path) -> None:
    config = load(write(tmp_path, data={"store": "x", "train": [PAIRS, PAIRS | {"name": "other"}]}))
    check(config)
    assert [one.title for one in config.data.train] == ["jsonl", "other"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: [1, 2", r"mine.yaml: is not valid YAML"),
        ("- a\n- b\n", r"mine.yaml: must hold sections with keys"),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "mine.yaml")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mine.yaml: no such config file"):
        load(tmp_path / "mine.yaml")
