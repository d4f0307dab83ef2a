"""Wires a configuration into data, a reward model and the training loop, and leaves a reward folder."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from flowrl.base import checkpoint
from flowrl.base.atomic_file import write_atomically
from flowrl.base.config_file import dump_config
from flowrl.base.config_tree import ConfigError
from flowrl.base.dtypes import torch_dtype
from flowrl.base.file_mode import apply_umask_below
from flowrl.core.seeds import generator
from rewards.data.overlap import Overlap, overlap
from rewards.data.pairs import PairTable
from rewards.data.store import PreferenceStore
from rewards.training.batches import ComparisonBatcher
from rewards.training.config import RewardTrainConfig
from rewards.training.data import open_stores
from rewards.training.folder import TrainingFolder, check_folder, claim
from rewards.training.log import open_log
from rewards.training.loop import RewardTrainer
from rewards.training.models import make_trainable
from rewards.training.scoring import Accuracy
from rewards.training.session import Session, agree_on_folder, join_processes
from rewards.training.state import check_sets
from rewards.training.trainable import TrainableReward


def train_reward(config: RewardTrainConfig, *, resume: bool) -> Path | None:
    """Train as configured, with whatever processes were launched; returns the reward folder, or None when a signal
    ended the training before its end.
    """
    processes = join_processes()
    agree_on_folder(config)
    if processes.is_main_process:
        check_folder(config, resume=resume)  # preparing the data may take hours
    train, validation = open_stores(config, resume=resume)
    folder = claim(config, resume=resume) if processes.is_main_process else TrainingFolder(path=Path(config.run.dir))
    processes.wait_for_everyone()
    start_from = _newest(folder.checkpoints) if resume else None
    if start_from:
        check_sets(start_from, (train, validation))
    trainable = make_trainable(config, [train, validation], folder.features)
    pairs = _training_pairs(config, train)
    batcher = ComparisonBatcher(
        pairs,
        train.shape,
        batch_size=config.optim.batch_size,
        seed=config.run.seed,
        source_weights=[_weight(config, name) for name in pairs.sources],
    )
    validation_pairs = _validation_pairs(config, validation)
    decided = validation_pairs.select(~validation_pairs.tie)
    shared = overlap(train, pairs, validation, decided)
    if processes.is_main_process:
        lines = idle_sources(train, pairs, "the training") + idle_sources(validation, decided, "the accuracy")
        for line in (*lines, *([f"{validation.folder}: {shared.words}"] if shared.words else [])):
            tqdm.write(line, file=sys.stderr)
    session = Session(trainable, config, batch_size=batcher.batch_size)
    log = None
    if session.is_main:
        done = checkpoint.step_of(start_from) if start_from else 0
        log = open_log(folder.path, resumed_step=done - 1 if resume else None)
        if not resume:
            log.text("config", 0, f"```\n{dump_config(config)}```")
    try:
        trainer = RewardTrainer(
            config=config,
            session=session,
            train=train,
            validation=validation,
            validation_pairs=validation_pairs,
            batcher=batcher,
            log=log,
            checkpoints=folder.checkpoints,
        )
        stopped = trainer.fit(start_from)
        if stopped is not None:
            return None
        if trainer.last is None:  # resumed after the last step
            trainer.evaluate()
    finally:
        if log is not None:
            log.close()
    assert trainer.last is not None
    _export(config, session, trainable, folder, trainer.last, shared)
    return folder.reward


def _export(
    config: RewardTrainConfig,
    session: Session,
    trainable: TrainableReward,
    folder: TrainingFolder,
    reached: Accuracy,
    shared: Overlap,
) -> None:
    """Write the reward folder and its accuracy, which the main process does while the others wait.

    `reached` is of the weights that are exported.
    """
    shift = reached.mean_score if config.export.centre else 0.0
    state = session.state_dict()
    if not session.is_main:
        session.wait()
        return
    bias = state[trainable.score_bias].clone()
    bias[0] -= shift
    state[trainable.score_bias] = bias
    notes = config.export.notes or f"Trained with `flowrl reward train` as {config.run.name}."
    aside = folder.path / ".reward"
    shutil.rmtree(aside, ignore_errors=True)
    trainable.save(
        aside,
        state,
        dtype=torch_dtype(config.export.dtype),
        notes=_card(notes, reached, shared),
        whole=config.export.whole,
    )
    apply_umask_below(aside)
    figures = asdict(reached) | {"shared_prompts": shared.prompts, "shared_pairs": shared.pairs}
    write_atomically(folder.validation, f"{json.dumps(figures, indent=2)}\n".encode())
    shutil.rmtree(folder.reward, ignore_errors=True)
    aside.rename(folder.reward)  # last: where it stands, the training has come to its end
    session.wait()


def _newest(checkpoints: Path) -> Path | None:
    """The newest checkpoint that is whole; those that are not are named. Raises ConfigError when none of them is."""
    found, problems = checkpoint.newest(checkpoints)
    for problem in problems:
        tqdm.write(f"checkpoint passed over: {problem}", file=sys.stderr)
    if problems and found is None:
        raise ConfigError(f"{checkpoints}: no checkpoint can be used: {'; '.join(problems)}; start anew")
    return found


def _card(notes: str, reached: Accuracy, shared: Overlap) -> str:
    lines = [notes, "", f"Accuracy on the {reached.pairs:,} validation pairs looked at: {100 * reached.overall:.1f} %."]
    lines += [f"- {name}: {100 * share:.1f} %" for name, share in (reached.by_source | reached.by_category).items()]
    lines += [f"- {name}: not measured, no pair looked at has a winner" for name in reached.unmeasured]
    return "\n".join([*lines, *(["", f"{shared.words}."] if shared.words else [])])


def _training_pairs(config: RewardTrainConfig, store: PreferenceStore) -> PairTable:
    """The pairs to train on: those of a share of the prompts, with or without ties."""
    pairs = store.pairs
    if config.loss.ties == "drop":
        pairs = pairs.select(~pairs.tie)
    pairs = share_of(pairs, store.prompt, config.data.share)
    if len(pairs) == 0:
        raise ConfigError(
            f"{store.folder}: holds no pair to train on with loss.ties={config.loss.ties} and "
            f"data.share={config.data.share}"
        )
    return pairs


def _validation_pairs(config: RewardTrainConfig, store: PreferenceStore) -> PairTable:
    """The pairs to validate on; some must have a winner."""
    pairs = store.pairs.first_comparisons(config.eval.max_comparisons)
    if bool(pairs.tie.all()):
        raise ConfigError(
            f"{store.folder}: holds no pair with a winner to validate on, in {len(pairs)} pairs with "
            f"eval.max_comparisons={config.eval.max_comparisons}"
        )
    return pairs


def idle_sources(store: PreferenceStore, used: PairTable, what: str) -> list[str]:
    """A line for each source of a set that has none of the pairs that are used."""
    lines = []
    for number, name in enumerate(store.pairs.sources):
        own = store.pairs.source == number
        if not bool((used.source == number).any()):
            ties = int(store.pairs.tie[own].sum())
            lines.append(
                f"{store.folder}: {name} adds nothing to {what}: {ties} of its {int(own.sum())} pairs are ties"
            )
    return lines


def share_of(pairs: PairTable, prompt: torch.Tensor, share: float) -> PairTable:
    """The pairs of a random share of the prompts, the same for all seeds; a smaller share is part of a larger one.

    `prompt` [N] int64 is the prompt of each sample of the set.
    """
    if share == 1:
        return pairs
    under = prompt[pairs.winner]
    prompts = torch.unique(under)
    order = torch.randperm(len(prompts), generator=generator("share"))
    return pairs.select(torch.isin(under, prompts[order[: max(1, round(share * len(prompts)))]]))


def _weight(config: RewardTrainConfig, source: str) -> float:
    """How often the comparisons of a source are seen in an epoch."""
    return next((one.weight for one in config.data.train if one.title == source), 1.0)
