"""Each annotator against the others, and who of them seems not to read the items."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from slm_judge.rubric import Dimension

from .aggregate import level_values
from .alpha import Floats, alpha_of_coincidences, annotator_coincidences, judge_coincidences
from .bootstrap import RESAMPLES, Bootstrap, Interval, percentile_interval
from .compare import careful_alpha

FEWEST_ITEMS = 30
"""Nothing is concluded about an annotator with fewer items that two others annotated too."""
_RATE = 0.05  # of false alarms among those who are flagged


@dataclass(frozen=True)
class Annotator:
    """One annotator of a dimension."""

    name: str
    n_items: int
    n_shared: int
    """Items that somebody else annotated too."""
    alpha: Interval
    """With each of the others."""
    minus_others: Interval
    """That, minus the others' alpha among themselves, on the items that two of them annotated."""
    shift: float
    """Mean distance to the others' mean, in levels; above 0, they rate higher. nan for names."""
    p_value: float
    """Of the hypothesis that they agree with the others as those agree among themselves."""
    careless: bool = False
    """They agree less, with the false discovery rate controlled (Benjamini and Hochberg, 1995), and
    not more than chance."""


def by_annotator(
    votes: Sequence[Mapping[str, int]],
    dimension: Dimension,
    n_resamples: int = RESAMPLES,
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
) -> list[Annotator]:
    """Compare each annotator with the others.

    Models of how people err, such as MACE, give a probability of spamming instead, which controls
    no error: where annotations are noisy, crowd-kit's puts it above one half for up to three
    quarters of the careful annotators (`python -m benchmarks.careless`).

    Args:
        votes: N items; annotator -> option index, of those whose names are known.
        dimension: gives the options and the level of measurement.
        n_resamples: of the bootstrap over an annotator's items, or over their groups.
        seed: of it.
        groups: what each of the N items belongs to, e.g. a conversation; by default to itself.

    Returns:
        Those with most items first.
    """
    rows, owner = dict[str, list[int]](), groups or range(len(votes))
    for n, row in enumerate(votes):
        for name in row:
            rows.setdefault(name, []).append(n)
    found = [
        _against_others(name, {n: votes[n] for n in kept}, owner, dimension, (n_resamples, seed))
        for name, kept in rows.items()
    ]
    return sorted(_flagged(found), key=lambda one: (-one.n_items, one.name))


def _against_others(
    name: str,
    votes: Mapping[int, Mapping[str, int]],
    owner: Sequence[Hashable],
    dimension: Dimension,
    drawing: tuple[int, int],
) -> Annotator:
    several_said = {n: row for n, row in votes.items() if len(row) > 1}
    shared, groups = [*several_said.values()], [owner[n] for n in several_said]
    own = [row[name] for row in shared]
    others = [[option for key, option in row.items() if key != name] for row in shared]
    n_options, nothing = len(dimension.options), Interval(*[float("nan")] * 3)
    if not shared:
        return Annotator(name, len(votes), 0, nothing, nothing, float("nan"), float("nan"))
    several = np.array([len(row) > 1 for row in others])
    with_others = judge_coincidences(own, others, n_options)
    among = annotator_coincidences(others, n_options)
    # Of three sums: with the others, the same where there are several of them, those themselves.
    parts = np.stack([with_others, with_others * several[:, None, None], among], axis=1)
    bootstrap = Bootstrap(len(shared), *drawing, groups)
    totals = bootstrap.totals(parts)
    alphas = alpha_of_coincidences(totals[:, 1:], dimension.values, dimension.level_of_measurement)
    gap = alphas[:, 0] - alphas[:, 1]
    known = gap[1:][np.isfinite(gap[1:])]
    p = float("nan")
    if several.sum() >= FEWEST_ITEMS and len(known) and known.std() > 0:
        p = _lower_p(float(gap[0] / known.std()), bootstrap.units)
    return Annotator(
        name,
        len(votes),
        len(shared),
        careful_alpha(totals[:, 0], with_others, dimension, bootstrap),
        percentile_interval(gap, units=bootstrap.units),
        _shift(own, others, dimension),
        p,
    )


def _lower_p(t: float, units: int) -> float:
    from scipy.stats import t as student

    return float(student.cdf(t, units - 1))


def _shift(own: Sequence[int], others: Sequence[Sequence[int]], dimension: Dimension) -> float:
    if dimension.level_of_measurement == "nominal":
        return float("nan")
    levels: Floats = level_values(dimension)
    gaps = [levels[mine] - levels[row].mean() for mine, row in zip(own, others, strict=True)]
    return float(np.mean(gaps))


def _flagged(found: Sequence[Annotator]) -> list[Annotator]:
    from scipy.stats import false_discovery_control

    tested = [one for one in found if np.isfinite(one.p_value)]
    adjusted = false_discovery_control([one.p_value for one in tested], method="bh")
    careless = {
        one.name
        for one, q in zip(tested, adjusted, strict=True)
        if q <= _RATE and not one.alpha.low > 0
    }
    return [replace(one, careless=one.name in careless) for one in found]
