"""Parquet files through pyarrow, an optional package: which files there are, their rows in batches, single cells."""

from __future__ import annotations

import glob
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from flowrl.base.errors import UserError

_ROWS = 1024  # of a batch without images
_CELLS = 16  # of a batch of images, each up to some megabytes
_OPEN_COLUMNS = 4  # the two images of a row, and those of one more file


class DamagedCell(ValueError):
    """A cell of a parquet file whose page is damaged; other cells of the file may be whole."""


def open_parquet(path: Path) -> Any:
    """A pyarrow.parquet.ParquetFile; raises UserError without pyarrow, or when the file is missing or damaged."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f'{path}: reading parquet needs pyarrow; run: pip install "flowrl[parquet]"') from None
    try:
        # Through a buffer, which holds the least of the ways there are: a column chunk of images is hundreds of MB.
        return pyarrow.parquet.ParquetFile(path, buffer_size=2**20, pre_buffer=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a parquet file, or damaged ({error}); copy it again") from None


def parquet_files(path: str) -> list[Path]:
    """What `matching_files` gives; raises UserError when that is none."""
    files = matching_files(path)
    if not files:
        raise UserError(f"{path}: there is no parquet file")
    return files


def matching_files(path: str) -> list[Path]:
    """The files that `path` means: itself, those below a folder, or those that a pattern matches, sorted by name.

    Raises UserError when a folder holds several splits, as `train-*` beside `test-*`.
    """
    if Path(path).is_dir():
        files = sorted(Path(path).glob("**/*.parquet"))
        splits = sorted({file.name.partition("-")[0] for file in files if "-of-" in file.name})
        if len(splits) > 1:
            raise UserError(
                f"{path}: holds several splits ({', '.join(splits)}); give a pattern, such as {path}/**/{splits[0]}-*"
            )
    elif any(character in path for character in "*?[") and not Path(path).exists():
        files = [Path(name) for name in sorted(glob.glob(path, recursive=True))]
    else:
        files = [Path(path)]
    return files


def read_columns(path: Path, columns: tuple[str, ...], needed: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The rows of one file with those of `columns` that it has, a batch of them in memory at a time.

    Raises UserError when one of `needed` is missing, or when the file is damaged, after the rows before that.
    """
    file = open_parquet(path)
    present = set(file.schema_arrow.names)
    if missing := [name for name in needed if name not in present]:
        raise UserError(f"{path}: has no column {missing[0]!r}; it has {', '.join(file.schema_arrow.names)}")
    try:
        for batch in file.iter_batches(batch_size=_ROWS, columns=[name for name in columns if name in present]):
            yield from batch.to_pylist()
    except (ValueError, OSError) as error:  # pyarrow's errors are of these kinds
        raise UserError(f"{path}: damaged ({error}); copy it again") from None


class ParquetCells:
    """Single cells of parquet files, quick when they are asked for in the order of the rows.

    A batch of cells of at most four columns is in memory, and the page that each lies in: writers often put a whole row
    group of images in one page, so that up to twice a row group is held. Going back by more than a batch decodes the
    row group anew.
    """

    def __init__(self) -> None:
        self._columns: OrderedDict[tuple[str, str], _Column] = OrderedDict()

    def cell(self, path: str, column: str, row: int) -> object:
        """The value of one cell.

        Raises DamagedCell when it cannot be decoded, and UserError when the file is missing, is none, lacks the column
        or is shorter.
        """
        key = (path, column)
        if key not in self._columns:
            self._columns[key] = _Column(Path(path), column)
            if len(self._columns) > _OPEN_COLUMNS:
                self._columns.popitem(last=False)
        self._columns.move_to_end(key)
        return self._columns[key].cell(row)


class _Column:
    """One column of one file, with the batch that was read last."""

    def __init__(self, path: Path, column: str) -> None:
        self._path = path
        self._name = column
        self._file = open_parquet(path)
        if column not in self._file.schema_arrow.names:
            raise UserError(f"{path}: has no column {column!r}")
        metadata = self._file.metadata
        sizes = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        self._starts = [0, *accumulate(sizes)]
        self._group = -1
        self._batches: Iterator[Any] = iter(())
        self._first = 0  # row of the batch
        self._batch: list[object] = []

    def cell(self, row: int) -> object:
        if not 0 <= row < self._starts[-1]:
            raise UserError(f"{self._path}: has {self._starts[-1]} rows, row {row} was asked for")
        group = bisect_right(self._starts, row) - 1
        if group != self._group or row < self._first:
            self._group = group
            self._batches = self._file.iter_batches(batch_size=_CELLS, row_groups=[group], columns=[self._name])
            self._first, self._batch = self._starts[group], []
        try:
            while row >= self._first + len(self._batch):
                self._first += len(self._batch)
                self._batch = next(self._batches).column(0).to_pylist()
        except (ValueError, OSError) as error:
            self._group = -1
            reason = " ".join(str(error).split())
            raise DamagedCell(f"the file is damaged there ({reason}); copy it again") from None
        return self._batch[row - self._first]
