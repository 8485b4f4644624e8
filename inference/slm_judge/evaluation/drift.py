"""`slm-judge compare`: did labels, confidence or agreement move since a run's held-out items?"""

import hashlib
import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from slm_judge.agreement import bias
from slm_judge.agreement.aggregate import level_values
from slm_judge.agreement.alpha import Floats
from slm_judge.agreement.bootstrap import Interval, fixed
from slm_judge.agreement.scores import agreeing_share
from slm_judge.annotate.job import annotate_table
from slm_judge.annotate.rows import STABLE_DIGITS, AnnotateOptions
from slm_judge.data.item import ITEM_ID, load_split
from slm_judge.data.predictions import read_predictions
from slm_judge.data.read import Findings, read_annotations
from slm_judge.data.sets import unfold
from slm_judge.data.tables import Rows, read_table, require_columns
from slm_judge.data.text import is_blank, is_nobody, read_name
from slm_judge.errors import DataError
from slm_judge.files import content_hash, finite
from slm_judge.judge.judge import Judge
from slm_judge.rubric import Dimension, Rubric
from slm_judge.run import Run
from slm_judge.screen import Sheet

from .evaluate import systems_of
from .trained_on import trained_on

PREFIX = "judge_"  # of the columns of texts that are annotated here
NEW, OLD = "new", "old"  # in this order, so that a probe is of what is new


@dataclass(frozen=True)
class Source:
    """New texts, or what `slm-judge annotate` made of them; and where they have what."""

    location: str
    item_id: str = ITEM_ID
    """Column; without it, rows are numbered."""
    annotations: str | None = None
    """Table of human labels of some of the items; by default columns of the texts."""
    annotator: str | None = None
    group: str | None = None
    """Column of items that are alike; by default that of the run, `data.group`."""
    prefix: str = ""
    """Of the judge's columns, where it was annotated."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Field of the rubric -> column, where they differ."""
    artefact: str = ""
    """Of the run, whose answers are compared; by default the first one of the report."""


@dataclass
class Answered:
    """What the judge and people said about N items."""

    labels: dict[str, list[int]]
    """Per dimension, -1 where there is none."""
    confidence: dict[str, list[float]]
    votes: list[Mapping[str, Mapping[str, int]]]
    groups: list[Hashable]


def compare(run: Run, new: Source, tolerance: float = 0.0, show: bool = True) -> dict[str, Any]:
    """Compare what a judge says about new items with what it said about a run's held-out ones.

    Of each dimension the share of each option, the mean confidence and, where people annotated new
    items too, the agreement with them and the shift are compared by the permutation test of
    `bias.probe_groups`, which takes groups whole, and corrected together (`bias.adjusted`): where
    nothing moved, at most 5 % of the comparisons say that something did.

    Args:
        run: a verified run.
        new: what is compared with it; texts are annotated first, into the run's report.
        tolerance: differences that do not matter.
        show: draw the progress of annotating.

    Returns:
        `drift`, `findings`, `cannot_be_said` and `notes`; plain numbers.

    Raises:
        DataError: the table cannot be used, or nothing in it can be tested.
        JudgeError: the run is not verified.
    """
    if not 0 <= tolerance < 1:
        raise DataError(f"The tolerance is between 0 and 1, not {tolerance}.")
    rubric, notes = run.rubric(), list[str]()
    artefact = new.artefact or systems_of(run)[0]
    before = _held_out(run, rubric, artefact)
    after = _new(run, rubric, new, artefact, notes, show)
    probes: list[_Tried] = []
    untold: list[str] = []
    for dimension in rubric.dimensions:
        probes += _probes(dimension, before, after, untold)
    if not probes:
        raise DataError(f"{new.location}: nothing can be tested. {' '.join([*untold, *notes])}")
    corrected = iter(bias.adjusted([one.probe for one in probes if one.own]))
    tried = [replace(one, probe=next(corrected)) if one.own else one for one in probes]
    findings = [_finding(one, tolerance) for one in tried]
    untold += [
        f"{found['told'][:-1]}: whether the judge moved, since people agree otherwise too."
        for one, found in zip(tried, findings, strict=True)
        if one.own and not one.of_judge and one.probe.shown
    ]
    found: dict[str, Any] = finite(
        {
            "run": str(run.folder),
            "artefact": artefact,
            "items": {"held_out": len(before.votes), "new": len(after.votes)},
            "drift": any(one["moved"] for one in findings),
            "findings": findings,
            "cannot_be_said": untold,
            "notes": notes,
        }
    )
    return found


def _held_out(run: Run, rubric: Rubric, artefact: str) -> Answered:
    path = run.require(run.predictions / f"{artefact}.jsonl", f"verify {run.folder}")
    items = load_split(run.data, "test")
    read = read_predictions(str(path), rubric, [item.item_id for item in items])
    kept, grouped = [items[row] for row in read.rows], run.recipe().data.group
    labels, sure = dict[str, list[int]](), dict[str, list[float]]()
    for name, answers in read.answers.items():
        assert answers.probabilities is not None
        labels[name] = answers.labels.tolist()
        given = answers.probabilities[np.arange(len(kept)), answers.labels]
        given = np.where(answers.labels < 0, np.nan, given)  # not asked
        sure[name] = given.round(STABLE_DIGITS).tolist()
    found = Answered(labels, sure, [item.votes for item in kept], [])
    found.groups += [item.group if grouped else (OLD, item.item_id) for item in kept]
    return found


def _new(
    run: Run, rubric: Rubric, new: Source, artefact: str, notes: list[str], show: bool
) -> Answered:
    table, prefix, own = read_table(new.location), new.prefix, [d.name for d in rubric.as_written]
    named = {*own, *(d.name for d in rubric.dimensions)} & {*table.columns}
    if not prefix and any(f"{name}_confidence" not in table.columns for name in own):
        prefix, people = PREFIX, named
        table = read_table(str(_annotate(run, new, artefact, notes, show)))
    else:
        people = named if prefix else set()
    wanted = [f"{prefix}{name}{end}" for name in own for end in ("", "_confidence")]
    require_columns(table.columns, [*wanted, *([new.group] if new.group else [])], new.location)
    # Of a set there is one confidence, of all its options: nothing is compared with theirs.
    unfold(table, rubric, Findings(strict=False), prefix.__add__)
    if new.item_id != ITEM_ID and new.item_id not in table.columns:
        raise DataError(f"{new.location} has no column {new.item_id}, which --item-id names.")
    item_id = new.item_id if new.item_id in table.columns else None
    rows = _rows(run, rubric, new, table, item_id, notes)
    found = Answered({}, {}, _votes(rubric, new, item_id, bool(people), rows, notes), [])
    for d in rubric.dimensions:
        read = [d.index(row.get(f"{prefix}{d.name}")) for row in rows.values()]
        found.labels[d.name] = [-1 if option is None else option for option in read]
        column = f"{prefix}{d.name}_confidence"
        found.confidence[d.name] = [_number(row.get(column), column) for row in rows.values()]
        if lost := read.count(None):
            notes.append(f"{d.name}: {lost} of {len(read)} items have no label: left out.")
    group = new.group or run.recipe().data.group or ""
    if group and group not in table.columns:
        notes.append(f"{new.location} has no column {group}: its items are taken as independent.")
    names = {name: read_name(row.get(group)) for name, row in rows.items()}
    alone = {name for name, of in names.items() if is_nobody(of)}
    if group in table.columns and alone:
        notes.append(f"{new.location}: {group} of {len(alone)} items is missing: one group each.")
    found.groups += [(NEW, name) if name in alone else of for name, of in names.items()]
    return found


def _number(cell: Any, column: str) -> float:
    """A confidence, as `annotate` writes it by default; nan where there is none."""
    try:
        return float("nan") if is_blank(cell) else round(float(cell), STABLE_DIGITS)
    except (TypeError, ValueError):
        raise DataError(f"{column} holds numbers, not {cell!r}.") from None


def _rows(
    run: Run, rubric: Rubric, new: Source, table: Rows, item_id: str | None, notes: list[str]
) -> dict[str, dict[str, Any]]:
    """The first row of each item, without those that the judge was trained on."""
    found: dict[str, dict[str, Any]] = {}
    for index, row in enumerate(table.rows):
        if name := table.name(index, item_id) if item_id else str(index + 1):
            found.setdefault(name, row)
    if rest := len(table.rows) - len(found):
        notes.append(f"{rest} rows name no item, or one that stands there already.")
    known = trained_on(run, rubric, new.columns)
    if not set(known.columns.values()) <= set(table.columns):
        notes.append("The new texts are not there to be compared with those of the training.")
    if gone := known.by_text(found, table.columns):
        notes.append(f"{len(gone)} items have texts that the judge was trained on: left out.")
    return {name: row for name, row in found.items() if name not in gone}


def _votes(
    rubric: Rubric,
    new: Source,
    item_id: str | None,
    own: bool,
    rows: Mapping[str, Any],
    notes: list[str],
) -> list[Mapping[str, Mapping[str, int]]]:
    """What people said about each item; `own`: among the new texts themselves."""
    if new.annotations and not item_id:
        raise DataError(
            f"{new.location} has no column {new.item_id}, so nothing says which items "
            f"{new.annotations} is about."
        )
    place = new.annotations or (new.location if own else "")
    if not place:
        return [{}] * len(rows)
    read = read_annotations(place, rubric, item_id, new.annotator)
    notes += read.notes
    votes = {item.item_id: item.votes for item in read.items}
    if lost := len(votes.keys() - rows.keys()):
        notes.append(f"{lost} annotated items are not among the new ones that count.")
    return [votes.get(name, {}) for name in rows]


def _annotate(run: Run, new: Source, artefact: str, notes: list[str], show: bool) -> Path:
    """The new texts with the judge's columns, kept in the run's report."""
    folders = {"adapter": run.adapter, "merged": run.merged, "bnb-4bit": run.bnb}
    model = folders.get(artefact) or run.gguf_file(artefact)
    run.require(model, f"export {run.folder}")
    local = Path(new.location)
    what = [content_hash(local) if local.exists() else new.location, content_hash(model)]
    key = hashlib.sha256(json.dumps([*what, sorted(new.columns.items())]).encode()).hexdigest()
    output = run.report / "compare" / f"{key[:16]}.parquet"
    output.parent.mkdir(parents=True, exist_ok=True)
    if not output.exists():
        options = AnnotateOptions(columns=new.columns, prefix=PREFIX)
        with Judge.from_pretrained(model, trust=True) as judge:
            notes += annotate_table(judge, new.location, output, options, False, show).notes
    notes.append(f"{new.location} was annotated by {artefact}: {output}.")
    return output


@dataclass(frozen=True)
class _Tried:
    """A comparison."""

    dimension: str
    probe: bias.Probe
    deviation: float
    """Standard deviation of what is compared."""
    own: bool = True
    """Whether it says by itself that something moved; else it stands beside another one."""
    of_judge: bool = True
    """Whether it does not move with how far people agree with each other."""


def _probes(
    dimension: Dimension, before: Answered, after: Answered, untold: list[str]
) -> list[_Tried]:
    """Comparisons of a dimension."""
    name, sides = dimension.name, (before, after)
    labels = np.array([label for one in sides for label in one.labels[name]])
    values = {f"share of {dimension.key(k)}": np.where(labels < 0, np.nan, labels == k)
              for k in range(len(dimension.options)) if (labels == k).any()}  # fmt: skip
    if len(dimension.options) == 2 and len(values) == 2:
        values.pop(next(iter(values)))  # the other one says the same
    measure_of = dict.fromkeys(values, "share of labels")
    values["confidence"] = np.array([c for one in sides for c in one.confidence[name]])
    votes = [
        [[*row.get(name, {}).values()] if label >= 0 else [] for row, label in zip(
            one.votes, one.labels[name], strict=True)]
        for one in sides
    ]  # fmt: skip
    together, closer = [*votes[0], *votes[1]], dict[str, tuple[Floats, Floats]]()
    if all(map(any, votes)):
        values |= (agreement := _agreement(dimension, labels, votes))
        if bias.BEYOND in agreement:
            closer = bias.closeness(labels, together, level_values(dimension))
    else:
        untold.append(f"{name}: agreement, since people labelled no new item, or no held-out one.")
    where, probes = [OLD] * len(before.votes) + [NEW] * len(after.votes), []
    groups = before.groups + after.groups

    def tried(what: str, found: Floats, **given: bool) -> list[_Tried]:
        near, kind = closer.get(what, ()), measure_of.get(what, what)
        tested, _ = bias.probe_groups(what, where, kind, found, groups, closer=near)
        return [_Tried(name, probe, float(np.nanstd(found)), **given) for probe in tested]

    for what, found in values.items():
        tested = tried(what, found)
        if what in closer:
            beyond, plain = closer[what]
            near = tried(bias.AGREEMENT, plain, own=False)
            among = tried("agreement among annotators", plain - beyond, own=False)
            tested = [replace(one, of_judge=_of_judge(one, near, among)) for one in tested]
            tested += [*near, *among] if what == bias.BEYOND else []
        probes += tested
        if not tested:
            untold.append(
                f"{name}: {what}, which does not vary, or of fewer than {bias.FEWEST} items or "
                f"{bias.FEWEST_CLUSTERS} groups on a side."
            )
    return probes


def _of_judge(one: _Tried, plain: list[_Tried], among: list[_Tried]) -> bool:
    """Whether a change is the judge's: as `bias.closeness` says, or since people are as before.

    Agreement beyond annotators also has to move as agreement itself does.
    """
    if one.probe.of_judge or not among:
        return one.probe.of_judge or bool(plain)
    people = among[0].probe.difference
    if one.probe.measure != bias.BEYOND:
        return people.low <= 0 <= people.high
    sign = np.sign(one.probe.difference.estimate)
    moved = plain[0].probe.difference if plain else people
    return bool(min(sign * moved.low, sign * moved.high) > 0 >= sign * people.estimate)


def _agreement(
    dimension: Dimension, labels: bias.Integers, votes: Sequence[list[list[int]]]
) -> dict[str, Floats]:
    """As on the page; beyond annotators only where both sides have several of them."""
    together, n = [*votes[0], *votes[1]], len(dimension.options)
    found = bias.measures(labels, together, level_values(dimension))
    several = [np.mean([len(row) > 1 for row in one if row]) >= 0.5 for one in votes]
    if not all(several):
        found.pop(bias.BEYOND, None)
        found = {bias.AGREEMENT: agreeing_share(labels, together, n), **found}
    if dimension.asked_as == "choice":
        found.pop(bias.SHIFT)
    return found


def _finding(one: _Tried, tolerance: float) -> dict[str, Any]:
    """In numbers and in words; `effect` is the difference in standard deviations (Cohen's d)."""
    probe, dimension = one.probe, one.dimension
    after, before = (mean.estimate for mean in probe.means)
    gap = probe.difference
    said = (
        f"{dimension}: {probe.attribute} was {fixed(before)} and is {fixed(after)}: {_signed(gap)}"
    ).replace("-", "−")
    if abs(after - before - gap.estimate) > 1e-9:
        said += " in groups with items of both"
    if one.own and probe.measure == bias.AGREEMENT:
        said += "; perhaps since other people annotated, who err more or less"
    return {
        "dimension": dimension,
        "what": probe.attribute,
        "held_out": before,
        "new": after,
        "difference": gap.as_dict(),
        "effect": gap.estimate / one.deviation,
        "p": probe.p_value,
        "p_adjusted": probe.p_adjusted,
        "moved": one.own and one.of_judge and probe.shown and abs(gap.estimate) >= tolerance,
        "told": f"{said}.",
    }


def _signed(gap: Interval) -> str:
    return f"{fixed(gap.estimate, sign='+')} [{fixed(gap.low)}, {fixed(gap.high)}]"


def verdict(report: Mapping[str, Any]) -> list[str]:
    """What moved, or that nothing is shown to have."""
    findings = report["findings"]
    moved = [one["told"] for one in findings if one["moved"]]
    tests = f"{sum(one['p_adjusted'] is not None for one in findings)} comparisons"
    if not moved:
        return [f"No drift is shown by {tests}; where nothing moves, 5 % of such calls show one."]
    return [f"Drift is shown in {len(moved)} of {tests}, of which about 5 % may be false.", *moved]


def drift_table(report: Mapping[str, Any]) -> Sheet:
    """The comparisons for a terminal."""
    items = report["items"]
    table = Sheet(
        f"{items['new']} new items and {items['held_out']} held-out ones, by {report['artefact']}",
        ("held-out", "new", "difference", "effect", "p"),
        "difference: with its 95 % interval; effect: in standard deviations; p: corrected for all "
        "comparisons.",
    )
    for name in dict.fromkeys(one["dimension"] for one in report["findings"]):
        table.group(name)
        for one in (one for one in report["findings"] if one["dimension"] == name):
            gap = _signed(Interval(**one["difference"]))
            p = "–" if one["p_adjusted"] is None else f"{one['p_adjusted']:.4f}"
            figures = fixed(one["held_out"]), fixed(one["new"]), gap, f"{one['effect']:+.2f}", p
            table.add(one["what"], *figures, style="bold" if one["moved"] else "")
    return table
