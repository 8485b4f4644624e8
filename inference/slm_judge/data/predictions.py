"""Labels of one rater for known items: predictions of a system, or right answers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slm_judge.errors import DataError
from slm_judge.files import write_text
from slm_judge.rubric import Rubric

from .item import Item
from .tables import read_table, require_columns


@dataclass(frozen=True)
class Answers:
    """What one system said about N items in one dimension."""

    labels: npt.NDArray[np.int64]
    """N option indices."""
    probabilities: npt.NDArray[np.float64] | None = None
    """N x options, where the system gives them."""


def read_labels(location: str, rubric: Rubric, items: Sequence[Item]) -> dict[str, list[int]]:
    """Per dimension, the option of each item, from a table with `item_id` and the dimensions.

    Raises:
        DataError: columns or items are missing, or a label is not in the rubric.
    """
    table = read_table(location)
    wanted = ["item_id", *(dimension.name for dimension in rubric.dimensions)]
    require_columns(table.column_names, wanted, location)
    rows = {str(row["item_id"]): row for row in table.select_columns(wanted)}
    if absent := [item.item_id for item in items if item.item_id not in rows]:
        raise DataError(
            f"{location} lacks {len(absent)} of {len(items)} items, e.g. {', '.join(absent[:3])}."
        )
    found: dict[str, list[int]] = {}
    for dimension in rubric.dimensions:
        options = [dimension.index(rows[item.item_id][dimension.name]) for item in items]
        for item, option in zip(items, options, strict=True):
            if option is None:
                raise DataError(
                    f"{location}: {dimension.name} of item {item.item_id} is "
                    f"{rows[item.item_id][dimension.name]!r}, which the rubric does not have."
                )
        found[dimension.name] = [option for option in options if option is not None]
    return found


def write_predictions(
    path: Path,
    items: Sequence[Item],
    rubric: Rubric,
    probabilities: Mapping[str, npt.NDArray[np.floating[Any]]],
) -> None:
    """Write labels and probabilities of N items, JSON Lines.

    Args:
        path: of the file.
        items: N items.
        rubric: gives the dimensions.
        probabilities: per dimension, N x options.
    """
    lines = []
    for row, item in enumerate(items):
        line: dict[str, Any] = {"item_id": item.item_id}
        for dimension in rubric.dimensions:
            shares = probabilities[dimension.name][row]
            line[dimension.name] = dimension.values[int(shares.argmax())]
            line[f"{dimension.name}_probabilities"] = [round(float(p), 6) for p in shares]
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))


def parse_predictions(pairs: Sequence[str]) -> dict[str, str]:
    """`name=file` pairs of the command line; a bare file is named after itself.

    Raises:
        DataError: a name or a file is empty.
    """
    found = {}
    for pair in pairs:
        name, separator, location = pair.partition("=")
        if not separator:
            name, location = Path(pair).stem, pair
        if not name or not location:
            raise DataError(f"--predictions is name=file, got {pair!r}.")
        found[name] = location
    return found
