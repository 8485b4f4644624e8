"""Files of any kind as rows: tables, JSON, Excel, Stata, SPSS, zips and folders of them."""

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from slm_judge.data.tables import file_format, read_table
from slm_judge.data.text import is_blank, read_json, read_name
from slm_judge.errors import DataError, require

from .export import LINE, SOURCE, Export, Row

EXCEL, STATISTICS = (
    (".xlsx", ".xlsm"),
    {".dta": "read_dta", ".sav": "read_sav", ".zsav": "read_sav"},
)
_PARTS = (
    "**/annotated_instances.jsonl",
    "**/user_state.json",
    "**/*.jsonl",
    "**/*.json",
    "**/*.csv",
)
"""Files that count in a folder or a zip: those of the first pattern that there are."""
_IMPORT_ID = '{"ImportId"'
_CODEBOOK = (
    {"variable", "column", "question", "name", "item"},
    {"value", "code", "number", "level"},
    {"label", "meaning", "description", "text", "option"},
)


def is_only_importable(location: str) -> bool:
    """Whether a file is of a kind that no other reader reads."""
    path = Path(location)
    known = (".json", ".zip", *EXCEL, *STATISTICS)
    if path.is_dir():
        return not any(path.glob("*.parquet")) and any(any(path.glob(part)) for part in _PARTS)
    return path.suffix.casefold() in known and path.is_file()


def open_export(locations: Sequence[str]) -> Export:
    """Read files, all of one export, with the value labels and wordings that they hold.

    Raises:
        DataError: a file is missing or cannot be read; the message says which and why.
    """
    export = Export(", ".join(locations), [], [])
    for location in locations:
        _open(Path(location), location, export)
    columns = dict.fromkeys(key for row in export.rows for key in row)
    export.columns = [name for name in columns if name not in (SOURCE, LINE)]
    export.n_read = len(export.rows)
    if not export.rows or not export.columns:
        raise DataError(f"{export.location} has no rows.")
    return export


def _open(path: Path, location: str, export: Export) -> None:
    suffix = path.suffix.casefold()
    if path.is_dir():
        _open_folder(path, location, export)
    elif suffix == ".zip" and path.is_file():
        with TemporaryDirectory() as folder:
            try:
                with zipfile.ZipFile(path) as archive:
                    archive.extractall(folder)
            except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError) as error:
                raise DataError(f"{location} cannot be read as zip: {error}") from error
            _open_folder(Path(folder), location, export)
    elif suffix == ".json":
        export.rows += _marked(_json(path, location), path)
    elif suffix in EXCEL:
        export.rows += _marked(_excel(path, location, export), path)
    elif suffix in STATISTICS:
        export.rows += _marked(_statistics(path, location, export), path)
    elif suffix == ".xls":
        raise DataError(f"{location} is of Excel before 2007: save it as .xlsx.")
    elif file_format(path) is None and path.is_file():
        raise DataError(
            f"{location} is of no kind that can be imported: .csv, .tsv, .jsonl, .parquet, .json, "
            ".xlsx, .dta, .sav, .zip, or a folder of Potato."
        )
    else:
        table = read_table(location)
        export.notes += [note.removeprefix(f"{location}: ") for note in table.notes]
        for name, wording in table.wording.items():
            export.question(name).text = wording
        export.rows += _marked(table.rows, path, table.lines)


def _open_folder(folder: Path, location: str, export: Export) -> None:
    """The parts of an export, in a folder."""
    found = next((files for part in _PARTS if (files := sorted(folder.glob(part)))), [])
    if not found:
        raise DataError(f"{location} holds none of {', '.join(part[3:] for part in _PARTS)}.")
    export.notes.append(f"{len(found)} files read: {', '.join(file.name for file in found[:5])}"
                        f"{', ...' if len(found) > 5 else ''}.")  # fmt: skip
    for file in found:
        try:
            _open(file, str(file), export)
        except DataError as error:
            text = str(error).replace(str(file), f"{location}, {file.relative_to(folder)}")
            raise DataError(text) from error


def _marked(rows: Sequence[Row], path: Path, lines: Sequence[int] | None = None) -> Iterator[Row]:
    """Rows with the line and the name of their file; Potato's files are named by their folder."""
    alike = path.name in ("annotated_instances.jsonl", "user_state.json")
    for index, row in enumerate(rows):
        yield {**row, SOURCE: path.parent.name if alike else path.stem,
               LINE: lines[index] if lines else None}  # fmt: skip


def _json(path: Path, location: str) -> list[Row]:
    """A list of objects, an object of objects or of columns, or JSON Lines under another name."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        try:
            content = read_json(text)
        except json.JSONDecodeError:
            content = [read_json(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise DataError(f"{location} cannot be read as json: {error}") from error
    if isinstance(content, dict):
        content = _rows_of_object(content)
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise DataError(f"{location}: expected a list of objects, or one object a line.")
    return content


def _rows_of_object(content: dict[str, Any]) -> list[Row]:
    values = list(content.values())
    if values and all(isinstance(value, dict) for value in values) and len(values) > 1:
        return [{"item_id": key, **value} for key, value in content.items()]
    if values and all(isinstance(value, list) for value in values):
        if len({len(value) for value in values}) == 1:
            return [dict(zip(content, cells, strict=True)) for cells in zip(*values, strict=True)]
        lists = [value for value in values if all(isinstance(row, dict) for row in value)]
        if len(lists) == 1:
            return list(lists[0])
    return [content]


def _excel(path: Path, location: str, export: Export) -> list[Row]:
    """The sheet with most cells; a sheet of value labels, if there is one, is read as that."""
    require("openpyxl", "import")
    pandas = require("pandas", "import")
    try:
        sheets = pandas.read_excel(
            path,
            sheet_name=None,
            header=None,
            dtype=object,
            keep_default_na=False,
            engine="openpyxl",
        )
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{location} cannot be read as Excel: {error}") from error
    tables = {name: _table([list(row) for row in sheet.itertuples(index=False)])
              for name, sheet in sheets.items()}  # fmt: skip
    sizes = {name: sum(map(len, rows)) for name, rows in tables.items()}
    main = max(sizes, key=sizes.__getitem__, default=None)
    if main is None:
        return []
    for name, rows in tables.items():
        if name == main or not rows:
            continue
        if (columns := _codebook(rows[0])) is None:
            export.notes.append(
                f"sheet {name} is left out; the one with most cells, {main}, is read."
            )
            continue
        for row in rows:
            question, value, label = (read_name(row.get(column)) for column in columns)
            if question and value:
                export.question(question).options[value] = label
                export.question(question).named = True
        export.notes.append(f"sheet {name} is read as value labels.")
    for name in tables[main][0] if tables[main] else ():
        _in_order(export, name)
    return _without_import_ids(tables[main], export)


def _table(cells: list[list[Any]]) -> list[Row]:
    """Cells below the first row that is not empty, without columns that have no name."""
    filled = [row for row in cells if not all(map(is_blank, row))]
    if not filled:
        return []
    header = [read_name(cell) for cell in filled[0]]
    return [{name: None if is_blank(cell) else cell
             for name, cell in zip(header, row, strict=True) if name}
            for row in filled[1:]]  # fmt: skip


def _codebook(columns: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """The columns of a sheet that says what the values of a variable mean."""
    plain = {name.casefold(): name for name in columns}
    found = [next((plain[name] for name in plain if name in names), None) for names in _CODEBOOK]
    if len(columns) > 5 or None in found or len(set(found)) < 3:
        return None
    return tuple(found)  # type: ignore[return-value]


def _without_import_ids(rows: list[Row], export: Export) -> list[Row]:
    """Rows without the second and third header of Qualtrics, whose wordings are kept."""
    for index, row in enumerate(rows[:2]):
        cells = [str(cell) for cell in row.values() if not is_blank(cell)]
        if cells and all(cell.startswith(_IMPORT_ID) for cell in cells):
            for name, wording in rows[0].items() if index else ():
                export.question(name).text = read_name(wording)
            return rows[index + 1 :]
    return rows


def _statistics(path: Path, location: str, export: Export) -> list[Row]:
    """Stata and SPSS: values by their labels, wordings, and which variables are ordered."""
    pyreadstat = require("pyreadstat", "import")
    try:
        read = getattr(pyreadstat, STATISTICS[path.suffix.casefold()])
        table, meta = read(str(path), output_format="dict")
    except (pyreadstat.ReadstatError, OSError, ValueError) as error:
        raise DataError(f"{location} cannot be read as {path.suffix[1:]}: {error}") from error
    for name, wording in meta.column_names_to_labels.items():
        export.question(name).text = wording or ""
    for name, labels in meta.variable_value_labels.items():
        question = export.question(name)
        question.options = {read_name(value): str(labels[value]) for value in sorted(labels)}
        question.named = True
        measure = (meta.variable_measure or {}).get(name)
        question.ordered = True if measure == "ordinal" else None
    if meta.missing_ranges:
        export.notes.append(
            "user-defined missing values are no answer: "
            + ", ".join(sorted(meta.missing_ranges))
            + "."
        )
    rows = [dict(zip(table, cells, strict=True)) for cells in zip(*table.values(), strict=True)]
    return [{k: None if is_blank(v) else v for k, v in row.items()} for row in rows]


def _in_order(export: Export, name: str) -> None:
    """Value labels in the order of their numbers, where all are numbers."""
    question = export.questions.get(name)
    try:
        ordered = sorted(question.options, key=float) if question else []
    except ValueError:
        return
    if question:
        question.options = {value: question.options[value] for value in ordered}
