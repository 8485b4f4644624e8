"""`slm-judge estimate`: means and shares of a corpus from many judged and few human labels."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from slm_judge.agreement.aggregate import aggregate, level_values
from slm_judge.agreement.estimate import CorpusMean, corpus_mean
from slm_judge.data.item import ITEM_ID, votes_of
from slm_judge.data.read import read_annotations
from slm_judge.data.tables import Rows, read_table, require_columns
from slm_judge.data.text import is_blank, read_name
from slm_judge.errors import DataError
from slm_judge.rubric import Dimension, Rubric, format_value
from slm_judge.screen import Sheet


@dataclass(frozen=True)
class Estimates:
    """Of a corpus."""

    dimensions: dict[str, dict[str, CorpusMean]]
    """Dimension -> "mean", or the option -> estimates."""
    notes: list[str]
    """What was left out, and what was read as what."""


def estimate(
    corpus: str,
    annotations: str,
    rubric: Rubric,
    item_id: str = ITEM_ID,
    annotator: str | None = None,
    prefix: str = "",
) -> Estimates:
    """Estimate the mean of each score, and the share of each option of the other dimensions.

    The annotated items must be a random sample of the corpus. Where several people annotated an
    item, their aggregate counts for shares, and their mean for means.

    Args:
        corpus: what `slm-judge annotate` wrote, with a column that names the item.
        annotations: human labels of some of its items; see `read_annotations`.
        rubric: the dimensions.
        item_id: column that names the item, in both.
        annotator: column of `annotations` that names the annotator.
        prefix: of the judge's columns in `corpus`.

    Raises:
        DataError: columns are missing, or fewer than two items are in both.
    """
    table = read_table(corpus)
    wanted = [item_id, *(f"{prefix}{d.name}" for d in rubric.dimensions)]
    require_columns(table.columns, wanted, corpus)
    known = read_annotations(annotations, rubric, item_id, annotator)
    notes = [*table.notes, *known.notes]
    found: dict[str, dict[str, CorpusMean]] = {}
    for dimension in rubric.dimensions:
        judged = _judged(table, item_id, prefix, dimension, notes)
        answered = [i for i in known.items if i.votes.get(dimension.name)]
        both = [i for i in answered if judged.get(i.item_id) is not None]
        human_ids = {item.item_id for item in both}
        rest = [o for name, o in judged.items() if name not in human_ids and o is not None]
        if len(both) < 2 or not rest:
            raise DataError(
                f"{dimension.name}: {len(both)} items have a label of people and of the judge, and "
                f"{len(rest)} of the judge alone; at least 2 and 1 are needed. " + " ".join(notes)
            )
        votes = votes_of(both, dimension.name)
        options = [judged[item.item_id] or 0 for item in both]
        found[dimension.name] = _estimates(dimension, votes, options, rest)
    return Estimates(found, notes)


def _judged(
    table: Rows, item_id: str, prefix: str, dimension: Dimension, notes: list[str]
) -> dict[str, int]:
    """The judge's label of each item; rows without one are counted in `notes`, by their outcome."""
    found: dict[str, int] = {}
    left: Counter[str] = Counter()
    for row in table.rows:
        raw, name = row.get(f"{prefix}{dimension.name}"), read_name(row.get(item_id))
        label = dimension.read(raw)
        if is_blank(raw):
            left[str(row.get(f"{prefix}outcome") or "no label")] += 1
        elif label is None:
            left[f"{raw!r} is not in the rubric"] += 1
        elif not name or name in found:
            left["the item stands there already" if name else "no item is named"] += 1
        else:
            found[name] = label[0]
    if left:
        reasons = ", ".join(f"{reason} ({n})" for reason, n in left.most_common(5))
        notes.append(
            f"{table.location}: {sum(left.values())} of {len(table.rows)} rows do not count for "
            f"{dimension.name}: {reasons}."
        )
    return found


def _estimates(
    dimension: Dimension,
    votes: Sequence[Sequence[int]],
    judged: Sequence[int],
    rest: Sequence[int],
) -> dict[str, CorpusMean]:
    mine, others = np.array(judged), np.array(rest)
    if dimension.type == "score":
        levels = level_values(dimension)
        human = np.array([levels[list(row)].mean() for row in votes])
        return {"mean": corpus_mean(human, levels[mine], levels[others])}
    whole = aggregate(votes, dimension)
    return {
        format_value(value): corpus_mean(
            (whole == k).astype(float), (mine == k).astype(float), (others == k).astype(float)
        )
        for k, value in enumerate(dimension.values)
    }


def estimate_table(found: Estimates) -> Sheet:
    """The estimates for a terminal."""
    first = next(iter(next(iter(found.dimensions.values())).values()))
    table = Sheet(
        f"{first.n_human:,} items with human labels, {first.n_judged:,} judged alone; "
        "95 % intervals",
        ("prediction-powered", "humans alone", "judge alone"),
    )
    for name, estimates in found.dimensions.items():
        table.group(name)
        for key, one in estimates.items():
            table.add(key, str(one.prediction_powered), str(one.humans_alone),
                      f"{one.judge_alone:.3f}")  # fmt: skip
    return table


def as_json(found: Estimates) -> dict[str, Any]:
    """Plain numbers."""
    return {
        name: {key: asdict(one) for key, one in estimates.items()}
        for name, estimates in found.dimensions.items()
    }
