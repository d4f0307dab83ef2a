"""The manifest of an experiment: a line for each run, with its configuration, its folder and a hash that seals both."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from flowrl.base.atomic_file import write_atomically
from flowrl.config import ConfigError, RunConfig, dump, load
from flowrl.matrix.experiment import Run
from flowrl.matrix.progress import begun

MANIFEST = "manifest.jsonl"
CONFIGS = "configs"  # the folder beside it


@dataclass(frozen=True, kw_only=True)
class Element:
    """One line: a run of the experiment. Paths are relative to the folder in which commands are called."""

    index: int
    arm: str
    seed: int
    config: Path  # the resolved configuration
    dir: Path  # of the run
    config_hash: str  # SHA-256 of the file `config`

    @property
    def name(self) -> str:
        """Such as "hpsv3-0"."""
        return f"{self.arm}-{self.seed}"

    def load(self, overrides: list[str] | None = None) -> RunConfig:
        """The configuration of the run; raises ConfigError when its file is not as it was written."""
        try:
            text = self.config.read_bytes()
        except OSError as error:
            raise ConfigError(f"{self.config}: {error.strerror}; expand the experiment again") from None
        if hashlib.sha256(text).hexdigest() != self.config_hash:
            raise ConfigError(f"{self.config}: is not as the experiment wrote it; expand the experiment again")
        return load(self.config, overrides or [])


def write_manifest(runs: list[Run], folder: Path) -> list[Element]:
    """Write the configurations and the manifest into `folder`, and return its lines.

    Raises ConfigError, and writes nothing, when runs of another configuration have begun there.
    """
    texts = [dump(run.config).encode() for run in runs]
    elements = [
        Element(
            index=index,
            arm=run.arm,
            seed=run.seed,
            config=folder / CONFIGS / f"{run.name}.yaml",
            dir=Path(run.config.run.dir),
            config_hash=hashlib.sha256(text).hexdigest(),
        )
        for index, (run, text) in enumerate(zip(runs, texts, strict=True))
    ]
    _refuse_to_mix(elements, folder)
    (folder / CONFIGS).mkdir(parents=True, exist_ok=True)
    for element, text in zip(elements, texts, strict=True):
        write_atomically(element.config, text)
    lines = [json.dumps({**asdict(one), "config": str(one.config), "dir": str(one.dir)}) for one in elements]
    write_atomically(folder / MANIFEST, "".join(f"{line}\n" for line in lines).encode())
    return elements


def read_manifest(path: Path) -> list[Element]:
    """The lines of a manifest; raises ConfigError when it is none."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [Element(**{**row, "config": Path(row["config"]), "dir": Path(row["dir"])}) for row in rows]
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such manifest; flowrl matrix EXPERIMENT writes it") from None
    except (OSError, ValueError, TypeError, KeyError):
        names = ", ".join(one.name for one in fields(Element))
        raise ConfigError(
            f"{path}: is no manifest, of whose lines each has {names}; expand the experiment again"
        ) from None


def element_of(manifest: Path, index: int) -> Element:
    """The line of an index; raises ConfigError when there is none."""
    elements = {element.index: element for element in read_manifest(manifest)}
    if index not in elements:
        raise ConfigError(
            f"element {index}: {manifest} has 0 to {len(elements) - 1}; "
            "name one of these, or expand the experiment again"
        )
    return elements[index]


def _refuse_to_mix(elements: list[Element], folder: Path) -> None:
    if not (folder / MANIFEST).is_file():
        return
    now = {element.name: element.config_hash for element in elements}
    kept = [old for old in read_manifest(folder / MANIFEST) if begun(old.dir) and now.get(old.name) != old.config_hash]
    if kept:
        raise ConfigError(
            f"{folder}: {', '.join(old.name for old in kept)} began with another configuration; give --out another "
            "folder, or remove this one"
        )
