"""Answers that were paid for, each in a file of its own, so that none is asked for twice."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from flowrl.base.atomic_file import write_atomically
from flowrl.base.errors import UserError
from flowrl.base.folder_lock import make_writable, take_lock
from flowrl.judge.answer import Answer


class CacheError(UserError):
    """A file of the cache that cannot be read; it is not passed over, because that would be paid for again."""


class AnswerCache:
    """A folder of answers by the key of their question; one process uses it at a time.

    A file appears whole, as soon as its answer has come. Raises ConfigError, which names --cache, when the folder
    cannot be written or another process uses it.
    """

    def __init__(self, folder: Path) -> None:
        make_writable(folder, "--cache")
        self.folder = folder
        self._lock = take_lock(folder, "--cache")
        self._claimed: set[str] = set()
        self._free = threading.Condition()

    def close(self) -> None:
        """Let another process use the folder."""
        if self._lock is not None:
            self._lock.close()

    def read(self, key: str) -> tuple[Answer, ...]:
        """All answers to a question, the first one first; () where it was never answered. Raises CacheError."""
        path = self._path(key)
        try:
            found = json.loads(path.read_bytes())
            if found["question"] != key or not found["answers"]:
                raise ValueError("it is of another question, or empty")
            return tuple(Answer(**answer) for answer in found["answers"])
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CacheError(f"{path}: cannot be read ({error}); delete it, and its question is asked anew") from None

    def write(self, key: str, *, model: str, prompt: str, answers: tuple[Answer, ...]) -> None:
        """Keep all answers to a question; model and prompt are there for a person who looks into the file."""
        path = self._path(key)
        path.parent.mkdir(exist_ok=True)
        facts = {"question": key, "model": model, "prompt": prompt, "answers": [asdict(one) for one in answers]}
        write_atomically(path, (json.dumps(facts, indent=1) + "\n").encode())

    @contextmanager
    def claim(self, key: str) -> Iterator[None]:
        """Within the context no other thread has this question: of equal images the second reads the first's answer."""
        with self._free:
            self._free.wait_for(lambda: key not in self._claimed)
            self._claimed.add(key)
        try:
            yield
        finally:
            with self._free:
                self._claimed.discard(key)
                self._free.notify_all()

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
