"""Finished pieces of a long job: durable, checked, and put together at the end.

A job has a folder with `job.json`, which says what is being done, and one Parquet file a finished
piece. A piece is written under another name first, so that it is there as a whole or not at all.
"""

import csv
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from .errors import DataError
from .files import atomic_file, write_text
from .tables import delimiter, file_format

_DIGEST = b"slm_judge.input"


class ShardStore:
    """The finished pieces of one job."""

    def __init__(self, folder: Path, job: dict[str, Any]) -> None:
        """Open the folder of a job, new or interrupted.

        Args:
            folder: of the pieces.
            job: what decides the result; an interrupted job must be the same one.

        Raises:
            DataError: the folder holds pieces of another job.
        """
        self.folder = folder
        record = folder / "job.json"
        if record.exists():
            earlier = json.loads(record.read_text(encoding="utf-8"))
            if earlier != json.loads(json.dumps(job)):
                changed = sorted(k for k in {*earlier, *job} if earlier.get(k) != job.get(k))
                raise DataError(
                    f"{folder} holds finished pieces of a job with another {', '.join(changed)}. "
                    "Finish that job with the same command, or delete the folder (or pass "
                    "--overwrite) to start over."
                )
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(record, json.dumps(job, indent=2) + "\n")

    def path(self, index: int) -> Path:
        """The file of a piece."""
        return self.folder / f"part-{index:08d}.parquet"

    def find(self, index: int, digest: str) -> pa.Table | None:
        """A finished piece, or None.

        Args:
            index: of the piece.
            digest: of its input rows.

        Raises:
            DataError: the piece was made from other rows.
        """
        path = self.path(index)
        if not path.exists():
            return None
        table = pq.read_table(path)
        if table.schema.metadata[_DIGEST].decode() != digest:
            raise DataError(
                f"The input changed since {path} was made. Put the old input back, or delete "
                f"{self.folder} (or pass --overwrite) to start over."
            )
        return table

    def write(self, index: int, table: pa.Table, digest: str) -> None:
        """Keep a finished piece."""
        metadata = {**(table.schema.metadata or {}), _DIGEST: digest.encode()}
        with atomic_file(self.path(index)) as path:
            pq.write_table(table.replace_schema_metadata(metadata), path)

    def tables(self) -> Iterator[pa.Table]:
        """The pieces in order, with one schema."""
        paths = sorted(self.folder.glob("part-*.parquet"))
        schemas = [pq.read_schema(path).remove_metadata() for path in paths]
        schema = pa.unify_schemas(schemas, promote_options="permissive")
        for path in paths:
            table = pq.read_table(path).replace_schema_metadata(None)
            missing = [name for name in schema.names if name not in table.column_names]
            for name in missing:
                nothing = pa.nulls(table.num_rows, schema.field(name).type)
                table = table.append_column(name, nothing)
            yield table.select(schema.names).cast(schema)

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder)


def digest_of(table: pa.Table) -> str:
    """Identifies the rows of a table, whatever its chunks."""
    text = json.dumps([table.column_names, table.to_pylist()], default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


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
