"""The training loop of a reward model: this page is what `flowrl reward train` does."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from tqdm import tqdm

from flowrl.base.metric_log import MetricLog
from flowrl.base.signals import StopRequest
from flowrl.core.seeds import derive, generator, global_seed
from rewards.data.pairs import PairTable
from rewards.data.store import PreferenceStore
from rewards.training.average import MovingAverage
from rewards.training.batches import ComparisonBatcher, MicroBatch
from rewards.training.config import OptimSection, RewardTrainConfig
from rewards.training.folder import fixed_settings
from rewards.training.losses import pair_losses
from rewards.training.scoring import Accuracy, validate
from rewards.training.session import LOWER_RATES, Session, TrainingError
from rewards.training.state import load_state, save_state


@dataclass(kw_only=True)
class RewardTrainer:
    """Trains a reward model on prepared pairs: the same steps for the same config, whatever interrupted them."""

    config: RewardTrainConfig
    session: Session
    train: PreferenceStore
    validation: PreferenceStore
    validation_pairs: PairTable
    batcher: ComparisonBatcher
    log: MetricLog | None  # on the main process
    checkpoints: Path
    average: MovingAverage = field(init=False)
    last: Accuracy | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.average = MovingAverage(self.session.learning, self.config.optim.ema_decay)

    @cached_property
    def num_steps(self) -> int:
        """How many optimizer steps the training has: those of the epochs, `max_steps`, or the fewer of both."""
        optim = self.config.optim
        if optim.epochs == 0:
            return optim.max_steps
        steps = self.batcher.num_steps(optim.epochs)
        return min(optim.max_steps, steps) if optim.max_steps else steps

    def fit(self, start_from: Path | None) -> str | None:
        """Train to the end, or until a signal came, which is then named; leaves the averaged weights in place."""
        done = (
            0
            if start_from is None
            else load_state(start_from, self.session, self.average, settings=fixed_settings(self.config))
        )
        bar = tqdm(
            range(done, self.num_steps),
            initial=done,
            total=self.num_steps,
            desc="training",
            unit="step",
            mininterval=2,
            disable=not self.session.is_main,
        )
        self.session.network.train()
        with StopRequest() as stop:
            for step in bar:
                figures = self.take_step(step)
                if self._is_due(step, self.config.eval.every):
                    figures |= self.evaluate()
                self._report(step, figures, bar)
                stopping = self.session.any(stop.asked is not None)
                if stopping or self._is_due(step, self.config.checkpoint.every):
                    self._save(step)
                if stopping and step + 1 < self.num_steps:
                    return stop.asked or "SIGTERM"
        self.average.adopt()
        return None

    def take_step(self, step: int) -> dict[str, float]:
        """One optimizer step: score the samples of a batch of comparisons, and push winners above losers.

        Raises CheckpointError naming the file of the set that is damaged, or TrainingError, when the loss is not
        finite; nothing was learned then.
        """
        began = time.perf_counter()
        session, optim = self.session, self.config.optim
        factor = rate_factor(step, self.num_steps, optim)
        session.set_rate(factor)
        chosen = self.batcher.at(step)
        micros = self.batcher.micro_batches(chosen, size=optim.micro_batch_size, rank=session.rank, world=session.world)
        loss, right, decided = 0.0, 0.0, 0.0
        for number, micro in enumerate(micros):
            with session.micro_step():
                outputs = self._outputs(micro, step, number)
                winner, loser = outputs[micro.winner], outputs[micro.loser]
                part = (self._losses(winner, loser, micro, step) * micro.weight.to(winner)).sum()
                session.backward(part)
            loss += float(part.detach())
            weight = micro.weight * ~micro.tie
            right += float(((winner[:, 0] > loser[:, 0]).cpu() * weight).sum())
            decided += float(weight.sum())
        loss, right, decided = session.sum(loss), session.sum(right), session.sum(decided)
        if not math.isfinite(loss):
            self.train.check_finite(self.batcher.samples_of(chosen))
            raise TrainingError(f"the loss of step {step} is {loss}, on finite data; {LOWER_RATES}")
        norm = session.step()
        self.average.update(step)
        return {
            "train/loss": loss / self.batcher.share(chosen),  # the mean over the step's pairs
            "train/accuracy": right / decided if decided else math.nan,
            "train/grad_norm": norm,
            "train/lr_factor": factor,
            "time/step_s": time.perf_counter() - began,
        }

    def evaluate(self) -> dict[str, float]:
        """Accuracy on the validation pairs, with the averaged weights where there are any."""
        began, pairs = time.perf_counter(), self.validation_pairs
        with self.average.applied():
            try:
                self.last = validate(self.session, self.validation, pairs, batch_size=self.config.eval.batch_size)
            except ValueError:
                self.validation.check_finite(torch.cat([pairs.winner, pairs.loser]).unique())
                raise
        figures = {"validation/accuracy": self.last.overall, "validation/loss": self.last.loss}
        for kind, shares in (("source", self.last.by_source), ("category", self.last.by_category)):
            figures |= {f"validation/{kind}/{name}": share for name, share in shares.items()}
        return figures | {"time/validation_s": time.perf_counter() - began}

    def _outputs(self, micro: MicroBatch, step: int, number: int) -> torch.Tensor:
        """Outputs [B, 1 or 2] of the samples of a micro-batch, those of one shape together."""
        session, seed = self.session, self.config.run.seed
        seeds = torch.tensor([derive(seed, "noise", step, int(c)) for c in micro.comparison.tolist()])
        shape = self.train.shape[micro.samples]
        rows = [(shape == one).nonzero()[:, 0] for one in torch.unique(shape).tolist()]
        parts = [
            session.trainable.inputs(self.train, micro.samples[part], seeds[part], session.device) for part in rows
        ]
        with global_seed(derive(seed, "dropout", step, number, session.rank)):  # dropout takes no generator of its own
            found = session.network(parts)
        outputs = torch.cat(found)
        return outputs[torch.argsort(torch.cat(rows)).to(outputs.device)]

    def _losses(self, winner: torch.Tensor, loser: torch.Tensor, micro: MicroBatch, step: int) -> torch.Tensor:
        """The loss [P] of each pair; draws are keyed by comparison, so that they do not depend on who makes them."""
        loss, seed = self.config.loss, self.config.run.seed
        xi = None
        if loss.kind == "uncertainty":
            comparisons, counts = torch.unique_consecutive(micro.comparison[micro.winner], return_counts=True)
            xi = torch.cat(
                [
                    torch.randn(loss.draws, count, generator=generator(seed, "draws", step, comparison))
                    for comparison, count in zip(comparisons.tolist(), counts.tolist(), strict=True)
                ],
                1,
            )
        tie = micro.tie.to(winner.device)
        return pair_losses(winner, loser, tie, xi, kind=loss.kind, ties=loss.ties, threshold=loss.tie_threshold)

    def _is_due(self, step: int, every: int) -> bool:
        return step + 1 == self.num_steps or bool(every and (step + 1) % every == 0)

    def _save(self, step: int) -> None:
        settings, keep = fixed_settings(self.config), self.config.checkpoint.keep
        stores = (self.train, self.validation)
        save_state(self.checkpoints, step + 1, self.session, self.average, settings=settings, stores=stores, keep=keep)

    def _report(self, step: int, figures: dict[str, float], bar: tqdm) -> None:
        if self.log is not None:
            self.log.log(step, figures)
        shown = {"loss": f"{figures['train/loss']:.3f}"}
        if self.last is not None:
            shown["accuracy"] = f"{100 * self.last.overall:.1f} %"
        bar.set_postfix(shown, refresh=False)


def rate_factor(step: int, num_steps: int, optim: OptimSection) -> float:
    """The share of the base rate at a step: a linear rise, a plateau, and a cosine down to `final_lr_share`."""
    warmup = math.ceil(optim.warmup_ratio * num_steps)
    if step < warmup:
        return (step + 1) / warmup
    hold = max(warmup, round(optim.hold_ratio * num_steps))
    if step < hold:
        return 1.0
    progress = (step - hold) / max(1, num_steps - hold)
    return optim.final_lr_share + (1 - optim.final_lr_share) * 0.5 * (1 + math.cos(math.pi * progress))
