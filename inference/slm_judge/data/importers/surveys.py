"""Exports that are tables with columns of their own: Mechanical Turk, Qualtrics, Google Forms.

Sources of the formats: the header of MTurk's batch results and docs.aws.amazon.com/AWSMechTurk
("crowd-form"), qualtrics.com/support ("Data & Analysis: Export Formats"), support.google.com/docs
("View and manage form responses").
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from slm_judge.data.text import is_nobody, read_json, read_name

from .export import Export, Question, Row, is_ticked, parts, written_list
from .roles import find_annotator, looks_like_slider, looks_like_text

_QUALTRICS = {
    "StartDate", "EndDate", "Status", "IPAddress", "Progress", "Duration (in seconds)", "Finished",
    "RecordedDate", "RecipientLastName", "RecipientFirstName", "RecipientEmail", "LocationLatitude",
    "LocationLongitude", "ExternalReference", "ExternalDataReference", "DistributionChannel",
    "UserLanguage",
}  # fmt: skip
_LONG = 4  # words of a header that is a text


def is_rejected(row: Row) -> bool:
    """Whether an assignment of Mechanical Turk was rejected."""
    why = " ".join(parts(row.get("Reject")))
    return row.get("AssignmentStatus") == "Rejected" or not is_nobody(why)


def is_preview(row: Row) -> bool:
    """Whether a response to Qualtrics is a preview of the survey."""
    return read_name(row.get("Status")) in ("Survey Preview", "Survey Test", "1")


def mturk(export: Export) -> None:
    """Batch results: `Input.x` are texts, `Answer.y` answers, `WorkerId` the annotator."""
    for row in export.rows:
        _task_answers(row)
    columns = list(dict.fromkeys(key for row in export.rows for key in row if key[:1] != " "))
    own = [
        name for name in columns if not name.startswith(("Input.", "Answer.", "WorkerId", "HITId"))
    ]
    export.columns = columns
    export.drop([*own, "Answer.taskAnswers"], "Mechanical Turk's own")
    _numbered(export)
    new = {name: name.partition(".")[2] if "." in name else name for name in export.columns}
    answers = [name for name in export.columns if name.startswith("Answer.")]
    for name in [
        name for name in new if name.startswith("Input.") and f"Answer.{new[name]}" in new
    ]:
        new[name] += "_text"
    for name in answers:  # crowd-classifier and crowd-html-elements
        new[name] = re.sub(r"\.(label|labels|on|value)$", "", new[name])
        if name.endswith(".labels"):
            export.question(new[name]).several = True
    export.rows = [{new.get(key, key): written_list(value) if key in answers else value
                    for key, value in row.items()} for row in export.rows]  # fmt: skip
    export.columns = list(dict.fromkeys(new.values()))
    export.aliases |= {name: ours for name, ours in new.items() if name != ours}
    export.answers = list(dict.fromkeys(new[name] for name in answers))
    typed = [name for name in export.answers if not _has_options(export, name)]
    if typed:
        export.answers = [name for name in export.answers if name not in typed]
        export.notes.append(f"{', '.join(typed)}: typed in, no options, so kept as it is.")
    export.annotator = "WorkerId"
    export.item = "HITId" if "HITId" in export.columns else None


def _has_options(export: Export, name: str) -> bool:
    different = set(export.values(name))
    few = 0 < len(different) <= max(10, len(export.rows) / 4)
    return few or looks_like_slider(export, name)


def _task_answers(row: Row) -> None:
    """`Answer.taskAnswers`, which is JSON, as columns: question, or question.option of boxes."""
    try:
        found = read_json(row.get("Answer.taskAnswers") or "[]")
    except (TypeError, ValueError):
        return
    for name, value in (found[0] if isinstance(found, list) and found else {}).items():
        for key, part in value.items() if isinstance(value, dict) else [("", value)]:
            row[f"Answer.{name}.{key}" if key else f"Answer.{name}"] = part


def _numbered(export: Export) -> None:
    """Several items of a HIT, as Input.text1, Answer.label1, Input.text2, ...: a row an item."""
    numbers: dict[str, dict[str, str]] = defaultdict(dict)
    for name in export.columns:
        if match := re.fullmatch(r"((?:Input|Answer)\..*?[A-Za-z_])_?(\d+)(\.\w+)?", name):
            numbers[match[2]][f"{match[1].rstrip('_')}{match[3] or ''}"] = name
    common = set.intersection(*(set(found) for found in numbers.values())) if numbers else set()
    if len(numbers) < 2 or len({name.partition(".")[0] for name in common}) < 2:
        return
    gone = {found[name] for found in numbers.values() for name in common}
    rows = []
    for row in export.rows:
        rest = {key: value for key, value in row.items() if key not in gone}
        for number, found in numbers.items():
            cells = {name: row.get(found[name]) for name in common}
            rows.append({**rest, **cells, "HITId": f"{row.get('HITId')}_{number}"})
    export.rows = rows
    export.columns = [name for name in export.columns if name not in gone] + sorted(common)
    export.notes.append(f"each HIT has {len(numbers)} items: a row an item, HITId with its number.")


def qualtrics(export: Export) -> None:
    """Responses, without the second and third header; a person a row, or an item a row."""
    unfinished = sum(is_ticked(row.get("Finished")) is False for row in export.rows
                     if "Finished" in row)  # fmt: skip
    if unfinished:
        export.notes.append(f"{unfinished} responses are not finished; their answers are read.")
    export.drop(_QUALTRICS, "Qualtrics' own")
    if any(looks_like_text(export, name) for name in export.columns):
        if "ResponseId" in export.columns:
            export.columns.remove("ResponseId")
            export.columns.append("ResponseId")
        return
    loops = {name: match for name in export.columns if (match := re.fullmatch(r"(\d+)_(.+)", name))}
    matrix = {
        name: match for name in export.columns if (match := re.fullmatch(r"(.+)_(\d+)", name))
    }
    if len({match[1] for match in loops.values()}) > 1:
        texts = _loop_texts(export, loops)
        _items_in_columns(export, {name: (match[1], match[2], texts.get(name, ""))
                                   for name, match in loops.items()})  # fmt: skip
    elif len(matrix) > 1:
        wording = {name: export.question(name).text for name in matrix}
        _items_in_columns(export, {name: (name, match[1], wording[name].rpartition(" - ")[2])
                                   for name, match in matrix.items()})  # fmt: skip
        for name, match in matrix.items():
            export.question(match[1]).text = wording[name].rpartition(" - ")[0]
    else:
        _headers_as_items(export, lambda name: export.question(name).text)
    _person(export, "ResponseId")


def _loop_texts(export: Export, loops: Mapping[str, re.Match[str]]) -> dict[str, str]:
    """The wordings of a question that is asked in a loop, where they differ; else nothing."""
    by: dict[str, list[str]] = defaultdict(list)
    for name, match in loops.items():
        by[match[2]].append(name)
    found = {
        name: export.question(name).text
        for columns in by.values()
        for name in columns
        if len({export.question(other).text for other in columns}) == len(columns)
    }
    if found:
        export.notes.append(
            "the wording of the first question, as a whole, is taken for the text of an item; "
            "--items takes a table of the texts alone."
        )
    return found


def google_forms(export: Export) -> None:
    """Responses: a question a column, or an item a column or a row of a grid."""
    export.drop(export.columns[:1], "the time of the response")
    if any(looks_like_text(export, name) for name in export.columns):
        return
    grid = {
        name: match for name in export.columns if (match := re.fullmatch(r"(.*?) ?\[(.+)\]", name))
    }
    if len(grid) > 1:
        _items_in_columns(export, {name: (match[2], match[1] or "label", match[2])
                                   for name, match in grid.items()})  # fmt: skip
        for match in grid.values():
            export.question(match[1] or "label").text = match[1]
    else:
        _headers_as_items(export, lambda name: name)
    _person(export, "")


def _headers_as_items(export: Export, text: Callable[[str], str]) -> None:
    """Columns with long headers and the same answers: each header is an item."""
    long = [name for name in export.columns if len(text(name).split()) >= _LONG]
    answers = [set(export.values(name)) for name in long]
    if len(long) > 2 and all(found and found & answers[0] for found in answers):
        _items_in_columns(export, {name: (name, "label", text(name)) for name in long})
        export.question("label").doubts.append("The headers were taken for the texts of the items.")


def _items_in_columns(export: Export, columns: Mapping[str, tuple[str, str, str]]) -> None:
    """A row an item and person, where each row of the export is a person.

    Args:
        export: with a row a person.
        columns: column -> item, question, and the item's text if it is known.
    """
    items: dict[str, dict[str, str]] = defaultdict(dict)
    texts: dict[str, str] = {}
    for name, (item, question, text) in columns.items():
        items[item][question] = name
        texts[item] = texts.get(item) or text
        export.questions.setdefault(question, Question(options=export.question(name).options))
    rows = []
    for number, row in enumerate(export.rows, start=1):
        rest: dict[str, Any] = {k: v for k, v in row.items() if k not in columns}
        for item, asked in items.items():
            cells = {question: row.get(name) for question, name in asked.items()}
            if any(map(parts, cells.values())):
                rows.append(
                    {**rest, "item_id": item, "text": texts[item], " person": number, **cells}
                )
    questions = list(dict.fromkeys(question for _, question, _ in columns.values()))
    rest_columns = [name for name in export.columns if name not in columns]
    export.rows, export.columns = rows, [*rest_columns, "item_id", *questions]
    export.item, export.answers = "item_id", questions
    if all(texts.values()):
        export.columns.append("text")
        export.texts = ["text"]
    export.notes.append(f"an item a column: {len(items)} items, {len(questions)} questions each "
                        f"({', '.join(questions)}).")  # fmt: skip


def _person(export: Export, column: str) -> None:
    """Name the person behind each row of the export."""
    if not any(" person" in row for row in export.rows):
        return
    export.annotator = find_annotator(export)
    if export.annotator is None:
        for row in export.rows:
            row["respondent"] = read_name(row.get(column)) or str(row[" person"])
        export.columns = [*(name for name in export.columns if name != column), "respondent"]
        export.annotator = "respondent"
