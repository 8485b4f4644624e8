"""`slm-judge import`: an export of an annotation tool as a long table and a draft of a rubric;
and `slm-judge rubric draft`: the draft alone.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa

from slm_judge.errors import DataError, RubricError
from slm_judge.files import atomic_file, check_places, write_text
from slm_judge.rubric import Rubric
from slm_judge.text import to_utf8

from .importers.draft import draft
from .importers.export import ANNOTATOR_ID
from .importers.long import Long
from .importers.read import as_rows, read_export, summary
from .importers.roles import Options
from .item import ITEM_ID
from .read import Columns, Findings, read_items
from .tables import Overview, check_folder, check_output
from .text import read_name
from .write import write_tables


def import_annotations(
    locations: Sequence[str],
    output: Path,
    options: Options,
    rubric: Path | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Write the long table and the draft of a rubric, atomically; nothing where anything is wrong.

    Args:
        locations: files of the export.
        output: the table: .csv, .tsv, .jsonl or .parquet.
        options: what the user says about the export.
        rubric: the draft, if one is wanted.
        overwrite: whether files that are there may be replaced.

    Returns:
        Lines about what was read, left out and guessed.

    Raises:
        DataError: the export cannot be read, or the output cannot be written.
    """
    check_output(str(output))
    _check_paths(locations, {"the output": output, "the rubric": rubric}, overwrite)
    table = read_export(locations, options)
    text = _draft(table, output.name)
    cells = {to_utf8(name): pa.array([_cell(row.get(name)) for row in table.rows], pa.string())
             for name in table.columns}  # fmt: skip
    with atomic_file(rubric) if rubric else nullcontext() as temporary:
        if temporary:
            temporary.write_text(text, encoding="utf-8")
        write_tables(iter([pa.table(cells)]), output, Overview(list(cells)))
    return summary(table)


def draft_rubric(
    locations: Sequence[str], options: Options, output: Path | None = None, overwrite: bool = False
) -> tuple[str, list[str]]:
    """A rubric to begin with, of a table of any shape; written where an output is named.

    Args:
        locations: files of an export, or a table.
        options: what the user says about it.
        output: a YAML file.
        overwrite: whether it may be replaced.

    Returns:
        The rubric as YAML, with questions to the user, and what is to be said about the table.

    Raises:
        DataError: the table cannot be read, or the output cannot be written.
    """
    _check_paths(locations, {"the rubric": output}, overwrite)
    table = read_export(locations, options)
    text = _draft(table, (output or Path(locations[0])).name)
    if output:
        write_text(output, text)
    return text, summary(table)


def _draft(table: Long, name: str) -> str:
    text = draft(table, name.partition(".")[0])
    _check(table, text)
    return text


def _check_paths(
    locations: Sequence[str], written: Mapping[str, Path | None], overwrite: bool
) -> None:
    exports = {f"export {n}": location for n, location in enumerate(locations, start=1)}
    check_places(exports, written, overwrite)
    for path in filter(None, written.values()):
        check_folder(path.parent)
    rubric = written["the rubric"]
    if rubric and rubric.suffix not in (".yaml", ".yml"):
        raise DataError(f"The rubric is a YAML file, e.g. draft.yaml, got {rubric}.")


def _check(table: Long, text: str) -> None:
    """Read the table by the draft as training does, so that what is written can be used.

    Raises:
        DataError: training would refuse it.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "draft.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            rubric = Rubric.from_file(path)
        except RubricError as error:
            text = str(error).replace(str(path), "its draft")
            raise DataError(f"{table.export.location} gives no valid rubric: {text}") from error
    findings = Findings()
    read_items(as_rows(table), Columns(ITEM_ID, ANNOTATOR_ID), rubric, findings)
    findings.raise_any(table.export.location)


def _cell(value: object) -> str | None:
    """A value as the text of a cell."""
    if isinstance(value, list | dict):
        return json.dumps(value, default=str)
    return to_utf8(value if isinstance(value, str) else read_name(value)) or None
