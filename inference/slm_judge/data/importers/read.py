"""An export of an annotation tool as a long table: the tool is recognised, and its reader reads."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from slm_judge.data.item import ITEM_ID
from slm_judge.data.tables import Rows
from slm_judge.errors import DataError

from .cells import read_cells
from .export import ANNOTATOR_ID, LINE, Export, Row, counted
from .long import Long, lengthen
from .opening import open_export
from .roles import Options, assign
from .surveys import google_forms, is_preview, is_rejected, mturk, qualtrics
from .tools import argilla, doccano, label_studio, potato, prodigy
from .wide import PEOPLE, unfold

_TIMES = {"timestamp", "zeitstempel", "horodateur", "marca temporal", "carimbo de data/hora",
          "informazioni cronologiche", "tijdstempel"}  # fmt: skip


@dataclass(frozen=True)
class Format:
    """A tool's export."""

    title: str
    marks: str
    """What it is known by."""
    is_it: Callable[[Export], bool]
    read: Callable[[Export], None]
    nested: bool = True
    """Whether rows hold more than plain cells; else columns may be annotators, ticks or shares."""
    left_out: tuple[str, Callable[[Row], bool]] = ("", lambda row: False)
    """Rows that never count, whoever names the columns: what they are, and whether one is it."""


def _has(*columns: str) -> Callable[[Export], bool]:
    return lambda export: set(columns) <= set(export.columns)


def _any(*tests: Callable[[Export], bool]) -> Callable[[Export], bool]:
    return lambda export: any(test(export) for test in tests)


def _holds(column: str, kind: type) -> Callable[[Export], bool]:
    return lambda export: any(isinstance(row.get(column), kind) for row in export.rows)


def _is_doccano(export: Export) -> bool:
    columns = set(export.columns)
    labelled = any(_holds(key, list)(export) for key in ("label", "labels", "cats"))
    labelled &= not any(name.startswith("annotators") or PEOPLE.fullmatch(name) for name in columns)
    return bool(columns & {"text", "data"}) and (
        {"label", "Comments"} <= columns
        or ("id" in columns and labelled)
        or ("annotation_approver" in columns and bool(columns & {"annotations", "labels"}))
    )


def _is_argilla(export: Export) -> bool:
    if "annotation_agent" in export.columns or any(
        c.endswith(".responses") for c in export.columns
    ):
        return True
    return _holds("fields", dict)(export) and "responses" in export.columns


def _is_potato_table(export: Export) -> bool:
    marked = any(":::" in name or "." in name for name in export.columns)
    who = {"user", "user_id"} & set(export.columns)
    return "instance_id" in export.columns and bool(who) and (marked or "labels" in export.columns
        or "user_id" in export.columns)  # fmt: skip


def _is_qualtrics(export: Export) -> bool:
    times = {"StartDate", "RecordedDate", "EndDate"} & set(export.columns)
    return bool(times) and ({"ResponseId", "Finished", "Progress"} & set(export.columns) != set())


FORMATS = {
    "label-studio": Format(
        "Label Studio", "annotations or completions beside data, or annotation_id and lead_time",
        lambda export: (_holds("data", dict)(export)
        and bool({"annotations", "completions"} & set(export.columns)))
        or _has("annotation_id", "lead_time")(export),
        label_studio,
    ),
    "prodigy": Format("Prodigy", "_input_hash and _task_hash", _has("_input_hash", "_task_hash"),
                      prodigy),
    "argilla": Format("Argilla", "fields and responses", _is_argilla, argilla),
    "potato": Format(
        "Potato", "label_annotations, or instance_id and user",
        _any(_has("label_annotations"), _has("instance_id_to_label_to_value"), _is_potato_table),
        potato,
    ),
    "doccano": Format("doccano", "text, and lists of labels or Comments", _is_doccano, doccano),
    "mturk": Format(
        "Amazon Mechanical Turk", "HITId and WorkerId", _has("HITId", "WorkerId"), mturk, False,
        ("rejected assignments", is_rejected),
    ),
    "qualtrics": Format(
        "Qualtrics", "ResponseId and RecordedDate", _is_qualtrics, qualtrics, False,
        ("previews of the survey", is_preview),
    ),
    "google-forms": Format(
        "Google Forms", "a time in the first column",
        lambda export: export.columns[0].casefold() in _TIMES, google_forms, False,
    ),
    "table": Format(
        "a table of no known tool", "its columns", lambda export: True, lambda export: None, False
    ),
}  # fmt: skip
"""By the names that --format takes; the first that fits is taken."""


def read_export(locations: Sequence[str], options: Options | None = None) -> Long:
    """Read an export as a table with a row an annotation.

    Args:
        locations: its files, or a folder of Potato.
        options: what the user says about it.

    Raises:
        DataError: it cannot be read; one sentence says why.
    """
    options = options or Options()
    if options.format and options.format not in FORMATS:
        raise DataError(f"--format is one of {', '.join(FORMATS)}, not {options.format!r}.")
    export = open_export(locations)
    export.format = options.format or next(name for name, f in FORMATS.items() if f.is_it(export))
    known = FORMATS[export.format]
    how = "as --format says" if options.format else f"by {known.marks}"
    export.notes.insert(0, f"{export.location}: read as {known.title} ({how}).")
    what, counts_not = known.left_out
    export.keep(lambda row: not counts_not(row), what)
    if not known.nested:
        read_cells(export, {*options.texts, options.item, options.annotator})
    try:
        known.read(export)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(
            f"{export.location} is no export of {known.title} as this version knows them "
            f"({type(error).__name__}: {error}). Another --format may fit: {', '.join(FORMATS)}."
        ) from error
    if not export.rows:
        raise DataError(f"{export.location}: no annotations; left out: {counted(export.left_out)}.")
    asked = options.within(export)
    export.item, export.annotator = asked.item or export.item, asked.annotator or export.annotator
    export.texts = list(asked.texts) or export.texts
    if not known.nested and not (asked.answers and set(asked.answers) <= set(export.columns)):
        unfold(export, options.columns, options.n_annotators)
    assign(export, asked)
    return lengthen(export)


def tool_of(table: Rows) -> Format:
    """The tool of which a table looks like an export."""
    export = Export(table.location, table.rows, table.columns)
    return next(known for known in FORMATS.values() if known.is_it(export))


def countable(table: Rows) -> Rows:
    """A table that is read as it is, without the rows that its tool says never count; and a note.

    Raises:
        DataError: none is left.
    """
    what, counts_not = tool_of(table).left_out
    kept = [k for k, row in enumerate(table.rows) if not counts_not(row)]
    if len(kept) == len(table.rows):
        return table
    note = f"{table.location}: {len(table.rows) - len(kept)} rows are {what}: left out."
    if not kept:
        raise DataError(note)
    lines = [table.lines[k] for k in kept] if table.lines else None
    rows = [table.rows[k] for k in kept]
    return replace(table, rows=rows, lines=lines, notes=[*table.notes, note])


def as_rows(table: Long) -> Rows:
    """A long table in the form in which tables are read, for a recipe or a report that names it."""
    lines = [line for row in table.rows if isinstance(line := row[LINE], int)]
    items = Counter(row[ITEM_ID] for row in table.rows)
    people = any(row[ANNOTATOR_ID] for row in table.rows) or max(items.values()) > 1
    columns = dict.fromkeys([*table.columns, *(d.column for d in table.asked)])
    return Rows(
        table.export.location,
        list(columns),
        table.rows,
        lines if len(lines) == len(table.rows) else None,
        summary(table),
        aliases=table.export.aliases,
        annotator=ANNOTATOR_ID if people else None,
    )


def summary(table: Long) -> list[str]:
    """What was read, what was left out and why, and what was guessed."""
    export = table.export
    people = {row[ANNOTATOR_ID] for row in table.rows} - {""}
    items = {row[ITEM_ID] for row in table.rows}
    who = f"by {len(people)} annotators" if people else "by annotators without names"
    counts = f"{len(table.rows):,} annotations of {len(items):,} items {who}"
    kinds = ", ".join(f"{d.name} ({d.kind}, {len(d.options) or 2} options)" for d in table.asked)
    left = counted(export.left_out)
    named = {"item": export.item, "annotator": export.annotator}
    from_ = "".join(f"{what}: {name}; " for what, name in named.items() if name and name[0] != " ")
    return [
        export.notes[0],
        f"{export.n_read:,} rows read: {counts}.",
        f"left out: {left}.",
        *export.notes[1:],
        f"columns: {from_}texts: {', '.join(table.texts)}; questions: {kinds}"
        + (f"; kept as they are: {', '.join(table.further)}." if table.further else "."),
    ]
