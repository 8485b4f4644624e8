"""Dimensions of the type `multi`: sets in tables and answers, yes-or-no questions in between.

This is the one place that goes from the one to the other. Everything that asks, learns or measures
a question sees the yes-or-no questions, which `Rubric.dimensions` holds.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from slm_judge.agreement.sets import Chosen
from slm_judge.rubric import Dimension, Multi, Rubric

from .item import Item
from .tables import Rows
from .text import is_blank, read_json

Labels = npt.NDArray[np.int64]


class _Findings(Protocol):
    """What `read.Findings` does."""

    def add(self, kind: str, example: str) -> None: ...

    def read(self, dimension: Dimension | Multi, raw: object) -> int | None: ...


# --- in: cells of a table ---


def columns_of(rubric: Rubric, of: Callable[[str], str] = str) -> list[str]:
    """The columns of labels that a table has, a set in one; `of` names that of a dimension."""
    return [of(dimension.name) for dimension in rubric.as_written]


def options_of(rubric: Rubric, of: Callable[[str], str] = str) -> dict[str, list[str]]:
    """The columns, one an option, that a table may have in place of that of a set."""
    return {of(one.name): [of(name) for name in one.members] for one in rubric.sets}


def unfold(
    table: Rows, rubric: Rubric, findings: _Findings, of: Callable[[str], str] = str
) -> None:
    """Give a table, in place, a column of true and false for each option of a set that it holds.

    A cell is a list, or a text: a JSON list, or the options with the dimension's separator between
    them. An empty list is the empty set, an empty text no answer. Where a table has no column of
    the set, its columns of the options, if it has them, count as they are; where both say
    something, and not the same, neither counts.

    Args:
        table: as it was read.
        rubric: with its sets.
        findings: takes what cannot be read.
        of: the column of a dimension.
    """
    for one in rubric.sets:
        if (column := of(one.name)) not in table.columns:
            continue
        members = [of(name) for name in one.members]
        for index, row in enumerate(table.rows):
            if is_blank(raw := row.get(column)):
                continue
            chosen = read_set(one, raw, findings)
            if chosen is None:
                findings.add(
                    f"labels of {one.name} outside the rubric",
                    f"{table.where(index)}: {raw!r} (its options stand in a JSON list, or have "
                    f"{one.separator!r} between them: `separator` of the dimension)",
                )
                continue
            own: dict[str, Any] = {name: k in chosen for k, name in enumerate(members)}
            if against := _against(rubric, one, row, own):
                findings.add(
                    f"labels of {one.name} that the columns of its options contradict",
                    f"{table.where(index)}: {raw!r} and {against}",
                )
                own = dict.fromkeys(members)
            row.update(own)
        table.columns += [name for name in members if name not in table.columns]


def _against(rubric: Rubric, one: Multi, row: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """The first column of an option that says something else than the set; "" for none."""
    for name, (column, chosen) in zip(one.members, own.items(), strict=True):
        dimension, raw = rubric.dimension(name), row.get(column)
        if not is_blank(raw) and dimension.index(raw) != dimension.index(chosen):
            return f"{column} {raw!r}"
    return ""


def read_set(one: Multi, raw: object, findings: _Findings) -> Chosen | None:
    """The options that a cell names; None where it names anything else."""
    parts: Any = raw
    if isinstance(raw, str):
        with suppress(ValueError, RecursionError):
            parts = read_json(raw)
        if not isinstance(parts, list):
            parts = [part for part in raw.split(one.separator) if part.strip()]
    if not isinstance(parts, list):
        return None
    found = [findings.read(one, part) for part in parts]
    return None if None in found else frozenset(k for k in found if k is not None)


def lacking(rubric: Rubric, columns: Sequence[str], of: Callable[[str], str] = str) -> list[str]:
    """The columns of labels that an unfolded table lacks, a set named once."""
    present, sets = set(columns), {one.name: one for one in rubric.sets}
    return [
        of(d.name)
        for d in rubric.as_written
        if not present.issuperset(map(of, sets[d.name].members if d.name in sets else [d.name]))
    ]


# --- out: answers and votes ---


def whole_sets(rubric: Rubric) -> list[Multi]:
    """The sets of which the rubric, or the part of it that is left, has all questions."""
    names = {dimension.name for dimension in rubric.dimensions}
    return [one for one in rubric.sets if names.issuperset(one.members)]


def chosen_by_annotators(one: Multi, items: Sequence[Item]) -> list[list[Chosen]]:
    """Per item, the sets of those who answered all questions of it."""
    found = []
    for item in items:
        votes = [item.votes.get(name, {}) for name in one.members]
        people = [who for who in votes[0] if all(who in others for others in votes)]
        found.append([frozenset(k for k, of in enumerate(votes) if of[who]) for who in people])
    return found


def chosen_by(one: Multi, labels: Mapping[str, Sequence[int | None]]) -> list[Chosen | None]:
    """A system's set of each item; None where it gave no answer to one of the questions."""
    rows = zip(*(labels[name] for name in one.members), strict=True)
    return [
        None if None in row or -1 in row else frozenset(k for k, label in enumerate(row) if label)
        for row in rows
    ]
