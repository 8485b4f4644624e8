"""Writing tables: CSV, JSON Lines and Parquet, atomically."""

import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.compression import compr
from fsspec.utils import infer_compression

from slm_judge.errors import DataError
from slm_judge.files import atomic_file, finite

from .tables import RAW, Overview, Piece, delimiter, file_format, is_raw, typed, values_of

_BREAKS = re.compile('["\r\n]')


def write_tables(
    tables: Iterator[pa.Table], output: Path, overview: Overview, n_rows: int | None = None
) -> int:
    """Write a stream of tables of one schema as one file, atomically, in the format of its suffix.

    Args:
        tables: the pieces; rows of JSON may stand in them as texts, with further columns beside.
        output: the file.
        overview: of the input; its columns come first.
        n_rows: how many rows there must be.

    Returns:
        Number of rows.

    Raises:
        DataError: there are more or fewer rows; no file is written or replaced.
    """
    kind = file_format(output)
    with atomic_file(output) as temporary:
        if kind == "parquet":
            written = _write_parquet(tables, temporary, overview)
        else:
            write = _write_csv if kind == "csv" else _write_json
            with _text(temporary) as file:
                written = write(tables, file, overview, delimiter(output))
        if n_rows not in (None, written):
            raise DataError(
                f"{output} would have {written} rows in place of {n_rows}: something else changed "
                "the finished pieces. The same command makes them again."
            )
    return written


@contextmanager
def _text(path: Path) -> Iterator[TextIO]:
    """A file for text, compressed by its suffix; the same text makes the same bytes."""
    kind = infer_compression(str(path))
    options = {"filename": "", "mtime": 0} if kind == "gzip" else {}
    with ExitStack() as stack:
        raw: Any = stack.enter_context(path.open("wb"))
        if kind:
            raw = stack.enter_context(compr[kind](raw, mode="wb", **options))
        yield stack.enter_context(io.TextIOWrapper(raw, encoding="utf-8", newline=""))


def _write_parquet(tables: Iterator[pa.Table], path: Path, overview: Overview) -> int:
    writer, rows = None, 0
    try:
        for table in tables:
            whole = table_of(table, overview) if is_raw(table) else table
            writer = writer or pq.ParquetWriter(path, whole.schema)
            writer.write_table(whole)
            rows += whole.num_rows
    finally:
        if writer:
            writer.close()
    return rows


def table_of(raw: pa.Table, overview: Overview) -> pa.Table:
    """Rows of JSON as columns, with those that stand beside them."""
    whole = typed(raw, overview)
    for name in raw.column_names[1:]:
        whole = whole.append_column(name, raw[name])
    return whole


def _write_csv(tables: Iterator[pa.Table], file: Any, overview: Overview, mark: str) -> int:
    rows, headed = 0, False
    for table in tables:
        given_names = {RAW, *overview.columns}
        added = [name for name in table.column_names if name not in given_names]
        columns = [*overview.columns, *added]
        if not headed:
            file.write(_line(columns, mark))
        headed = True
        rows += table.num_rows
        if is_raw(table):
            given = Piece(table.select([RAW])).rows()
            cells = [[_cell(row.get(name)) for row in given] for name in overview.columns]
        else:
            cells = [_cells(table[name]) for name in overview.columns]
        cells += [_cells(table[name]) for name in added]
        file.writelines(_line(row, mark) for row in zip(*cells, strict=True))
    return rows


def _line(cells: Sequence[str], mark: str) -> str:
    """A record; what holds the delimiter, a quote or a line break of any kind is quoted."""
    plain = mark.join(cells)
    if not plain:  # one empty cell; a blank line is no row
        return '""\n'
    if plain.count(mark) < len(cells) and not _BREAKS.search(plain):
        return f"{plain}\n"
    quoted = (
        '"' + c.replace('"', '""') + '"' if mark in c or _BREAKS.search(c) else c for c in cells
    )
    return mark.join(quoted) + "\n"


def _cells(column: pa.ChunkedArray) -> list[str]:
    if pa.types.is_string(column.type):  # which is UTF-8 already
        return [text or "" for text in column.to_pylist()]
    return [_cell(value) for value in values_of(column)]


def _cell(value: Any) -> str:
    """A value in a CSV: true and false as rubrics write them, nothing for null."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def _write_json(tables: Iterator[pa.Table], file: Any, overview: Overview, mark: str) -> int:
    rows = 0
    for table in tables:
        rows += table.num_rows
        if not is_raw(table):
            file.writelines(f"{_json(finite(row))}\n" for row in Piece(table).rows())
            continue
        added = table.drop_columns([RAW]).to_pylist()
        for text, row in zip(table[RAW].to_pylist(), added, strict=True):
            # The row's own text goes out as it came in, up to its closing brace.
            start = text[:-1].rstrip()
            comma = "" if start == "{" or not row else ", "
            file.write(f"{start}{comma}{_json(row)[1:]}\n")
    return rows


def _json(row: Any) -> str:
    return json.dumps(row, ensure_ascii=False, default=str)
