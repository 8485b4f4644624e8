"""The items to annotate: a table, perhaps with a judge's answers, or drawn by their uncertainty."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from slm_judge.annotate.rows import LABELLED, REVIEW_PROBABILITY
from slm_judge.data.item import ITEM_ID
from slm_judge.data.read import Findings
from slm_judge.data.sets import unfold
from slm_judge.data.tables import read_table, require_columns
from slm_judge.data.text import is_blank, read_name, read_text
from slm_judge.errors import DataError
from slm_judge.rubric import Dimension, Rubric

from .store import Judged

TABLE = "the table's judge"
"""What a judge is called whose answers came with the items."""
_LEAST = 0.1  # of the chances of a design, relative to their mean: rare items would weigh too much


@dataclass
class Items:
    """What a table holds."""

    states: dict[str, dict[str, str]] = field(default_factory=dict)
    """Item -> field -> text, "" where there is none."""
    chances: dict[str, float] = field(default_factory=dict)
    """Of the items of a review file, the chance with which each was drawn."""
    judged: dict[str, Judged] = field(default_factory=dict)
    """What a judge said, where `slm-judge annotate` wrote the table."""
    notes: list[str] = field(default_factory=list)


def read_items(
    location: str, rubric: Rubric, columns: Mapping[str, str] | None = None, prefix: str = ""
) -> Items:
    """Read the items of a table, and a judge's answers beside them.

    Args:
        location: see `TableStream`.
        rubric: gives fields and dimensions.
        columns: field of the rubric, or `item_id`, -> column, where they differ.
        prefix: of the judge's columns.

    Raises:
        DataError: columns are missing, or an item has two texts.
    """
    table, columns, findings = read_table(location), columns or {}, Findings(strict=False)
    unfold(table, rubric, findings, prefix.__add__)
    fields = {name: columns.get(name, name) for name in rubric.fields}
    require_columns(table.columns, list(fields.values()), location)
    column, found = columns.get(ITEM_ID, ITEM_ID), Items()
    found.notes += [*table.notes, *findings.said(location)]
    numbered = column not in table.columns
    if numbered:
        found.notes.append(f"{location} has no column {column}: its rows are numbered.")
    given = [d for d in rubric.dimensions if f"{prefix}{d.name}" in table.columns]
    sure = _confidences(rubric, table.columns, prefix)
    if people := [d.name for d in given if d.name not in sure]:
        found.notes.append(
            f"{location}: {', '.join(people)} are no judge's answers (there is no column "
            f"{prefix}{people[0]}_confidence): not read."
        )
    for index, row in enumerate(table.rows):
        name = str(index + 1) if numbered else table.name(index, column)
        if not name:
            raise DataError(f"{table.where(index)} has no {column}.")
        state = {field: _text(row.get(key), table.where(index)) for field, key in fields.items()}
        if found.states.setdefault(name, state) != state:
            raise DataError(f"{table.where(index)}: the item {name} stands there with another text")
        if not is_blank(row.get(f"{prefix}{REVIEW_PROBABILITY}")):
            found.chances[name] = _chance(row[f"{prefix}{REVIEW_PROBABILITY}"], table.where(index))
        if sure:
            read = [(d, sure[d.name]) for d in given if d.name in sure]
            found.judged[name] = _judged(row, read, prefix, table.where(index))
    if repeated := len(table.rows) - len(found.states):
        found.notes.append(f"{location}: {repeated} rows repeat an item: shown once.")
    return found


def _confidences(rubric: Rubric, present: Sequence[str], prefix: str) -> dict[str, str]:
    """Dimension -> the column of its confidence, where there is one; of a set's questions, its."""
    owner = {member: one.name for one in rubric.sets for member in one.members}
    found: dict[str, str] = {}
    for name in (dimension.name for dimension in rubric.dimensions):
        for source in (name, owner.get(name, name)):
            if (column := f"{prefix}{source}_confidence") in present:
                found.setdefault(name, column)
    return found


def _text(cell: object, where: str) -> str:
    """The text of a cell; people can also be shown one that is empty."""
    text, problem = read_text(cell)
    if problem and not problem.startswith(("missing field", "empty field")):
        raise DataError(f"{where}: {problem.format('a field')}.")
    return text


def _chance(cell: object, where: str) -> float:
    if not 0 < (chance := _number(cell)) <= 1:
        raise DataError(f"{where}: {REVIEW_PROBABILITY} is {cell!r}, no probability above 0.")
    return chance


def _number(cell: object) -> float:
    try:
        return float(str(cell))
    except ValueError:
        return float("nan")  # which no bound holds


def _judged(
    row: Mapping[str, Any], read: Sequence[tuple[Dimension, str]], prefix: str, where: str
) -> Judged:
    """What a judge said in a row; `read` has the dimensions and their columns of confidence."""
    outcome = read_name(row.get(f"{prefix}outcome"))
    found = Judged(problem="" if outcome in LABELLED else outcome)
    for dimension, column in read:
        label = dimension.read(row.get(f"{prefix}{dimension.name}"))
        if label is None or is_blank(row.get(column)):
            continue
        if not 0 <= (sure := _number(row[column])) <= 1:
            raise DataError(f"{where}: {column} is {row[column]!r}, no probability from 0 to 1.")
        found.labels[dimension.name] = dimension.key(label[0]), sure
    return found


def draw(sure: Mapping[str, float], size: int, seed: int = 0) -> tuple[dict[str, float], list[str]]:
    """Draw items with chances that grow with the judge's uncertainty.

    Chances are proportional to 1 - confidence, but not below a tenth of their mean, and at most 1;
    items are drawn systematically in a random order, so that the chances are exactly these and the
    number of items is `size` (Madow, "On the Theory of Systematic Sampling, II", 1949).

    Args:
        sure: N items with the judge's confidence, 0 where it gave no answer.
        size: n, how many to draw.
        seed: of the random order.

    Returns:
        The chance of every item, and the n items that were drawn.
    """
    if not 0 < size <= len(sure):
        raise DataError(f"--draw is between 1 and {len(sure)}, the number of items, not {size}.")
    doubt = {name: 1 - one for name, one in sure.items()}
    least = _LEAST * max(sum(doubt.values()) / len(doubt), 1e-6)
    doubt = {name: max(one, least) for name, one in doubt.items()}
    chances: dict[str, float] = {}
    while len(chances) < len(doubt):  # those that would exceed 1 are certain, and the rest share
        rest = {name: one for name, one in doubt.items() if name not in chances}
        factor = (size - len(chances)) / sum(rest.values())
        above = {name: 1.0 for name, one in rest.items() if one * factor >= 1}
        chances |= above or {name: one * factor for name, one in rest.items()}
    rng, names = random.Random(f"design/{seed}"), sorted(chances)  # noqa: S311
    rng.shuffle(names)
    reached, mark, drawn = 0.0, rng.random(), list[str]()
    for name in names:
        reached += chances[name]
        if mark < reached - 1e-12 and len(drawn) < size:
            drawn.append(name)
            mark += 1
    return chances, drawn + [name for name in names[::-1] if name not in drawn][: size - len(drawn)]
