"""How often intervals hold the truth, and probes find a bias where there is one and where none is.

python -m benchmarks.intervals [--reports 200]

On simulated data, whose truth is known; seeded. Probes, which take longest, are tried on half as
many reports as intervals.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from slm_judge import Rubric
from slm_judge.agreement.alpha import (
    alpha_of_coincidences,
    annotator_coincidences,
    judge_coincidences,
    judge_confusions,
)
from slm_judge.agreement.bootstrap import Bootstrap, percentile_interval
from slm_judge.agreement.compare import MARGIN, difference
from slm_judge.agreement.scores import accuracy, macro_f1
from slm_judge.agreement.sets import Chosen, annotator_pairs, judge_pairs
from slm_judge.agreement.two_way import TwoWay
from slm_judge.data.predictions import Answers
from slm_judge.evaluation.dimension import (
    Groups,
    Settings,
    correct_probes,
    evaluate_dimension,
    probe,
)
from slm_judge.evaluation.sets import set_figures

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
LEVELS = 4
RUBRIC = Rubric.model_validate(
    {
        "name": "r",
        "instructions": "i",
        "fields": ["text"],
        "dimensions": [
            {"name": "kind", "type": "choice", "instructions": "k", "options": ["a", "b"]},
            {"name": "grade", "type": "score", "instructions": "g", "options": [1, 2, 3, 4]},
        ],
    }
)


SKEWED: Mapping[int, tuple[float, ...]] = {2: (0.85, 0.15), 4: (0.6, 0.2, 0.15, 0.05)}
"""Shares of the options where they are."""


def noisy(rng: np.random.Generator, truth: Ints, right: Floats | float, options: int) -> Ints:
    """The truth with errors, each other option alike."""
    wrong = (truth + rng.integers(1, options, truth.shape)) % options
    return np.where(rng.random(truth.shape) < right, truth, wrong)


def logistic(x: Floats) -> Floats:
    """From log odds to shares."""
    return 1 / (1 + np.exp(-x))


# --- coverage -----------------------------------------------------------------------------------


def users(rng: np.random.Generator, groups: int, size: int = 10) -> tuple[Ints, Ints, Ints]:
    """Labels of a judge, who is better on some users than on others, and of 3 annotators."""
    user = np.repeat(np.arange(groups), size)
    truth = (rng.random(len(user)) < logistic(rng.normal(0, 1, groups))[user]).astype(int)
    judged = noisy(rng, truth, logistic(1.5 + rng.normal(0, 1, groups))[user], 2)
    return judged, noisy(rng, np.tile(truth[:, None], 3), 0.85, 2), user


def crossed(rng: np.random.Generator, annotators: int, items: int = 300) -> tuple[Ints, Ints]:
    """Labels of a judge, and of 3 of the annotators an item, N x M: some are better than others."""
    skill, truth = rng.normal(1.5, 0.8, annotators), rng.integers(0, 2, items)
    ratings = np.full((items, annotators), -1)
    who = np.argsort(rng.random((items, annotators)), axis=1)[:, :3]
    right = logistic(skill[who] + rng.normal(0, 0.7, items)[:, None])
    said = noisy(rng, np.tile(truth[:, None], 3), right, 2)
    ratings[np.arange(items)[:, None], who] = said
    return noisy(rng, truth, 0.85, 2), ratings


def alpha(coincidences: Floats) -> Floats:
    """Nominal, of two options."""
    return alpha_of_coincidences(coincidences, ["a", "b"], "nominal")


def holds(values: Floats, truth: float, units: int) -> bool:
    """Whether an interval has the truth in it."""
    found = percentile_interval(values, units=units)
    return found.low <= truth <= found.high


@cache
def of_many_users() -> tuple[float, float]:
    """Alpha and accuracy."""
    judged, votes, _ = users(np.random.default_rng(1), 40_000)
    confusion = judge_confusions(judged.tolist(), votes.tolist(), 2).sum(axis=0)
    return float(alpha(confusion + confusion.T)), float(accuracy(confusion))


@cache
def of_many_annotators() -> tuple[float, float]:
    """Alpha of the judge and of the annotators."""
    found = []
    for seed in range(5):
        judged, ratings = crossed(np.random.default_rng((3, seed)), 200, 4000)
        votes = [row[row >= 0].tolist() for row in ratings]
        sums = judge_coincidences(judged.tolist(), votes, 2), annotator_coincidences(votes, 2)
        found.append([float(alpha(one.sum(axis=0))) for one in sums])
    judge, among = np.mean(found, axis=0).tolist()
    return judge, among


def group_coverage(groups: int, reports: int) -> dict[str, float]:
    """Of the 95 % intervals of alpha and accuracy, drawn by items and by groups."""
    truth, share = of_many_users()
    found = dict[str, list[bool]]()
    for seed in range(reports):
        judged, votes, user = users(np.random.default_rng((2, seed)), groups)
        per_item = judge_confusions(judged.tolist(), votes.tolist(), 2)
        for name, owner in (("items", None), ("groups", user.tolist())):
            bootstrap = Bootstrap(len(user), 1000, seed, owner)
            totals = bootstrap.totals(per_item)
            for what, values, true in (
                ("alpha", alpha(totals + totals.swapaxes(1, 2)), truth),
                ("accuracy", accuracy(totals), share),
            ):
                hit = holds(values, true, bootstrap.units)
                found.setdefault(f"{what} by {name}", []).append(hit)
    return {name: float(np.mean(hits)) for name, hits in found.items()}


def annotator_coverage(annotators: int, reports: int) -> dict[str, float]:
    """Of alpha's 95 % interval, over items and over both: the judge's, and the annotators' own."""
    truths = of_many_annotators()
    hits: list[list[bool]] = []
    for seed in range(reports):
        judged, ratings = crossed(np.random.default_rng((4, seed)), annotators)
        votes, labels = [row[row >= 0].tolist() for row in ratings], judged.tolist()
        bootstrap = Bootstrap(len(votes), 600, seed)
        both = TwoWay(bootstrap, ratings)
        pairs = both.judge_totals(labels, 2)
        of_items = [judge_coincidences(labels, votes, 2), annotator_coincidences(votes, 2)]
        of_both = [pairs + pairs.swapaxes(1, 2), both.annotator_totals(2)]
        hits.append(
            [holds(alpha(bootstrap.totals(x)), t, bootstrap.units)
             for x, t in zip(of_items, truths, strict=True)]
            + [holds(alpha(x), t, both.units) for x, t in zip(of_both, truths, strict=True)]
        )  # fmt: skip
    names = ("judge, items", "annotators, items", "judge, both", "annotators, both")
    return dict(zip(names, np.mean(hits, axis=0).tolist(), strict=True))


def of_many_items(share: float, right: float) -> Floats:
    """Confusions of a million items, of which a share is true, and of a judge who errs alike."""
    rows = np.array([[1 - share, 0], [0, share]]) * right
    rows += np.array([[0, 1 - share], [share, 0]]) * (1 - right)
    return rows * 1e6


def resampled_alpha(judged: Ints, truth: Ints, seed: int) -> Floats:
    """Of a judge and one annotator: of all items, then of resamples."""
    confusions = judge_confusions(judged.tolist(), truth[:, None].tolist(), 2)
    totals = Bootstrap(len(truth), 400, seed).totals(confusions)
    return alpha(totals + totals.swapaxes(1, 2))


def edge_coverage(items: int, share: float, right: float, reports: int) -> dict[str, float]:
    """Of 95 % intervals of a report where hardly a label is wrong; of recall, of the rare option.

    And how often a percentile interval of alpha holds the truth, without what a report adds.
    """
    kind, hits = RUBRIC.dimensions[0], dict[str, list[bool]]()
    rows = of_many_items(share, right)
    true = {"alpha": float(alpha(rows + rows.T)), "accuracy": right, "recall": right,
            "macro_f1": float(macro_f1(rows))}  # fmt: skip
    for seed in range(reports):
        rng = np.random.default_rng((7, seed))
        truth = (rng.random(items) < share).astype(int)
        judged = noisy(rng, truth, right, 2)
        votes = [{"a": int(label)} for label in truth]
        settings = Settings(resamples=400, seed=seed)
        report = evaluate_dimension(kind, votes, {"judge": Answers(judged)}, settings=settings)
        found = report["systems"]["judge"]
        for name, value in true.items():
            one = found["options"][1][name] if name == "recall" else found[name]
            if np.isfinite(one["low"]):
                hits.setdefault(name, []).append(one["low"] - 1e-9 <= value <= one["high"] + 1e-9)
        plain = holds(resampled_alpha(judged, truth, seed), true["alpha"], items)
        hits.setdefault("alpha by percentiles alone", []).append(plain)
    return {name: float(np.mean(found)) for name, found in hits.items()}


SETS = tuple(map(frozenset, ([], [0], [1], [1, 2], [0, 3])))
SHARES_OF_SETS = (0.5, 0.2, 0.15, 0.1, 0.05)


def said_sets(
    rng: np.random.Generator, items: int, right: float
) -> tuple[list[Chosen], list[list[Chosen]]]:
    """Sets of a judge and of 2 annotators, who are as good."""
    truth = rng.choice(len(SETS), items, p=SHARES_OF_SETS)
    said = noisy(rng, np.tile(truth[:, None], 3), right, len(SETS))
    first, *others = [[SETS[k] for k in column] for column in said.T]
    return first, list(map(list, zip(*others, strict=True)))


def set_coverage(items: int, right: float, reports: int) -> dict[str, float]:
    """Of 95 % intervals of the alpha of sets, the judge's and the annotators'."""
    judged, votes = said_sets(np.random.default_rng(9), 20_000, right)
    of = {"judge": judge_pairs(judged, votes, 4, "masi"),
          "annotators": annotator_pairs(votes, 4, "masi")}  # fmt: skip
    true = {who: float(pairs.alpha(pairs.per_item.sum(axis=0))) for who, pairs in of.items()}
    hits = dict[str, list[bool]]()
    for seed in range(reports):
        judged, votes = said_sets(np.random.default_rng((9, seed)), items, right)
        bootstrap = Bootstrap(items, 400, seed)
        of = {"judge": judge_pairs(judged, votes, 4, "masi"),
              "annotators": annotator_pairs(votes, 4, "masi")}  # fmt: skip
        for who, pairs in of.items():
            found, values = set_figures(pairs, bootstrap)
            plain = holds(values, true[who], items)
            hits.setdefault(f"{who}, by percentiles alone", []).append(plain)
            held = found["alpha"]["low"] <= true[who] <= found["alpha"]["high"]
            hits.setdefault(who, []).append(held)
    return {name: float(np.mean(found)) for name, found in hits.items()}


def wrongly_not_inferior(items: int, share: float, reports: int) -> tuple[float, float]:
    """How often a system that loses the margin of alpha is called not inferior: 5 % at most.

    Returns:
        In a report, and by percentiles alone.
    """
    kind, said = RUBRIC.dimensions[0], np.zeros((reports, 2))
    lost = _loss_of_margin(share)
    for seed in range(reports):
        rng = np.random.default_rng((8, seed))
        truth = (rng.random(items) < share).astype(int)
        first, other = truth, noisy(rng, truth, 1 - lost, 2)
        votes = [{"a": int(label)} for label in truth]
        systems = {"a": Answers(first), "b": Answers(other)}
        report = evaluate_dimension(kind, votes, systems, settings=Settings(400, seed))
        verdict = report["systems"]["b"]["against_reference"]["verdict"]
        values = (resampled_alpha(labels, truth, seed) for labels in (first, other))
        plain = difference(*values, MARGIN, units=items).verdict
        said[seed] = [one == "not inferior" for one in (verdict, plain)]
    ours, percentiles = said.mean(axis=0).tolist()
    return ours, percentiles


def _loss_of_margin(share: float) -> float:
    """Share of wrong labels with which alpha is the margin below 1."""
    for wrong in np.linspace(0, 0.2, 20_001):
        rows = of_many_items(share, 1 - wrong)
        if alpha(rows + rows.T) <= 1 - MARGIN:
            return float(wrong)
    raise AssertionError("no share of wrong labels loses so much")


# --- probes -------------------------------------------------------------------------------------


@dataclass
class World:
    """How a report's items are made: 12 sources, and of how many items each."""

    size: int = 10
    annotators: int = 3
    judge: Callable[[Ints], Floats] = lambda source: np.full(len(source), 0.9)
    """How often the judge is right, by the number of the source."""
    people: Callable[[Ints], Floats] = lambda source: np.full(len(source), 0.9)
    conversations: int = 0
    """Items of a conversation, whose judge is as good, or bad, throughout; 0 for none."""
    pool: int = 0
    """Annotators in all, each as good throughout, half of them women; 0: all alike."""
    skewed: bool = False
    """Whether the first option is the commonest by far."""
    women: float = 0.0
    """How often women say one level more, and the judge half as often."""
    lifted: float = 0.0
    """How often the judge says one level more in the first source."""


def report_of(world: World, seed: int) -> dict[str, Any]:
    """The probes of a report on two dimensions."""
    rng = np.random.default_rng((5, seed))
    source = np.repeat(np.arange(12), world.size)
    clusters = None
    if world.conversations:
        talk = np.arange(len(source)) // world.conversations
        clusters = [str(number) for number in talk]
    groups = Groups(clusters, {"source": [f"s{k:02}" for k in source]})
    if world.pool:
        women = {f"p{m:03}": "wm"[m % 2] for m in range(world.pool)}
        groups = Groups(None, {}, {"gender": women})
    skill = logistic(rng.normal(2, 1, world.pool)) if world.pool else np.zeros(0)
    dimensions = {}
    for dimension in RUBRIC.dimensions:
        v = len(dimension.options)
        truth, right = rng.integers(0, v, len(source)), world.judge(source)
        if world.skewed:
            truth = rng.choice(v, len(source), p=SKEWED[v])
        if world.conversations:
            right = logistic(np.log(right / (1 - right)) + rng.normal(0, 1.5, talk.max() + 1)[talk])
        labels = noisy(rng, truth, right, v)
        more = np.where(source == 0, world.lifted, world.women / 2)
        labels = np.minimum(labels + (rng.random(len(source)) < more), v - 1)
        shape = (len(source), world.annotators)
        who = np.tile(np.arange(world.annotators), (len(source), 1))
        people = np.tile(world.people(source)[:, None], world.annotators)
        if world.pool:
            order = np.argsort(rng.random((len(source), world.pool)), axis=1)
            who, people = order[:, : world.annotators], skill[order[:, : world.annotators]]
        said = noisy(rng, np.broadcast_to(truth[:, None], shape), people, v)
        more = np.where(who % 2 == 0, world.women, 0)
        said = np.minimum(said + (rng.random(shape) < more), v - 1)
        votes = [
            {f"p{m:03}": int(option) for m, option in zip(*row, strict=True)}
            for row in zip(who, said, strict=True)
        ]
        dimensions[dimension.name] = probe(dimension, votes, labels, groups, seed)
    correct_probes(dimensions)
    return dimensions


def verdicts(world: World, reports: int) -> dict[str, float]:
    """Share of the reports that claim a bias, that find any difference, and p-values below 5 %."""
    bias, any_found, low = [], [], []
    for seed in range(reports):
        probes = [p for d in report_of(world, seed).values() for p in d["probes"]]
        bias.append(any(p["verdict"] == "bias" for p in probes))
        any_found.append(any(p["verdict"] for p in probes))
        low += [p["p_value"] <= 0.05 for p in probes]
    return {
        "a bias": np.mean(bias),
        "any difference": np.mean(any_found),
        "p <= 0.05": np.mean(low),
    }


def lower(drop: float) -> Callable[[Ints], Floats]:
    """A judge that is right in 90 % of the items, and less often in the first source."""
    return lambda source: np.where(source == 0, 0.9 - drop, 0.9)


def halves(source: Ints) -> Floats:
    """People are often right in the first six sources, and less often in the others."""
    return np.where(source < 6, 0.95, 0.7)


WORLDS: Mapping[str, World] = {
    "no bias: 12 sources of 10 items, 1 annotator": World(annotators=1),
    "no bias: 12 sources of 10 items, 3 annotators": World(),
    "no bias: 12 sources of 50 items, 3 annotators": World(50),
    "no bias: conversations of 5, one like another": World(50, conversations=5),
    "no bias: annotators err by themselves, half are women": World(30, pool=30),
    "no bias: the judge is always right, people are not in 6 sources": World(
        50,
        judge=lambda source: np.ones(len(source)) - 1e-9,
        people=halves,
    ),
    "no bias: the same, and the first option is the commonest": World(
        50, judge=lambda source: np.ones(len(source)) - 1e-9, people=halves, skewed=True
    ),
    "no bias: the judge is right in 85 %, people in 95 or 70": World(
        50, judge=lambda source: np.full(len(source), 0.85), people=halves, skewed=True
    ),
    "no bias: women say more, and the judge half as much more": World(
        30, pool=30, judge=lambda source: np.ones(len(source)) - 1e-9, women=0.5
    ),
    "bias: 15 % more errors in one source of 50": World(50, judge=lower(0.15)),
    "bias: 30 % more errors in one source of 50": World(50, judge=lower(0.3)),
    "bias: 50 % more errors in one source of 12": World(12, judge=lower(0.5)),
    "bias: 30 % more errors in one source, conversations of 5": World(
        50, judge=lower(0.3), conversations=5
    ),
    "bias: one level more on half of one source of 50": World(50, lifted=0.5),
}


def held_out(seed: int) -> tuple[float, float]:
    """Shift of an annotator like the others, pair by pair, and against their lower median."""
    rng = np.random.default_rng((6, seed))
    truth = rng.integers(0, LEVELS, 300)
    said = np.clip(truth[:, None] + rng.integers(-1, 2, (300, 5)), 0, LEVELS - 1)
    others = np.sort(said[:, 1:], axis=1)
    pairs = float((said[:, :1] - others).mean())
    return pairs, float((said[:, 0] - others[:, 1]).mean())


def lines(reports: int) -> Iterator[str]:
    """The tables, in Markdown."""
    yield (
        "95 % intervals that hold the truth:\n\n| users with 10 items | alpha, by items "
        "| accuracy, by items | alpha, by users | accuracy, by users |\n"
        "| --- | ---: | ---: | ---: | ---: |"
    )
    for groups in (5, 10, 20, 40):
        found = group_coverage(groups, reports)
        yield f"| {groups} | {' | '.join(f'{x:.1%}' for x in found.values())} |"
    yield (
        "\nThe same of alpha, by what is drawn:\n\n| annotators | judge, by items "
        "| judge, by items and annotators | annotators, by items | annotators, by both |\n"
        "| --- | ---: | ---: | ---: | ---: |"
    )
    for annotators in (5, 8, 15, 30):
        found = annotator_coverage(annotators, reports)
        order = ("judge, items", "judge, both", "annotators, items", "annotators, both")
        yield f"| {annotators} | {' | '.join(f'{found[name]:.1%}' for name in order)} |"
    yield (
        "\nWhere hardly a label is wrong:\n\n"
        "| items, share of the rare option, accuracy | alpha by percentiles alone | alpha "
        "| accuracy | recall of the rare option | macro-F1 |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |"
    )
    for items, share, right in ((20, 0.5, 0.95), (50, 0.5, 0.98), (72, 0.3, 0.99),
                                (100, 0.05, 0.9), (300, 0.02, 0.99), (100, 0.3, 0.9)):  # fmt: skip
        found = edge_coverage(items, share, right, reports)
        order = ("alpha by percentiles alone", "alpha", "accuracy", "recall", "macro_f1")
        cells = " | ".join(f"{found[name]:.1%}" for name in order)
        yield f"| {items}, {share}, {right} | {cells} |"
    yield (
        "\nThe alpha of sets (`type: multi`):\n\n"
        "| items, share of right sets | judge, by percentiles alone | judge "
        "| annotators, by percentiles alone | annotators |\n"
        "| --- | ---: | ---: | ---: | ---: |"
    )
    for items, right in ((20, 0.99), (60, 0.99), (60, 0.97), (200, 0.9)):
        shares = set_coverage(items, right, reports).values()
        yield f"| {items}, {right} | {' | '.join(f'{x:.1%}' for x in shares)} |"
    yield (
        f"\nCalled not inferior, though alpha loses the margin of {MARGIN}:\n\n"
        "| items, share of the rare option | by percentiles alone | in a report |\n"
        "| --- | ---: | ---: |"
    )
    for items, share in ((15, 0.5), (30, 0.2), (60, 0.5), (100, 0.1)):
        ours, plain = wrongly_not_inferior(items, share, reports)
        yield f"| {items}, {share} | {plain:.1%} | {ours:.1%} |"
    yield "\n| reports | claim a bias | find a difference | p at most 0.05 |"
    yield "| --- | ---: | ---: | ---: |"
    for name, world in WORLDS.items():
        shares = verdicts(world, reports // 2).values()
        yield f"| {name} | {' | '.join(f'{x:.1%}' for x in shares)} |"
    shifts = np.array([held_out(seed) for seed in range(reports)])
    (pair, median), error = shifts.mean(axis=0), shifts.std(axis=0) / np.sqrt(reports)
    yield (
        f"\nAn annotator like the others, held out: mean shift {pair:+.3f} ± {error[0]:.3f} pair "
        f"by pair, {median:+.3f} ± {error[1]:.3f} against the lower median of the rest."
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reports", type=int, default=200)
    for line in lines(parser.parse_args().reports):
        print(line, flush=True)


if __name__ == "__main__":
    main()
