"""Everything that a report says about one dimension, as plain numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from slm_judge.agreement import bias, scores
from slm_judge.agreement.aggregate import (
    aggregate,
    aggregate_of_others,
    level_values,
    mean_levels,
)
from slm_judge.agreement.alpha import (
    Floats,
    alpha_of_coincidences,
    annotator_coincidences,
    judge_confusions,
    vote_counts,
)
from slm_judge.agreement.alt_test import EPSILON
from slm_judge.agreement.bootstrap import RESAMPLES, Bootstrap, Interval, percentile_interval
from slm_judge.agreement.calibration import (
    brier_score,
    calibration_error,
    cross_entropy,
    reliability,
    risk_coverage,
)
from slm_judge.agreement.compare import MARGIN, difference
from slm_judge.agreement.estimate import items_needed, widths
from slm_judge.data.item import is_named
from slm_judge.data.predictions import Answers
from slm_judge.rubric import Dimension

from . import annotators

_CURVE_POINTS = 200


@dataclass(frozen=True)
class Settings:
    """How an evaluation is done."""

    resamples: int = RESAMPLES
    """Of the bootstrap over items."""
    seed: int = 0
    epsilon: float = EPSILON["skilled"]
    """Of the alternative annotator test: what an annotator must be better by to be worth more."""
    margin: float = MARGIN
    """Alpha that may be lost to the reference system without being inferior."""
    bins: int = 10
    """Of the reliability curve."""


def evaluate_dimension(
    dimension: Dimension,
    votes: Sequence[Mapping[str, int]],
    systems: Mapping[str, Answers],
    groups: Mapping[str, Sequence[str]] | None = None,
    settings: Settings | None = None,
) -> dict[str, Any]:
    """Evaluate systems against annotators.

    Args:
        dimension: gives the options and the level of measurement.
        votes: N items; annotator -> option index, of those who answered.
        systems: name -> answers; the first one is the reference of comparisons.
        groups: attribute -> the group of each item, for bias probes.
        settings: see `Settings`.

    Returns:
        Numbers, lists and texts. What cannot be computed is None or nan, and `notes` says why.
    """
    settings = settings or Settings()
    answered = np.array([bool(row) for row in votes])
    rows = np.flatnonzero(answered).tolist()
    kept = [votes[i] for i in rows]
    report: dict[str, Any] = {
        "type": dimension.type,
        "level_of_measurement": dimension.level_of_measurement,
        "options": list(dimension.values),
        "items": len(rows),
        "annotators": len({name for row in kept for name in row if is_named(name)}) or None,
        "ratings": sum(map(len, kept)),
    }
    report["notes"] = annotators.notes(dimension, kept, len(votes))
    if not len(rows):
        return report | {"humans": None, "systems": {}, "probes": []}
    bootstrap = Bootstrap(len(rows), settings.resamples, settings.seed)
    plain = [list(row.values()) for row in kept]
    report["humans"] = _humans(dimension, plain, bootstrap)
    report["named"] = all(is_named(name) for row in kept for name in row)
    given = annotators.yardstick(plain, dimension, bootstrap)
    report["constant"] = annotators.constant(
        dimension, kept, given, _confusion_statistics(dimension), settings.epsilon
    )
    reference: Floats | None = None
    report["systems"] = {}
    for name, answers in systems.items():
        chosen = Answers(
            answers.labels[rows],
            None if answers.probabilities is None else answers.probabilities[rows],
        )
        found, alphas = _system(dimension, kept, chosen, bootstrap, settings, given)
        if reference is None:
            reference = alphas
        else:
            found["against_reference"] = difference(reference, alphas, settings.margin).as_dict()
        report["systems"][name] = found
    first = next(iter(systems.values()))
    named = {key: [values[i] for i in rows] for key, values in (groups or {}).items()}
    report["probes"] = _probes(dimension, plain, first.labels[rows], named)
    main = next(iter(report["systems"].values()))
    report["by_annotator"] = annotators.by_annotator(
        dimension, kept, main["alternative_annotator_test"], settings.resamples, settings.seed
    )
    report["notes"] += annotators.careless(report["by_annotator"])
    alpha = main["alpha"]
    report["sample_size"] = _sample_size(Interval(**alpha), len(rows))
    return report


def _humans(
    dimension: Dimension, votes: Sequence[Sequence[int]], bootstrap: Bootstrap
) -> dict[str, Any] | None:
    """Annotators among themselves; it is also each annotator against the rest.

    `aggregate`: each annotation against the aggregate of the item's others.
    """
    several = sum(len(row) > 1 for row in votes)
    if not several:
        return None
    coincidences = annotator_coincidences(votes, len(dimension.options))
    statistics = _confusion_statistics(dimension, symmetric=True)
    others = bootstrap.totals(aggregate_of_others(votes, dimension))
    return {
        "items": several,
        **_intervals(bootstrap.totals(coincidences), statistics),
        "aggregate": _intervals(others, _confusion_statistics(dimension)),
    }


def _confusion_statistics(
    dimension: Dimension, symmetric: bool = False
) -> dict[str, Callable[[Floats], Floats]]:
    """Statistics of a sum of confusion matrices (of coincidences, where symmetric)."""
    values, level = dimension.values, dimension.level_of_measurement

    def alpha(sums: Floats) -> Floats:
        both = sums if symmetric else sums + np.swapaxes(sums, -1, -2)
        return alpha_of_coincidences(both, values, level)

    found: dict[str, Callable[[Floats], Floats]] = {
        "alpha": alpha,
        "accuracy": scores.accuracy,
        "macro_f1": scores.macro_f1,
        "kappa": scores.cohen_kappa,
    }
    if level != "nominal":
        levels = level_values(dimension)
        found["weighted_kappa"] = lambda sums: scores.cohen_kappa(sums, "quadratic")
        found["mean_absolute_error"] = lambda sums: scores.mean_absolute_error(sums, levels)
        if not symmetric:
            found["mean_shift"] = lambda sums: scores.mean_shift(sums, levels)
    return found


def _intervals(
    totals: Floats, statistics: Mapping[str, Callable[[Floats], Floats]]
) -> dict[str, Any]:
    """Statistics of `Bootstrap.totals`."""
    return {
        name: percentile_interval(statistic(totals), bounds=scores.BOUNDS[name]).as_dict()
        for name, statistic in statistics.items()
    }


def _system(
    dimension: Dimension,
    votes: Sequence[Mapping[str, int]],
    answers: Answers,
    bootstrap: Bootstrap,
    settings: Settings,
    given: annotators.Yardstick,
) -> tuple[dict[str, Any], Floats]:
    """One system's figures; and its alpha, followed by those of the resamples."""
    n_options, plain = len(dimension.options), [list(row.values()) for row in votes]
    labels = answers.labels.tolist()
    confusions = judge_confusions(labels, plain, n_options)
    statistics = _confusion_statistics(dimension)
    totals = bootstrap.totals(confusions)
    report = _intervals(totals, statistics)
    shared = given.shared
    on_shared = totals if shared.all() else bootstrap.totals(confusions * shared[:, None, None])
    alphas = statistics["alpha"](on_shared)
    report["compared"] = {"items": int(shared.sum()), **_intervals(on_shared, statistics)}
    report["apart"] = None
    if not shared.all():
        rest = {"items": int((~shared).sum()), **_intervals(totals - on_shared, statistics)}
        report["apart"] = rest
    report["minus_annotators"] = annotators.minus_annotators(alphas, given)
    whole = aggregate(plain, dimension)
    against = judge_confusions(labels, [[option] for option in whole.tolist()], n_options)
    report["against_aggregate"] = _intervals(bootstrap.totals(against), statistics)
    with_judge = annotator_coincidences(
        [[*row, label] for row, label in zip(plain, labels, strict=True)], n_options
    )
    among = {"alpha": _confusion_statistics(dimension, symmetric=True)["alpha"]}
    report["alpha_as_one_more"] = _intervals(bootstrap.totals(with_judge), among)["alpha"]
    if dimension.level_of_measurement != "nominal":
        levels = level_values(dimension)
        report |= scores.rank_correlations(levels[answers.labels], mean_levels(plain, dimension))
    report["confusion"] = totals[0].tolist()
    report["options"] = _options(totals[0])
    report["alternative_annotator_test"] = annotators.stand_in(
        dimension, votes, labels, alphas, given, settings.epsilon
    )
    report["calibration"] = _calibration(plain, answers, whole, n_options, settings.bins)
    return report, statistics["alpha"](totals)


def _options(confusion: Floats) -> list[dict[str, Any]]:
    found = scores.per_option(confusion)
    return [
        {
            "precision": float(found.precision[k]),
            "recall": float(found.recall[k]),
            "f1": float(found.f1[k]),
            "annotations": float(confusion[k].sum()),
            "judgements": float(confusion[:, k].sum()),
        }
        for k in range(len(confusion))
    ]


def _calibration(
    votes: Sequence[Sequence[int]],
    answers: Answers,
    whole: npt.NDArray[np.int64],
    n_options: int,
    n_bins: int,
) -> dict[str, Any] | None:
    if answers.probabilities is None:
        return None
    counts = vote_counts(votes, n_options).astype(float)
    shares = counts / counts.sum(axis=1, keepdims=True)
    everyone = np.arange(len(votes))
    confidence = answers.probabilities[everyone, answers.labels]
    agreement = shares[everyone, answers.labels]
    errors = (answers.labels != whole).astype(float)
    curve = risk_coverage(confidence, errors)
    points = np.unique(np.linspace(0, len(curve.risk) - 1, _CURVE_POINTS).astype(int))
    return {
        "expected_calibration_error": calibration_error(
            confidence, agreement, counts.sum(axis=1).astype(int), n_bins
        ).as_dict(),
        "brier_score": brier_score(answers.probabilities, shares),
        "log_loss": cross_entropy(answers.probabilities, shares),
        "bins": [asdict(b) for b in reliability(confidence, agreement, n_bins)],
        "risk_coverage": {
            "area": curve.area,
            "threshold": curve.threshold[points].tolist(),
            "coverage": curve.coverage[points].tolist(),
            "risk": curve.risk[points].tolist(),
        },
    }


def _probes(
    dimension: Dimension,
    votes: Sequence[Sequence[int]],
    labels: npt.NDArray[np.int64],
    groups: Mapping[str, Sequence[str]],
) -> list[dict[str, Any]]:
    measures = {"agreement": scores.agreeing_share(labels, votes, len(dimension.options))}
    if dimension.type != "choice":
        measures["shift"] = level_values(dimension)[labels] - mean_levels(votes, dimension)
    found = [
        probe
        for attribute, names in groups.items()
        for measure, per_item in measures.items()
        for probe in bias.probe_groups(attribute, names, measure, per_item)
    ]
    return [probe.as_dict() for probe in found]


def correct_probes(dimensions: Mapping[str, dict[str, Any]]) -> None:
    """Adjust the probes of all dimensions of a report together, in place."""
    rows = [probe for report in dimensions.values() for probe in report["probes"]]
    probes = [bias.Probe(**{**row, "difference": Interval(**row["difference"])}) for row in rows]
    for row, probe in zip(rows, bias.adjusted(probes), strict=True):
        row["p_adjusted"] = probe.p_adjusted


def _sample_size(interval: Interval, n_items: int) -> dict[str, Any]:
    """How wide alpha's interval is, and would be with other numbers of items."""
    if not np.isfinite(interval.high - interval.low) or interval.high == interval.low:
        return {"width": None, "widths": {}, "items_for_width_0.1": None}
    return {
        "width": interval.high - interval.low,
        "widths": {str(n): w for n, w in widths(interval, n_items, (100, 300, 1000, 3000)).items()},
        "items_for_width_0.1": items_needed(interval, n_items, 0.1),
    }
