"""Writing tables: CSV, JSON Lines and Parquet, atomically."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from slm_judge.files import atomic_file

from .tables import RAW, Overview, Piece, delimiter, file_format, is_raw, typed
from .text import to_utf8


def write_tables(tables: Iterator[pa.Table], output: Path, overview: Overview) -> int:
    """Write a stream of tables of one schema as one file, atomically, in the format of its suffix.

    Args:
        tables: the pieces; rows of JSON may stand in them as texts, with further columns beside.
        output: the file.
        overview: of the input; its columns come first.

    Returns:
        Number of rows.
    """
    kind = file_format(output)
    with atomic_file(output) as temporary:
        if kind == "parquet":
            return _write_parquet(tables, temporary, overview)
        write = _write_csv if kind == "csv" else _write_json
        with fsspec.open(
            str(temporary), "wt", compression="infer", encoding="utf-8", newline=""
        ) as file:
            return write(tables, file, overview, delimiter(output))


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
    rows = 0
    for table in tables:
        added = [name for name in table.column_names if name not in (RAW, *overview.columns)]
        columns = [*overview.columns, *added]
        if rows == 0 and file.tell() == 0:
            file.write(_line(columns, mark))
        rows += table.num_rows
        if is_raw(table):
            given = Piece(table.select([RAW])).rows()
            cells = [[_cell(row.get(name)) for row in given] for name in overview.columns]
        else:
            cells = [[_cell(v) for v in table[name].to_pylist()] for name in overview.columns]
        cells += [[_cell(v) for v in table[name].to_pylist()] for name in added]
        file.writelines(_line(row, mark) for row in zip(*cells, strict=True))
    return rows


def _line(cells: Any, mark: str) -> str:
    """A record; what holds the delimiter, a quote or a line break of any kind is quoted."""
    needs = re.compile(f'["\r\n{re.escape(mark)}]').search
    quoted = ('"' + c.replace('"', '""') + '"' if needs(c) else c for c in cells)
    return mark.join(quoted) + "\n"


def _cell(value: Any) -> str:
    """A value in a CSV: true and false as rubrics write them, nothing for null."""
    if isinstance(value, str):
        return to_utf8(value)
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
            file.writelines(f"{_json(row)}\n" for row in table.to_pylist())
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
