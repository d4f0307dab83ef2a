"""Fetches what configurations need: looks at what is there, asks the sources, checks the disks, and brings the rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from flowrl.base.amounts import count, size
from flowrl.base.folder_lock import make_writable, take_lock
from flowrl.fetch.digests import sha256
from flowrl.fetch.disks import check_room
from flowrl.fetch.failures import FULL, no_space
from flowrl.fetch.faults import faults_of
from flowrl.fetch.needs import Need
from flowrl.fetch.prompts import check_prompts, count_prompts
from flowrl.fetch.published import FetchError
from flowrl.fetch.record import Expected, add_to_record
from flowrl.fetch.tasks import Item, Origin, Task, folder_of, task_for
from flowrl.fetch.transfer import arrived, bring

Say = Callable[[str], None]
_LOCK = ".flowrl-fetch.lock"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A need that could not be met, and why.

    Example: ``bring_all(tasks, print)[0].error.problem``
    """

    need: Need
    error: FetchError


def survey(
    needs: Sequence[Need], origin: Origin, say: Say, *, thorough: bool = True
) -> tuple[list[Task], list[Failure]]:
    """Look at what is there and ask the sources; returns what is to be done and what cannot be had.

    Without `thorough` what is there is judged by sizes. Raises FetchError when a disk has too little room.
    """
    tasks: list[Task] = []
    failures: list[Failure] = []
    for need in needs:
        try:
            task = task_for(need, origin, thorough=thorough)
            for file in {item.file.part: item.file for item in task.to_fetch}.values():
                origin.check_access(file)
        except FetchError as error:
            failures.append(Failure(need=need, error=error))
            say(f"{need.kind:<8} {need.path}: not to be had{f' from {need.source}' if need.source else ''}")
            continue
        say(_summary(task, thorough=thorough))
        tasks += [task] if task.to_fetch else []
    if tasks:
        say(f"to fetch: {check_room(_bytes_by_folder(tasks)) or 'nothing that takes room'}")
    return tasks, failures


def bring_all(tasks: Sequence[Task], say: Say) -> list[Failure]:
    """Bring what is to come; returns what could not be had. One failure does not stop the others."""
    failures: list[Failure] = []
    for task in tasks:
        say(f"{task.need.path}")
        try:
            _bring_task(task, say)
        except FetchError as error:
            failures.append(Failure(need=task.need, error=error))
        except OSError as error:
            if error.errno not in FULL:
                raise
            failures.append(Failure(need=task.need, error=no_space(str(task.need.path))))
    return failures


def _summary(task: Task, *, thorough: bool) -> str:
    """One line about a need: what it is, how much of it is there, and what will come from where."""
    need, missing = task.need, task.to_fetch
    head = f"{need.kind:<8} {need.path}:"
    if not missing:
        total = sum(item.file.size or 0 for item in task.items)
        found = f"{count(len(task.items), 'file')}, {size(total)}"
        if not thorough:
            return f"{head} there, of its size ({found}){_prompts(need)}; --check reads the checksums"
        return f"{head} there and whole ({found}){_prompts(need)}"
    unknown = any(item.file.size is None for item in missing)
    amount = f"{'at least ' if unknown else ''}{size(sum(item.to_come for item in missing))}"
    gated = ", gated" if need.gated else ""
    part = f"{len(missing)} of " if len(missing) < len(task.items) else ""
    return f"{head} {part}{count(len(task.items), 'file')} to fetch, {amount}, from {need.source}{gated}"


def _prompts(need: Need) -> str:
    return f", {count_prompts(need.path):,} prompts" if need.kind == "prompts" else ""


def _bytes_by_folder(tasks: Iterable[Task]) -> dict[Path, int]:
    amounts: dict[Path, int] = defaultdict(int)
    for task in tasks:
        amounts[folder_of(task.need)] += sum(item.room for item in task.items)
    return amounts


def _bring_task(task: Task, say: Say) -> None:
    """Bring the files of a need; raises FetchError at the first that cannot be had."""
    need, folder = task.need, folder_of(task.need)
    make_writable(folder, need.key)
    lock = take_lock(folder, need.key, _LOCK)
    try:
        add_to_record(folder, _expected(item for item in task.items if item.file.digest))
        for item in task.to_fetch:
            _say_coming(item, say)
            bring(item.file, item.path, partial(_accept, need))
        if left := list(faults_of(need.path, need.bundle, is_file=need.kind == "prompts")):
            raise FetchError(f"after everything came, {'; '.join(left)}: the source itself is not whole")
        # Last, since a part counts as whole once all that is noted of it is.
        add_to_record(folder, _expected(item for item in task.items if not item.file.digest))
    finally:
        if lock is not None:
            lock.close()
    if need.kind == "prompts":
        say(f"  {count_prompts(need.path):,} prompts")


def _expected(items: Iterable[Item]) -> dict[str, dict[str, Expected]]:
    """What the record will say of these files; a checksum that the source does not have is made of what came."""
    parts: dict[str, dict[str, Expected]] = defaultdict(dict)
    for item in items:
        file = item.file
        amount = item.path.stat().st_size if file.size is None else file.size
        parts[file.part.label][file.name] = Expected(size=amount, digest=file.digest or sha256(item.path))
    return parts


def _say_coming(item: Item, say: Say) -> None:
    amount = "" if item.file.size is None else f"  {size(item.file.size)}"
    before = arrived(item.file, item.path)
    say(f"  {item.file.name}{amount}{f', {size(before)} of which are here' if before else ''}")


def _accept(need: Need, path: Path) -> None:
    if need.bundle is not None and need.bundle.prompts:
        check_prompts(path, str(need.path), need.bundle.prompts)
