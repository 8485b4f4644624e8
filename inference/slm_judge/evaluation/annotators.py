"""What a system is compared with: the annotators of the same items, and a judge without eyes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from slm_judge.agreement import annotators as each
from slm_judge.agreement.aggregate import level_values, ratings_of
from slm_judge.agreement.alpha import Floats, alpha_of_coincidences
from slm_judge.agreement.alt_test import AltTest, Score, alt_test
from slm_judge.agreement.bootstrap import Bootstrap, Interval, percentile_interval
from slm_judge.agreement.scores import BOUNDS
from slm_judge.agreement.stand_in import StandIn, best_constant, constant_confusion
from slm_judge.data.item import is_named
from slm_judge.rubric import Dimension, format_value

Named = Sequence[Mapping[str, int]]
"""Per item, annotator -> option index."""
RARE = 10
"""Where fewer items, and at most one in so many, have another option than the commonest, alpha
means little."""


@dataclass(frozen=True)
class Yardstick:
    """What every system of a dimension is compared with, over N items."""

    shared: npt.NDArray[np.bool_]
    """Which items have several annotations; all of them where none has."""
    among: Floats | None
    """Alpha of the annotations among themselves, then of each resample; None without any two."""
    said: Floats
    """How often each option was said on the shared items, then in each resample; 1 + R x V."""
    constant: int
    """The option that agrees best, in alpha, where it is always said."""
    of_constant: Floats
    """Its alpha on the shared items, then of each resample."""
    units: int
    """Items, groups or annotators that were drawn."""
    groups: list[int]
    """What each item belongs to."""


def shared_items(votes: Sequence[Sequence[Any]]) -> npt.NDArray[np.bool_]:
    """Which items have several annotations; all of them where none has."""
    several = np.array([len(row) > 1 for row in votes])
    return several if several.any() else np.ones(len(votes), dtype=bool)


def of_shared(votes: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """The votes on `shared_items`; none on the others."""
    return [[*row] if both else [] for row, both in zip(votes, shared_items(votes), strict=True)]


def yardstick(
    shared: npt.NDArray[np.bool_],
    said: Floats,
    among: Floats,
    units: int,
    dimension: Dimension,
    groups: list[int],
) -> Yardstick:
    """Annotators and the best constant judge on the items where both can be compared.

    Args:
        shared: see `shared_items`.
        said: how often each option was said on those, then in each resample; 1 + R x V.
        among: coincidences among annotators, likewise; 1 + R x V x V.
        units: items, groups or annotators that were drawn.
        dimension: gives the options and the level of measurement.
        groups: what each item belongs to.
    """
    values, level = dimension.values, dimension.level_of_measurement
    alphas = alpha_of_coincidences(among, values, level) if among[0].any() else None
    return Yardstick(shared, alphas, said, *best_constant(said, values, level), units, groups)


def constant(
    dimension: Dimension,
    votes: Named,
    given: Yardstick,
    statistics: Mapping[str, Callable[[Floats], Floats]],
    epsilon: float,
) -> dict[str, Any]:
    """What a judge reaches that always says one option, the best one for each figure.

    `test` is the alternative annotator test of the commonest option, by itself.
    """
    found: dict[str, Any] = {}
    for name in ("alpha", "accuracy", "macro_f1", "kappa"):
        values = [
            statistics[name](constant_confusion(given.said, option))
            for option in range(len(dimension.values))
        ]
        best = max(values, key=lambda one: float(np.nan_to_num(one[0], nan=-np.inf)))
        found[name] = percentile_interval(best, bounds=BOUNDS[name], units=given.units).as_dict()
    common = int(given.said[0].argmax())
    test = _test(dimension, votes, [common] * len(votes), epsilon, given.groups)
    return found | {
        "option": dimension.values[given.constant],
        "minus_annotators": minus_annotators(given.of_constant, given),
        "test": {"option": dimension.values[common], "winning_rate": test.winning_rate},
    }


def stand_in(
    dimension: Dimension,
    votes: Named,
    labels: Sequence[int],
    alphas: Floats,
    given: Yardstick,
    epsilon: float,
) -> dict[str, Any]:
    """The alternative annotator test of a system, and whether a trivial judge would pass it too.

    Args:
        dimension: gives the options and the level of measurement.
        votes: N items; whoever is not named is left out of the test.
        labels: the system's option indices.
        alphas: the system's alpha on the shared items, then of each resample.
        given: what it is compared with.
        epsilon: of the test.
    """
    test = _test(dimension, votes, labels, epsilon, given.groups)
    found = StandIn(
        test,
        percentile_interval(alphas, bounds=(-np.inf, 1.0), units=given.units),
        percentile_interval(alphas - given.of_constant, units=given.units),
        format_value(dimension.values[given.constant]),
    )
    return {
        "epsilon": epsilon,
        "winning_rate": test.winning_rate,
        "advantage_probability": test.advantage_probability,
        "over_constant": found.over_constant.as_dict(),
        "trivial": found.trivial,
        "passed": found.passed,
        "verdict": found.verdict,
        "t_test": {
            "winning_rate": test.t_test_winning_rate,
            "passed": test.t_test_winning_rate >= 0.5,
        },
        "items_needed": test.items_needed,
        "annotators": [asdict(comparison) for comparison in test.comparisons],
        "skipped_annotators": len(test.skipped),
    }


def _test(
    dimension: Dimension, votes: Named, labels: Sequence[int], epsilon: float, groups: list[int]
) -> AltTest:
    """The alternative annotator test, without whoever is not named."""
    ratings, names = ratings_of(_named(votes))
    score: Score = "accuracy" if dimension.level_of_measurement == "nominal" else "neg_rmse"
    levels = level_values(dimension)
    return alt_test(labels, ratings, names, levels, epsilon, score, groups=groups)


def _named(votes: Named) -> list[dict[str, int]]:
    return [{name: option for name, option in row.items() if is_named(name)} for row in votes]


def minus_annotators(alphas: Floats, given: Yardstick) -> dict[str, Any] | None:
    """Alpha of a system minus the annotators' own, on the same resampled items; and in words."""
    if given.among is None:
        return None
    found = percentile_interval(alphas - given.among, units=given.units)
    own = percentile_interval(alphas, units=given.units)
    return found.as_dict() | {"told": _told(found, own.low > 0)}


def _told(gap: Interval, beyond_chance: bool) -> str:
    if not np.isfinite(gap.low) or not np.isfinite(gap.high):
        return "whether it agrees with them as they do with each other cannot be said"
    if gap.low > 0 and not beyond_chance:
        return "theirs is lower, but it is not shown to agree with them more than chance would"
    if gap.low > 0:
        return "it agrees with them more than they do with each other"
    if gap.high < 0:
        return "it agrees with them less than they do with each other"
    return "whether it agrees with them more or less than they do with each other is not decided"


def by_annotator(
    dimension: Dimension,
    votes: Named,
    test: Mapping[str, Any],
    bootstrap: Bootstrap,
    groups: Sequence[str] | None,
) -> list[dict[str, Any]]:
    """A row an annotator who is named: against the others, and the judge against them.

    Args:
        dimension: gives the options and the level of measurement.
        votes: N items.
        test: of the judge; see `stand_in`.
        bootstrap: whose number of resamples and seed are taken.
        groups: what each item belongs to; by default to itself.
    """
    drawing = bootstrap.n_resamples, bootstrap.seed
    compared = {row["annotator"]: row for row in test["annotators"]}
    return [
        {
            "annotator": one.name,
            "items": one.n_items,
            "shared_items": one.n_shared,
            "alpha": one.alpha.as_dict(),
            "minus_others": one.minus_others.as_dict(),
            "shift": one.shift,
            "p_value": one.p_value,
            "careless": one.careless,
            "judge": compared.get(one.name),
        }
        for one in each.by_annotator(_named(votes), dimension, *drawing, groups)
    ]


def notes(dimension: Dimension, votes: Named, n_items: int) -> list[str]:
    """What is missing among N items, and what that leaves; `n_items` with those nobody answered."""
    found = []
    if not votes:
        return ["No item has an annotation, so nothing can be computed."]
    if len(votes) < n_items:
        found.append(f"{n_items - len(votes)} of {n_items} items have no annotation: left out.")
    several = sum(len(row) > 1 for row in votes)
    if not several:
        found.append(
            "No item was annotated twice, so agreement among annotators, what a judge could reach, "
            "and the alternative annotator test cannot be computed; how well the systems agree "
            "with the annotations can."
        )
    elif several < len(votes):
        found.append(
            f"{len(votes) - several} of {len(votes)} items have one annotation: systems and "
            f"annotators are compared on the other {several}, and what systems reach on the rest "
            "stands apart."
        )
    if several and not all(is_named(name) for row in votes for name in row):
        found.append(
            "Nobody said who made some of the annotations: they count as annotations, perhaps of "
            "one person, and the alternative annotator test and all that is said about single "
            "annotators leave them out."
        )
    return found + _variety(dimension, votes)


def _variety(dimension: Dimension, votes: Named) -> list[str]:
    """Whether there is anything to agree about."""
    said = [option for row in votes for option in row.values()]
    commonest = max(set(said), key=said.count)
    name = repr(dimension.values[commonest])
    others = sum(any(option != commonest for option in row.values()) for row in votes)
    if not others:
        return [
            f"All annotations are {name}: agreement cannot be told from chance, and alpha is 1 for "
            "systems that say the same, or at most 0."
        ]
    if others < RARE and others <= len(votes) / RARE:
        return [
            f"Only {others} of {len(votes)} items have an annotation other than {name}: alpha is "
            "nearly undefined here, since how much agreement chance would give, and so alpha, "
            "hangs on those few; its interval shows that, and more items of the other kind would "
            "be needed."
        ]
    times = [sum(k in row.values() for row in votes) for k in range(len(dimension.options))]
    rare = sum(number < RARE for number in times)
    if rare >= max(3, len(times) / 4):
        return [
            f"{rare} of {len(times)} options were chosen in fewer than {RARE} items: macro-F1, in "
            "which each counts as much as the others, is hardly known, and its interval holds the "
            "truth less often than it says (in 76 to 79 % in place of 95 % of simulations with 28 "
            "options and 100 to 300 items). Go by alpha, or annotate more items."
        ]
    return []


def careless(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A note on the annotators who are flagged."""
    names = [row["annotator"] for row in rows if row["careless"]]
    if not names:
        return []
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return [
        f"{len(names)} of {len(rows)} annotators agree with the others less than "
        f"those do among themselves, and are not shown to agree more than chance: {shown}. "
        "They may be careless, or see the items otherwise; they are counted all the same."
    ]
