"""The way back: what a judge said, as pre-annotations that people correct in their tool."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from slm_judge.errors import DataError
from slm_judge.files import check_places, write_text
from slm_judge.rubric import Multi, Rubric

from .item import ITEM_ID
from .read import Findings
from .sets import columns_of, read_set
from .tables import read_table, require_columns
from .text import is_blank, read_name, read_state

_Answers = Mapping[str, tuple[list[str], float | None]]
"""Dimension -> label, or those of a set, and confidence, if there is one."""


def export_predictions(
    location: str,
    rubric: Rubric,
    tool: str,
    output: Path,
    prefix: str = "",
    item_id: str = ITEM_ID,
    overwrite: bool = False,
) -> list[str]:
    """Write the rows of a table that `slm-judge annotate` wrote as pre-annotations of a tool.

    Args:
        location: the table: the rubric's fields, and `<prefix><dimension>` with its confidence.
        rubric: gives fields and dimensions.
        tool: label-studio (also writes the labeling interface, as XML beside it) or argilla.
        output: the JSON file.
        prefix: of the judge's columns.
        item_id: column that names the items; without it they are numbered.
        overwrite: whether files that are there may be replaced.

    Returns:
        Lines about what was written and left out.

    Raises:
        DataError: the tool is unknown, or columns are missing.
    """
    if tool not in _TOOLS:
        raise DataError(f"--to is {' or '.join(_TOOLS)}, not {tool!r}.")
    if output.suffix != ".json":
        raise DataError(f"--output is a .json file, got {output}.")
    interface = output.with_suffix(".xml") if tool == "label-studio" else None
    check_places({"the table": location}, {"--output": output, "its XML": interface}, overwrite)
    table, findings = read_table(location), Findings(strict=False)
    names = columns_of(rubric, prefix.__add__)
    require_columns(table.columns, [*rubric.fields, *names], location)
    found, without = [], 0
    for index, row in enumerate(table.rows):
        state, problem = read_state({name: row.get(name) for name in rubric.fields})
        answers = _answers(row, rubric, prefix, findings)
        without += bool(problem) or not answers
        if answers and not problem:
            name = table.name(index, item_id) or str(index + 1)
            found.append(_TOOLS[tool](name, state, answers, rubric))
    if not found:
        raise DataError(f"{location} has no row with a text and a label of the rubric.")
    written = f"{len(found):,} items with pre-annotations: {output}"
    if interface:
        write_text(interface, _interface(rubric))
        written += f", for the labeling interface {interface}"
    write_text(output, json.dumps(found, ensure_ascii=False, indent=1) + "\n")
    left = [f"left out: {without} rows without a text or a label."] if without else []
    return [f"{written}.", *left, *findings.said(location)]


def _answers(row: Mapping[str, Any], rubric: Rubric, prefix: str, findings: Findings) -> _Answers:
    answers = {}
    for dimension in rubric.as_written:
        raw, options = row.get(f"{prefix}{dimension.name}"), None
        if is_blank(raw):
            continue
        if isinstance(dimension, Multi):
            options = read_set(dimension, raw, findings)
        elif (option := findings.read(dimension, raw)) is not None:
            options = frozenset([option])
        if options is None:
            findings.add(f"labels of {dimension.name} outside the rubric", f"{raw!r}")
            continue
        confidence = read_name(row.get(f"{prefix}{dimension.name}_confidence"))
        labels = [dimension.key(option) for option in sorted(options)]
        answers[dimension.name] = labels, float(confidence) if confidence else None
    return answers


def _task(name: str, state: Mapping[str, str], answers: _Answers, rubric: Rubric) -> dict[str, Any]:
    """A task of Label Studio with a prediction."""
    sure = [confidence for _, confidence in answers.values() if confidence is not None]
    results = [
        {"from_name": dimension, "to_name": rubric.fields[0], "type": "choices",
         "value": {"choices": labels}} for dimension, (labels, _) in answers.items() if labels
    ]  # fmt: skip
    prediction = {"model_version": rubric.name, "result": results}
    return {"data": {ITEM_ID: name, **state},
            "predictions": [prediction | ({"score": min(sure)} if sure else {})]}  # fmt: skip


def _interface(rubric: Rubric) -> str:
    """The labeling interface that the predictions of `_task` fit."""
    lines = ["<View>"]
    for name in rubric.fields:
        lines.append(f"  <Text name={quoteattr(name)} value={quoteattr(f'${name}')}/>")
    for dimension in rubric.as_written:
        how = "multiple" if isinstance(dimension, Multi) else "single"
        lines.append(f"  <Header value={quoteattr(dimension.instructions)}/>")
        lines.append(f"  <Choices name={quoteattr(dimension.name)} toName="
                     f'{quoteattr(rubric.fields[0])} choice="{how}">')  # fmt: skip
        for index, option in enumerate(dimension.options):
            hint = f" hint={quoteattr(option.description)}" if option.description else ""
            lines.append(f"    <Choice value={quoteattr(dimension.key(index))}{hint}/>")
        lines.append("  </Choices>")
    return "\n".join([*lines, "</View>"]) + "\n"


def _record(
    name: str, state: Mapping[str, str], answers: _Answers, rubric: Rubric
) -> dict[str, Any]:
    """A record of Argilla 2 with suggestions, as `Dataset.records.from_json` reads it."""
    sets = {one.name for one in rubric.sets}
    suggestions = {
        dimension: {
            "value": labels if dimension in sets else labels[0],
            "score": confidence,
            "agent": rubric.name,
        }
        for dimension, (labels, confidence) in answers.items()
    }
    return {"id": name, "fields": dict(state), "metadata": {}, "suggestions": suggestions,
            "responses": {}, "vectors": {}}  # fmt: skip


_TOOLS: dict[str, Callable[[str, Mapping[str, str], _Answers, Rubric], dict[str, Any]]] = {
    "label-studio": _task,
    "argilla": _record,
}
