"""The layer probe: heads trained together are those trained alone, a planted layer is found, and what is written."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from flowrl import cli
from flowrl.base.config_tree import ConfigError
from flowrl.base.errors import CheckpointError, UserError
from flowrl.cli.reward_probe import PROBE_VERBS
from flowrl.core.seeds import evaluation_seeds
from rewards.data.pairs import PairTable
from rewards.data.store import TABLES, PreferenceStore
from rewards.dit_reward.features import FeatureShards
from rewards.dit_reward.model import sample_noise
from rewards.probe.config import INPUT, BackboneSection, HeadSection, ProbeConfig, StoreSection
from rewards.probe.features import LayerFeatures, layer_features, open_backbone
from rewards.probe.heads import HeadBank, score_heads, train_heads
from rewards.probe.report import markdown
from rewards.probe.run import probe
from rewards.probe.similarity import layer_similarity
from rewards.training.batches import ComparisonBatcher
from tests.locked_folder import locked_by_another
from tests.tiny_store import write_sets

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
PLANTED = 1


def random_features(num_samples: int, *, seed: int, width: int = 6) -> LayerFeatures:
    draws = torch.Generator().manual_seed(seed)
    return LayerFeatures(layers=(INPUT, 0, 1), values=torch.randn(3, num_samples, width, generator=draws))


def planted_pairs(features: LayerFeatures) -> PairTable:
    """Of every two samples that follow each other, the one with more of channel 2 in the planted layer is preferred."""
    merit = features.values[features.layers.index(PLANTED), :, 2]
    couples = torch.arange(len(merit)).reshape(-1, 2)
    order = merit[couples].argsort(1, descending=True)
    ordered = couples.gather(1, order)
    return PairTable.of(winner=ordered[:, 0].tolist(), loser=ordered[:, 1].tolist())


def config(folder: Path, store: Path, policy: Path) -> ProbeConfig:
    return ProbeConfig(
        model=BackboneSection(path=str(policy)),
        data=StoreSection(store=str(store)),
        head=HeadSection(steps=4, lr=0.01, batch_size=8, seeds=2, at_once=2),
        out=str(folder),
        draws=50,
        device="cpu",
    )


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory, sd3_folder: Path) -> Path:
    return write_sets(tmp_path_factory.mktemp("sets"), sd3_folder)


def alone(probe: tuple[int, ...], features: LayerFeatures, pairs: PairTable, head: HeadSection) -> nn.Sequential:
    """A head of plain modules, with the first weights of a bank of one, trained by hand."""
    bank = HeadBank([probe], features.layers, width=6, dims=head.dims, seed=3)
    net = nn.Sequential(nn.Linear(6 * len(probe), 4), nn.GELU(), nn.Linear(4, 1))
    for layer, weight, bias in zip((net[0], net[2]), bank.weights, bank.biases, strict=True):
        assert isinstance(layer, nn.Linear)
        layer.weight.data.copy_(weight[0].T)
        layer.bias.data.copy_(bias[0, 0])
    inputs = torch.cat([features.values[features.layers.index(layer)] for layer in probe], 1)
    batcher = ComparisonBatcher(pairs, torch.zeros(len(inputs), dtype=torch.int64), batch_size=head.batch_size, seed=3)
    optimizer = torch.optim.AdamW(net.parameters(), lr=head.lr, betas=(0.9, 0.99), weight_decay=head.weight_decay)
    for step in range(head.steps):
        optimizer.param_groups[0]["lr"] = head.lr * 0.5 * (1 + math.cos(math.pi * step / head.steps))
        rows = batcher.at(step)
        gap = net(inputs[batcher.pairs.winner[rows]]) - net(inputs[batcher.pairs.loser[rows]])
        optimizer.zero_grad()
        (nn.functional.softplus(-gap).sum() / head.batch_size).backward()
        optimizer.step()
    return net


@pytest.mark.parametrize("probes", [[(INPUT,), (0,), (1,)], [(INPUT, 0), (0, 1)]], ids=["layers", "pairs"])
def test_heads_that_are_trained_together_are_those_trained_alone(probes: list[tuple[int, ...]]) -> None:
    features = random_features(40, seed=0)
    pairs = planted_pairs(features)
    head = HeadSection(dims=[4], steps=12, lr=0.02, weight_decay=0.1, batch_size=6)
    scores = score_heads(train_heads(probes, features, pairs, head, seed=3), features)
    for one, found in zip(probes, scores, strict=True):
        inputs = torch.cat([features.values[features.layers.index(layer)] for layer in one], 1)
        expected = alone(one, features, pairs, head)(inputs)[:, 0]
        torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-5)


def test_a_planted_layer_is_found_alone_and_in_pairs() -> None:
    learned, judged = random_features(800, seed=1), random_features(400, seed=2)
    pairs = planted_pairs(judged)
    head = HeadSection(steps=150, lr=0.03, batch_size=32)
    for probes in ([(INPUT,), (0,), (1,)], [(INPUT, 0), (INPUT, 1), (0, 1)]):
        scores = score_heads(train_heads(probes, learned, planted_pairs(learned), head, seed=0), judged)
        accuracy = (scores[:, pairs.winner] > scores[:, pairs.loser]).float().mean(1)
        for one, found in zip(probes, accuracy.tolist(), strict=True):
            assert found > 0.9 if PLANTED in one else 0.35 < found < 0.65, (one, found)


def test_a_head_that_diverges_is_named() -> None:
    features = random_features(20, seed=0)
    broken = LayerFeatures(layers=features.layers, values=features.values / 0)
    with pytest.raises(UserError, match=r"^head\.lr: a head of \[\(0,\)\] has diverged; take a smaller"):
        train_heads([(0,)], broken, planted_pairs(features), HeadSection(steps=1), seed=0)


def test_standardising_takes_the_training_samples_mean_and_spread() -> None:
    learned = LayerFeatures(layers=(0,), values=torch.tensor([[[1.0, 5.0], [3.0, 5.0]]]))
    judged = LayerFeatures(layers=(0,), values=torch.tensor([[[2.0 + 2**0.5, 5.0]]]))
    torch.testing.assert_close(judged.standardised(learned).values, torch.tensor([[[1.0, 0.0]]]))


def test_similarity_is_the_centred_cosine_averaged_within_prompts() -> None:
    # Centred, layer 0 is (1, 0), (-1, 0), (0, 1), (0, -1) and layer 1 is (1, 1), (-1, -1), (0, 2), (0, -2).
    first = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]) + 10
    second = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [0.0, 2.0], [0.0, -2.0]]) - 7
    features = LayerFeatures(layers=(0, 1), values=torch.stack([first, second]))
    found = layer_similarity(features, torch.tensor([4, 4, 9, 9]))
    by_prompt = [0.5**0.5, 1.0]
    mean = sum(by_prompt) / 2
    assert found.mean == (pytest.approx((1, mean)), pytest.approx((mean, 1)))
    spread = (by_prompt[1] - by_prompt[0]) / 2**0.5  # the standard deviation of two values
    assert found.std == (pytest.approx((0, spread)), pytest.approx((spread, 0)))


def test_similarity_needs_two_prompts() -> None:
    with pytest.raises(ValueError, match="two or more, got 1"):
        layer_similarity(random_features(4, seed=0), torch.zeros(4, dtype=torch.int64))


def test_features_are_the_mean_tokens_before_the_first_block_and_after_each(
    tmp_path: Path, sets: Path, sd3_folder: Path
) -> None:
    store = PreferenceStore(sets / "validation")
    made = config(tmp_path, sets, sd3_folder)
    reader = open_backbone(made, [store])
    found = layer_features(made, reader, store, CPU)
    net = reader.model.transformer
    assert reader.layers == found.layers == tuple(range(INPUT, len(net.transformer_blocks)))
    row = torch.tensor([7])
    seen: list[torch.Tensor] = []
    net.transformer_blocks[0].register_forward_pre_hook(
        lambda _, __, inputs: seen.append(inputs["hidden_states"]), with_kwargs=True
    )
    for block in net.transformer_blocks:
        block.register_forward_hook(lambda _, __, outputs: seen.append(outputs[1]))
    latents = store.tensors("latents", row)
    noise = sample_noise(evaluation_seeds(store.texts(row)), tuple(latents.shape[1:]))
    condition = store.conditions(store.prompt[row])
    with torch.no_grad():
        net(
            hidden_states=0.95 * latents + 0.05 * noise,
            encoder_hidden_states=condition.embeds,
            pooled_projections=condition.pooled,
            timestep=torch.tensor([50.0]),
        )
    expected = torch.stack([tokens.mean(1)[0] for tokens in seen])
    torch.testing.assert_close(found.values[:, 7], expected, rtol=1e-5, atol=1e-5)
    made.layers = [INPUT, 1]
    fewer = layer_features(made, open_backbone(made, [store]), store, CPU)
    assert fewer.layers == (INPUT, 1)
    torch.testing.assert_close(fewer.values, found.values[[0, 2]])


def test_a_probe_writes_its_tables_and_plots(tmp_path: Path, sets: Path, sd3_folder: Path) -> None:
    result = probe(config(tmp_path, sets, sd3_folder))
    layers = [INPUT, *range(len(result.singles) - 1)]
    assert [one.layers for one in result.singles] == [(layer,) for layer in layers]
    assert len(result.pairs) == len(layers) * (len(layers) - 1) // 2
    assert (result.num_pairs, result.num_prompts, result.num_train_pairs) == (27, 9, 66)
    for one in (*result.singles, *result.pairs):
        assert one.accuracy == pytest.approx(sum(one.by_seed) / 2)
        assert one.interval.low <= one.accuracy <= one.interval.high
        assert one.by_source == {"pairs": pytest.approx(one.accuracy)}
    assert sum(one.best_share for one in result.singles) == pytest.approx(1)
    written = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert written["singles"][1]["accuracy"] == result.singles[1].accuracy
    assert written["similarity"]["mean"][0][0] == pytest.approx(1)
    page = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert page == markdown(result)
    assert f"| input | {100 * result.singles[0].accuracy:.1f} [" in page
    for name in ("depth.png", "pairs.png", "similarity.png"):
        with Image.open(tmp_path / name) as image:
            assert image.width > 400
            assert len(set(image.convert("L").tobytes())) > 10, f"{name} is blank"


def test_the_command_prints_the_curve_and_says_where_the_rest_is(
    tmp_path: Path, sets: Path, sd3_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verb = PROBE_VERBS["reward probe"]
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    words = [str(ROOT / "configs/reward/pocket/probe.yaml"), f"model.path={sd3_folder}", f"data.store={sets}"]
    words += [f"out={tmp_path}", "head.steps=2", "head.seeds=1", "layers=[-1,0]", "pairs=listed", "draws=20"]
    assert verb.run(parser.parse_args(words)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:4]] == ["input", "0"]
    assert lines[4:] == [str(tmp_path / "table.md")]


def test_how_many_heads_are_trained_at_once_changes_nothing(tmp_path: Path, sets: Path, sd3_folder: Path) -> None:
    few, many = config(tmp_path, sets, sd3_folder), config(tmp_path, sets, sd3_folder)
    few.pairs = many.pairs = "listed"
    few.head.at_once, many.head.at_once = 1, 64
    assert [one.by_seed for one in probe(few).singles] == [one.by_seed for one in probe(many).singles]


def test_features_of_an_interrupted_run_are_found_again(tmp_path: Path, sets: Path, sd3_folder: Path) -> None:
    made = config(tmp_path, sets, sd3_folder)
    made.pairs = "listed"
    first = probe(made)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("features/*/*.safetensors")}
    assert len(files) == 2
    lost = next(path for path in files if path.parent.name.startswith("validation"))
    lost.unlink()
    lost.with_suffix(".0").write_bytes(b"half of a shar")  # as a kill in the middle of writing leaves it
    assert probe(made) == first
    assert {path for path, at in files.items() if path.stat().st_mtime_ns != at} == {lost}


def test_another_backbone_or_noise_level_has_features_of_its_own(tmp_path: Path, sets: Path, sd3_folder: Path) -> None:
    made = config(tmp_path, sets, sd3_folder)
    store = PreferenceStore(sets / "validation")
    found = []
    for init, sigma in (("pretrained", 0.05), ("random", 0.05), ("pretrained", 0.2)):
        made.model.init, made.model.sigma = init, sigma
        found.append(layer_features(made, open_backbone(made, [store]), store, CPU).values)
    assert len(list(tmp_path.glob("features/*"))) == 3
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_layer_whose_features_are_not_finite_is_named(
    tmp_path: Path, sets: Path, sd3_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config(tmp_path, sets, sd3_folder)
    store = PreferenceStore(sets / "validation")
    reader = open_backbone(made, [store])
    layer_features(made, reader, store, CPU)
    rows = FeatureShards.rows

    def overflown(self: FeatureShards, samples: torch.Tensor) -> torch.Tensor:
        found = rows(self, samples)
        found[0, -1, -1] = math.inf
        return found

    monkeypatch.setattr(FeatureShards, "rows", overflown)
    with pytest.raises(UserError, match=f"layer {reader.layers[-1]} has features that are not finite; leave it out"):
        layer_features(made, reader, store, CPU)


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, sets: Path, sd3_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r'pip install "flowrl\[plots\]"'):
        probe(config(tmp_path / "out", sets, sd3_folder))
    assert not (tmp_path / "out").exists()


def test_a_validation_set_of_one_prompt_is_refused_before_any_work(
    tmp_path: Path, sd3_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = write_sets(tmp_path / "sets", sd3_folder, train=3, validation=3)
    tables = load_file(store / "validation" / TABLES)
    tables["sample_prompt"].zero_()
    save_file(tables, store / "validation" / TABLES)
    words = ["reward", "probe", str(ROOT / "configs/reward/pocket/probe.yaml")]
    words += [f"model.path={sd3_folder}", f"data.store={store}", f"out={tmp_path / 'out'}"]
    assert cli.main(words) == 2
    assert "sets/validation: holds samples of one prompt alone" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_one_probe_writes_to_a_folder_at_a_time(tmp_path: Path, sets: Path, sd3_folder: Path) -> None:
    with locked_by_another(tmp_path), pytest.raises(ConfigError, match=r"out=.* but process 1 is writing to it"):
        probe(config(tmp_path, sets, sd3_folder))
    assert [child.name for child in tmp_path.iterdir()] == [".lock"]


def test_a_probe_that_fails_leaves_the_earlier_one_as_it_was(tmp_path: Path, sets: Path, sd3_folder: Path) -> None:
    made = config(tmp_path, sets, sd3_folder)
    made.pairs = "listed"
    probe(made)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file() and path.name != ".lock"}
    made.head.lr = 1e30
    with pytest.raises(UserError, match=r"head\.lr: a head of .* has diverged"):
        probe(made)
    assert {path: path.read_bytes() for path in before} == before


def test_a_set_that_is_not_there_is_named(tmp_path: Path, sd3_folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing/train: not a prepared preference set"):
        probe(config(tmp_path / "out", tmp_path / "nothing", sd3_folder))
