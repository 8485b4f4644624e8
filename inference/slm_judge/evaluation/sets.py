"""What a report says about a `multi` dimension as a whole; its options are dimensions too."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from slm_judge.agreement.bootstrap import Bootstrap, percentile_interval
from slm_judge.agreement.compare import careful_interval
from slm_judge.agreement.sets import Chosen, Pairs, annotator_pairs, best_constants, judge_pairs
from slm_judge.data.item import Item
from slm_judge.data.predictions import Answers
from slm_judge.data.sets import chosen_by, chosen_by_annotators
from slm_judge.rubric import Multi

from .dimension import Settings

BOUNDS = {"alpha": (-np.inf, 1.0)}
"""Of what is no share."""


def evaluate_set(
    one: Multi,
    items: Sequence[Item],
    systems: Mapping[str, Mapping[str, Answers]],
    settings: Settings,
) -> dict[str, Any]:
    """Alpha of sets, share of equal sets, and F1, of annotators and systems.

    Args:
        one: the dimension.
        items: N items.
        systems: name -> dimension -> answers about the N items.
        settings: of the evaluation.

    Returns:
        `humans` (None where no item has two annotations), `systems`, `constant` (always one set, at
        best), and of each the alpha, `subset_accuracy`, `micro_f1` and `macro_f1`; `options` with
        how often each was chosen.
    """
    k = len(one.options)
    judged = {
        name: chosen_by(one, {m: of[m].labels.tolist() for m in one.members})
        for name, of in systems.items()
    }
    votes = chosen_by_annotators(one, items)
    rows = [
        i
        for i, row in enumerate(votes)
        if row and all(own[i] is not None for own in judged.values())
    ]
    lost = sum(map(bool, votes)) - len(rows)
    said = [votes[i] for i in rows]
    report: dict[str, Any] = {
        "distance": one.distance,
        "members": one.members,
        "items": len(rows),
        "ratings": sum(map(len, said)),
        "notes": [],
        "humans": None,
        "systems": {},
    }
    if lost:
        report["notes"].append(
            f"{lost} annotated items are left out, since a system gave no answer there."
        )
    if not rows:
        report["notes"].append("No item has an annotation, so nothing can be computed.")
        return report
    if settings.new_annotators:
        report["notes"].append(
            "Intervals of sets speak about items that these annotators judged; those of its "
            "options alone speak about new annotators too."
        )
    bootstrap = Bootstrap(
        len(rows), settings.resamples, settings.seed, [items[i].group for i in rows]
    )
    several = [row if len(row) > 1 else [] for row in said]
    among = None
    if any(several):
        found, among = set_figures(annotator_pairs(several, k, one.distance), bootstrap)
        report["humans"] = {"items": sum(map(bool, several)), **found}
    compared = several if any(several) else said
    best = best_constants(compared, k, one.distance)
    report["constant"] = {name: set_figures(of, bootstrap)[0][name] for name, of in best.items()}
    if among is not None:
        constant = best["alpha"].alpha(bootstrap.totals(best["alpha"].per_item))
        minus = percentile_interval(constant - among, units=bootstrap.units)
        report["constant"]["minus_annotators"] = minus.as_dict()
    for name, own in judged.items():
        chosen = [own[i] for i in rows]
        found, alphas = set_figures(judge_pairs(chosen, compared, k, one.distance), bootstrap)
        if among is not None:
            minus = percentile_interval(alphas - among, units=bootstrap.units)
            found["minus_annotators"] = minus.as_dict()
        report["systems"][name] = found
    first = next(iter(judged.values()))
    report["options"] = [
        {
            "value": one.values[option],
            "dimension": one.members[option],
            "annotations": _share(option, [s for row in said for s in row]),
            "judgements": _share(option, [s for i in rows if (s := first[i]) is not None]),
        }
        for option in range(k)
    ]
    return report


def set_figures(pairs: Pairs, bootstrap: Bootstrap) -> tuple[dict[str, Any], Any]:
    """All statistics with their intervals; and alpha, followed by that of the resamples."""
    totals = bootstrap.totals(pairs.per_item)
    unseen = pairs.unseen(totals, bootstrap.unit)
    found = pairs.statistics(totals)
    more = {} if unseen is None else pairs.statistics(unseen)
    intervals = {
        name: careful_interval(
            values, more.get(name), BOUNDS.get(name, (0.0, 1.0)), bootstrap.units
        ).as_dict()
        for name, values in found.items()
    }
    return intervals, found["alpha"]


def _share(option: int, sets: Sequence[Chosen]) -> float:
    return sum(option in one for one in sets) / len(sets)
