"""Everything that a report says about one dimension, as plain numbers."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from slm_judge.agreement import bias, scores
from slm_judge.agreement.aggregate import (
    aggregate,
    aggregate_of_others,
    level_values,
    mean_levels,
    ratings_of,
)
from slm_judge.agreement.alpha import (
    Floats,
    Votes,
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
from slm_judge.agreement.compare import (
    MARGIN,
    careful_interval,
    change_cost,
    difference,
    share_widened,
    with_unseen,
)
from slm_judge.agreement.estimate import items_needed, widths
from slm_judge.agreement.two_way import TwoWay
from slm_judge.data.item import is_named
from slm_judge.data.predictions import Answers
from slm_judge.errors import DataError
from slm_judge.rubric import Dimension

from . import annotators

_CURVE_POINTS = 200
_FEW = 10
"""Groups or items, below which intervals cover less than they say: benchmarks/intervals.py."""


@dataclass(frozen=True)
class Settings:
    """How an evaluation is done."""

    resamples: int = RESAMPLES
    """Of the bootstrap over items, or over groups of them."""
    seed: int = 0
    epsilon: float = EPSILON["skilled"]
    """Of the alternative annotator test: what an annotator must be better by to be worth more."""
    margin: float = MARGIN
    """Alpha that may be lost to the reference system without being inferior."""
    bins: int = 10
    """Of the reliability curve."""
    new_annotators: bool = False
    """Draw annotators too, so that intervals speak about new ones; see `agreement.two_way`."""


@dataclass(frozen=True)
class Groups:
    """What items and annotators have in common."""

    clusters: Sequence[str] | None = None
    """What each of N items belongs to, e.g. its author; by default to itself."""
    of_items: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Attribute -> the group of each item, for bias probes."""
    of_annotators: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Attribute -> annotator -> group, for bias probes."""

    def of(self, rows: Sequence[int]) -> "Groups":
        """Those of some items."""
        clusters = self.clusters and [self.clusters[i] for i in rows]
        of_items = {key: [names[i] for i in rows] for key, names in self.of_items.items()}
        return Groups(clusters, of_items, self.of_annotators)


@dataclass(frozen=True)
class _Draws:
    """What is resampled."""

    bootstrap: Bootstrap
    two_way: TwoWay | None
    counted: npt.NDArray[np.bool_] | None = None
    """Which items count; by default all."""

    @property
    def units(self) -> int:
        return self.two_way.units if self.two_way else self.bootstrap.units

    def annotators(self, votes: Votes, n_options: int) -> Floats:
        """Totals of coincidences among annotators."""
        if self.two_way:
            return self.two_way.annotator_totals(n_options)
        return self.bootstrap.totals(annotator_coincidences(votes, n_options))

    def judge(self, labels: Sequence[int], votes: Votes, n_options: int) -> Floats:
        """Totals of confusions of a judge with annotators."""
        if self.two_way:
            return self.two_way.judge_totals(labels, n_options)
        confusions = judge_confusions(labels, votes, n_options)
        if self.counted is not None:
            confusions = confusions * self.counted[:, None, None]
        return self.bootstrap.totals(confusions)

    def said(self, votes: Votes, n_options: int) -> Floats:
        """Totals of how often annotators said each option."""
        totals: Floats = self.judge([0] * len(votes), votes, n_options)[..., 0]
        return totals

    def on(self, items: npt.NDArray[np.bool_]) -> "_Draws":
        """The same resamples, of which some items alone count for a judge."""
        two_way = self.two_way and TwoWay(
            self.bootstrap, np.where(items[:, None], self.two_way.ratings, -1)
        )
        return replace(self, two_way=two_way, counted=items)


def evaluate_dimension(
    dimension: Dimension,
    votes: Sequence[Mapping[str, int]],
    systems: Mapping[str, Answers],
    groups: Groups | None = None,
    settings: Settings | None = None,
) -> dict[str, Any]:
    """Evaluate systems against annotators.

    Args:
        dimension: gives the options and the level of measurement.
        votes: N items; annotator -> option index, of those who answered.
        systems: name -> answers; the first one is the reference of comparisons.
        groups: see `Groups`.
        settings: see `Settings`.

    Returns:
        Numbers, lists and texts. What cannot be computed is None or nan, and `notes` says why. The
        probes are still to be corrected, with those of all dimensions (`correct_probes`).

    Raises:
        DataError: annotators are to be drawn, and some have no name.
    """
    settings, groups = settings or Settings(), groups or Groups()
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
        return report | {"humans": None, "systems": {}, "probes": [], "untested": {}}
    groups = groups.of(rows)
    draws = _draws(dimension, kept, groups.clusters, settings)
    report["sampling"] = _sampling(draws, len(rows))
    if report["sampling"]["few"]:
        report["notes"].append(report["sampling"]["few"])
    plain = [list(row.values()) for row in kept]
    shared = annotators.shared_items(plain)
    n_options, together = len(dimension.options), draws.on(shared)
    among = draws.annotators(plain, n_options)
    report["humans"] = _humans(dimension, plain, draws, among)
    report["named"] = all(is_named(name) for row in kept for name in row)
    said, owner = together.said(plain, n_options), draws.bootstrap.unit.tolist()
    given = annotators.yardstick(shared, said, among, draws.units, dimension, owner)
    report["constant"] = annotators.constant(
        dimension, kept, given, _confusion_statistics(dimension), settings.epsilon
    )
    reference: Floats | None = None
    cost = 0.0
    report["systems"] = {}
    for name, answers in systems.items():
        found, alphas = _system(dimension, kept, answers.of(rows), draws, settings, given)
        if reference is None:
            reference = alphas
            cost = change_cost(np.where(shared, answers.labels[rows], -1), plain, dimension)
        else:
            change = difference(reference, alphas, settings.margin, cost, draws.units)
            found["against_reference"] = change.as_dict()
        report["systems"][name] = found
    first = next(iter(systems.values()))
    report |= probe(dimension, kept, first.labels[rows], groups, settings.seed)
    main = next(iter(report["systems"].values()))
    report["by_annotator"] = annotators.by_annotator(
        dimension, kept, main["alternative_annotator_test"], draws.bootstrap, groups.clusters
    )
    report["notes"] += annotators.careless(report["by_annotator"])
    alpha = main["alpha"]
    report["sample_size"] = _sample_size(Interval(**alpha), len(rows))
    return report


def _draws(
    dimension: Dimension,
    votes: Sequence[Mapping[str, int]],
    clusters: Sequence[str] | None,
    settings: Settings,
) -> _Draws:
    bootstrap = Bootstrap(len(votes), settings.resamples, settings.seed, clusters)
    if not settings.new_annotators:
        return _Draws(bootstrap, None)
    if not all(is_named(name) for row in votes for name in row):
        raise DataError(
            f"Intervals that speak about new annotators need to know who annotated, but some "
            f"annotations of {dimension.name} are by nobody named: name the column (--annotator)."
        )
    return _Draws(bootstrap, TwoWay(bootstrap, ratings_of(votes)[0]))


def _sampling(draws: _Draws, n_items: int) -> dict[str, Any]:
    """What is drawn, and so what intervals speak about, in words."""
    units, two_way = draws.bootstrap.units, draws.two_way
    drawn, annotators = "groups" if units < n_items else "items", None
    text = f"Intervals speak about new items like {_these(n_items)}"
    if units < n_items:
        text = f"Intervals speak about new groups like {_these(units)}, of {n_items} items"
    if two_way:
        annotators = two_way.ratings.shape[1]
        text += (
            f", and about new annotators like {_these(annotators)}; those of the annotators' AC "
            "and ICC, of alpha with the judge as one more, and of what is against their aggregate "
            f"or mean, about new {drawn} alone"
        )
    else:
        text += ", judged by these annotators"
    few = None
    if units < _FEW:
        few = (
            f"Intervals rest on {units} {drawn[:-1] if units == 1 else drawn} alone, too few: of "
            "5, 95 % intervals held the truth in about 91 % of simulations."
        )
    elif annotators and annotators < _FEW:
        few = (
            f"What is said about new annotators rests on {annotators} alone, too few to tell how "
            "far others differ: intervals are wide (of 5, 95 % intervals held the truth in 97 % of "
            "simulations), and hold if these are like the new ones."
        )
    return {
        "drawn": drawn,
        "units": units,
        "annotators": annotators,
        "text": f"{text}.",
        "few": few,
    }


def _these(number: int) -> str:
    return f"these {number}" if number > 1 else "this one"


def _humans(
    dimension: Dimension, votes: Votes, draws: _Draws, among: Floats
) -> dict[str, Any] | None:
    """Annotators among themselves, from `among`; it is also each annotator against the rest.

    `aggregate`: each annotation against the aggregate of the item's others.
    """
    several = sum(len(row) > 1 for row in votes)
    if not several:
        return None
    n_options, bootstrap = len(dimension.options), draws.bootstrap
    statistics = _confusion_statistics(dimension, symmetric=True)
    seen = scores.agreeing_of(annotator_coincidences(votes, n_options)), bootstrap.unit
    found = _intervals(among, statistics, draws.units, seen, symmetric=True)
    parts = {"gwet_ac": scores.gwet_parts(votes, n_options)}
    alone = {"gwet_ac": lambda sums: scores.gwet_ac(sums, _weights(dimension))}
    if dimension.level_of_measurement != "nominal":
        parts["icc"] = scores.icc_parts(votes, level_values(dimension))
        alone["icc"] = scores.icc
    for name, per_item in parts.items():
        totals = bootstrap.totals(per_item)
        found |= _intervals(totals, {name: alone[name]}, bootstrap.units)
    others = aggregate_of_others(votes, dimension)
    of_aggregate = _confusion_statistics(dimension)
    of_aggregate.pop("mean_shift", None)
    found["aggregate"] = _intervals(
        bootstrap.totals(others), of_aggregate, bootstrap.units,
        (scores.agreeing_of(others), bootstrap.unit),
    )  # fmt: skip
    return {"items": several, **found}


def _weights(dimension: Dimension) -> scores.Weights:
    """Of disagreement in kappa and AC: none, or by the distance of the ranks."""
    return "none" if dimension.level_of_measurement == "nominal" else "quadratic"


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
            found["icc"] = lambda sums: scores.icc(scores.icc_pair_parts(sums, levels))
    if not symmetric:
        weights = _weights(dimension)
        found["gwet_ac"] = lambda sums: scores.gwet_ac(scores.pair_parts(sums), weights)
    return found


def _intervals(
    totals: Floats,
    statistics: Mapping[str, Callable[[Floats], Floats]],
    units: int,
    seen: tuple[Floats, npt.NDArray[np.int64]] | None = None,
    symmetric: bool = False,
) -> dict[str, Any]:
    """Statistics of `Bootstrap.totals` of so many units.

    Where they are confusions (or coincidences) of items of which hardly one is wrong, intervals
    count on more that are; `seen` is how each item's labels agree, and what it belongs to.
    """
    unseen = with_unseen(totals, *seen, symmetric) if seen else None
    return {
        name: careful_interval(
            statistic(totals),
            None if unseen is None else statistic(unseen),
            scores.BOUNDS[name],
            units,
        ).as_dict()
        for name, statistic in statistics.items()
    }


def _system(
    dimension: Dimension,
    votes: Sequence[Mapping[str, int]],
    answers: Answers,
    draws: _Draws,
    settings: Settings,
    given: annotators.Yardstick,
) -> tuple[dict[str, Any], Floats]:
    """One system's figures; and its alpha on the shared items, then of the resamples."""
    n_options, plain = len(dimension.options), [list(row.values()) for row in votes]
    labels = answers.labels.tolist()
    bootstrap, statistics = draws.bootstrap, _confusion_statistics(dimension)
    totals = draws.judge(labels, plain, n_options)
    said = scores.agreeing_share(labels, plain, n_options)
    report = _intervals(totals, statistics, draws.units, (said, bootstrap.unit))
    shared = given.shared
    together, alone = ((said[rows], bootstrap.unit[rows]) for rows in (shared, ~shared))
    on_shared = totals if shared.all() else draws.on(shared).judge(labels, plain, n_options)
    alphas = statistics["alpha"](on_shared)
    compared = _intervals(on_shared, statistics, draws.units, together)
    report["compared"] = {"items": int(shared.sum()), **compared}
    report["apart"] = None
    if not shared.all():
        rest = _intervals(totals - on_shared, statistics, draws.units, alone)
        report["apart"] = {"items": int((~shared).sum()), **rest}
    report["minus_annotators"] = annotators.minus_annotators(alphas, given)
    whole = aggregate(plain, dimension)
    against = judge_confusions(labels, [[option] for option in whole.tolist()], n_options)
    # A lower median lies below the mean, so nothing is said about a shift from it.
    of_aggregate = {name: one for name, one in statistics.items() if name != "mean_shift"}
    report["against_aggregate"] = _intervals(
        bootstrap.totals(against), of_aggregate, bootstrap.units,
        (scores.agreeing_of(against), bootstrap.unit),
    )  # fmt: skip
    with_judge = annotator_coincidences(
        [[*row, label] if both else [] for row, label, both in zip(
            plain, labels, shared, strict=True)], n_options)  # fmt: skip
    among = {"alpha": _confusion_statistics(dimension, symmetric=True)["alpha"]}
    seen = scores.agreeing_of(with_judge), bootstrap.unit
    whole_group = _intervals(
        bootstrap.totals(with_judge), among, bootstrap.units, seen, symmetric=True
    )
    report["alpha_as_one_more"] = whole_group["alpha"]
    if dimension.level_of_measurement != "nominal":
        levels = level_values(dimension)
        means = mean_levels(plain, dimension)
        for name, values in scores.rank_correlations(
            levels[answers.labels], means, bootstrap
        ).items():
            report |= _intervals(values, {name: np.asarray}, bootstrap.units)
    report["confusion"] = totals[0].tolist()
    report["options"] = _options(totals, draws.units, answers.labels, plain, given.groups)
    report["alternative_annotator_test"] = annotators.stand_in(
        dimension, votes, labels, alphas, given, settings.epsilon
    )
    own = given.groups
    report["calibration"] = _calibration(plain, answers, whole, n_options, settings.bins, own)
    return report, alphas


def _options(
    totals: Floats,
    units: int,
    labels: npt.NDArray[np.int64],
    votes: Votes,
    groups: Sequence[Hashable],
) -> list[dict[str, Any]]:
    found, confusion = scores.per_option(totals), totals[0]
    said = vote_counts(votes, len(confusion)).astype(float)
    agreeing, owner = said / said.sum(axis=1, keepdims=True), np.asarray(groups)
    rows = []
    for k in range(len(confusion)):
        precision, recall, f1 = (
            percentile_interval(values[:, k], bounds=(0.0, 1.0), units=units)
            for values in (found.precision, found.recall, found.f1)
        )
        right, asked = labels == k, (said[:, k] > 0) & (labels >= 0)
        sure = share_widened(precision, agreeing[right, k], owner[right].tolist())
        whole = share_widened(recall, right[asked] * 1.0, owner[asked].tolist())
        if (sure, whole) != (precision, recall):
            low, high = (_harmonic(one, two) for one, two in ((sure.low, whole.low),
                                                              (sure.high, whole.high)))  # fmt: skip
            f1 = Interval(f1.estimate, float(np.fmin(f1.low, low)), float(np.fmax(f1.high, high)))
        rows.append({
            **{name: one.as_dict() for name, one in zip(("precision", "recall", "f1"),
                                                        (sure, whole, f1), strict=True)},
            "annotations": float(confusion[k].sum()),
            "judgements": float(confusion[:, k].sum()),
        })  # fmt: skip
    return rows


def _harmonic(one: float, other: float) -> float:
    return 2 * one * other / (one + other) if one + other > 0 else one + other


def _calibration(
    votes: Sequence[Sequence[int]],
    answers: Answers,
    whole: npt.NDArray[np.int64],
    n_options: int,
    n_bins: int,
    groups: list[int],
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
            confidence, agreement, counts.sum(axis=1).astype(int), n_bins, groups
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


def probe(
    dimension: Dimension,
    votes: Sequence[Mapping[str, int]],
    labels: npt.NDArray[np.int64],
    groups: Groups,
    seed: int,
) -> dict[str, Any]:
    """Look for groups on which a judge agrees less, or rates higher, than on others.

    Args:
        dimension: gives the options.
        votes: N items; annotator -> option index.
        labels: N option indices of the judge.
        groups: see `Groups`.
        seed: of the permutations.

    Returns:
        `probes`, still to be corrected, and `untested`: attribute -> groups.
    """
    levels = level_values(dimension)
    plain = [list(row.values()) for row in votes]
    who, of_annotations = bias.annotation_measures(labels, votes, levels)
    closer = bias.closeness(labels, plain, levels)
    kinds = [
        (key, names, bias.measures(labels, plain, levels), groups.clusters, "items")
        for key, names in groups.of_items.items()
    ] + [
        (key, [known.get(name, "") for name in who], of_annotations, who, "annotations")
        for key, known in groups.of_annotators.items()
    ]
    found: list[bias.Probe] = []
    untested: dict[str, list[str]] = {}
    for attribute, names, measures, clusters, of in kinds:
        shown = [name or "no value" for name in names]
        for measure, values in measures.items():
            if measure == bias.SHIFT and dimension.asked_as == "choice":
                continue
            by_item = closer.get(measure, ()) if of == "items" else ()
            probes, left = bias.probe_groups(
                attribute, shown, measure, values, clusters, seed, by_item
            )
            found += [replace(one, of=of) for one in probes]
            if left:
                untested[attribute] = sorted({*untested.get(attribute, []), *left})
    return {"probes": found, "untested": untested}


def correct_probes(dimensions: Mapping[str, dict[str, Any]]) -> None:
    """Adjust the probes of all dimensions of a report together, in place, and make them plain."""
    together = [one for report in dimensions.values() for one in report["probes"]]
    corrected = iter(bias.adjusted(together))
    for report in dimensions.values():
        report["probes"] = [next(corrected).as_dict() for _ in report["probes"]]


def _sample_size(interval: Interval, n_items: int) -> dict[str, Any]:
    """How wide alpha's interval is, and would be with other numbers of items."""
    if not np.isfinite(interval.high - interval.low) or interval.high == interval.low:
        return {"width": None, "widths": {}, "items_for_width_0.1": None}
    return {
        "width": interval.high - interval.low,
        "widths": {str(n): w for n, w in widths(interval, n_items, (100, 300, 1000, 3000)).items()},
        "items_for_width_0.1": items_needed(interval, n_items, 0.1),
    }
