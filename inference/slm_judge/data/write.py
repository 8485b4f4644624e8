"""Writing tables: CSV, JSON Lines and Parquet, atomically."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from slm_judge.files import atomic_file

from .tables import delimiter, file_format


def write_tables(tables: Iterator[pa.Table], output: Path) -> int:
    """Write a stream of tables of one schema as one file, atomically, in the format of its suffix.

    Returns:
        Number of rows.
    """
    kind, rows = file_format(output), 0
    with atomic_file(output) as temporary:
        if kind == "parquet":
            writer = None
            try:
                for table in tables:
                    writer = writer or pq.ParquetWriter(temporary, table.schema)
                    writer.write_table(table)
                    rows += table.num_rows
            finally:
                if writer:
                    writer.close()
            return rows
        with fsspec.open(
            str(temporary), "wt", compression="infer", encoding="utf-8", newline=""
        ) as file:
            table_writer = csv.writer(file, delimiter=delimiter(output), lineterminator="\n")
            for table in tables:
                if kind == "csv":
                    if rows == 0:
                        table_writer.writerow(table.column_names)
                    columns = [map(_cell, column.to_pylist()) for column in table.columns]
                    table_writer.writerows(zip(*columns, strict=True))
                else:
                    file.writelines(
                        json.dumps(row, ensure_ascii=False, default=str) + "\n"
                        for row in table.to_pylist()
                    )
                rows += table.num_rows
    return rows


def _cell(value: Any) -> str:
    """A value in a CSV: true and false as rubrics write them, nothing for null."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)
