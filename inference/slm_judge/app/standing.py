"""What the answers say: disagreements to settle, agreement as it grows, and tables to take away."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from slm_judge.agreement.alpha import (
    Floats,
    alpha_of_coincidences,
    annotator_coincidences,
    judge_coincidences,
)
from slm_judge.agreement.annotators import by_annotator
from slm_judge.agreement.bootstrap import Bootstrap, Interval, percentile_interval
from slm_judge.agreement.estimate import items_needed
from slm_judge.agreement.parts import Part, all_parts
from slm_judge.annotate.rows import REVIEW_PROBABILITY
from slm_judge.data.item import ITEM_ID
from slm_judge.data.tables import Overview, check_output
from slm_judge.data.write import write_tables
from slm_judge.errors import DataError, require_extra
from slm_judge.files import finite, write_text
from slm_judge.rubric import Dimension, Rubric

from .store import Store

ANNOTATOR = "annotator_id"
_RESAMPLES = 1000
_POINTS = 8  # of the curve of an alpha
_FEWEST = 3  # items of its first point
_KEPT = ("seconds", "answered_at", "rubric", "judge_shown", "judge_seen")

_SWAYED = "Some answers were given with the judge's in view: agreement with it is too high."
_CHOSEN = (
    "Items were not given out at random: those of which the judge was unsure come first or more "
    "often. On all items, people and judge would agree otherwise, mostly more."
)

Votes = dict[str, dict[str, int]]
"""Item -> annotator -> option index, items in the order in which they were first answered."""


def votes(store: Store, dimension: Dimension) -> Votes:
    """What people answered; no vote is "cannot tell", nor an answer to a question that does not
    apply by the annotator's other answers.
    """
    return _votes(store, dimension)[0]


def _votes(store: Store, dimension: Dimension) -> tuple[Votes, dict[str, list[str]]]:
    """See `votes`; and item -> the annotators who cannot tell."""
    found, unsure = Votes(), dict[str, list[str]]()
    given = _answered(store) if dimension.ask_if else {}
    query = "SELECT item, annotator, option FROM answers WHERE dimension = ? ORDER BY id"
    for item, annotator, key in store.rows(query, dimension.name):
        own = given.get((item, annotator), {})
        if dimension.ask_if and not store.rubric.asked(own)[dimension.name]:
            continue
        if key is None:
            unsure.setdefault(item, []).append(annotator)
            continue
        option = dimension.index(key)
        assert option is not None
        found.setdefault(item, {})[annotator] = option
    return found, unsure


def _answered(store: Store) -> dict[tuple[str, str], dict[str, int]]:
    """Item and annotator -> dimension -> option index."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    for row in store.rows("SELECT * FROM answers WHERE option NOT NULL"):
        option = store.rubric.dimension(row["dimension"]).index(row["option"])
        assert option is not None
        found.setdefault((row["item"], row["annotator"]), {})[row["dimension"]] = option
    return found


def judged(store: Store, dimension: Dimension) -> dict[str, tuple[int, float]]:
    """What the judge said: item -> option index and confidence."""
    query = "SELECT item, option, confidence FROM verdicts WHERE dimension = ? AND option NOT NULL"
    found = {}
    for row in store.rows(query, dimension.name):
        option = dimension.index(row["option"])
        assert option is not None
        found[row["item"]] = option, float(row["confidence"])
    return found


# --- settling ---


def disagreements(
    store: Store, dimension: str = "", annotator: str = "", settled: bool = False, most: int = 20
) -> dict[str, Any]:
    """Items on which people, or the judge and people, differ, worst first.

    How bad it is: the mean distance of the pairs of answers, 0 to 1; of levels, the share of the
    scale between them, of names, whether they differ.

    Args:
        store: has the answers.
        dimension: only this one; by default all.
        annotator: only items that this one answered, and not as all others did.
        settled: also those that are settled.
        most: how many to give.

    Returns:
        `total`, and `items`: a dictionary an item and dimension.
    """
    found: list[dict[str, Any]] = []
    for one in store.rubric.dimensions:
        if dimension in ("", one.name):
            found += _differing(store, one, annotator, settled)
    found.sort(key=lambda row: (row["closed"], -row["distance"], row["item"]))
    for row in found[:most]:
        row["state"] = store.state(row["item"])
    return {"total": len(found), "items": found[:most]}


def _differing(
    store: Store, dimension: Dimension, annotator: str, settled: bool
) -> list[dict[str, Any]]:
    said, done = judged(store, dimension), _settlements(store, dimension.name)
    found, (given, unsure) = list[dict[str, Any]](), _votes(store, dimension)
    for item, row in given.items():
        options = [*row.values(), *([said[item][0]] if item in said else [])]
        final = done.get(item)
        closed = final is not None and final["option"] is not None
        own = row.get(annotator)
        if (closed and not settled) or (annotator and own is None):
            continue
        if not (distance := _distance(options, dimension, own)):
            continue
        answers = {name: dimension.key(option) for name, option in row.items()}
        people = {**answers, **dict.fromkeys(unsure.get(item, ()))}
        judge = (dimension.key(said[item][0]), said[item][1]) if item in said else None
        found.append({"item": item, "dimension": dimension.name, "people": people, "judge": judge,
                      "distance": distance, "settled": final, "closed": closed})  # fmt: skip
    return found


def _settlements(store: Store, dimension: str) -> dict[str, dict[str, Any]]:
    query = "SELECT item, option, comment, who, at FROM settlements WHERE dimension = ?"
    return {row["item"]: dict(row) for row in store.rows(query, dimension)}


def _distance(options: Sequence[int], dimension: Dimension, own: int | None) -> float:
    """Of all pairs; of those of one annotator's answer `own`, where there is one."""
    n, ordered = dimension.n_levels, dimension.level_of_measurement != "nominal"
    pairs = combinations(options, 2) if own is None else [(own, option) for option in options]
    # Options behind the levels say that none applies: they have no place on the scale.
    apart = [abs(a - b) / (n - 1) if ordered and max(a, b) < n else float(a != b) for a, b in pairs]
    return sum(apart) / max(len(apart), 1)


# --- agreement ---


def standing(store: Store, width: float) -> dict[str, Any]:
    """Agreement among annotators, and of the judge with them, by dimension.

    Args:
        store: has the answers.
        width: of the interval that is wanted; says how many more items it takes.

    Raises:
        MissingExtraError: the extra `evaluate` is not installed.
    """
    require_extra("evaluate")
    if not 0 < width <= 2:
        raise DataError("The width of an interval of alpha is above 0, and at most 2.")
    rows = [_of_part(store, part, width) for part in all_parts(store.rubric.dimensions)]
    drawn = store.rows("SELECT 1 FROM item WHERE chance NOT NULL LIMIT 1")  # by hand, or a design
    chosen = store.task.order == "uncertainty" or drawn
    swayed = store.rows("SELECT 1 FROM answers WHERE seen AND option NOT NULL LIMIT 1")
    note = " ".join([*([_CHOSEN] if chosen else []), *([_SWAYED] if swayed else [])])
    found: dict[str, Any] = finite({"dimensions": rows, "note": note})
    return found


def _of_part(store: Store, part: Part, width: float) -> dict[str, Any]:
    from slm_judge.evaluation.annotators import notes

    dimension, source = part.dimension, store.rubric.dimension(part.source)
    mapped = {item: part.votes(row) for item, row in votes(store, source).items()}
    every = {item: row for item, row in mapped.items() if row}
    options = {item: part.options[option] for item, (option, _) in judged(store, source).items()}
    said = {item: option for item, option in options.items() if option >= 0}
    shared = [list(row.values()) for row in every.values() if len(row) > 1]
    coincidences = annotator_coincidences(shared, len(dimension.options))
    both = [(said[item], list(row.values())) for item, row in every.items() if item in said]
    # On the same items as people, where some of theirs can be compared; the rest stands apart.
    compared = [one for one in both if len(one[1]) > 1]
    rest = [one for one in both if len(one[1]) == 1]

    def judge(items: list[tuple[int, list[int]]]) -> dict[str, Any]:
        labels, rows = [label for label, _ in items], [row for _, row in items]
        with_judge = judge_coincidences(labels, rows, len(dimension.options))
        return {"items": len(items), **_alpha(with_judge, dimension).as_dict()}

    sizes = np.unique(np.linspace(_FEWEST, len(shared), _POINTS).astype(int)).tolist()
    curve = [(n, _alpha(coincidences[:n], dimension)) for n in sizes if _FEWEST <= n <= len(shared)]
    people = _alpha(coincidences, dimension)
    known = np.isfinite(people.low) and people.high > people.low
    more = max(items_needed(people, len(shared), width) - len(shared), 0) if known else None
    each = by_annotator(list(every.values()), dimension, _RESAMPLES) if every else []
    return {
        "dimension": dimension.name,
        "items": len(every),
        "shared": len(shared),
        "people": people.as_dict(),
        "curve": [{"items": n, **one.as_dict()} for n, one in curve],
        "judge": judge(compared),
        "judge_apart": judge(rest),
        "people_there": _alpha(
            annotator_coincidences([row for _, row in compared], len(dimension.options)), dimension
        ).as_dict(),
        "more": more,
        "annotators": [asdict(one) for one in each],
        "notes": notes(dimension, list(every.values()), len(every)),
    }


def _alpha(coincidences: Floats, dimension: Dimension) -> Interval:
    if not len(coincidences):
        return Interval(*[float("nan")] * 3)
    totals = Bootstrap(len(coincidences), _RESAMPLES).totals(coincidences)
    alphas = alpha_of_coincidences(totals, dimension.values, dimension.level_of_measurement)
    return percentile_interval(alphas, bounds=(-np.inf, 1.0), units=len(coincidences))


# --- tables ---


def check_names(rubric: Rubric) -> None:
    """Refuse a rubric whose names are those of other columns that the page writes.

    Raises:
        DataError: names them.
    """
    ours = {ITEM_ID, ANNOTATOR, REVIEW_PROBABILITY, *_KEPT}
    if taken := sorted(ours & {*rubric.fields, *(d.name for d in rubric.dimensions)}):
        raise DataError(
            f"The page writes columns called {', '.join(taken)}: give the rubric's fields and "
            "dimensions other names."
        )


def long_table(store: Store, settled: bool = False) -> list[dict[str, Any]]:
    """A row an item and annotator, as `slm-judge train` and `evaluate` read it.

    Args:
        store: has the answers.
        settled: where somebody settled a question about an item, that answer alone counts, in a
            row of whoever settled it.
    """
    final = {
        (item, name): row
        for name in store.questions
        for item, row in (_settlements(store, name).items() if settled else ())
        if row["option"] is not None
    }
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in store.rows("SELECT * FROM answers ORDER BY item, annotator, id"):
        line = found.setdefault((row["item"], row["annotator"]), {"seconds": 0.0})
        if (row["item"], row["dimension"]) not in final:
            line[row["dimension"]] = row["option"]
        line["seconds"] += row["seconds"]
        line |= {"answered_at": row["at"], "rubric": row["rubric"], "judge_shown": row["shown"]}
        line["judge_seen"] = bool(line.get("judge_seen")) or bool(row["seen"])
    for (item, name), one in final.items():
        line = found.setdefault((item, one["who"]), {"answered_at": one["at"]})
        line[name] = one["option"]
    items = {row["id"]: row for row in store.rows("SELECT id, state, chance FROM item")}
    return [
        {ITEM_ID: item, ANNOTATOR: annotator, **json.loads(items[item]["state"]),
         **{name: line.get(name) for name in (*store.questions, *_KEPT)},
         REVIEW_PROBABILITY: items[item]["chance"]}
        for (item, annotator), line in sorted(found.items())
    ]  # fmt: skip


def export(store: Store, output: Path, settled: bool = False) -> int:
    """Write `long_table` as a file, in the format of its suffix.

    Returns:
        The number of rows.

    Raises:
        DataError: nothing was answered yet, or the output cannot be written.
    """
    check_output(str(output))
    if not (rows := long_table(store, settled)):
        raise DataError("Nothing was answered yet, so there is nothing to write.")
    table = pa.Table.from_pylist(rows)
    return write_tables(iter([table]), output, Overview(table.column_names))


def report(store: Store, folder: Path) -> Path:
    """Write the full report: the judge against the annotators, as `slm-judge evaluate` makes it.

    Raises:
        DataError: there is nothing to compare.
        MissingExtraError: the extra `evaluate` is not installed.
    """
    require_extra("evaluate")
    from slm_judge.evaluation.evaluate import evaluate, of_files
    from slm_judge.model_card import page

    said = {name: judged(store, store.rubric.dimension(name)) for name in store.questions}
    items = [item for item in sorted(set().union(*said.values())) if _is_whole(store, said, item)]
    if not items:
        raise DataError("The report compares the judge with people: the judge has judged no item.")
    lines = [{ITEM_ID: item, **{d.name: d.key(said[d.name][item][0]) if item in said[d.name]
                                else None for d in store.rubric.dimensions}}
             for item in items]  # fmt: skip
    predictions, annotations = folder / "judge.jsonl", folder / "annotations.jsonl"
    write_text(predictions, "".join(json.dumps(line) + "\n" for line in lines))
    export(store, annotations)
    found = of_files({"judge": str(predictions)}, str(annotations), store.rubric,
                     annotator=ANNOTATOR)  # fmt: skip
    written: Path = page.write(evaluate(found), folder)
    return written


def _is_whole(store: Store, said: Mapping[str, Mapping[str, tuple[int, float]]], item: str) -> bool:
    """Whether the judge answered all that it is asked about an item, by its own answers."""
    given = {name: of[item][0] for name, of in said.items() if item in of}
    return all(name in given for name, applies in store.rubric.asked(given).items() if applies)
