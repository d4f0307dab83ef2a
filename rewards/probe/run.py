"""A whole probe: features of all layers, heads on layers and on pairs of them, their accuracy, and the similarity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from flowrl.core.config_file import dump_config
from flowrl.core.config_tree import ConfigError
from flowrl.core.errors import UserError
from rewards.data.pairs import PairTable
from rewards.data.store import PreferenceStore
from rewards.evaluation.bootstrap import interval, paired_difference, resample
from rewards.evaluation.protocols import Credits, find_protocol
from rewards.evaluation.result import Difference
from rewards.probe.config import ProbeConfig, chosen_pairs
from rewards.probe.features import LayerFeatures, layer_features, open_backbone
from rewards.probe.heads import Probe, score_heads, train_heads
from rewards.probe.plots import require_matplotlib
from rewards.probe.report import write_report
from rewards.probe.result import ProbeFigure, ProbeResult
from rewards.probe.similarity import layer_similarity

PROTOCOL = "rankings_pooled"  # every pair that people did not tie counts once


def probe(config: ProbeConfig) -> ProbeResult:
    """Probe as configured, and write the tables and plots in `config.out`; features of an earlier run are used again.

    Raises UserError when the data, the backbone or the folder cannot be used, or matplotlib is missing.
    """
    require_matplotlib()
    device = _device(config)
    train, validation = (PreferenceStore(Path(config.data.store) / part) for part in ("train", "validation"))
    for store in (train, validation):
        if store.pairs.tie.all():
            raise UserError(f"{store.folder}: holds no pair of which one is preferred")
    reader, layers = open_backbone(config, [train, validation])
    pairs = chosen_pairs(config, layers)
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"out: {out} must be a folder, but a file of that name exists")
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    learned = layer_features(config, reader, layers, train, device)
    judged = layer_features(config, reader, layers, validation, device)
    reader.to("cpu")
    readings = Readings(
        config,
        train=learned.standardised(learned).to(device),
        validation=judged.standardised(learned).to(device),
        train_pairs=train.pairs,
        validation_pairs=validation.pairs,
    )
    similarity = layer_similarity(judged, validation.prompt)
    prompt = validation.prompt[validation.pairs.winner]
    singles, single_credits = _figures(config, readings, [(layer,) for layer in layers], prompt)
    doubles, double_credits = _figures(config, readings, pairs, prompt) if pairs else ((), [])
    counted = ~validation.pairs.tie
    result = ProbeResult(
        backbone=config.model.path,
        init=config.model.init,
        sigma=config.model.sigma,
        head_dims=tuple(config.head.dims),
        steps=config.head.steps,
        num_train_pairs=int((~train.pairs.tie).sum()),
        num_pairs=int(counted.sum()),
        num_prompts=len(prompt[counted].unique()),
        singles=singles,
        pairs=doubles,
        differences=_differences(config, singles, single_credits, doubles, double_credits, prompt),
        similarity=similarity,
        draws=config.draws,
    )
    write_report(result, out)
    return result


class Readings:
    """Trains the heads of probes and credits them on validation pairs."""

    def __init__(
        self,
        config: ProbeConfig,
        *,
        train: LayerFeatures,
        validation: LayerFeatures,
        train_pairs: PairTable,
        validation_pairs: PairTable,
    ) -> None:
        self._config = config
        self._train, self._validation = train, validation
        self._train_pairs = train_pairs
        self.pairs = validation_pairs

    def credits(self, probes: Sequence[Probe]) -> list[list[Credits]]:
        """What the heads of each probe earn on each validation pair: for each probe, of each seed."""
        config, protocol = self._config, find_protocol(PROTOCOL)
        found: list[list[Credits]] = [[] for _ in probes]
        for seed in range(config.seed, config.seed + config.head.seeds):
            for start in range(0, len(probes), config.head.at_once):
                some = probes[start : start + config.head.at_once]
                bank = train_heads(some, self._train, self._train_pairs, config.head, seed=seed)
                for place, scores in enumerate(score_heads(bank, self._validation), start):
                    found[place].append(protocol.credits(self.pairs, scores))
        return found


def _figures(
    config: ProbeConfig, readings: Readings, probes: Sequence[Probe], prompt: torch.Tensor
) -> tuple[tuple[ProbeFigure, ...], list[Credits]]:
    """The figures of probes of one kind, and what each earns on average over its seeds."""
    by_seed = readings.credits(probes)
    means = [_mean_credits(seeds) for seeds in by_seed]
    samples = resample(prompt, means, draws=config.draws, seed=config.seed, name="probe")
    best = torch.bincount(samples.argmax(1), minlength=len(probes)).double() / len(samples)
    figures = tuple(
        ProbeFigure(
            layers=one,
            accuracy=mean.accuracy,
            interval=interval(column),
            by_seed=tuple(earned.accuracy for earned in seeds),
            by_source=_by_source(readings.pairs, mean),
            best_share=float(share),
        )
        for one, mean, column, seeds, share in zip(probes, means, samples.unbind(1), by_seed, best, strict=True)
    )
    return figures, means


def _mean_credits(seeds: Sequence[Credits]) -> Credits:
    credit = torch.stack([one.credit for one in seeds]).mean(0)
    return Credits(credit=credit, weight=seeds[0].weight, equal=sum(one.equal for one in seeds))


def _by_source(pairs: PairTable, earned: Credits) -> dict[str, float]:
    found = {}
    for number, name in enumerate(pairs.sources):
        own = earned.weight * (pairs.source == number)
        if own.any():
            found[name] = float((earned.credit * own).sum() / own.sum())
    return found


def _differences(
    config: ProbeConfig,
    singles: Sequence[ProbeFigure],
    single_credits: Sequence[Credits],
    pairs: Sequence[ProbeFigure],
    pair_credits: Sequence[Credits],
    prompt: torch.Tensor,
) -> tuple[Difference, ...]:
    """The best layer against the first and the last, and the best pair against the best layer."""
    figures, earned = [*singles, *pairs], [*single_credits, *pair_credits]
    best = max(range(len(singles)), key=lambda place: singles[place].accuracy)
    wanted = [(best, 0), (best, len(singles) - 1)]
    if pairs:
        wanted.append((max(range(len(singles), len(figures)), key=lambda place: figures[place].accuracy), best))
    samples = resample(prompt, earned, draws=config.draws, seed=config.seed, name="probe")
    return tuple(
        Difference(
            first=figures[one].label,
            second=figures[other].label,
            paired=paired_difference(earned[one], earned[other], samples[:, one], samples[:, other]),
        )
        for one, other in wanted
        if one != other
    )


def _device(config: ProbeConfig) -> torch.device:
    here = torch.cuda.is_available()
    if config.device == "cuda" and not here:
        raise ConfigError("device must be cpu or auto on this machine, got 'cuda': there is no GPU that torch can use")
    return torch.device("cuda" if here and config.device != "cpu" else "cpu")
