"""Tables: CSV, JSON Lines and Parquet files and Hub datasets, whole or as streams of pieces.

The columns of a CSV are text, so that "007" and "NA" stay as they are. A row of JSON Lines stays
the text that it is until somebody asks for a value: its keys, their order, its nulls and its
numbers come back as they came. CSV is read by Python's own `csv` in its strict mode: the readers of
pyarrow and pandas take a stray quote for part of a text, and say nothing.
"""

import codecs
import csv
import io
import json
import lzma
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.compression import compr
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import infer_compression

from slm_judge.errors import DataError
from slm_judge.hub import hub_errors, missing_message, repeated

from .text import NoNameError, half_emoji, read_json, read_name

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
_SAMPLE = 20  # records that tell the delimiter
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_TOLD = re.compile('"?sep=([^"\r\n])"?[\r\n]')
_EXACT = 2**53  # up to which a float holds each whole number
_QUALTRICS = '{"ImportId"'
RAW = "\x1fa row of JSON"  # column of the text of rows of JSON Lines; `pieces` lets no file have it
IMPORTER = (
    " `slm-judge import FILE --output long.csv --rubric draft.yaml` makes a table with a row an "
    "annotation of it, and says how it was read."
)
_BROKEN = (OSError, EOFError, UnicodeDecodeError, csv.Error, pa.ArrowException, zlib.error,
           lzma.LZMAError)  # fmt: skip


def file_format(path: Path) -> str | None:
    """csv, json (JSON Lines) or parquet, by suffix; None for anything else."""
    return _FORMATS.get(_suffix(path))


def _suffix(path: Path) -> str:
    """The last suffix, but for a compression's."""
    packed = path.suffix.lower() in _COMPRESSIONS
    return (path.with_suffix("") if packed else path).suffix.lower()


def delimiter(path: Path) -> str:
    """What parts the fields of a .csv or .tsv file, by its name."""
    return "\t" if _suffix(path) == ".tsv" else ","


def is_folder(output: str) -> bool:
    """Whether an output is a folder of Parquet files: it ends with a slash."""
    return output.endswith(("/", os.sep))


def filesystem_of(location: str) -> tuple[Any, str]:
    """What fsspec opens a location with, and the path on it.

    Raises:
        DataError: fsspec knows no such address, or the package that opens it is not installed.
    """
    try:
        filesystem, path = fsspec.url_to_fs(location)
    except (ImportError, ValueError) as error:
        raise DataError(f"{location} cannot be opened: {error}") from error
    return filesystem, path


def check_output(output: str) -> None:
    """Refuse an output that cannot be written, before any work.

    Raises:
        DataError: wrong suffix, a file that is not on this machine, or not writable.
    """
    filesystem, path = filesystem_of(output)
    if not is_folder(output):
        if _suffix(Path(output)) == ".parquet" != Path(output).suffix.lower():
            raise DataError(f"{output}: Parquet is compressed by itself; drop the last suffix.")
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
        if Path(path).is_dir():
            raise DataError(f"{output} is a folder; with a slash at its end, it is written into.")
    if not isinstance(filesystem, LocalFileSystem):
        return
    check_folder(Path(path) if is_folder(output) else Path(path).parent)


def check_folder(folder: Path) -> None:
    """Refuse a folder that is none, or cannot be made or written into.

    Raises:
        DataError: it is not.
    """
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise DataError(f"{folder} is {'not writable' if folder.is_dir() else 'no folder'}.")


def names(columns: Sequence[str]) -> str:
    """Column names for a message; spaces around a name are shown, and that it is empty."""
    return ", ".join(name if name and name == name.strip() else repr(name) for name in columns)


def require_columns(present: Sequence[str], wanted: Sequence[str], location: str) -> None:
    """Refuse a table without some columns.

    Raises:
        DataError: names them, and those that are there.
    """
    if missing := [name for name in wanted if name not in present]:
        raise DataError(f"{location} lacks the columns {names(missing)}; it has {names(present)}.")


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of a table."""

    table: pa.Table
    """The rows as they came: with their columns, or with the one column `RAW`."""
    lines: list[int] | None = None
    """Of a text file, the line where each row starts."""
    parsed: list[dict[str, Any]] | None = None
    """Rows of JSON, where they were parsed already."""

    def rows(self) -> list[dict[str, Any]]:
        """Each row as column -> value; a row of JSON has the keys that it has."""
        if self.parsed is not None:
            return self.parsed
        if is_raw(self.table):
            return [read_json(text) for text in self.table[RAW].to_pylist()]
        names = self.table.column_names
        cells = zip(*map(values_of, self.table.columns), strict=True)
        return [dict(zip(names, row, strict=True)) for row in cells]

    def values(self, columns: Sequence[str]) -> list[list[Any]]:
        """The values of some columns, each a list with None where there is none."""
        if is_raw(self.table):
            rows = self.rows()
            return [[row.get(name) for row in rows] for name in columns]
        present = set(self.table.column_names)
        return [
            values_of(self.table[name]) if name in present else [None] * self.table.num_rows
            for name in columns
        ]


def is_raw(table: pa.Table) -> bool:
    """Whether the rows of a table are texts of JSON."""
    return RAW in table.column_names[:1]


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _holds_bytes(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return _holds_bytes(kind.storage_type)
    if pa.types.is_nested(kind):
        return any(_holds_bytes(kind.field(i).type) for i in range(kind.num_fields))
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    return pa.types.is_binary_view(kind) or any(test(kind) for test in tests)


def _binary(schema: Iterable[pa.Field]) -> list[str]:
    return [column.name for column in schema if _holds_bytes(column.type)]


def values_of(column: pa.ChunkedArray) -> list[Any]:
    """The values of a column for Python; its times are texts where Python has no such time.

    That is: after the year 9999, to the nanosecond, or in a time zone that this machine does not
    know, which is then given in UTC.

    Raises:
        DataError: such a time is nested in a list or an object.
    """
    if column.type == pa.time64("ns"):  # which Python would cut off
        return column.cast(pa.string()).to_pylist()  # type: ignore[no-any-return]
    try:
        return column.to_pylist()  # type: ignore[no-any-return]
    except (ValueError, OverflowError, LookupError, pa.ArrowException):
        if not pa.types.is_temporal(column.type):
            raise DataError(
                f"A column of the type {column.type} holds a time after the year 9999, to the "
                "nanosecond or in an unknown time zone. Make it a column of its own."
            ) from None
    if pa.types.is_timestamp(column.type) and column.type.tz:
        plain = column.cast(pa.timestamp(column.type.unit, "UTC")).cast(
            pa.timestamp(column.type.unit)
        )
        return [None if text is None else f"{text}Z" for text in values_of(plain.cast(pa.string()))]
    return column.cast(pa.string()).to_pylist()  # type: ignore[no-any-return]


@dataclass
class Rows:
    """A table in memory."""

    location: str
    columns: list[str]
    """Of all rows, in the order in which they appear."""
    rows: list[dict[str, Any]]
    lines: list[int] | None
    notes: list[str] = field(default_factory=list)
    wording: dict[str, str] = field(default_factory=dict)
    """Column -> the question behind it, where the file says so."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Column of a tool's export -> the one that it was read into, where they differ."""
    annotator: str | None = None
    """Of an export, the column that names the annotator."""
    binary: list[str] = field(default_factory=list)
    """The columns that hold bytes."""
    separator: str = ""
    """What parts the fields of a CSV."""

    def where(self, index: int) -> str:
        """Names a row in a message: by its line in a text file, else by its number."""
        name = Path(self.location).name
        return f"{name}, line {self.lines[index]}" if self.lines else f"{name}, row {index + 1}"

    def name(self, index: int, column: str | None) -> str:
        """The id or name in a cell; see `read_name`.

        Raises:
            DataError: it holds something else; the message says where.
        """
        try:
            return read_name(self.rows[index].get(column or ""))
        except NoNameError as error:
            raise DataError(f"{self.where(index)}: {column}: {error}") from error


def read_table(location: str, kind: str | None = None) -> Rows:
    """Read a whole table.

    Args:
        location: see `TableStream`.
        kind: in place of what the suffix says, e.g. json.

    Raises:
        DataError: there is no such table, it cannot be read, or it has no rows.
    """
    stream = TableStream(location, kind)
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    columns: dict[str, None] = {}
    binary: dict[str, None] = {}
    for piece in stream.pieces(_ROWS_AT_ONCE):
        binary |= dict.fromkeys(_binary(piece.table.schema))
        rows += piece.rows()
        lines += piece.lines or []
        if not is_raw(piece.table):
            columns |= dict.fromkeys(piece.table.column_names)
    for row in rows if not columns else ():
        columns |= dict.fromkeys(row)
    if stream.separator and len(columns) > 1:  # what Excel leaves below a table
        full = [k for k, row in enumerate(rows) if any(map(str.strip, row.values()))]
        if blank := sorted(set(range(len(rows))) - set(full)):
            first = f"the first is line {lines[blank[0]]}"
            stream.notes.append(f"{location}: {len(blank)} blank rows are left out, {first}.")
            rows, lines = ([of[k] for k in full] for of in (rows, lines))  # type: ignore[assignment]
    if not rows:
        raise DataError(f"{location} has no rows.")
    return Rows(location, list(columns), rows, lines or None, stream.notes, stream.wording,
                binary=list(binary), separator=stream.separator)  # fmt: skip


@dataclass
class Overview:
    """What a table holds, known before work on it starts."""

    columns: list[str]
    n_rows: int | None = None
    """None where that is only known at the end."""
    kinds: dict[str, set[str]] = field(default_factory=dict)
    """Of JSON Lines, what stands under each key: see `plain_type`."""
    schema: pa.Schema | None = None
    """Of Parquet and the Hub, the types of the columns."""

    def binary(self) -> list[str]:
        """The columns that hold bytes."""
        return _binary(self.schema or ())


class TableStream:
    """A table that is read from its start to its end, once or again."""

    def __init__(self, location: str, kind: str | None = None) -> None:
        """Find a table.

        Args:
            location: CSV, TSV, JSON Lines (these also compressed) or Parquet file, or a folder
                of Parquet files (read in the order of their names), on any path that fsspec
                opens; or a Hub dataset `user/name`, `user/name@revision`, with `#split` behind it
                where that is not `train`.
            kind: see `file_format`; by default by the suffix.

        Raises:
            DataError: there is no such table.
        """
        self.location = location
        self.notes: list[str] = []
        """What was recognised in the file, for people to know."""
        self.wording: dict[str, str] = {}
        """Column -> the question behind it, where further headers of Qualtrics say so."""
        self.separator = ""  # of a CSV, once it is read
        self._kind = kind or file_format(Path(location))
        filesystem, path = filesystem_of(location)
        self._files = [location]
        if filesystem.isdir(path):
            found = sorted(filesystem.ls(path, detail=False))
            found = [
                n for n in found if n.endswith(".parquet") and n.rpartition("/")[2][0] not in "_."
            ]
            if not found:
                raise DataError(f"{location} is a folder without Parquet files.")
            self._kind, self._files = "parquet", [filesystem.unstrip_protocol(n) for n in found]
        elif filesystem.isfile(path):
            if self._kind is None:
                raise DataError(
                    f"{location} is neither .csv, .tsv, .jsonl nor .parquet (the first three also "
                    "with .gz, .bz2 or .xz); convert it first. Annotations of a tool, of Excel, "
                    f"Stata or SPSS?{IMPORTER}"
                )
        elif self._kind or location.count("/") != 1:
            raise DataError(f"There is no file {location}.")
        else:
            self._kind = "hub"

    def overview(self) -> Overview:
        """Read the table once, so that what is wrong with it is said before work on it starts.

        Raises:
            DataError: the file cannot be read; the message says where.
        """
        if self._kind == "parquet":
            with self._readable():
                return self._parquet_overview()
        found, n_rows, kinds = dict[str, None](), 0, dict[str, set[str]]()
        for piece in self.pieces(_ROWS_AT_ONCE):
            n_rows += piece.table.num_rows
            if is_raw(piece.table):
                for row in piece.rows():
                    found |= dict.fromkeys(row)
                    for name, value in row.items():
                        kinds.setdefault(name, set()).add(_kind_of(value))
            else:
                found |= dict.fromkeys(piece.table.column_names)
            if self._kind == "hub":
                return Overview(list(found), schema=piece.table.schema)
        return Overview(list(found), n_rows, kinds)

    def _parquet_overview(self) -> Overview:
        schema = self._schema
        for name, (own, _) in zip(self._files, self._heads, strict=True):
            # Values that do not fit what all files together have are found before work starts.
            if other := [one.name for one in own if one.type != schema.field(one.name).type]:
                with fsspec.open(name, "rb") as raw:
                    for batch in pq.ParquetFile(raw).iter_batches(columns=other):
                        _conformed(pa.Table.from_batches([batch]), schema, name)
        return Overview(schema.names, sum(n_rows for _, n_rows in self._heads), schema=schema)

    @cached_property
    def _heads(self) -> list[tuple[pa.Schema, int]]:
        """The columns and the number of rows of each Parquet file."""
        found = []
        for name in self._files:
            with fsspec.open(name, "rb") as raw:
                opened = pq.ParquetFile(raw)
                schema = opened.schema_arrow.remove_metadata()
                found.append((schema, opened.metadata.num_rows))
        return found

    @cached_property
    def _schema(self) -> pa.Schema:
        """Of all Parquet files together."""
        return pa.unify_schemas([schema for schema, _ in self._heads], promote_options="permissive")

    def pieces(self, n_rows: int) -> Iterator[Piece]:
        """Yield pieces of `n_rows` rows, the last one shorter.

        Raises:
            DataError: the file cannot be read; the message says where.
        """
        self.notes.clear()
        readers = {"parquet": self._read_parquet, "hub": self._read_hub}
        with self._readable():
            if self._kind in ("csv", "json") and self._encoding == "utf-16":
                self.notes.append(f"{self.location}: read as UTF-16.")
            if self._kind == "json":
                yield from self._read_json(n_rows)
                return
            reader = readers.get(str(self._kind))
            tables = (Piece(table) for table in _of_size(reader(n_rows), n_rows)) if reader else ()
            for piece in tables or self._read_csv(n_rows):
                if RAW in piece.table.column_names:
                    raise DataError(f"{self.location}: no column can be called {RAW!r}.")
                yield piece

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Turns what the readers raise into a sentence that names the file and the line."""
        try:
            yield
        except _BROKEN as error:
            if getattr(error, "errno", None) is not None:
                raise
            where = ""
            if isinstance(error, UnicodeDecodeError) and (line := self._undecodable_line()):
                where = f"line {line} is not UTF-8; save it so (Excel: CSV UTF-8): "
            raise DataError(
                f"{self.location} cannot be read as {self._kind}: {where}{error}"
            ) from error

    def _open(self) -> Any:
        raw = fsspec.open(self.location, "rb").open()
        compression = infer_compression(self.location)
        return compr[compression](raw, mode="rb") if compression else raw

    # --- text files ---

    def _text(self, newline: str) -> Any:
        return io.TextIOWrapper(self._open(), encoding=self._encoding, newline=newline)

    @cached_property
    def _encoding(self) -> str:
        """UTF-16 where the file begins with its mark, as TSV of Qualtrics and Excel does."""
        with self._open() as file:
            start = file.read(4)
        is_marked = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        if b"\0\0" in start or (b"\0" in start and not is_marked):
            raise DataError(
                f"{self.location} is UTF-32, or UTF-16 without its mark; save it as UTF-8 (Excel: "
                "CSV UTF-8)."
            )
        return "utf-16" if is_marked else "utf-8-sig"

    def _undecodable_line(self) -> int | None:
        """The first line that is not UTF-8, before whatever else is wrong."""
        if self._encoding == "utf-16":
            return None
        with suppress(*_BROKEN), self._open() as file:
            for number, line in enumerate(file, start=1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError:
                    return number
        return None

    def _read_csv(self, n_rows: int) -> Iterator[Piece]:
        separator = self.separator = self._separator()
        with self._text("") as file:
            blank: list[int] = []
            records = islice(_records(file, separator, blank), bool(self._told), None)
            header = next(records, (1, []))[1]
            check_header(self.location, header)
            first = list(islice(records, 2))
            for position, (_, row) in enumerate(first):
                if any(row) and all(cell.startswith(_QUALTRICS) for cell in row if cell):
                    left_out = " and ".join(str(line) for line, _ in first[: position + 1])
                    self.notes.append(
                        f"{self.location}: lines {left_out} are headers of Qualtrics, left out."
                    )
                    self.wording = dict(zip(header, first[0][1], strict=False)) if position else {}
                    first = first[position + 1 :]
                    break
            while batch := list(islice(chain(first, records), n_rows)):
                first = first[len(batch) :]
                for line, row in batch:
                    if len(row) != len(header):
                        raise DataError(
                            f"{self.location} cannot be read as csv: line {line} has {len(row)} "
                            f"fields, the header has {len(header)}. Texts with a {separator!r} or "
                            "a line break need quotes."
                        )
                cells = zip(*(row for _, row in batch), strict=True)
                arrays = [pa.array(column, pa.string()) for column in cells]
                table = pa.Table.from_arrays(arrays, names=header)
                yield Piece(table, [line for line, _ in batch])
        if blank:
            one = '; an empty cell of one column is written ""' if len(header) == 1 else ""
            what = f"{len(blank)} blank lines are left out, the first is line {blank[0]}{one}."
            self.notes.append(f"{self.location}: {what}")

    def _separator(self) -> str:
        """The suffix's delimiter, or the one with which the first records are a table."""
        if self._told:
            self.notes.append(f"{self.location}: line 1 names the delimiter, sep={self._told}")
            return self._told
        usual, widths, broken = delimiter(Path(self.location)), {}, ""
        for separator in (usual, *(mark for mark in _DELIMITERS if mark != usual)):
            with self._text("") as file:
                try:
                    sizes = {len(row) for _, row in islice(_records(file, separator), _SAMPLE)}
                except csv.Error:
                    file.seek(0)
                    broken = separator if separator in file.readline() else broken
                    continue
            if len(sizes) == 1 and sizes != {1}:
                if separator == usual:
                    return usual
                widths[separator] = sizes.pop()
        if not widths:
            return broken or usual
        found = max(widths, key=widths.__getitem__)
        self.notes.append(f"{self.location}: its fields are parted by {_DELIMITERS[found]}.")
        return found

    @cached_property
    def _told(self) -> str:
        """The delimiter that the first line names, as Excel reads it (`sep=;`), or ""."""
        with self._text("") as file:
            told = _TOLD.match(file.readline(10))
        return told[1] if told else ""

    def _read_json(self, n_rows: int) -> Iterator[Piece]:
        halves: list[str] = []
        with self._text("\n") as file:
            lines = ((n, line) for n, line in enumerate(file, start=1) if line.strip())
            while batch := list(islice(lines, n_rows)):
                parsed = [self._parse(number, line, halves) for number, line in batch]
                texts = pa.array([line.strip() for _, line in batch], pa.string())
                yield Piece(pa.table({RAW: texts}), [number for number, _ in batch], parsed)
        self.notes += half_emoji(self.location, halves)

    def _parse(self, number: int, line: str, halves: list[str]) -> dict[str, Any]:
        try:
            row = read_json(line, halves)
        except (ValueError, RecursionError) as error:
            what = str(error)
            if isinstance(error, json.JSONDecodeError):
                what = f"{error.msg} at character {error.pos + 1}"
            raise DataError(
                f"{self.location} cannot be read as json: line {number}: {what}"
            ) from error
        if not isinstance(row, dict):
            raise DataError(f"{self.location}, line {number}: expected an object.")
        return row

    # --- Parquet and the Hub ---

    def _read_parquet(self, n_rows: int) -> Iterator[pa.Table]:
        for name in self._files:
            with fsspec.open(name, "rb") as raw:
                for batch in pq.ParquetFile(raw).iter_batches(batch_size=n_rows):
                    table = pa.Table.from_batches([batch])
                    yield table if len(self._files) == 1 else _conformed(table, self._schema, name)

    def _read_hub(self, n_rows: int) -> Iterator[pa.Table]:
        from datasets import load_dataset
        from datasets import logging as datasets_logging
        from datasets.exceptions import DatasetNotFoundError
        from datasets.utils import disable_progress_bars

        name, _, split = self.location.partition("#")
        repo, _, revision = name.partition("@")
        disable_progress_bars()
        datasets_logging.set_verbosity_error()
        with hub_errors(repo, revision, DataError):
            try:
                stream = repeated(
                    lambda: load_dataset(
                        repo, revision=revision or None, split=split or "train", streaming=True
                    )
                )
                yield from stream.with_format("arrow").iter(batch_size=n_rows)
            except DatasetNotFoundError as error:
                if error.__cause__ is None:
                    raise DataError(missing_message(repo)) from error
                raise
            except (ValueError, RuntimeError) as error:  # no such split, no table, or a script
                if isinstance(error, OSError):  # the Hub refused
                    raise
                raise DataError(f"{self.location} cannot be read from the Hub: {error}") from error


def _conformed(table: pa.Table, schema: pa.Schema, location: str) -> pa.Table:
    """The table with all columns of a schema, in their types.

    Raises:
        DataError: a value does not fit.
    """
    columns = []
    for wanted in schema:
        if wanted.name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, wanted.type))
            continue
        try:
            columns.append(table[wanted.name].cast(wanted.type))
        except pa.ArrowInvalid as error:
            raise DataError(
                f"{location}: {wanted.name} has values that {wanted.type} cannot hold, which the "
                f"files of this folder have together: {error}"
            ) from error
    return pa.table(columns, schema=schema)


def _of_size(tables: Iterator[pa.Table], n_rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of `n_rows` rows."""
    waiting: list[pa.Table] = []
    n_waiting = 0
    for batch in tables:
        waiting.append(batch)
        n_waiting += batch.num_rows
        while n_waiting >= n_rows:
            table = pa.concat_tables(waiting, promote_options="permissive")
            yield table.slice(0, n_rows)
            waiting, n_waiting = [table.slice(n_rows)], n_waiting - n_rows
    if n_waiting:
        yield pa.concat_tables(waiting, promote_options="permissive")


def _records(
    file: Any, separator: str, blank: list[int] | None = None
) -> Iterator[tuple[int, list[str]]]:
    """The records of a CSV that are not blank, each with the line where it starts."""
    reader = csv.reader(file, delimiter=separator, strict=True)
    line = 1
    try:
        for row in reader:
            if row:
                yield line, row
            elif blank is not None:
                blank.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise csv.Error(f"line {line}: {error}") from error


def check_header(location: str, header: list[str]) -> None:
    """Refuse a table without distinct column names.

    Raises:
        DataError: names what is wrong.
    """
    repeated = sorted(name for name, count in Counter(header).items() if count > 1)
    if not header or repeated:
        found = f"repeated columns {names(repeated)}" if repeated else "an empty file"
        found += "; take out titles above the names, and merged cells" if "" in repeated else ""
        raise DataError(
            f"{location}: expected a header line with distinct column names, got {found}."
        )


def _kind_of(value: object) -> str:
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int):
        if -_EXACT <= value <= _EXACT:
            return "whole number"
        return "large whole number" if -(2**63) <= value < 2**63 else "other"
    return "number" if isinstance(value, float) else "null" if value is None else "other"


def typed(raw: pa.Table, overview: Overview) -> pa.Table:
    """Rows of JSON as columns of Parquet; what has no one plain type there is its JSON.

    Args:
        raw: rows as texts of JSON.
        overview: of the whole table, so that all of its pieces have the same columns.
    """
    rows = Piece(raw.select([RAW])).rows()
    columns = {}
    for name in overview.columns:
        kind = plain_type(overview.kinds[name])
        cells = [row.get(name) for row in rows]
        if kind is None:
            cells = [None if v is None else json.dumps(v, ensure_ascii=True) for v in cells]
        columns[name] = pa.array(cells, kind or pa.string())
    return pa.table(columns)


def plain_type(kinds: set[str]) -> pa.DataType | None:
    """The Parquet type of values of these kinds; None where there is none."""
    kinds = kinds - {"null"}
    types = {"text": pa.string(), "true or false": pa.bool_(), "whole number": pa.int64()}
    if kinds <= {"whole number", "number"} and "number" in kinds:
        return pa.float64()
    if "large whole number" in kinds and kinds <= {"whole number", "large whole number"}:
        return pa.int64()
    return types.get(next(iter(kinds), "text")) if len(kinds) < 2 else None
