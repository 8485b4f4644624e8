"""`slm-judge plan`: before anybody annotates, what a study of so many items would show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from pydantic import ValidationError
from rich.console import Console

from slm_judge.agreement.alpha import (
    Votes,
    annotator_coincidences,
    vote_counts,
)
from slm_judge.agreement.alt_test import EPSILON
from slm_judge.agreement.bootstrap import Bootstrap
from slm_judge.agreement.compare import MARGIN, careful_alpha
from slm_judge.agreement.parts import Part, all_parts
from slm_judge.agreement.power import (
    LOSSES,
    Power,
    World,
    correlation_within,
    items_for_width,
    items_to_compare,
    n_studies,
    simulate,
)
from slm_judge.data.item import Item, is_named
from slm_judge.errors import DataError
from slm_judge.progress import progress_bar
from slm_judge.recipe import DataConfig
from slm_judge.rubric import Dimension, Rubric, explain
from slm_judge.screen import Sheet

MOST = 100_000
"""Items that a plan can have."""
CORRELATION = 0.1
"""Within a group of items, where nobody says otherwise and no pilot shows it; docs/evaluation.md
says why."""
_FEWEST_GROUPS = 30  # of several items, in a pilot that shows how alike these are
_TEST_SHARE = DataConfig.model_fields["test_share"].default


@dataclass(frozen=True)
class Expected:
    """What is expected of each dimension; None is as in the pilot, or else by default."""

    annotators: int | None = None
    """Of each item; by default 3."""
    pool: int | None = None
    """All of them; by default as many."""
    alpha: float | None = None
    """Among annotators."""
    prevalence: Sequence[float] | None = None
    """Of the options in their order, or of the last of two; by default equal."""
    accuracy: float | None = None
    """Share of the annotations that the judge meets; by default that of an annotator."""
    epsilon: float = EPSILON["skilled"]
    """Of the alternative annotator test."""
    margin: float = MARGIN
    """Alpha that a file may lose in `verify`."""
    corpus: int = 10_000
    """Further items, which the judge alone labels, for `estimate`."""
    group_size: int | None = None
    """Items of a group, e.g. of a conversation; by default 1."""
    correlation: float | None = None
    """Within a group, of what is computed of an item; by default `CORRELATION`."""


@dataclass(frozen=True)
class Plan:
    """Of one dimension."""

    world: World
    items: int
    power: Power
    needed: tuple[float, float]
    """Items with which the interval of alpha has the width, of annotators and judge."""
    notes: list[str]


def a_dimension(kind: str, n_options: int) -> Rubric:
    """A rubric of one question, where there is none yet.

    Raises:
        DataError: there is no such question.
    """
    options: list[Any] = [*range(1, n_options + 1)]
    if kind == "choice":
        options = [f"option {option}" for option in options]
    question: dict[str, Any] = {"name": kind, "type": kind, "instructions": "any"}
    question |= {} if kind == "noul" else {"options": options}
    rubric = {"name": "plan", "instructions": "any", "fields": ["text"], "dimensions": [question]}
    try:
        return Rubric.model_validate(rubric)
    except ValidationError as error:
        raise DataError(f"Nothing can be planned for this question:\n{explain(error)}") from error


def worlds(
    rubric: Rubric, expected: Expected, pilot: Sequence[Item] | None = None
) -> list[tuple[World, list[str]]]:
    """What is expected of each dimension, and what is to be said about that.

    Args:
        rubric: the dimensions.
        expected: what is known; it goes before what the pilot shows.
        pilot: annotated items.

    Raises:
        DataError: it cannot be so, or the pilot does not show enough.
    """
    found = []
    for part in all_parts(rubric.dimensions):
        notes: list[str] = []
        known = _of_pilot(part, pilot, notes) if pilot is not None else Expected()
        if known.prevalence and max(known.prevalence) >= 1 and not expected.prevalence:
            raise DataError(
                f"The pilot's annotations of {part.dimension.name} are all of one option: say how "
                "often each is expected (--prevalence), or annotate more."
            )
        given = {key: value for key, value in vars(expected).items() if value is not None}
        found.append((_world(part.dimension, replace(known, **given)), notes))
    return found


def _of_pilot(part: Part, items: Sequence[Item], notes: list[str]) -> Expected:
    dimension = part.dimension
    said = [part.votes(item.votes.get(part.source, {})) for item in items]
    votes = [list(row.values()) for row in said if row]
    if not votes:
        raise DataError(f"The pilot has no label of {dimension.name}: leave it out of the rubric.")
    v, groups = (
        len(dimension.options),
        [item.group for item, row in zip(items, said, strict=True) if row],
    )
    bootstrap = Bootstrap(len(votes), groups=groups)
    pairs = annotator_coincidences(votes, v)
    alpha = careful_alpha(bootstrap.totals(pairs), pairs, dimension, bootstrap)
    several = sum(len(row) > 1 for row in votes)
    notes.append(f"the pilot's alpha is {alpha}, of {several} items with several annotations.")
    if alpha.low > 0:
        notes.append(f"it may be as low as that: see also --alpha {max(alpha.low, 0.01):.2f}.")
    counts = vote_counts(votes, v).sum(axis=0)
    names = {n for row in said for n in row if is_named(n)}
    each = round(counts.sum() / len(votes))
    if not names:
        notes.append(f"the pilot names no annotators: {each} are taken to be all (--pool).")
    shares = tuple((counts / counts.sum()).tolist())
    size, alike = _groups_of_pilot(part, votes, groups, notes)
    among = alpha.estimate if several else None
    pool = max(each, len(names))
    return Expected(each, pool, among, shares, group_size=size, correlation=alike)


def _groups_of_pilot(
    part: Part, votes: Votes, groups: Sequence[str], notes: list[str]
) -> tuple[int | None, float | None]:
    """Size of the groups, and the correlation in them, where enough of them show it."""
    owner, dimension = np.unique(groups, return_inverse=True)[1], part.dimension
    parts = annotator_coincidences(votes, len(dimension.options))
    alike, size = correlation_within(parts, owner, dimension)
    if round(size) < 2:
        return None, None
    shown = int((np.bincount(owner[parts.any(axis=(1, 2))]) > 1).sum())
    few = shown < _FEWEST_GROUPS
    found = f"{shown} with several items to compare are too few to show a correlation"
    notes.append(
        f"its items come in groups of about {size:.0f}; "
        f"{found if few else f'within them they correlate by {alike:.2f}'} (--group-correlation)."
    )
    return round(size), None if few else alike


def _world(dimension: Dimension, given: Expected) -> World:
    name, v = dimension.name, len(dimension.options)
    each = given.annotators or 3
    shares = [*(given.prevalence or [1 / v] * v)]
    if len(shares) == 1 and v == 2:
        shares = [1 - shares[0], shares[0]]
    if len(shares) != v or min(shares) < 0 or not 0.98 < sum(shares) < 1.02 or max(shares) >= 1:
        raise DataError(
            f"{name} has {v} options, so --prevalence is {v} shares that sum to 1, at least two of "
            f"them above 0 (of two options one will do); it is {given.prevalence}."
        )
    shares = [share / sum(shares) for share in shares]
    if given.alpha is None or not 0 < given.alpha < 1:
        raise DataError(
            f"{name}: a plan needs the alpha that annotators are expected to reach, between 0 and "
            f"1 (--alpha); it is {given.alpha}."
        )
    if (pool := given.pool or each) < each:
        raise DataError(
            f"{name}: an item has {each} annotators, but there are only {pool} (--pool)."
        )
    chance = sum(share**2 for share in shares)
    most = chance + float(np.sqrt(given.alpha)) * (1 - chance)
    accuracy = given.accuracy
    if accuracy is not None and not chance <= accuracy <= most:
        raise DataError(
            f"{name}: --accuracy is {accuracy}, but chance meets {chance:.2f} of the annotations, "
            f"and with alpha = {given.alpha:g} nobody meets more than {most:.2f}."
        )
    judge = given.alpha if accuracy is None else (accuracy - chance) / (1 - chance)
    tests = given.epsilon, given.margin, given.corpus
    alike = CORRELATION if given.correlation is None else given.correlation
    if not 0 <= alike <= 1:
        raise DataError(f"--group-correlation is from 0 to 1; it is {alike:g}.")
    groups = given.group_size or 1, alike
    return World(dimension, tuple(shares), given.alpha, judge, each, pool, *tests, *groups)


def plan(
    expected: Sequence[tuple[World, list[str]]],
    items: int | None,
    width: float = 0.1,
    console: Console | None = None,
) -> list[Plan]:
    """Plan a study of `items`, or of as many as the annotators' (or judge's) alpha needs.

    Args:
        expected: see `worlds`.
        items: in no judge's training; None for as many as `width` needs.
        width: of the interval of alpha.
        console: where progress is drawn.

    Raises:
        DataError: more than `MOST` items are needed, or a number cannot be so.
    """
    found = []
    if not 0 < width < 1 or (items is not None and not 2 <= items <= MOST):
        raise DataError(f"--width is between 0 and 1, and --items from 2 to {MOST}.")
    with progress_bar("studies", console=console) as bar:
        for world, notes in expected:
            needed = items_for_width(world, width)
            n = items or max(2 * world.group_size, int(needed[bool(np.isnan(needed[0]))]))
            if n > MOST:
                raise DataError(f"{world.dimension.name}: a width of {width} needs {n} items.")
            if world.units(n) < 2:
                raise DataError(f"{n} items in groups of {world.group_size}: two are needed.")
            task = bar.add_task(world.dimension.name, total=n_studies(world, n))
            power = simulate(world, n, partial(bar.advance, task))
            found.append(Plan(world, n, power, needed, [*notes, *_notes(world, n, power)]))
    return found


def _notes(world: World, n: int, power: Power) -> list[str]:
    """What cannot be shown, and what would help."""
    notes = []
    if (needed := items_to_compare(world)) is None:
        notes.append(
            "the alternative annotator test, and alpha among annotators, need items that two "
            "people annotated."
        )
    elif power.testable < 0.5:
        notes.append(
            f"the alternative annotator test cannot be done: each of {world.pool} annotators would "
            f"have about {n * world.annotators / world.pool:.0f} items, and 30 are needed; that "
            f"takes about {needed} items, or fewer annotators."
        )
    if n * (1 - max(world.prevalence)) < 10:
        notes.append("rare options hardly occur in so few items: widths of alpha say little.")
    if power.verified[0] < 0.5:
        notes.append(
            "verify would not even say of a file with the judge's own labels that it is no worse."
        )
    return notes


def plan_table(plans: Sequence[Plan], width: float) -> Sheet:
    """The plans for a terminal."""
    table = Sheet(
        "What studies like this show, on average",
        ("",),
        "Simulated. Widths are of 95 % intervals; percentages say in how many of 20 to 100 "
        "studies it is shown, so they may be off by up to 20 points. "
        f"Items are those that no judge is trained on: by default a run holds {_TEST_SHARE:.0%} of "
        "its items out. Items that are alike, e.g. of one conversation, show less (--group-size).",
    )
    for one in plans:
        world = one.world
        size = world.group_size
        groups = f" in groups of {size} (correlation {world.correlation:.2f})" if size > 1 else ""
        table.group(
            f"{world.dimension.name}: {one.items} items{groups}, {world.annotators} of "
            f"{world.pool} annotators each, alpha {world.alpha:.2f}, the judge's {world.judge:.2f}"
        )
        for name, value in _rows(one, width).items():
            table.add(name, value)
    return table


def _rows(one: Plan, width: float) -> Mapping[str, str]:
    def number(value: float, form: str = ".2f") -> str:
        return f"{value:{form}}" if np.isfinite(value) else "–"

    def share(value: float) -> str:
        return f"{100 * value:.0f} %" if np.isfinite(value) else "–"

    power, kind = one.power, one.world.dimension.type
    shown = power.shown if power.testable else float("nan")
    rows = {
        "width of alpha's interval, annotators": number(power.among),
        "width of alpha's interval, judge": number(power.judge),
        f"items for a width of {width:g}, annotators": number(one.needed[0], ".0f"),
        f"items for a width of {width:g}, judge": number(one.needed[1], ".0f"),
        f"it may replace an annotator, at epsilon = {one.world.epsilon:g}": share(shown),
    }
    for loss, value in zip(LOSSES, power.verified, strict=True):
        said = "worse" if loss > 1 else "no worse"
        what = f"lost {loss * one.world.margin:g} of alpha" if loss else "says the same"
        rows[f"verify: a file that {what} is {said}"] = share(value)
    mean = "the mean" if kind == "score" else "the widest share"
    for who, value in (("judge and people", power.powered), ("people alone", power.people)):
        rows[f"estimate: width of {mean}, {who}"] = number(value, ".3f")
    return rows
