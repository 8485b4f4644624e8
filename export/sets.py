"""What `verify` says of a set of options as a whole; its options are dimensions too."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from slm_judge.agreement.alpha import Floats
from slm_judge.agreement.bootstrap import Bootstrap, percentile_interval
from slm_judge.agreement.compare import (
    CONFIDENCE,
    difference,
    lower_limit,
    share_of,
)
from slm_judge.agreement.sets import Chosen, annotator_pairs, best_constants, judge_pairs
from slm_judge.data.item import Item
from slm_judge.data.sets import chosen_by, chosen_by_annotators
from slm_judge.evaluation.annotators import of_shared
from slm_judge.rubric import Multi

from .answers import Heard, alike
from .artefacts import ADAPTER

_Sets = Sequence[Chosen | None]


def set_report(
    one: Multi, items: Sequence[Item], heard: Mapping[str, Heard], margin: float
) -> dict[str, Any]:
    """What the report says of a dimension, of a set: on the items where the adapter answers."""
    judged = {n: chosen_by(one, {m: h.labels(m) for m in one.members}) for n, h in heard.items()}
    asked = np.array([chosen is not None for chosen in judged[ADAPTER]])
    votes = [
        row if own else [] for row, own in zip(chosen_by_annotators(one, items), asked, strict=True)
    ]
    compared = of_shared(votes)
    own = [[chosen] if chosen is not None else [] for chosen in judged[ADAPTER]]
    groups = [item.group for item in items]
    among = annotator_pairs(compared, len(one.options), one.distance)
    reference, cost, n, units = _alphas(one, judged[ADAPTER], votes, groups)
    report: dict[str, Any] = {
        "distance": one.distance,
        "annotations": sum(map(len, votes)),
        "annotators_alpha": float(among.alpha(among.per_item.sum(axis=0))),
        "annotated": sum(map(bool, votes)),
        "compared": sum(map(bool, compared)),
        "artefacts": {name: _against(one, sets, compared) for name, sets in judged.items()},
        "constant": _constant(one, compared),
        "loss": {},
        "between": {},
    }
    for name, sets in judged.items():
        if name == ADAPTER or not asked.any():
            continue
        lost = difference(reference, _alphas(one, sets, votes, groups)[0], margin, cost, units)
        report["loss"][name] = {**lost.as_dict(), "items": n}
        report["between"][f"{ADAPTER} / {name}"] = _between(one, sets, own, groups)
    return report


def _against(one: Multi, sets: _Sets, votes: Sequence[Sequence[Chosen]]) -> dict[str, float]:
    pairs = judge_pairs(sets, votes, len(one.options), one.distance)
    totals = pairs.per_item.sum(axis=0)
    return {"alpha": float(pairs.alpha(totals)), "accuracy": float(pairs.subset_accuracy(totals))}


def _constant(one: Multi, votes: Sequence[Sequence[Chosen]]) -> dict[str, float]:
    """What a judge reaches that always says one set, the best one for each figure."""
    if not any(votes):
        return {"alpha": float("nan"), "accuracy": float("nan")}
    found = best_constants(votes, len(one.options), one.distance)
    alpha, same = found["alpha"], found["subset_accuracy"]
    accuracy = same.subset_accuracy(same.per_item.sum(axis=0))
    return {"alpha": float(alpha.alpha(alpha.per_item.sum(axis=0))), "accuracy": float(accuracy)}


def _alphas(
    one: Multi, sets: _Sets, others: Sequence[Sequence[Chosen]], groups: Sequence[str]
) -> tuple[Floats, float, int, int]:
    """Alphas on resampled groups of the items that others labelled; what alpha loses on average if
    one set becomes another one; and how many items and groups these are.

    A set that is drawn anew costs alpha / n, and changes unless the same comes out. Where one is
    said of all items, it is 1, as in `compare.change_cost`.
    """
    rows = [row for row, given in enumerate(others) if given] or [*range(len(others))]
    kept, n = [sets[row] for row in rows], len(rows)
    bootstrap = Bootstrap(n, groups=[groups[row] for row in rows])
    pairs = judge_pairs(kept, [others[row] for row in rows], len(one.options), one.distance)
    alphas = pairs.alpha(bootstrap.totals(pairs.per_item))
    changes = 1 - sum((times / n) ** 2 for times in Counter(kept).values())
    cost = max(0.0, float(alphas[0])) / n / changes if changes > 1e-9 else 1.0
    return alphas, cost, n, bootstrap.units


def _between(
    one: Multi, sets: _Sets, own: Sequence[Sequence[Chosen]], groups: Sequence[str]
) -> dict[str, Any]:
    """How alike an artefact's sets are to the adapter's; intervals are of 90 %."""
    alphas, cost, _, units = _alphas(one, sets, own, groups)
    alpha = lower_limit(percentile_interval(alphas, CONFIDENCE, units=units), alphas, cost)
    rows = [row for row, given in enumerate(own) if given]
    same = np.array([own[row][0] == sets[row] for row in rows], dtype=float)
    return alike(share_of(same, [groups[row] for row in rows]), alpha)
