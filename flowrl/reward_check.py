"""What every reward promises, as a list of named checks: for `flowrl reward check` and for the contract tests.

A check takes a `Trial` and returns a `Finding`. An error that the reward raises is for the caller of a check;
`run_contract` makes a finding of it.
"""

from __future__ import annotations

import logging
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from flowrl.base.amounts import size
from flowrl.base.errors import UserError
from flowrl.core.latent_space import latent_space_name
from flowrl.reward_call import reason
from flowrl.reward_protocols import Reward
from flowrl.types import RewardInput, TextCondition

_logger = logging.getLogger(__name__)
Verdict = Literal["ok", "FAIL", "info"]
MEMBERS = ("name", "input_kind", "latent_space", "batch_size", "__call__")
_LARGEST_TIMED = 64  # samples
_OTHER_ROWS = ([2, 0, 3, 1], [1], [3, 2])


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check came to; "info" is a measurement that no reward can fail."""

    verdict: Verdict
    found: str


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A reward, a batch of at least four samples of the kind that it reads, and how far rounding may move a score."""

    reward: Reward
    batch: RewardInput
    tolerance: float = 1e-4  # relative and absolute; on a GPU or in bfloat16 another batch rounds further

    def scores(self, batch: RewardInput | None = None) -> torch.Tensor:
        """The scores of a batch, by default a copy of the trial's own; raises TypeError when they are no tensor of
        real numbers.
        """
        with torch.no_grad():
            scores = self.reward(self.batch.take(range(len(self.batch.prompts))) if batch is None else batch)
        if not isinstance(scores, torch.Tensor):
            raise TypeError(f"a reward returns a tensor, got {type(scores).__name__}")
        if scores.is_complex():  # which have no order
            raise TypeError(f"scores must be real floating-point numbers, got {scores.dtype}")
        return scores


Check = Callable[[Trial], Finding]


def members(reward: object) -> Finding:
    """The five members are there, and are of the kinds that `flowrl.reward_protocols.Reward` says."""
    missing = [name for name in MEMBERS if not hasattr(reward, name)]
    if missing:
        return Finding(verdict="FAIL", found=f"{', '.join(missing)} missing; a reward has {', '.join(MEMBERS)}")
    name, kind, space, size = (getattr(reward, member) for member in MEMBERS[:4])
    example = latent_space_name(channels=16, factor=8, scaling=1.5305, shift=0.0609)
    wrong = {
        f"name must be a text that is not empty, got {name!r}": not isinstance(name, str) or not name,
        f"input_kind must be 'latent' or 'pixel', got {kind!r}": kind not in ("latent", "pixel"),
        f"latent_space must be a name such as {example!r}, got {space!r}": kind == "latent"
        and not isinstance(space, str),
        f"latent_space of a pixel reward must be None, got {space!r}": kind == "pixel" and space is not None,
        f"batch_size must be an integer of at least 1, got {size!r}": not isinstance(size, int) or size < 1,
    }
    if any(wrong.values()):
        return Finding(verdict="FAIL", found="; ".join(rule for rule, broken in wrong.items() if broken))
    reads = space if kind == "latent" else "pixels"
    return Finding(verdict="ok", found=f"{name!r} reads {reads}, {size} samples in one call")


def shape(trial: Trial) -> Finding:
    """One score per sample."""
    found = list(trial.scores().shape)
    wanted = [len(trial.batch.prompts)]
    return _judge(found == wanted, f"{found}" if found == wanted else f"{found}, must be {wanted}")


def dtype(trial: Trial) -> Finding:
    """Scores are float32."""
    found = trial.scores().dtype
    good = found == torch.float32
    return _judge(good, str(found) if good else f"{found}, must be torch.float32; end with .float()")


def finite(trial: Trial) -> Finding:
    """Every sample of a plain batch gets a finite score; NaN is for samples that cannot be scored."""
    scores = trial.scores()
    good = int(scores.isfinite().sum())
    return _judge(good == len(scores), f"{good} of {len(scores)} scores")


def scores_seen(trial: Trial) -> Finding:
    """The lowest and the highest score."""
    scores = trial.scores()
    return Finding(verdict="info", found=f"{scores.min():.4g} to {scores.max():.4g}")


def determinism(trial: Trial) -> Finding:
    """The same batch gets the same bits again, also after another one, and nothing is drawn from global generators."""
    states = _generator_states()
    first = trial.scores()
    drawn = [name for name, state in _generator_states().items() if state != states[name]]
    if drawn:
        return _judge(
            False, f"draws from the global generator of {', '.join(drawn)}; make one from batch.seeds for each sample"
        )
    trial.scores(trial.batch.take([3, 2]))
    difference = _largest(trial.scores(), first)
    return _judge(difference == 0, "equal bits" if difference == 0 else f"scores differ by {difference:.3g}")


def leaves_its_input(trial: Trial) -> Finding:
    """The batch is as it was after the call: its latents are those that training goes on with."""
    batch = trial.batch.take([0, 1, 2, 3])
    before = {name: tensor.clone() for name, tensor in _tensors(batch).items()}
    trial.scores(batch)
    changed = [name for name, tensor in _tensors(batch).items() if not torch.equal(tensor, before[name])]
    return _judge(not changed, f"changes {', '.join(changed)} in place" if changed else "unchanged")


def order(trial: Trial) -> Finding:
    """A score goes with its sample, wherever that stands in the batch."""
    scores = trial.scores()
    rows = _OTHER_ROWS[0]
    return _near(trial, trial.scores(trial.batch.take(rows)), scores[rows])


def batch_split(trial: Trial) -> Finding:
    """A score does not depend on what else is in the batch."""
    scores = trial.scores()
    parts = [([row], trial.scores(trial.batch.take([row]))) for row in range(len(scores))]
    parts += [(rows, trial.scores(trial.batch.take(rows))) for rows in _OTHER_ROWS[1:]]
    return _near(trial, torch.cat([part for _, part in parts]), torch.cat([scores[rows] for rows, _ in parts]))


def refuses_other_input(trial: Trial) -> Finding:
    """A batch of the other kind is a ValueError that says why, and never scores."""
    bare = replace(trial.batch, latents=None, condition=None, pixels=None)
    size = len(trial.batch.prompts)
    other = replace(bare, pixels=torch.zeros(size, 3, 64, 64))
    if trial.reward.input_kind == "pixel":
        condition = TextCondition(embeds=torch.zeros(size, 28, 96), pooled=torch.zeros(size, 80))
        other = replace(bare, latents=torch.zeros(size, 16, 8, 8), condition=condition)
    for wrong in (other, bare):
        kind = "latents" if wrong.latents is not None else "pixels" if wrong.pixels is not None else "neither"
        try:
            trial.scores(wrong)
        except UserError:  # is no refusal, though some are ValueErrors
            raise
        except ValueError as error:
            says = str(error)
        except (AttributeError, TypeError) as error:
            return _judge(
                False, f"a batch with {kind}: {type(error).__name__}; raise a ValueError that says what is missing"
            )
        else:
            return _judge(False, f"a batch with {kind} gets scores; raise a ValueError that says what is missing")
    return _judge(True, says)


def gradient(trial: Trial) -> Finding:
    """Whether scores have a gradient with respect to latents, which algorithms that differentiate a reward need."""
    if trial.batch.latents is None:
        return Finding(verdict="info", found="not asked of a pixel reward")
    latents = trial.batch.latents.clone().requires_grad_()
    scores = trial.reward(replace(trial.batch, latents=latents))
    if not scores.requires_grad:
        return Finding(verdict="info", found="none with respect to the latents")
    (slope,) = torch.autograd.grad(scores.sum(), latents, allow_unused=True)
    if slope is None or not slope.isfinite().all():
        return Finding(verdict="info", found="none with respect to the latents" if slope is None else "not finite")
    sizes = slope.flatten(1).norm(dim=1)
    return Finding(verdict="info", found=f"with respect to the latents, norm {sizes.min():.3g} to {sizes.max():.3g}")


def cost(trial: Trial) -> Finding:
    """Time per image and peak memory of one call with `batch_size` samples, 64 at most."""
    samples = min(trial.reward.batch_size, _LARGEST_TIMED)
    large = trial.batch.take([row % len(trial.batch.prompts) for row in range(samples)])
    on_gpu = torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0
    began = time.perf_counter()
    trial.scores(large).cpu()  # which waits for a GPU
    milliseconds = 1000 * (time.perf_counter() - began) / samples
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    memory = f"peak memory of the process {size(peak)}"
    if on_gpu:
        memory += f", of the GPU {size(torch.cuda.max_memory_allocated())}"
    return Finding(verdict="info", found=f"{milliseconds:.3g} ms per image, {samples} in one call; {memory}")


def tells_apart(trial: Trial) -> Finding:
    """Different samples do not all have one score: there would be nothing to learn from it."""
    scores = trial.scores()
    different = len(set(scores[~scores.isnan()].tolist()))  # NaN differs from itself, and tells nothing apart
    return _judge(different > 1, f"{len(scores)} samples, distinct scores: {different}")


CONTRACT: dict[str, Check] = {
    "shape": shape,
    "dtype": dtype,
    "finite": finite,
    "tells apart": tells_apart,
    "determinism": determinism,
    "input": leaves_its_input,
    "order": order,
    "batch split": batch_split,
    "other input": refuses_other_input,
}
MEASUREMENTS: dict[str, Check] = {"scores": scores_seen, "gradient": gradient, "cost": cost}


def run_contract(trial: Trial) -> Iterator[tuple[str, Finding]]:
    """Each check and measurement by name as it is done; one in which the reward raises fails, with the traceback of a
    defect logged.

    A reward that does not give one score per sample is held to nothing more.
    """
    for name, check in (CONTRACT | MEASUREMENTS).items():
        try:
            finding = check(trial)
        # Whatever it is, the author wants to read it beside the other findings.
        except (Exception, SystemExit) as error:
            if not isinstance(error, UserError | ValueError):
                _logger.exception("check %r of reward %r", name, trial.reward.name)
            finding = _judge(False, reason(error))
        yield name, finding
        if name == "shape" and finding.verdict == "FAIL":
            return


def _near(trial: Trial, scores: torch.Tensor, expected: torch.Tensor) -> Finding:
    good = torch.allclose(scores, expected, rtol=trial.tolerance, atol=trial.tolerance, equal_nan=True)
    return _judge(good, f"scores differ by {_largest(scores, expected):.3g}, {trial.tolerance:g} is allowed")


def _largest(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference of two tensors [B], where NaN equals NaN."""
    same = (one == other) | (one.isnan() & other.isnan())
    return float(torch.where(same, 0.0, one - other).abs().nan_to_num(torch.inf).max())


def _judge(good: bool, found: str) -> Finding:
    return Finding(verdict="ok" if good else "FAIL", found=found)


def _tensors(batch: RewardInput) -> dict[str, torch.Tensor]:
    parts = [vars(batch)] + ([vars(batch.condition)] if batch.condition is not None else [])
    return {name: value for part in parts for name, value in part.items() if isinstance(value, torch.Tensor)}


def _generator_states() -> dict[str, object]:
    """The states of the generators that a whole process shares."""
    states: dict[str, object] = {
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state(legacy=True)),
        "random": random.getstate(),
    }
    if torch.cuda.is_available():
        states["cuda"] = [state.tolist() for state in torch.cuda.get_rng_state_all()]
    return states
