"""Files of any kind as rows: tables, JSON, Excel, Stata, SPSS, zips and folders of them."""

import json
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree.ElementTree import ParseError

from slm_judge.data.tables import Rows, check_header, file_format, names, read_table
from slm_judge.data.text import half_emoji, is_blank, read_json, read_name
from slm_judge.errors import DataError, require

from .export import LINE, SOURCE, Export, Row, counted

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
_HIDDEN = re.compile(r"(^|/)(\.|__MACOSX/)")
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError)
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
    _strip_names(export)
    export.n_read = len(export.rows)
    if not export.rows or not export.columns:
        raise DataError(f"{export.location} has no rows.")
    return export


def _strip_names(export: Export) -> None:
    """Columns by their names without spaces around, where these are distinct."""
    new = {name: name.strip() or name for name in export.columns}
    changed = {name: plain for name, plain in new.items() if plain != name}
    if changed and len(set(new.values())) == len(new):
        export.rows = [{new.get(key, key): v for key, v in row.items()} for row in export.rows]
        export.questions = {new.get(name, name): said for name, said in export.questions.items()}
        export.columns, export.aliases = list(new.values()), changed
        export.notes.append(f"read without the spaces around their names: {names([*changed])}.")


def _open(path: Path, location: str, export: Export) -> None:
    suffix = path.suffix.casefold()
    if path.is_dir():
        _open_folder(path, location, export)
    elif suffix == ".zip" and path.is_file():
        with TemporaryDirectory() as folder:
            try:
                with zipfile.ZipFile(path) as archive:
                    archive.extractall(folder)
            except (*_BROKEN, NotImplementedError, RuntimeError) as error:
                raise DataError(f"{location} cannot be read as zip: {error}") from error
            _open_folder(Path(folder), location, export)
    elif suffix == ".json":
        _open_json(path, location, export)
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
        _open_table(read_table(location), path, export)


def _open_table(table: Rows, path: Path, export: Export) -> None:
    if table.binary:
        raise DataError(
            f"{table.location}: the columns {names(table.binary)} hold bytes: write them as text, "
            "or leave them out."
        )
    export.notes += [note.removeprefix(f"{table.location}: ") for note in table.notes]
    for name, wording in table.wording.items():
        export.question(name).text = wording
    export.commas &= table.separator in ("", ",")
    export.rows += _marked(table.rows, path, table.lines)


def _open_folder(folder: Path, location: str, export: Export) -> None:
    """The parts of an export, in a folder."""
    files = [{*folder.glob(part)} for part in _PARTS]
    hidden = {file for file in set().union(*files)
              if _HIDDEN.search(file.relative_to(folder).as_posix())}  # fmt: skip
    if hidden:
        export.notes.append(f"{len(hidden)} hidden files are left out, as {min(hidden).name}.")
    found = next((sorted(left) for some in files if (left := some - hidden)), [])
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


def _open_json(path: Path, location: str, export: Export) -> None:
    """A list of objects, an object of objects or of columns, or JSON Lines under another name."""
    halves: list[str] = []
    try:
        content = read_json(path.read_text(encoding="utf-8-sig"), halves)
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            _open_table(read_table(location, "json"), path, export)
            return
        raise DataError(f"{location} cannot be read as json: {error}") from error
    if isinstance(content, dict):
        content = _rows_of_object(content)
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise DataError(
            f"{location}: expected a list of objects, or one object a line; pandas writes them "
            'with to_json(..., orient="records", lines=True).'
        )
    export.notes += half_emoji(location, halves)
    export.rows += _marked(content, path)


def _rows_of_object(content: dict[str, Any]) -> list[Row] | None:
    """The rows in an object; None where it holds a table by columns, or without their names."""
    values = list(content.values())
    by_column = values and all(isinstance(v, dict) and [*v][:1] == ["0"] for v in values)
    if by_column or ("data" in content and content.keys() & {"columns", "schema"}):  # of pandas
        return None
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
    openpyxl = require("openpyxl", "import")
    sheets: dict[str, list[list[Any]]] = {}
    blank: dict[str, Counter[str]] = {}
    try:
        books = [openpyxl.load_workbook(path, read_only=True, data_only=only, keep_links=False)
                 for only in (True, False)]  # fmt: skip
        for sheet, written in zip(*(book.worksheets for book in books), strict=True):
            sheets[sheet.title], blank[sheet.title] = _columns(sheet, written)
        for book in books:
            book.close()
    except (*_BROKEN, ValueError, LookupError, TypeError, AttributeError, ParseError) as error:
        raise DataError(f"{location} cannot be read as Excel: {error}. Open it in Excel or "
                        "LibreOffice, and save it again.") from error  # fmt: skip
    main = max(sheets, key=lambda name: sum(map(len, sheets[name])), default=None)
    if main is None or not sheets[main]:
        return []
    for name, columns in sheets.items():
        if name == main or not columns:
            continue
        if (known := _codebook([read_name(header) for header, *_ in columns])) is None:
            export.notes.append(
                f"sheet {name} is left out; the one with most cells, {main}, is read."
            )
            continue
        for row in _table(columns, f"{location}, sheet {name}"):
            question, value, label = (read_name(row.get(column)) for column in known)
            if question and value:
                export.question(question).options[value] = label
                export.question(question).named = True
        export.notes.append(f"sheet {name} is read as value labels.")
    if blank[main]:
        export.notes.append(f"sheet {main}: read as blank: {counted(blank[main])}.")
    rows = _table(sheets[main], f"{location}, sheet {main}")
    for name in rows[0] if rows else ():
        _in_order(export, name)
    return _without_import_ids(rows, export)


def _columns(sheet: Any, written: Any) -> tuple[list[list[Any]], Counter[str]]:
    """The columns of a sheet that hold anything, from its first row that does.

    Args:
        sheet: with the values of its formulas.
        written: the same with the formulas.

    Returns:
        Also what is written in cells that have no value: how often.
    """
    found, blank = [], Counter[str]()
    for one in (sheet, written):
        one.reset_dimensions()  # which other programs than Excel write wrongly
    for row, formulas in zip(sheet.iter_rows(), written.iter_rows(), strict=True):
        found.append([None if cell.data_type == "e" else cell.value for cell in row])
        blank["errors, as #N/A"] += sum(cell.data_type == "e" for cell in row)
        blank["formulas that were not computed; save the file in Excel"] += sum(
            cell.value is None and formula.data_type == "f"
            for cell, formula in zip(row, formulas, strict=True)
        )
    filled = zip_longest(*(row for row in found if not all(map(is_blank, row))))
    return [list(column) for column in filled if not all(map(is_blank, column))], +blank


def _table(columns: Sequence[Sequence[Any]], where: str) -> list[Row]:
    """Columns below their names as rows.

    Raises:
        DataError: several have the same name, or none.
    """
    header = [read_name(name) for name, *_ in columns]
    check_header(where, header)
    return [{name: None if is_blank(cell) else cell for name, cell in zip(header, row, strict=True)}
            for row in zip(*(cells for _, *cells in columns), strict=True)]  # fmt: skip


def _codebook(columns: Sequence[str]) -> tuple[str, str, str] | None:
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
        table, meta = read(str(path), output_format="dict", user_missing=True)
    except (pyreadstat.ReadstatError, OSError, ValueError) as error:
        raise DataError(f"{location} cannot be read as {path.suffix[1:]}: {error}") from error
    for name, wording in meta.column_names_to_labels.items():
        export.question(name).text = wording or ""
    for name, labels in meta.variable_value_labels.items():
        question = export.question(name)
        numbers = {value for value in labels if not isinstance(value, str)}  # .a of Stata is none
        question.options = {read_name(v): str(labels[v]) for v in sorted(numbers or labels)}
        question.named = True
        measure = (meta.variable_measure or {}).get(name)
        question.ordered = True if measure == "ordinal" else None
    missing = {**meta.missing_ranges, **meta.missing_user_values}
    for name, column in table.items():
        gone = [_is_missing(value, missing.get(name, ())) for value in column]
        table[name] = [None if no else value for value, no in zip(column, gone, strict=True)]
        export.left_out[f"user-defined missing values of {name}, read as no answer"] += sum(gone)
    rows = [dict(zip(table, cells, strict=True)) for cells in zip(*table.values(), strict=True)]
    return [{k: None if is_blank(v) else v for k, v in row.items()} for row in rows]


def _is_missing(value: Any, missing: Iterable[Any]) -> bool:
    """Whether a value is a letter of Stata's, or in a range of SPSS's."""
    ranges = [one if isinstance(one, dict) else {"lo": one, "hi": one} for one in missing]
    return any(type(one["lo"]) is type(value) and one["lo"] <= value <= one["hi"] for one in ranges)


def _in_order(export: Export, name: str) -> None:
    """Value labels in the order of their numbers, where all are numbers."""
    question = export.questions.get(name)
    try:
        ordered = sorted(question.options, key=float) if question else []
    except ValueError:
        return
    if question:
        question.options = {value: question.options[value] for value in ordered}
