"""`slm-judge estimate`: means and shares of a corpus from many judged and few human labels."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.table import Table

from slm_judge.agreement.aggregate import aggregate, level_values
from slm_judge.agreement.estimate import CorpusMean, corpus_mean
from slm_judge.data.item import votes_of
from slm_judge.data.read import read_annotations
from slm_judge.data.tables import read_table, require_columns
from slm_judge.errors import DataError
from slm_judge.rubric import Dimension, Rubric, format_value


def estimate(
    corpus: str,
    annotations: str,
    rubric: Rubric,
    item_id: str = "item_id",
    annotator: str | None = None,
    prefix: str = "",
) -> dict[str, dict[str, CorpusMean]]:
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

    Returns:
        Dimension -> "mean", or the option -> estimates.

    Raises:
        DataError: columns are missing, or fewer than two items are in both.
    """
    table = read_table(corpus)
    wanted = [item_id, *(f"{prefix}{d.name}" for d in rubric.dimensions)]
    require_columns(table.column_names, wanted, corpus)
    rows = table.select_columns(wanted).to_list()
    known = read_annotations(annotations, rubric, item_id, annotator)
    found: dict[str, dict[str, CorpusMean]] = {}
    for dimension in rubric.dimensions:
        judged = {str(row[item_id]): dimension.index(v) for row in rows
                  if (v := row[f"{prefix}{dimension.name}"]) not in (None, "")}  # fmt: skip
        answered = [i for i in known.items if i.votes.get(dimension.name)]
        both = [i for i in answered if judged.get(i.item_id) is not None]
        human_ids = {item.item_id for item in both}
        rest = [o for name, o in judged.items() if name not in human_ids and o is not None]
        if len(both) < 2 or not rest:
            raise DataError(
                f"{dimension.name}: {len(both)} items have a label of people and of the judge, and "
                f"{len(rest)} of the judge alone; at least 2 and 1 are needed."
            )
        votes = votes_of(both, dimension.name)
        options = [judged[item.item_id] or 0 for item in both]
        found[dimension.name] = _estimates(dimension, votes, options, rest)
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


def estimate_table(found: dict[str, dict[str, CorpusMean]]) -> Table:
    """The estimates for a terminal."""
    first = next(iter(next(iter(found.values())).values()))
    table = Table(
        title=f"{first.n_human:,} items with human labels, {first.n_judged:,} judged alone; "
        "95 % intervals"
    )
    for column in ("", "prediction-powered", "humans alone", "judge alone"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, estimates in found.items():
        table.add_row(name, style="bold")
        for key, one in estimates.items():
            table.add_row(f"  {key}", str(one.prediction_powered), str(one.humans_alone),
                          f"{one.judge_alone:.3f}")  # fmt: skip
    return table


def as_json(found: dict[str, dict[str, CorpusMean]]) -> dict[str, Any]:
    """Plain numbers."""
    return {
        name: {key: asdict(one) for key, one in estimates.items()}
        for name, estimates in found.items()
    }
