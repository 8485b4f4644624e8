"""Finished pieces of a long job: durable, checked, and put together at the end.

A job has a folder with `_job.json`, which says what is being done, and one Parquet file a finished
piece, which says of which job and of which rows it is. A piece is there as a whole or not at all.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from slm_judge.data.tables import Overview, filesystem_of, is_raw, values_of
from slm_judge.data.write import table_of
from slm_judge.errors import DataError
from slm_judge.files import TEMPORARY, atomic_file

_DIGEST, _JOB = b"slm_judge.input", b"slm_judge.job"
_RECORD = "_job.json"
_OWN = re.compile(
    rf"(part|_input)-\d{{8}}\.parquet|_job\.json|_summary\.json|{re.escape(TEMPORARY)}.*"
)


class ShardStore:
    """The finished pieces of one job."""

    def __init__(
        self,
        location: str | Path,
        job: dict[str, Any],
        overwrite: bool = False,
        shape: Overview | None = None,
    ) -> None:
        """Open the folder of a job, new or interrupted.

        Args:
            location: of the pieces, on any path that fsspec opens.
            job: what decides the result; an interrupted job must be the same one.
            overwrite: throw the pieces of another job, or of another input, away.
            shape: where the pieces are the output, the columns that rows of JSON get.

        Raises:
            DataError: the folder holds pieces of another job.
        """
        self.location, self.overwrite, self.shape = str(location).rstrip("/"), overwrite, shape
        self._files, self.folder = filesystem_of(self.location)
        self.job = json.loads(json.dumps(job))
        self._identity = hashlib.sha256(json.dumps(self.job, sort_keys=True).encode()).hexdigest()
        self.notes: list[str] = []
        """What was found damaged, for people to know."""
        known = self._files.exists(f"{self.folder}/{_RECORD}")
        earlier = self._record() if known else {}
        if earlier == self.job:
            return
        others = [path for path in self._parts() if earlier or not self._is_ours(path, known)]
        if others and not overwrite:
            changed = sorted(k for k in {*earlier, *self.job} if earlier.get(k) != job.get(k))
            whose = f"with another {', '.join(changed)}" if earlier else "without its record"
            raise DataError(
                f"{self.location} holds finished pieces of a job {whose}. Finish that job with "
                "the same command, choose another output, or start over with --overwrite."
            )
        if others or earlier:
            self.remove()
        self._files.makedirs(self.folder, exist_ok=True)
        self.write_record(_RECORD, self.job)

    def _record(self) -> dict[str, Any]:
        """What the folder says of its job; nothing where that is damaged."""
        path = f"{self.folder}/{_RECORD}"
        try:
            return dict(json.loads(self._files.cat_file(path)))
        except (ValueError, TypeError):
            self.notes.append(f"{path} is damaged, written anew.")
            return {}

    def _is_ours(self, path: str, damaged: bool) -> bool:
        """Whether a piece is one of this job; `damaged` is the answer for a damaged one."""
        found = self._intact(path, schema_only=True)
        if found is None:
            return damaged
        return (found.metadata or {}).get(_JOB) == self._identity.encode()

    def path(self, index: int, kind: str = "part") -> str:
        """The file of a piece: `part` is finished, `input` waits to be annotated."""
        # Readers of Parquet folders pass over names that start with an underscore.
        return f"{self.folder}/{'_input' if kind == 'input' else kind}-{index:08d}.parquet"

    def find(self, index: int, digest: str) -> pa.Table | None:
        """A finished piece, or None.

        Args:
            index: of the piece.
            digest: of its input rows.

        Raises:
            DataError: the piece was made from other rows.
        """
        path = self.path(index)
        if not self._files.exists(path) or (table := self._intact(path)) is None:
            return None
        marks = table.schema.metadata or {}
        if marks.get(_DIGEST) == digest.encode() and marks.get(_JOB) == self._identity.encode():
            return table
        if self.overwrite:
            return None
        raise DataError(
            f"The input changed since {path} was made. Put the old input back, or start over with "
            "--overwrite."
        )

    def _intact(self, path: str, schema_only: bool = False) -> Any:
        """What `_read` gives; None, with a note, where the file is damaged."""
        try:
            return self._read(path, schema_only)
        except (OSError, pa.ArrowException) as error:
            if getattr(error, "errno", None) is not None:
                raise
            note = f"{path} is damaged, so its rows are annotated again."
            self.notes += [note] if note not in self.notes else []
            return None

    def close(self, n_pieces: int) -> None:
        """Make sure that the pieces are those of the input, all of them.

        Args:
            n_pieces: of the input.

        Raises:
            DataError: there are more, of a longer input; or some are missing.
        """
        there = {_index(path): path for path in self._parts()}
        if missing := n_pieces - len(there.keys() & set(range(n_pieces))):
            raise DataError(
                f"{missing} of the {n_pieces} pieces are gone from {self.location}: something else "
                "removed them. The same command makes them again."
            )
        stale = [path for index, path in there.items() if index >= n_pieces]
        if stale and not self.overwrite:
            raise DataError(
                f"{self.location} holds {len(stale)} pieces more than the input has: the input was "
                "longer when they were made. Put it back, or start over with --overwrite."
            )
        for path in stale:
            self._files.rm_file(path)

    def write(self, index: int, table: pa.Table, digest: str) -> None:
        """Keep a finished piece."""
        if self.shape and is_raw(table):
            table = table_of(table, self.shape)
        marks = {_DIGEST: digest.encode(), _JOB: self._identity.encode()}
        metadata = {**(table.schema.metadata or {}), **marks}
        self._write(self.path(index), _parquet(table.replace_schema_metadata(metadata)))

    def put_input(self, index: int, table: pa.Table) -> None:
        """Keep the rows of a piece for another process to annotate."""
        self._write(self.path(index, "input"), _parquet(table))

    def get_input(self, index: int) -> pa.Table:
        """The rows that `put_input` kept."""
        return self._read(self.path(index, "input"))

    def drop_input(self, index: int) -> None:
        """Forget the rows of a piece that is finished."""
        self._files.rm_file(self.path(index, "input"))

    def write_record(self, name: str, content: Any) -> None:
        """Keep a JSON file beside the pieces."""
        self._write(f"{self.folder}/{name}", f"{json.dumps(content, indent=2)}\n".encode())

    def tables(self) -> Iterator[pa.Table]:
        """The pieces in order, with one schema, that of the input and the new columns."""
        paths = self._parts()
        schemas = [_unmarked(self._read(path, schema_only=True)) for path in paths]
        schema = pa.unify_schemas(schemas, promote_options="permissive")
        for path in paths:
            table = self._read(path)
            present = set(table.column_names)
            for name in schema.names:
                if name not in present:
                    nothing = pa.nulls(table.num_rows, schema.field(name).type)
                    table = table.append_column(name, nothing)
            yield table.select(schema.names).cast(schema)

    def remove(self) -> None:
        """Delete what the job left, and the folder if nothing else is in it."""
        for path in self._own_files():
            self._files.rm_file(path)
        if self._files.isdir(self.folder) and not self._files.ls(self.folder, detail=False):
            self._files.rmdir(self.folder)

    def remove_if_empty(self) -> None:
        """Leave nothing behind where no piece was finished."""
        if not self._parts():
            self.remove()

    def _parts(self) -> list[str]:
        return [path for path in self._own_files() if _name(path).startswith("part-")]

    def _own_files(self) -> list[str]:
        if not self._files.isdir(self.folder):
            return []
        self._files.invalidate_cache(self.folder)
        paths = sorted(self._files.ls(self.folder, detail=False))
        return [path for path in paths if _OWN.fullmatch(_name(path))]

    def _read(self, path: str, schema_only: bool = False) -> Any:
        with self._files.open(path, "rb") as file:
            return pq.read_schema(file) if schema_only else pq.read_table(file)

    def _write(self, path: str, content: bytes) -> None:
        if isinstance(self._files, LocalFileSystem):
            with atomic_file(Path(path)) as temporary:
                temporary.write_bytes(content)
        else:  # an object store shows an object when all of it is there
            self._files.pipe_file(path, content)


def _name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _index(path: str) -> int:
    return int(_name(path).partition("-")[2].partition(".")[0])


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _unmarked(schema: pa.Schema) -> pa.Schema:
    """The schema of a piece without what we wrote into it."""
    kept = {k: v for k, v in (schema.metadata or {}).items() if k not in (_DIGEST, _JOB)}
    return schema.with_metadata(kept or None)


def digest_of(table: pa.Table) -> str:
    """Identifies the rows of a table, whatever its chunks."""
    columns = [values_of(column) for column in table.columns]
    text = json.dumps([table.column_names, columns], default=str)
    return hashlib.sha256(text.encode()).hexdigest()
