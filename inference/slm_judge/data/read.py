"""Annotations and predictions in tables, matched on the item, for an evaluation.

Unlike training, an evaluation goes on with what can be used; the rest is counted and named.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from slm_judge.data.predictions import Answers
from slm_judge.errors import DataError
from slm_judge.rubric import Dimension, Rubric, format_value

from .item import Item
from .tables import read_table, require_columns


@dataclass
class Annotations:
    """Annotated items, with what could not be used."""

    items: list[Item]
    columns: dict[str, list[str]] = field(default_factory=dict)
    """Of the items, the further columns that were asked for."""
    notes: list[str] = field(default_factory=list)

    def select(self, rows: Sequence[int]) -> "Annotations":
        """Some of the items."""
        return Annotations(
            [self.items[i] for i in rows],
            {name: [values[i] for i in rows] for name, values in self.columns.items()},
            self.notes,
        )


def read_annotations(
    location: str,
    rubric: Rubric,
    item_id: str = "item_id",
    annotator: str | None = None,
    columns: Mapping[str, str] | None = None,
    further: Sequence[str] = (),
) -> Annotations:
    """Read annotations, wide (one row an item) or long (one row an annotation).

    Args:
        location: see `TableStream`.
        rubric: gives the dimensions, and the fields, which may be missing here.
        item_id: column that names the item.
        annotator: column that names the annotator; None where each row is an item of its own.
        columns: field or dimension -> column, where they differ.
        further: columns to keep, e.g. for bias probes; an item's first row counts.

    Raises:
        DataError: a column that was named is missing, or no annotation is usable.
    """
    table, columns = read_table(location), columns or {}
    named = [item_id, *([annotator] if annotator else []), *further]
    require_columns(table.column_names, named, location)
    present = [d for d in rubric.dimensions if columns.get(d.name, d.name) in table.column_names]
    absent = [d.name for d in rubric.dimensions if d not in present]
    if not present:
        raise DataError(
            f"{location} has none of the rubric's dimensions {', '.join(absent)}; it has "
            f"{', '.join(table.column_names)}."
        )
    found = Annotations([], {name: [] for name in further})
    if absent:
        found.notes.append(f"{location} lacks {', '.join(absent)}: left out.")
    unknown: list[str] = []
    by_id: dict[str, Item] = {}
    for number, row in enumerate(table):
        name = str(row[item_id])
        rater = str(row[annotator]) if annotator else ""
        item = by_id.get(name)
        if item is None:
            state = {f: format_value(row.get(columns.get(f, f)) or "") for f in rubric.fields}
            item = by_id[name] = Item(name, state, {}, name)
            for column in further:
                found.columns[column].append(format_value(row[column]))
        for dimension in present:
            value = row[columns.get(dimension.name, dimension.name)]
            option = _option(dimension, value)
            if option is not None:
                votes = item.votes.setdefault(dimension.name, {})
                # Without a column of annotators, further rows of an item are further annotators.
                votes[rater if annotator else f"{len(votes) + 1}" if votes else ""] = option
            elif value not in (None, ""):
                unknown.append(f"row {number + 1}: {dimension.name} = {value!r}")
    found.items = list(by_id.values())
    if unknown:
        found.notes.append(
            f"{location}: {len(unknown)} labels are not in the rubric and were left out, e.g. "
            f"{'; '.join(unknown[:3])}."
        )
    if not any(item.votes for item in found.items):
        raise DataError(f"{location} has no label of the rubric. {' '.join(found.notes)}")
    return found


def read_predictions(
    location: str, rubric: Rubric, item_ids: Sequence[str], item_id: str = "item_id"
) -> tuple[dict[str, Answers], list[int], list[str]]:
    """Read what a system said about items.

    Args:
        location: table with `item_id`, a column a dimension, and perhaps a column
            `<dimension>_probabilities` with a list in option order.
        rubric: gives the dimensions.
        item_ids: the N items that are asked about.
        item_id: column that names the item.

    Returns:
        Per dimension, answers about the items that are there; the positions of those items in
        `item_ids`; and notes.

    Raises:
        DataError: columns are missing, or no item is there.
    """
    table = read_table(location)
    require_columns(table.column_names, [item_id, *(d.name for d in rubric.dimensions)], location)
    rows = {str(row[item_id]): row for row in table}
    known = [i for i, name in enumerate(item_ids) if name in rows]
    notes = []
    if not known:
        raise DataError(
            f"{location} has no predictions for the annotated items: it has "
            f"{', '.join(list(rows)[:3])}, the annotations have {', '.join(item_ids[:3])}. "
            f"Both need the same names in the column {item_id}."
        )
    if missing := len(item_ids) - len(known):
        absent = [name for name in item_ids if name not in rows]
        notes.append(
            f"{location} lacks {missing} of {len(item_ids)} items (e.g. {', '.join(absent[:3])}): "
            "left out."
        )
    if extra := len(rows) - len(known):
        notes.append(f"{location} has {extra} items without annotations: left out.")
    usable = [
        i
        for i in known
        if all(_option(d, rows[item_ids[i]][d.name]) is not None for d in rubric.dimensions)
    ]
    if bad := len(known) - len(usable):
        notes.append(
            f"{location}: {bad} items have a label that is empty or not in the rubric: left out."
        )
    if not usable:
        raise DataError(f"{location} has no label of the rubric for the annotated items.")
    chosen = [rows[item_ids[i]] for i in usable]
    return {d.name: _answers(d, chosen) for d in rubric.dimensions}, usable, notes


def _answers(dimension: Dimension, rows: Sequence[Mapping[str, Any]]) -> Answers:
    labels = np.array([_option(dimension, row[dimension.name]) for row in rows], dtype=np.int64)
    column = f"{dimension.name}_probabilities"
    if not rows or rows[0].get(column) is None:
        return Answers(labels)
    lists = [row[column] for row in rows]
    sizes = {len(given) if isinstance(given, list) else 0 for given in lists}
    if sizes != {len(dimension.options)}:
        raise DataError(
            f"{column} must hold a list of {len(dimension.options)} probabilities in every row."
        )
    return Answers(labels, np.array(lists, dtype=float))


def _option(dimension: Dimension, value: Any) -> int | None:
    return None if value is None or value == "" else dimension.index(value)
