"""A whole probe: features of all layers, heads on layers and on pairs of them, their accuracy, and the similarity."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from flowrl.base.atomic_file import write_atomically
from flowrl.base.config_file import dump_config
from flowrl.base.devices import pick_device
from flowrl.base.errors import UserError
from flowrl.base.folder_lock import make_writable, take_lock
from rewards.data.pairs import PairTable
from rewards.data.store import PreferenceStore
from rewards.evaluation.accuracy import Credits, find_protocol
from rewards.evaluation.bootstrap import interval, paired_difference, resample
from rewards.evaluation.result import Difference
from rewards.probe.config import ProbeConfig, chosen_pairs
from rewards.probe.features import LayerFeatures, layer_features, open_backbone
from rewards.probe.heads import Probe, score_heads, train_heads
from rewards.probe.plots import require_matplotlib
from rewards.probe.report import write_report
from rewards.probe.result import ProbeFigure, ProbeResult
from rewards.probe.similarity import Similarity, layer_similarity

PROTOCOL = "rankings_pooled"  # every pair that people did not tie counts once


@dataclass(frozen=True, kw_only=True)
class ProbeData:
    """What heads are trained and measured on; both features are standardised by those of the training samples."""

    train: LayerFeatures
    train_pairs: PairTable
    validation: LayerFeatures
    validation_pairs: PairTable
    prompt: torch.Tensor  # [M] int64, of each validation pair


def probe(config: ProbeConfig) -> ProbeResult:
    """Probe as configured, and write the tables and plots in `config.out`; features of an earlier run are used again.

    Raises UserError when the data, the backbone or the folder cannot be used, another process writes to the folder, or
    matplotlib is missing.
    """
    require_matplotlib()
    device = torch.device(pick_device(config.device))
    train, validation = (PreferenceStore(Path(config.data.store) / part) for part in ("train", "validation"))
    _check_sets(train, validation)
    reader = open_backbone(config, [train, validation])
    pairs = chosen_pairs(config, reader.layers)
    out = Path(config.out)
    make_writable(out, "out")
    with take_lock(out, "out") or nullcontext():
        learned = layer_features(config, reader, train, device)
        judged = layer_features(config, reader, validation, device)
        reader.model.to("cpu")
        data = ProbeData(
            train=learned.standardised(learned).to(device),
            train_pairs=train.pairs,
            validation=judged.standardised(learned).to(device),
            validation_pairs=validation.pairs,
            prompt=validation.prompt[validation.pairs.winner],
        )
        result = _result(config, data, pairs, layer_similarity(judged, validation.prompt))
        write_atomically(out / "config.yaml", dump_config(config).encode())
        write_report(result, out)
    return result


def _check_sets(train: PreferenceStore, validation: PreferenceStore) -> None:
    """Raise UserError unless there are pairs to learn and to measure, and prompts for a similarity to differ over."""
    for store in (train, validation):
        if store.pairs.tie.all():
            raise UserError(f"{store.folder}: holds no pair of which one is preferred")
    if len(validation.prompt.unique()) < 2:
        raise UserError(
            f"{validation.folder}: holds samples of one prompt alone, but the similarity of layers has a spread over "
            "prompts; prepare a set of two or more"
        )


def _result(config: ProbeConfig, data: ProbeData, pairs: Sequence[Probe], similarity: Similarity) -> ProbeResult:
    """Train the heads on each layer and on these pairs of layers, and measure them."""
    singles: list[Probe] = [(layer,) for layer in data.train.layers]
    seeds = credits_by_seed(config, data, singles) + credits_by_seed(config, data, pairs)
    figures, differences = _measure(config, data, [*singles, *pairs], seeds)
    counted = ~data.validation_pairs.tie
    return ProbeResult(
        backbone=config.model.path,
        init=config.model.init,
        sigma=config.model.sigma,
        head_dims=tuple(config.head.dims),
        steps=config.head.steps,
        num_train_pairs=int((~data.train_pairs.tie).sum()),
        num_pairs=int(counted.sum()),
        num_prompts=len(data.prompt[counted].unique()),
        singles=figures[: len(singles)],
        pairs=figures[len(singles) :],
        differences=differences,
        similarity=similarity,
        draws=config.draws,
    )


def credits_by_seed(config: ProbeConfig, data: ProbeData, probes: Sequence[Probe]) -> list[list[Credits]]:
    """Train the heads of probes of one kind, and say what each earns on each validation pair: by probe, then seed."""
    protocol, at_once = find_protocol(PROTOCOL), config.head.at_once
    found: list[list[Credits]] = [[] for _ in probes]
    for seed in range(config.seed, config.seed + config.head.seeds):
        for start in range(0, len(probes), at_once):
            bank = train_heads(probes[start : start + at_once], data.train, data.train_pairs, config.head, seed=seed)
            for place, scores in enumerate(score_heads(bank, data.validation), start):
                found[place].append(protocol.credits(data.validation_pairs, scores))
    return found


def _measure(
    config: ProbeConfig, data: ProbeData, probes: Sequence[Probe], by_seed: Sequence[Sequence[Credits]]
) -> tuple[tuple[ProbeFigure, ...], tuple[Difference, ...]]:
    """The figures of layers, then pairs; the best layer against the first and the last, and the best pair against it.

    All are resampled with the same draws.
    """
    earned = [_mean_credits(seeds) for seeds in by_seed]
    samples = resample(data.prompt, earned, draws=config.draws, seed=config.seed, name="probe")
    singles = [place for place, one in enumerate(probes) if len(one) == 1]
    pairs = [place for place, one in enumerate(probes) if len(one) == 2]
    shares = _best_shares(samples, singles) | _best_shares(samples, pairs)
    figures = tuple(
        ProbeFigure(
            layers=one,
            accuracy=earned[place].accuracy,
            interval=interval(samples[:, place]),
            by_seed=tuple(credits.accuracy for credits in by_seed[place]),
            by_source=_by_source(data.validation_pairs, earned[place]),
            best_share=shares[place],
        )
        for place, one in enumerate(probes)
    )

    def best(places: Sequence[int]) -> int:
        return max(places, key=lambda place: figures[place].accuracy)

    wanted = [(best(singles), singles[0]), (best(singles), singles[-1])]
    wanted += [(best(pairs), best(singles))] if pairs else []
    differences = tuple(
        Difference(
            first=figures[one].label,
            second=figures[other].label,
            paired=paired_difference(earned[one], earned[other], samples[:, one], samples[:, other]),
        )
        for one, other in wanted
        if one != other
    )
    return figures, differences


def _best_shares(samples: torch.Tensor, places: Sequence[int]) -> dict[int, float]:
    """In what share of the draws [draws, R] each of some columns is the best of them."""
    if not places:
        return {}
    counts = torch.bincount(samples[:, places].argmax(1), minlength=len(places))
    return dict(zip(places, (counts.double() / len(samples)).tolist(), strict=True))


def _mean_credits(seeds: Sequence[Credits]) -> Credits:
    credit = torch.stack([one.credit for one in seeds]).mean(0)
    return Credits(credit=credit, weight=seeds[0].weight, equal=torch.stack([one.equal for one in seeds]).all(0))


def _by_source(pairs: PairTable, earned: Credits) -> dict[str, float]:
    groups = {name: earned.only(pairs.source == number) for number, name in enumerate(pairs.sources)}
    return {name: group.accuracy for name, group in groups.items() if group.counted.any()}
