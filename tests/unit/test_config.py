"""Reading, overriding, checking and writing configurations: every error names the key, the rule and the way out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from flowrl import config_rules
from flowrl.base.config_file import read_config
from flowrl.config import ConfigError, EvalSection, RolloutSection, RunConfig, diff, dump, load

MINIMAL = "rewards: {train: [{name: dit_reward}]}\n"


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    """A config file that holds only what has no default."""
    path = tmp_path / "small.yaml"
    path.write_text(MINIMAL, encoding="utf-8")
    return path


def message(path: Path, *overrides: str) -> str:
    """The error of loading, which must be one line."""
    with pytest.raises(ConfigError) as caught:
        load(path, list(overrides))
    text = str(caught.value)
    assert "\n" not in text
    return text


def in_file(tmp_path: Path, text: str) -> str:
    """The error of loading a file with this text, without the path that it begins with."""
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    return message(path).removeprefix(f"{path}: ")


def test_defaults_below_file_below_overrides(tmp_path: Path) -> None:
    path = tmp_path / "layers.yaml"
    path.write_text(MINIMAL + "optim: {lr: 2.0e-4, eps: 1e-7}\n", encoding="utf-8")
    config = load(path, ["optim.lr=1e-3", "run.overwrite=true", "model.lora_targets=[attn.to_q, attn.to_v]"])
    assert config.optim.lr == 1e-3
    assert config.optim.eps == 1e-7
    assert config.optim.clip_norm == 1.0
    assert config.run.overwrite is True
    assert config.model.lora_targets == ["attn.to_q", "attn.to_v"]
    assert isinstance(config, RunConfig)


def test_later_override_wins(minimal: Path) -> None:
    assert load(minimal, ["run.steps=3", "run.steps=4"]).run.steps == 4


def test_a_list_is_replaced_not_merged(minimal: Path) -> None:
    config = load(minimal, ["rewards.train=[{name: hpsv3, weight: 0.5, options: {batch_size: 4}}]"])
    assert [(spec.name, spec.weight, spec.options) for spec in config.rewards.train] == [
        ("hpsv3", 0.5, {"batch_size": 4})
    ]


@pytest.mark.parametrize("entry", ["rewards.train.1", "rewards.train[1]"])
def test_one_entry_of_a_list_is_changed_by_its_number(tmp_path: Path, entry: str) -> None:
    path = tmp_path / "two.yaml"
    options = "options: {path: '${run.dir}/old', batch_size: 4}"
    path.write_text(f"rewards: {{train: [{{name: hpsv3}}, {{name: dit_reward, {options}}}]}}\n", encoding="utf-8")
    overrides = [f"{entry}.options.path=/models/new", f"{entry}.weight=2", f"{entry}.options.tags=[a, b]"]
    config = load(path, ["run.dir=r", *overrides, f"{entry}.options.tags[0]=c", "optim.betas[0]=0.8"])
    assert [(spec.name, spec.weight, spec.options) for spec in config.rewards.train] == [
        ("hpsv3", 1.0, {}),
        ("dit_reward", 2.0, {"path": "/models/new", "batch_size": 4, "tags": ["c", "b"]}),
    ]
    assert config.optim.betas == (0.8, 0.999)
    assert load(path, [f"{entry}.weight=2", "run.dir=r"]).rewards.train[1].options["path"] == "r/old"


def test_an_entry_of_a_list_is_that_of_the_overrides_before(minimal: Path) -> None:
    config = load(minimal, ["rewards.watch=[{name: oracle}]", "rewards.watch.0.label=truth"])
    assert [spec.metric_name for spec in config.rewards.watch] == ["truth"]
    whole = load(minimal, ["rewards.train.0.weight=2", "rewards.train.0={name: hpsv3}"])
    assert [(spec.name, spec.weight) for spec in whole.rewards.train] == [("hpsv3", 1.0)]


def test_name_is_file_and_time_unless_given(minimal: Path) -> None:
    config = load(minimal)
    assert re.fullmatch(r"small-\d{8}-\d{6}", config.run.name)
    assert config.run.dir == f"runs/{config.run.name}"
    named = load(minimal, ["run.name=mine"])
    assert (named.run.name, named.run.dir) == ("mine", "runs/mine")


@pytest.mark.parametrize("name", ["007", "1.50", "true", "20260131", "a=b", "1e3"])
def test_text_overrides_are_taken_as_written(minimal: Path, name: str) -> None:
    assert load(minimal, [f"run.name={name}"]).run.name == name


def test_references_between_keys(minimal: Path) -> None:
    config = load(minimal, ["eval.num_steps=${rollout.num_steps}", "rollout.num_steps=7", "run.dir=/data/${run.name}"])
    assert config.eval.num_steps == 7
    assert config.run.dir == f"/data/{config.run.name}"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("run.dir=${nope}", "run.dir: Interpolation key 'nope' not found"),
        ("eval.num_steps=${model.family}", "Value 'sd3' of type 'str' could not be converted to Integer"),
        ("run.name=${run.dir}", "Recursive interpolation detected"),
    ],
)
def test_bad_references(minimal: Path, override: str, expected: str) -> None:
    assert expected in message(minimal, override)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("rolout.x=1", "unknown key 'rolout'; did you mean 'rollout'?"),
        ("rollout.group_sizee=3", "unknown key 'rollout.group_sizee'; did you mean 'rollout.group_size'?"),
        ("algorithm.nme=flow_grpo", "unknown key 'algorithm.nme'; did you mean 'algorithm.name'?"),
        ("kl_beta=0.1", "unknown key 'kl_beta'; did you mean 'algorithm.kl_beta'?"),
        ("optim.steps=3", "unknown key 'optim.steps'; did you mean 'run.steps'?"),
        ("seed=3", "unknown key 'seed'; did you mean 'run.seed' or 'eval.seed'?"),
        ("gate.colour=3", "unknown key 'gate.colour'; valid: gate.max_ratio_absdev"),
        ("run.seed.x=3", "run.seed must be an integer, got {'x': 3}"),
        (
            "rewards.train=[{name: hpsv3, wieght: 2}]",
            "unknown key 'rewards.train[0].wieght'; did you mean 'rewards.train[0].weight'?",
        ),
    ],
)
def test_unknown_keys_name_the_closest(minimal: Path, override: str, expected: str) -> None:
    assert message(minimal, override) == expected


def test_unknown_keys_in_a_file_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "typo.yaml"
    path.write_text(MINIMAL + "rollout:\n  num_step: 3\n", encoding="utf-8")
    assert message(path) == f"{path}: unknown key 'rollout.num_step'; did you mean 'rollout.num_steps'?"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("rollout.group_size=abc", "rollout.group_size must be an integer, got 'abc'"),
        ("rollout.group_size=true", "rollout.group_size must be an integer, got True"),
        ("rollout.group_size=", "rollout.group_size must be an integer, got nothing"),
        ("run.steps=1.5", "run.steps must be an integer, got 1.5"),
        ("optim.lr=fast", "optim.lr must be a finite number, got 'fast'"),
        ("optim.lr=.nan", "optim.lr must be a finite number, got nan"),
        ("rewards.max_invalid_fraction=.inf", "rewards.max_invalid_fraction must be a finite number, got inf"),
        ("run.overwrite=maybe", "run.overwrite must be true or false, got 'maybe'"),
        ("placement.mode=foo", "placement.mode must be one of local, split, fused, colocated, got 'foo'"),
        ("algorithm.name=grpo", "algorithm.name must be one of flow_grpo, got 'grpo'"),
        ("optim.betas=[0.9]", "optim.betas must be a list of 2, each a finite number, got [0.9]"),
        ("optim.betas=[0.9, x]", "optim.betas[1] must be a finite number, got 'x'"),
        ("model.lora_targets=attn.to_q", "model.lora_targets must be a whole list, such as [a, b], got 'attn.to_q'"),
        ("rollout=3", "rollout must hold keys, such as prompts_per_step, group_size, num_steps, ..., got 3"),
        ("rewards.train=x", "rewards.train must be a whole list, of entries such as {name: ...}, got 'x'"),
        ("rewards.train.0.weight=x", "rewards.train[0].weight must be a finite number, got 'x'"),
        ("rewards.train.0.wieght=2", "unknown key 'rewards.train[0].wieght'; did you mean 'rewards.train[0].weight'?"),
        ("rewards.train.0=3", "rewards.train[0] must hold keys, such as name, weight, options, ..., got 3"),
        (
            "rewards.train[1].weight=2",
            "rewards.train[1]: a list has entries by number, here 0 to 0; to add one, give rewards.train whole",
        ),
        (
            "rewards.watch.0.name=oracle",
            "rewards.watch[0]: a list has entries by number, here none, it is empty; to add one, give rewards.watch",
        ),
        (
            "rewards.train.-1.weight=2",
            "rewards.train[-1]: the entries of a list count from 0, here 0 to 0; to add one, give rewards.train whole",
        ),
        ("rewards.train[-1].weight=2", "rewards.train[-1]: the entries of a list count from 0, here 0 to 0;"),
        ("rewards.watch.-1.name=oracle", "rewards.watch[-1]: the entries of a list count from 0, here none, it is"),
        ("run.-seed=2", "unknown key 'run.-seed'; did you mean 'run.seed'?"),
        ("rewards.train.weight=2", "rewards.train[weight]: a list has entries by number, here 0 to 0;"),
        ("rewards.train[x]=2", "override 'rewards.train[x]=2' must read key=value, for example run.steps=20"),
        ("rewards.train=[3]", "rewards.train[0] must hold keys, such as name, weight, options, ..., got 3"),
        ("rewards.train=[{weight: 1}]", "rewards.train[0].name must be set, got {'weight': 1}"),
        (
            "rewards.watch=[{name: hpsv3, options: 3}]",
            "rewards.watch[0].options must be keys and values, such as {key: value}, got 3",
        ),
        ("run.name={a: 1}", "run.name must be text (quote a number), got {'a': 1}"),
        ("run.seed=[", "run.seed: the value '[' is not valid YAML; put it in quotes"),
        ("steps", "override 'steps' must read key=value, for example run.steps=20"),
        ("=3", "override '=3' must read key=value, for example run.steps=20"),
        ("run..steps=3", "override 'run..steps=3' must read key=value, for example run.steps=20"),
    ],
)
def test_wrong_values_say_what_is_allowed(minimal: Path, override: str, expected: str) -> None:
    assert message(minimal, override).startswith(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("run: {name: 7}", "run.name must be text (quote a number), got 7"),
        ("rollout:\n", "rollout must hold keys, such as prompts_per_step, group_size, num_steps, ..., got nothing"),
        ("[1, 2]", "must hold sections with keys, such as run, model, data, ..., got [1, 2]"),
        ("3", "cannot be read as a config file: it must hold sections with keys"),
        ("run: {seed: 1}\nrun: {seed: 2}", "is not valid YAML: while constructing a mapping"),
        ("run: {seed: [}", "is not valid YAML: while parsing a flow"),
        ("1: 2", "unknown key '1'; valid: run, model, data"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, expected: str) -> None:
    assert in_file(tmp_path, text).startswith(expected)


def test_a_missing_file_names_the_closest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "ditreward.yaml").write_text(MINIMAL, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    expected = "configs/ditrewrd.yaml: no such config file; did you mean configs/ditreward.yaml?"
    assert message(Path("configs/ditrewrd.yaml")) == expected


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"run: {name: caf\xe9}\n")
    assert message(path).startswith(f"{path}: is not UTF-8 text (")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert message(tmp_path) == f"{tmp_path}: is a folder; it has no .yaml"
    (tmp_path / "a.yaml").write_text("")
    assert message(tmp_path) == f"{tmp_path}: is a folder; name one file, {tmp_path}/a.yaml"


def test_a_profile_is_told_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    files = "configs/sd35-large/ditreward.yaml or configs/sd35-large/hpsv3.yaml"
    assert message(Path("sd35-large")).endswith(
        f"no such config file; sd35-large is a profile: name one of its files, {files}"
    )


# One entry per rule: overrides that break it and nothing else, and what the message must say.
BROKEN: dict[str, tuple[list[str], str]] = {
    "counts_are_positive": (["rollout.group_size=1"], "rollout.group_size must be at least 2, got 1"),
    "amounts_are_positive": (["optim.lr=0"], "optim.lr must be positive, got 0"),
    "amounts_are_not_negative": (["gate.max_ratio_absdev=-1"], "gate.max_ratio_absdev must not be negative, got -1"),
    "shares_are_shares": (["optim.ema_decay=1.0"], "optim.ema_decay must lie in [0, 1), got 1.0"),
    "run_name_is_a_folder_name": (["run.name=a/b"], "run.name must be usable as the name of a folder, got 'a/b'"),
    "plugins_are_known": (["model.family=sd4"], "model.family: unknown policy 'sd4'; did you mean 'sd3'?"),
    "attention_is_known": (["model.attention=flassh"], "model.attention: unknown 'flassh'; did you mean 'flash'?"),
    "image_size_fits_patches": (
        ["model.image_size=70"],
        "model.image_size must be a multiple of 16 with model.family sd3, got 70; use 64 or 80",
    ),
    "something_is_trained_on": (["rewards.train=[]"], "rewards.train must name at least one reward"),
    "trained_rewards_weigh_something": (
        ["rewards.train=[{name: hpsv3, weight: 0}]"],
        "rewards.train[0].weight must not be 0; to watch hpsv3 without training on it, move it to rewards.watch",
    ),
    "reward_labels_fit_in_metric_keys": (
        ["rewards.watch=[{name: oracle, label: total}]"],
        "rewards.watch[0].label must be letters, digits and any of _ . + -, not one of total, diversity, and not begin "
        "with judge_, got 'total'",
    ),
    "reward_labels_are_distinct": (
        ["rewards.watch=[{name: dit_reward}]"],
        "rewards: each name may stand once in rewards.train and rewards.watch together, got dit_reward more than "
        "once; tell them apart by a label, such as {name: dit_reward, label: frozen}",
    ),
    "group_splits_into_forwards": (
        ["rollout.samples_per_forward=5"],
        "rollout.samples_per_forward must divide rollout.group_size = 16, got 5; use one of [1, 2, 4, 8, 16] or 0",
    ),
    "groups_split_over_inner_steps_and_learners": (
        ["rollout.prompts_per_step=10"],
        "rollout.prompts_per_step must be a multiple of algorithm.inner_steps * placement.num_learners = "
        "2 * 2 = 4, got 10; use 8 or 12",
    ),
    "trained_steps_fit": (["algorithm.kl_beta=-0.1"], "algorithm.kl_beta must not be negative, got -0.1"),
    "grid_fits_evaluation": (["eval.num_prompts=4"], "eval.grid_prompts must be at most eval.num_prompts = 4, got 8"),
    "learners_that_share_weights_only_train": (
        ["placement.mode=fused", "placement.learner_strategy=zero3"],
        "placement.learner_strategy zero3 cuts the model over the learners, so that none can sample alone: it needs "
        "rollouts beside them, of which placement.mode fused has none; use split, or colocated with",
    ),
    "rounded_weights_are_whole": (
        ["model.quantisation=int8", "placement.learner_strategy=fsdp2"],
        "model.quantisation int8 needs placement.learner_strategy ddp or zero2, which leave the model whole on each "
        "learner, got fsdp2",
    ),
    "somebody_samples": (["placement.num_rollouts=0"], "placement.num_rollouts must be at least 1 with"),
    "only_shared_devices_are_left": (
        ["placement.offload=true"],
        "placement.offload needs placement.mode colocated, where roles share devices, or local, got split",
    ),
    "conditions_made_ahead_are_kept": (
        ["data.encode_ahead=3"],
        "data.encode_ahead = 3 needs a folder in data.condition_cache, such as",
    ),
    "half_precision_needs_cuda": (["model.dtype=float16"], "model.dtype float16 needs placement.device cuda"),
    "a_cluster_has_an_address": (
        ["placement.ray_address=head"],
        "placement.ray_address must be local, or HOST:PORT of",
    ),
}


def test_every_rule_has_a_test() -> None:
    assert [rule.__name__ for rule in config_rules.RULES] == list(BROKEN)


@pytest.mark.parametrize("rule", config_rules.RULES, ids=lambda rule: rule.__name__)
def test_rule(minimal: Path, monkeypatch: pytest.MonkeyPatch, rule: config_rules.Rule) -> None:
    overrides, expected = BROKEN[rule.__name__]
    assert message(minimal, *overrides).startswith(expected)
    # Without this one rule the configuration passes: the test breaks nothing else.
    monkeypatch.setattr(config_rules, "RULES", [other for other in config_rules.RULES if other is not rule])
    load(minimal, overrides)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["optim.betas=[0.9, 1.0]"], "optim.betas must lie in [0, 1), got (0.9, 1.0)"),
        (["rewards.max_invalid_fraction=1.5"], "rewards.max_invalid_fraction must lie in [0, 1], got 1.5"),
        (["run.name=.."], "run.name must be usable as the name of a folder"),
        (
            ["rewards.train=[{name: hpsv3, normalise: batch}]"],
            "rewards.train[0].normalise must be one of none, group, got 'batch'",
        ),
        (["run.dir= "], "run.dir must name a folder, got ' '"),
        (["rollout.prompts_per_step=3", "placement.num_learners=3"], "rollout.prompts_per_step must be a multiple"),
        (
            ["placement.mode=colocated", "placement.offload=true", "placement.num_scorers=1"],
            "placement.offload leaves rewards that are spread over scorers where they are; of one",
        ),
        (
            ["placement.mode=colocated", "placement.offload=true", "placement.learner_strategy=fsdp2"],
            "placement.learner_strategy fsdp2 keeps its parts of the model on the devices: set placement.offload=false",
        ),
        (
            ["placement.mode=local", "placement.learner_strategy=zero2"],
            "placement.learner_strategy must be ddp with placement.mode local, which has one learner, got zero2",
        ),
        (
            ["rewards.train=[{name: dit_rewrad}]"],
            "rewards.train[0].name: unknown reward 'dit_rewrad'; did you mean 'dit_r",
        ),
        (["rewards.watch=[{name: orakle}]"], "rewards.watch[0].name: unknown reward 'orakle'; did you mean 'oracle'?"),
        (["rewards.train=[{name: hpsv3, scale: 0}]"], "rewards.train[0].scale must not be 0; to watch hpsv3 without"),
        (["rewards.train=[{name: hpsv3, label: a/b}]"], "rewards.train[0].label must be letters, digits"),
        (
            ["rewards.train=[{name: 'one:Judge'}, {name: 'two.parts:Judge'}]"],
            "rewards: each name may stand once in rewards.train and rewards.watch together, got Judge more than once",
        ),
        (["algorithm.clip_range=0"], "algorithm.clip_range must be positive, got 0"),
        (["algorithm.advantage_clip=0"], "algorithm.advantage_clip must be positive, got 0"),
        (["algorithm.noise_level=0"], "algorithm.noise_level must lie in (0, 2], got 0"),
        (
            ["algorithm.step_kind=cps", "algorithm.noise_level=1.5", "algorithm.kl_beta=0"],
            "algorithm.noise_level must be at most 1 with step_kind cps, got 1.5",
        ),
        (["algorithm.step_kind=cps"], "algorithm.kl_form gaussian is not defined for step_kind cps"),
        (
            ["algorithm.step_kind=cps", "algorithm.kl_beta=0", "algorithm.ratio_norm=true"],
            "algorithm.ratio_norm and reweight_steps are defined for step_kind sde only",
        ),
        (["algorithm.trained_steps=fraction", "algorithm.fraction=1"], "algorithm.fraction must leave at least one"),
        (
            ["algorithm.trained_steps=window", "rollout.num_steps=5"],
            "algorithm.window_low and window_high must satisfy 0 <= low < high < rollout.num_steps = 5",
        ),
        (
            ["algorithm.trained_steps=window", "algorithm.window_size=6"],
            "algorithm.window_size must lie in [1, window_high - window_low = 5], got 6",
        ),
    ],
)
def test_other_ways_to_break_a_rule(minimal: Path, overrides: list[str], expected: str) -> None:
    assert message(minimal, *overrides).startswith(expected)


def test_an_evaluation_needs_no_reward_to_train_on(minimal: Path) -> None:
    assert load(minimal, ["rewards.train=[]", "run.steps=0"]).run.steps == 0


def test_a_reward_may_stand_twice_under_two_labels(minimal: Path) -> None:
    config = load(minimal, ["rewards.watch=[{name: dit_reward, label: frozen}, {name: 'a.b:Judge'}]"])
    specs = [*config.rewards.train, *config.rewards.watch]
    assert [spec.metric_name for spec in specs] == ["dit_reward", "frozen", "Judge"]


def test_in_one_process_learners_do_not_divide_groups(minimal: Path) -> None:
    config = load(minimal, ["placement.mode=local", "placement.num_learners=5", "rollout.prompts_per_step=2"])
    assert config.rollout.prompts_per_step == 2


@pytest.mark.parametrize(
    ("steps", "every", "due"),
    [(7, 3, [0, 3, 6, 7]), (6, 3, [0, 3, 6]), (2, 5, [0, 2]), (4, 0, [0]), (0, 3, [0]), (0, 0, [0])],
)
def test_a_run_is_evaluated_at_its_start_and_end_and_in_between(steps: int, every: int, due: list[int]) -> None:
    section = EvalSection(every=every)
    assert [step for step in range(steps + 1) if section.due(step, steps)] == due


def test_a_forward_takes_the_whole_group_unless_told_otherwise() -> None:
    assert RolloutSection(group_size=6).forward_size == 6
    assert RolloutSection(group_size=6, samples_per_forward=2).forward_size == 2


def test_dump_loads_back_to_the_same(tmp_path: Path, minimal: Path) -> None:
    config = load(
        minimal,
        ["run.name=007", "optim.lr=3e-7", "rewards.watch=[{name: oracle, weight: 2, options: {part: shape}}]"],
    )
    path = tmp_path / "config.yaml"
    path.write_text(dump(config), encoding="utf-8")
    again = load(path)
    assert again == config
    assert diff(config, again) == {}
    assert "${" not in path.read_text(encoding="utf-8")


def test_diff_names_the_keys(minimal: Path) -> None:
    left = load(minimal, ["run.name=a"])
    right = load(minimal, ["run.name=a", "optim.lr=1", "rewards.train=[{name: hpsv3}]"])
    found = diff(left, right)
    assert list(found) == ["optim.lr", "rewards.train"]
    assert found["optim.lr"] == (3e-4, 1.0)
    assert [spec["name"] for spec in found["rewards.train"][1]] == ["hpsv3"]


@dataclass
class _Optional:
    size: int | None = None


def test_a_key_that_may_be_null_takes_null_or_a_value_of_its_kind(tmp_path: Path) -> None:
    path = tmp_path / "optional.yaml"
    path.write_text("size: null\n", encoding="utf-8")
    assert [read_config(_Optional, path, words).size for words in ([], ["size=3"], ["size=3", "size=null"])] == [
        None,
        3,
        None,
    ]
    with pytest.raises(ConfigError, match=r"^size must be an integer or null, got 'x'$"):
        read_config(_Optional, path, ["size=x"])
