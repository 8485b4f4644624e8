"""Tables: CSV, JSON Lines and Parquet files and Hub datasets, whole or as streams of pieces."""

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, load_dataset
from datasets import logging as datasets_logging
from datasets.exceptions import DatasetNotFoundError
from datasets.utils import disable_progress_bars
from fsspec.compression import compr
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import infer_compression

from slm_judge.errors import DataError
from slm_judge.hub import hub_message, missing_message

csv.field_size_limit(2**31 - 1)

_FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
}
_COMPRESSIONS = {".gz", ".bz2", ".xz"}
_ROWS_AT_ONCE = 10_000


def file_format(path: Path) -> str | None:
    """csv, json (JSON Lines) or parquet, by suffix; None for anything else."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes.pop()
    return _FORMATS.get(suffixes[-1]) if suffixes else None


def delimiter(path: Path) -> str:
    """What parts the fields of a .csv or .tsv file."""
    return "\t" if ".tsv" in path.suffixes else ","


def read_table(location: str) -> Dataset:
    """Read a whole table.

    Args:
        location: see `TableStream`.

    Raises:
        DataError: there is no such table, it cannot be read, or it has no rows.
    """
    pieces = list(TableStream(location).pieces(_ROWS_AT_ONCE))
    if not pieces:
        raise DataError(f"{location} has no rows.")
    return Dataset(pa.concat_tables(pieces, promote_options="permissive"))


def require_columns(present: Sequence[str], wanted: Sequence[str], location: str) -> None:
    """Refuse a table without some columns.

    Raises:
        DataError: names them, and those that are there.
    """
    if missing := [name for name in wanted if name not in present]:
        raise DataError(
            f"{location} lacks the columns {', '.join(missing)}; it has {', '.join(present)}."
        )


def is_folder(output: str) -> bool:
    """Whether an output is a folder of Parquet files: it ends with a slash."""
    return output.endswith(("/", os.sep))


def check_output(output: str) -> None:
    """Refuse an output that cannot be written, before any work.

    Raises:
        DataError: wrong suffix, a file that is not on this machine, or not writable.
    """
    filesystem, path = fsspec.url_to_fs(output)
    on_this_machine = isinstance(filesystem, LocalFileSystem)
    if not is_folder(output):
        if file_format(Path(output)) is None:
            raise DataError(
                f"{output}: the output is .csv, .tsv, .jsonl or .parquet, or, with a slash at its "
                "end, a folder of Parquet files."
            )
        if "://" in output:
            raise DataError(
                f"{output}: files are written on this machine alone. With a slash at its end, the "
                "output is a folder of Parquet files, on any path that fsspec opens."
            )
    if not on_this_machine:
        return
    folder = Path(path) if is_folder(output) else Path(path).parent
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        raise DataError(f"{folder} is not writable.")


class TableStream:
    """A table that is read from its start to its end, once or again.

    Columns of a CSV are text, so that "007" and "NA" stay as they are.
    """

    def __init__(self, location: str) -> None:
        """Find a table.

        Args:
            location: CSV, TSV, JSON Lines (these also compressed) or Parquet file, or a folder
                of Parquet files (read in the order of their names), on any path that fsspec
                opens; or a Hub dataset `user/name`, `user/name@revision`, with `#split` behind it
                where that is not `train`.

        Raises:
            DataError: there is no such table.
        """
        self.location = location
        self._position: Callable[[], float] | None = None
        self._size = 0
        self._kind = file_format(Path(location))
        filesystem, path = fsspec.url_to_fs(location)
        self._files = [location]
        if filesystem.isdir(path):
            names = sorted(filesystem.ls(path, detail=False))
            names = [
                n for n in names if n.endswith(".parquet") and n.rpartition("/")[2][0] not in "_."
            ]
            if not names:
                raise DataError(f"{location} is a folder without Parquet files.")
            self._kind, self._files = "parquet", [filesystem.unstrip_protocol(n) for n in names]
            self._size = sum(int(filesystem.size(name) or 0) for name in names)
        elif filesystem.isfile(path):
            if self._kind is None:
                raise DataError(
                    f"{location} is neither .csv, .tsv, .jsonl nor .parquet (the first three also "
                    "with .gz, .bz2 or .xz); convert it first."
                )
            self._size = int(filesystem.size(path) or 0)
        elif self._kind or location.count("/") != 1:
            raise DataError(f"There is no file {location}.")
        else:
            self._kind = "hub"

    def pieces(self, n_rows: int) -> Iterator[pa.Table]:
        """Yield tables of `n_rows` rows, the last one shorter.

        Raises:
            DataError: the file cannot be read; the message says where.
        """
        waiting: list[pa.Table] = []
        n_waiting = 0
        for batch in self._batches(n_rows):
            waiting.append(batch)
            n_waiting += batch.num_rows
            while n_waiting >= n_rows:
                table = pa.concat_tables(waiting, promote_options="permissive")
                yield table.slice(0, n_rows)
                waiting, n_waiting = [table.slice(n_rows)], n_waiting - n_rows
        self._position = lambda: float(self._size)  # the file is closed
        if n_waiting:
            yield pa.concat_tables(waiting, promote_options="permissive")

    @property
    def share_read(self) -> float | None:
        """How much of the file was read, from 0 to 1; None where that is not known."""
        if self._position is None or not self._size:
            return None
        return min(self._position() / self._size, 1.0)

    def _batches(self, n_rows: int) -> Iterator[pa.Table]:
        readers = {
            "csv": self._read_csv,
            "json": self._read_json_lines,
            "parquet": self._read_parquet,
            "hub": self._read_hub,
        }
        try:
            yield from readers[str(self._kind)](n_rows)
        except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise DataError(f"{self.location} cannot be read as {self._kind}: {error}") from error

    def _open(self) -> Any:
        """The file as text; how far it was read is measured before decompression."""
        raw = fsspec.open(self.location, "rb").open()
        self._position = raw.tell
        compression = infer_compression(self.location)
        stream = compr[compression](raw, mode="rb") if compression else raw
        return io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")

    def _read_csv(self, n_rows: int) -> Iterator[pa.Table]:
        separator = delimiter(Path(self.location))
        with self._open() as file:
            reader = csv.reader(file, delimiter=separator, strict=True)
            header = next(reader, [])
            check_header(self.location, header)
            rows: list[list[str]] = []
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise DataError(
                        f"{self.location} cannot be read as csv: line {reader.line_num} has "
                        f"{len(row)} fields, the header has {len(header)}. Texts with a "
                        f"{separator!r} or a line break need quotes."
                    )
                rows.append(row)
                if len(rows) == n_rows:
                    yield _text_table(header, rows)
                    rows = []
            yield _text_table(header, rows)

    def _read_json_lines(self, n_rows: int) -> Iterator[pa.Table]:
        with self._open() as file:
            rows: list[dict[str, Any]] = []
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise DataError(
                        f"{self.location} cannot be read as json: line {number}: {error}"
                    ) from error
                if not isinstance(row, dict):
                    raise DataError(f"{self.location}, line {number}: expected an object.")
                rows.append(row)
                if len(rows) == n_rows:
                    yield pa.Table.from_pylist(rows)
                    rows = []
            if rows:
                yield pa.Table.from_pylist(rows)

    def _read_parquet(self, n_rows: int) -> Iterator[pa.Table]:
        for n_done, name in enumerate(self._files):
            with fsspec.open(name, "rb") as raw:
                file = pq.ParquetFile(raw)
                total, rows = max(file.metadata.num_rows, 1), 0
                for batch in file.iter_batches(batch_size=n_rows):
                    rows += batch.num_rows
                    share = (n_done + rows / total) / len(self._files)
                    self._position = lambda: self._size * share  # noqa: B023
                    yield pa.Table.from_batches([batch])

    def _read_hub(self, n_rows: int) -> Iterator[pa.Table]:
        name, _, split = self.location.partition("#")
        repo, _, revision = name.partition("@")
        disable_progress_bars()
        datasets_logging.set_verbosity_error()
        try:
            stream = load_dataset(
                repo, revision=revision or None, split=split or "train", streaming=True
            )
            yield from stream.with_format("arrow").iter(batch_size=n_rows)
        except OSError as error:
            if isinstance(error, DatasetNotFoundError) and error.__cause__ is None:
                raise DataError(missing_message(repo)) from error
            raise DataError(hub_message(repo, revision, error)) from error
        except ValueError as error:  # no such split, or no table in the repository
            raise DataError(f"{self.location} cannot be read from the Hub: {error}") from error


def check_header(location: str, header: list[str]) -> None:
    """Refuse a CSV without distinct column names.

    Raises:
        DataError: names what is wrong.
    """
    repeated = sorted({name for name in header if header.count(name) > 1})
    if not header or repeated:
        found = f"repeated columns {', '.join(repeated)}" if repeated else "an empty file"
        raise DataError(
            f"{location}: expected a header line with distinct column names, got {found}."
        )


def _text_table(header: list[str], rows: list[list[str]]) -> pa.Table:
    columns: list[Any] = list(zip(*rows, strict=True)) if rows else [[] for _ in header]
    arrays = [pa.array(column, pa.string()) for column in columns]
    return pa.Table.from_arrays(arrays, names=header)
