"""What a system said about items: written by `verify` and `train`, and read from anybody's file."""

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slm_judge.errors import DataError
from slm_judge.files import write_text
from slm_judge.rubric import Dimension, Rubric

from .item import ITEM_ID, Item
from .read import Findings
from .sets import lacking, unfold
from .tables import Rows, read_table, require_columns
from .text import is_blank, told_apart

_MOST_OTHER = 0.25  # share of labels that a judge with class_balance says for rarer ones
_TOLERANCE = 0.01  # of a sum of probabilities, which people round


@dataclass(frozen=True)
class Answers:
    """What one system said about N items in one dimension."""

    labels: npt.NDArray[np.int64]
    """N option indices; -1 where the question was not asked (`ask_if`)."""
    probabilities: npt.NDArray[np.float64] | None = None
    """N x options, where the system gives them."""
    flipped: npt.NDArray[np.bool_] | None = None
    """N, of a preference that a judge read twice: whether the readings chose different labels."""

    def of(self, rows: Sequence[int]) -> "Answers":
        """Those of some items."""
        chosen, shares, flipped = list(rows), self.probabilities, self.flipped
        return Answers(
            self.labels[chosen],
            None if shares is None else shares[chosen],
            None if flipped is None else flipped[chosen],
        )


@dataclass(frozen=True)
class Predictions:
    """What one system said about those of the items that it knows."""

    answers: dict[str, Answers]
    """Dimension -> answers."""
    rows: list[int]
    """Positions of the N items among those that were asked about."""
    notes: list[str]


def read_predictions(
    location: str, rubric: Rubric, item_ids: Sequence[str], item_id: str = ITEM_ID
) -> Predictions:
    """Read what a system said about items.

    Args:
        location: table with `item_id`, a column a dimension, and perhaps a column
            `<dimension>_probabilities` with a list in option order.
        rubric: gives the dimensions.
        item_ids: the items that are asked about.
        item_id: column that names the item.

    Raises:
        DataError: columns are missing, no item is there, an item stands there twice with different
            labels or probabilities, or probabilities are none.
    """
    table = read_table(location)
    findings = Findings(strict=False, notes=list(table.notes))
    unfold(table, rubric, findings)
    require_columns(table.columns, [item_id, *lacking(rubric, table.columns)], location)
    by_id = _by_id(table, item_id, rubric, findings)
    found = [by_id.get(name) for name in spelled_like(item_ids, by_id, location, findings)]
    known = [i for i, row in enumerate(found) if row is not None]
    if not known:
        raise DataError(
            f"{location} has no predictions for the annotated items: it has "
            f"{told_apart(list(by_id)[:3])}, the annotations have {told_apart(item_ids[:3])}. "
            f"Both need the same names in the column {item_id}."
        )
    if len(known) < len(item_ids):
        absent = [name for name, row in zip(item_ids, found, strict=True) if row is None]
        findings.notes.append(
            f"{location} lacks {len(absent)} of {len(item_ids)} items (e.g. "
            f"{', '.join(absent[:3])}): left out."
        )
    if extra := len(by_id) - len(known):
        findings.notes.append(f"{location} has {extra} items that were not asked about: left out.")
    labels = [_labels(rubric, table, found[i], findings) for i in known]
    usable = [k for k, row in enumerate(labels) if None not in row]
    if not usable:
        raise DataError(
            f"{location} has no label of the rubric for the annotated items. "
            f"{' '.join(findings.said(location))}"
        )
    if partly := sum(None in row and any(one is not None for one in row) for row in labels):
        findings.notes.append(
            f"{location}: {partly} items lack a label of some question: left out of all, so that "
            "all questions are of the same items."
        )
    rows = [known[k] for k in usable]
    chosen = [found[i] for i in rows]
    answers = {
        d.name: Answers(
            np.array([labels[n][k] for n in usable], dtype=np.int64),
            _probabilities(
                d,
                table,
                [row for row in chosen if row is not None],
                [labels[n][k] == -1 for n in usable],
            ),
        )
        for k, d in enumerate(rubric.dimensions)
    }
    for name, given in answers.items():
        if given.probabilities is None or not (asked := given.labels >= 0).any():
            continue
        likeliest = given.probabilities[asked].max(axis=1)
        own = given.probabilities[asked, given.labels[asked]]
        if (other := int((own < likeliest).sum())) > _MOST_OTHER * asked.sum():
            findings.notes.append(
                f"{location}: {other} of {asked.sum()} labels of {name} are not its most probable "
                f"option. Are {name}_probabilities in the rubric's order of options?"
            )
    return Predictions(answers, rows, findings.said(location))


def _by_id(table: Rows, item_id: str, rubric: Rubric, findings: Findings) -> dict[str, int]:
    """The row of each item; the same said twice counts once.

    Raises:
        DataError: an item has two rows that differ.
    """
    found: dict[str, int] = {}
    trimmed = repeated = 0
    for index, row in enumerate(table.rows):
        name = table.name(index, item_id)
        trimmed += isinstance(row.get(item_id), str) and name != row[item_id]
        if not name:
            findings.add("rows without an item", table.where(index))
            continue
        first = found.setdefault(name, index)
        if first == index:
            continue
        repeated += 1
        if _said(rubric, table, first) != _said(rubric, table, index):
            raise DataError(
                f"{table.where(index)}: {item_id} {name} stands there twice with different labels "
                f"or probabilities, first in {table.where(first)}. A system says one thing about "
                "an item."
            )
    if trimmed:
        findings.notes.append(f"{table.location}: {trimmed} ids have spaces around them: trimmed.")
    if repeated:
        findings.notes.append(f"{table.location}: {repeated} rows repeat an item: counted once.")
    return found


def _said(rubric: Rubric, table: Rows, index: int) -> list[Any]:
    """What a row says, as labels and probabilities are read."""
    row, said = table.rows[index], list[Any]()
    for d in rubric.dimensions:
        raw, column = row.get(d.name), f"{d.name}_probabilities"
        label = d.read(raw)
        said.append(label[0] if label else None if is_blank(raw) else raw)
        said.append(None if is_blank(row.get(column)) else _shares(d, column, table, index))
    return said


def spelled_like(
    item_ids: Sequence[str], theirs: Collection[str], location: str, findings: Findings
) -> list[str]:
    """The ids as the other table spells them, where numbers are written 1 here and 1.0 there."""

    def plain(name: str) -> str:
        return re.sub(r"^(-?\d+)\.0+$", r"\1", name)

    spelled = {plain(name): name for name in theirs}
    if len(spelled) < len(theirs) or len({plain(name) for name in item_ids}) < len(item_ids):
        return list(item_ids)
    found = [name if name in theirs else spelled.get(plain(name), name) for name in item_ids]
    if changed := [pair for pair in zip(item_ids, found, strict=True) if pair[0] != pair[1]]:
        ours, other = changed[0]
        findings.notes.append(
            f"{location}: {len(changed)} ids are written otherwise, e.g. {other} is read as {ours}."
        )
    return found


def _labels(rubric: Rubric, table: Rows, index: int | None, findings: Findings) -> list[int | None]:
    """The options of a row, -1 for a question that it was not asked by its own other answers."""
    given: dict[str, int] = {}
    found: list[int | None] = []
    for dimension in rubric.dimensions:
        asked = not dimension.ask_if or rubric.asked(given)[dimension.name]
        option = _label(dimension, table, index, findings) if asked else -1
        found.append(option)
        if option is not None:
            given[dimension.name] = option
    return found


def _label(dimension: Dimension, table: Rows, index: int | None, findings: Findings) -> int | None:
    assert index is not None
    raw = table.rows[index].get(dimension.name)
    option = None if is_blank(raw) else findings.read(dimension, raw)
    if option is None:
        findings.add(
            f"labels of {dimension.name} that are empty or not in the rubric",
            f"{table.where(index)}: {raw!r}",
        )
    return option


def _probabilities(
    dimension: Dimension, table: Rows, indices: Sequence[int], unasked: Sequence[bool]
) -> npt.NDArray[np.float64] | None:
    column = f"{dimension.name}_probabilities"
    blank = [is_blank(table.rows[index].get(column)) for index in indices]
    if all(blank):
        return None
    nothing = [0.0] * len(dimension.options)  # of what was not asked
    return np.array(
        [nothing if none and free else _shares(dimension, column, table, index)
         for index, none, free in zip(indices, blank, unasked, strict=True)], dtype=float
    )  # fmt: skip


def _shares(dimension: Dimension, column: str, table: Rows, index: int) -> list[float]:
    """The probabilities of a row.

    Raises:
        DataError: they are none.
    """
    given: Any = table.rows[index].get(column)
    try:
        given = json.loads(given) if isinstance(given, str) else given
        shares = [float(share) for share in given]
        right = len(shares) == len(dimension.options) and min(shares) >= 0
        if right and math.isclose(sum(shares), 1, abs_tol=_TOLERANCE):
            return shares
    except (TypeError, ValueError):
        pass
    raise DataError(
        f"{table.where(index)}: {column} must be a list of {len(dimension.options)} probabilities, "
        f"in option order, that sum to 1; it is {given!r}."
    )


def write_predictions(
    path: Path,
    items: Sequence[Item],
    rubric: Rubric,
    answers: Mapping[str, Answers],
) -> None:
    """Write labels and probabilities of N items, JSON Lines.

    Args:
        path: of the file.
        items: N items.
        rubric: gives the dimensions.
        answers: per dimension, with probabilities.
    """
    lines = []
    for row, item in enumerate(items):
        line: dict[str, Any] = {ITEM_ID: item.item_id}
        for dimension in rubric.dimensions:
            said = answers[dimension.name]
            assert said.probabilities is not None
            label = int(said.labels[row])
            line[dimension.name] = dimension.values[label] if label >= 0 else None
            shares = [round(float(p), 6) for p in said.probabilities[row]]
            line[f"{dimension.name}_probabilities"] = shares
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))


def parse_predictions(pairs: Sequence[str]) -> dict[str, str]:
    """`name=file` pairs of the command line; a bare file is named after itself.

    Raises:
        DataError: a name or a file is empty, or two have one name.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        name, separator, location = pair.partition("=")
        if not separator:
            name, location = Path(pair).stem, pair
        if not name or not location:
            raise DataError(f"--predictions is name=file, got {pair!r}.")
        if name in found:
            raise DataError(
                f"--predictions: {found[name]} and {location} are both called {name}. Name them "
                "apart, as name=file."
            )
        found[name] = location
    return found
