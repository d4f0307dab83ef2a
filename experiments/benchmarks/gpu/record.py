"""What a run of the benchmark leaves: one record, as JSON."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from flowrl.base.environment import Environment

Outcome = Literal["measured", "computed", "out of memory", "skipped", "failed"]


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """How far two ways to compute the same are apart.

    Example: ``Deviation(what="largest |ratio - 1|", value=2.1e-4)``
    """

    what: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing that was measured, or why it was not.

    Example: ``Case(name="4 samples per forward", images=16, seconds=(6.1, 6.2), flops=2573 * 10**12)``
    """

    name: str
    outcome: Outcome = "measured"
    reason: str = ""  # where it was not measured
    images: int = 0  # that one call makes, scores or trains on; 0 where they are not what is counted
    seconds: tuple[float, ...] = ()  # of each call, after one that is not counted
    flops: int = 0  # of one call
    allocated: int | None = None  # bytes, the highest of tensors during the calls; None on the CPU
    reserved: int | None = None  # bytes, the highest of what torch's allocator held
    planned: int | None = None  # bytes that `flowrl.plan` computes for it
    deviations: tuple[Deviation, ...] = ()

    @property
    def median(self) -> float:
        """Seconds of a call."""
        return statistics.median(self.seconds)

    @property
    def rate(self) -> float:
        """FLOPs per second."""
        return self.flops / self.median


@dataclass(frozen=True, kw_only=True)
class PartRecord:
    """The cases of one part, in the order they were measured."""

    name: str
    title: str
    cases: tuple[Case, ...]


@dataclass(frozen=True, kw_only=True)
class Device:
    """What was measured on."""

    name: str
    driver: str  # empty for a CPU
    memory: int  # bytes


@dataclass(frozen=True, kw_only=True)
class Record:
    """A run of the benchmark."""

    small: bool  # tiny shapes: its times say nothing
    seconds: float
    device: Device
    environment: Environment
    parts: tuple[PartRecord, ...] = field(default=())

    def part(self, name: str) -> PartRecord:
        """The part of that name; raises KeyError where it was not asked for."""
        for part in self.parts:
            if part.name == name:
                return part
        raise KeyError(name)

    @property
    def matmul_rate(self) -> float:
        """The measured FLOPs per second of a large matrix product; 0 where it was not measured."""
        cases = [case for part in self.parts if part.name == "matmul" for case in part.cases if case.seconds]
        return cases[0].rate if cases else 0.0

    def planned(self, part: str, case: str) -> int | None:
        """The bytes that the plan computes for a case of a part; None where it knows nothing of it."""
        names = {one.name: one.planned for row in self.parts if row.name == "plan" for one in row.cases}
        return names.get(f"{part}: {case}")


def to_json(record: Record) -> str:
    """The record as indented JSON."""
    return json.dumps(asdict(record), indent=2) + "\n"


def from_json(text: str) -> Record:
    """The record of what `to_json` made."""
    row = json.loads(text)
    row["environment"] = Environment(**row["environment"])
    row["device"] = Device(**row["device"])
    row["parts"] = tuple(
        PartRecord(**part | {"cases": tuple(case_from(case) for case in part["cases"])}) for part in row["parts"]
    )
    return Record(**row)


def case_from(row: dict[str, Any]) -> Case:
    """The case of an object that JSON holds."""
    deviations = tuple(Deviation(**one) for one in row["deviations"])
    return Case(**row | {"seconds": tuple(row["seconds"]), "deviations": deviations})
