"""`slm-judge estimate`: means, shares and regressions, from many judged and few human labels."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from slm_judge.agreement.aggregate import level_values
from slm_judge.agreement.alpha import Floats
from slm_judge.agreement.estimate import CorpusEstimate, corpus_means
from slm_judge.agreement.sample import Sample, Whole
from slm_judge.annotate.rows import LABELLED, REVIEW_PROBABILITY
from slm_judge.data.item import ITEM_ID, Item
from slm_judge.data.predictions import spelled_like
from slm_judge.data.read import Annotations, Findings, read_annotations
from slm_judge.data.sets import unfold
from slm_judge.data.tables import Rows, names, read_table, require_columns
from slm_judge.data.text import is_blank, is_nobody, read_name, told_apart
from slm_judge.errors import DataError
from slm_judge.rubric import Dimension, Rubric
from slm_judge.run import Run
from slm_judge.screen import Sheet

from .doubts import RISK, doubt_about_chances, doubts_about
from .regression import estimate_model
from .trained_on import trained_on

FEW = 30
"""Annotated items, or groups, with which the laws of large numbers begin to hold."""


@dataclass(frozen=True)
class Drawing:
    """Which columns say what an item is, and how the annotated ones were drawn.

    Those of items are looked for in the corpus, then among the annotations.
    """

    item_id: str = ITEM_ID
    annotator: str | None = None
    """Of the annotations."""
    prefix: str = ""
    """Of the judge's columns."""
    probability: str | None = None
    """Chance with which an item was drawn; by default `REVIEW_PROBABILITY`, where that is unequal,
    or else those of a stratum are equal."""
    strata: str | None = None
    """Parts of the corpus from which items were drawn separately."""
    group: str | None = None
    """Items that are alike, e.g. of one conversation or author."""
    folds: str | None = None
    """Of an annotated item, the prefix of the judge that was not trained on it."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Field of the rubric -> column of the corpus, where they differ."""


@dataclass
class Estimates:
    """Of a corpus."""

    dimensions: dict[str, dict[str, CorpusEstimate]] = field(default_factory=dict)
    """Dimension -> "mean", or the option -> estimates."""
    models: dict[str, dict[str, CorpusEstimate]] = field(default_factory=dict)
    """Formula -> coefficient -> estimates."""
    notes: list[str] = field(default_factory=list)
    """What was left out, and what was read as what."""
    doubts: list[str] = field(default_factory=list)
    """What speaks against the annotated items being the sample that they are taken for."""
    excluded: int | None = None
    """Items that the judge was trained on; None where nobody said what it was trained on."""


@dataclass(frozen=True)
class Views:
    """Labels of items, a row a label; an item's several labels share its weight."""

    items: Whole
    """The item of each row, from 0."""
    share: Floats
    options: dict[str, Whole]
    """Dimension -> option of each row."""

    def shares(self, dimension: Dimension, n_items: int) -> Floats:
        """Items x K: the shares of the K options of a dimension."""
        found = np.zeros((n_items, len(dimension.options)))
        np.add.at(found, (self.items, self.options[dimension.name]), self.share)
        return found


@dataclass(frozen=True)
class Labelled:
    """What judge and people said in some dimensions."""

    ids: list[str]
    """N items with the judge's labels."""
    judge: Views
    people: Views
    """Of the n items that people annotated."""
    sample: Sample

    def shares(self, dimension: Dimension) -> tuple[Floats, Floats]:
        """N x K shares of the options by the judge, and n x K by people."""
        judged = self.judge.shares(dimension, len(self.ids))
        return judged, self.people.shares(dimension, len(self.sample.rows))


def estimate(
    corpus: str,
    annotations: str,
    rubric: Rubric,
    drawing: Drawing | None = None,
    run: Run | None = None,
    models: Sequence[str] = (),
    logit: bool = False,
) -> Estimates:
    """Estimate the mean of each score, the share of each option, and coefficients of regressions.

    Where several people annotated an item, each of their labels counts with its share of the item.

    Args:
        corpus: what `slm-judge annotate` wrote, with a column that names the item.
        annotations: human labels of some of its items; see `read_annotations`.
        rubric: the dimensions.
        drawing: how the annotated items were drawn; by default as a simple random sample.
        run: the judge's run; the items that it was trained on are left out.
        models: formulas, e.g. "refund ~ channel + urgency"; see `evaluation.regression`.
        logit: the models are logistic regressions, of outcomes 0 and 1.

    Raises:
        DataError: columns are missing or cannot be used, or too few items are in both.
    """
    known = Known.read(corpus, annotations, rubric, drawing or Drawing())
    found = Estimates(notes=known.notes, excluded=0 if known.drawing.folds else None)
    if run and known.drawing.folds:
        raise DataError(
            "With --folds, no item is judged by a judge that knows it: leave out --run."
        )
    if run:
        found.excluded = known.leave_out(run)
    if known.drawing.probability:
        known.check_chances()
    tested, unsure = list[tuple[str, float]](), list[str]()
    for dimension in rubric.dimensions:
        if (
            not any(dimension.name in item.votes for item in known.annotated)
            and len(rubric.dimensions) > 1
        ):
            known.notes.append(f"{dimension.name}: people gave no label, so nothing is estimated.")
            continue
        if dimension.ask_if:
            known.notes.append(
                f"{dimension.name} is only asked of some items (`ask_if`), and which these are is "
                "the judge's answer as well, so nothing is estimated."
            )
            continue
        labelled = known.labelled([dimension])
        shares, sure = labelled.shares(dimension), known.confidences(dimension, labelled)
        if sure is None:
            unsure.append(dimension.name)
        each = np.bincount(labelled.people.items) if found.excluded is None else None
        tested += doubts_about(dimension, labelled.sample, *shares, sure, each)
        found.dimensions[dimension.name] = _estimates(dimension, labelled, known.notes)
        known.note_few(dimension, labelled.sample)
    if unsure:
        known.notes.append(
            f"The judge's confidence in {names(unsure)} is not given of all items, so it is not "
            "compared between the annotated ones and the others."
        )
    # Whatever the number of comparisons (Bonferroni).
    found.doubts = [*known.doubts, *(text for text, p in tested if p * len(tested) < RISK)]
    for formula in models:
        found.models[formula] = estimate_model(formula, known, logit)
    if not found.dimensions:
        raise DataError(f"{annotations} has no label. {' '.join(known.notes)}")
    return found


class Known:
    """The corpus and the annotations, item by item."""

    def __init__(self, table: Rows, rubric: Rubric, drawing: Drawing) -> None:
        """Take the corpus; see `read`."""
        self.table, self.rubric, self.drawing = table, rubric, drawing
        self.notes: list[str] = []
        self.doubts: list[str] = []
        self.rows = self._by_id()
        self.annotated: list[Item] = []
        self.further: dict[str, dict[str, Any]] = {}
        self.prefixes = [drawing.prefix]
        self._labels: dict[str, dict[str, int]] = {}

    @classmethod
    def read(cls, corpus: str, annotations: str, rubric: Rubric, drawing: Drawing) -> "Known":
        """Read both tables, and check that the columns are there.

        Raises:
            DataError: they are not, or hold what cannot be used.
        """
        table = read_table(corpus)
        require_columns(table.columns, [drawing.item_id], corpus)
        own = (drawing.probability, drawing.strata, drawing.group, drawing.folds)
        elsewhere = [name for name in own if name and name not in table.columns]
        usual = [] if drawing.probability else [f"{drawing.prefix}{REVIEW_PROBABILITY}"]
        usual += [REVIEW_PROBABILITY] if drawing.prefix and usual else []
        optional, columns = {*usual} - {*table.columns}, (drawing.item_id, drawing.annotator)
        read = read_annotations(annotations, rubric, *columns, elsewhere, optional=[*optional])
        known = cls(table, rubric, drawing)
        known.notes[:0] = [*table.notes, *read.notes]
        known._join(read)
        for name in (*elsewhere, *usual):
            if name in elsewhere or name in {*read.columns, *read.of_annotators, *read.of_rows}:
                known.further[name] = _of_items(read, name, annotations)
        known._find_chances(usual, annotations)
        if drawing.folds:
            found = {known.cell(drawing.folds, item.item_id) for item in known.annotated}
            if "" in found:
                raise DataError(f"{drawing.folds} is not given of all annotated items.")
            known.prefixes = sorted(found)
        wanted = [f"{p}{d.name}" for p in known.prefixes for d in rubric.dimensions]
        findings = Findings(strict=False)
        for prefix in known.prefixes if rubric.sets else ():
            unfold(table, rubric, findings, prefix.__add__)
        known.notes += findings.said(corpus)
        require_columns(table.columns, wanted, corpus)
        return known

    def _join(self, read: Annotations) -> None:
        """Find the annotated items in the corpus, by its spelling of their names.

        Raises:
            DataError: none of them is there.
        """
        theirs, findings = [item.item_id for item in read.items], Findings(strict=False)
        spelled = spelled_like(theirs, self.rows, self.table.location, findings)
        self.notes += findings.notes
        read.items = [replace(item, item_id=name) for item, name in zip(
            read.items, spelled, strict=True)]  # fmt: skip
        self.annotated = [item for item in read.items if item.item_id in self.rows]
        if not self.annotated:
            raise DataError(
                f"None of the annotated items is in {self.table.location}: it has "
                f"{told_apart([*self.rows][:3])}, the annotations have {told_apart(theirs[:3])}. "
                f"Both need the same names in the column {self.drawing.item_id}."
            )
        if missing := len(read.items) - len(self.annotated):
            lost = [one for one, name in zip(theirs, spelled, strict=True) if name not in self.rows]
            self.notes.append(
                f"{missing} annotated items are not in {self.table.location} (e.g. "
                f"{told_apart(lost[:3])}): left out."
            )

    def _by_id(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        left: Counter[str] = Counter()
        for index, row in enumerate(self.table.rows):
            name = self.table.name(index, self.drawing.item_id)
            if not name or name in found:
                left["the item stands there already" if name else "no item is named"] += 1
            else:
                found[name] = row
        self._say_left("at all", left)
        return found

    def _say_left(self, what: str, left: Counter[str]) -> None:
        if left:
            reasons = ", ".join(f"{reason} ({n})" for reason, n in left.most_common(5))
            self.notes.append(
                f"{self.table.location}: {left.total()} of {len(self.table.rows)} rows do not "
                f"count {what}: {reasons}."
            )

    def _find_chances(self, usual: Sequence[str], annotations: str) -> None:
        """Take a column that says with which chance items were drawn, where these are unequal."""
        annotated = [item.item_id for item in self.annotated if item.votes]
        for name in (n for n in usual if n in self.further or n in self.table.columns):
            own = name in self.further
            known = {self.cell(name, item) for item in self.rows} - {""}
            if len(known | {self.cell(name, item) for item in annotated}) > 1:
                self.drawing = replace(self.drawing, probability=name)
                self.notes.append(
                    f"{annotations if own else self.table.location} has unequal {name}: they are "
                    "taken for the chances with which the annotated items were drawn, as by "
                    "--probability. If these were drawn otherwise, rename the column."
                )
            return

    def leave_out(self, run: Run) -> int:
        """Leave out what the judge was trained on, and say how much that was."""
        found = trained_on(run, self.rubric, self.drawing.columns)
        texts = found.by_text(self.rows, self.table.columns) | found.by_annotation(self.annotated)
        ids = found.names & self.rows.keys()
        gone = texts | ids
        before = len(self.annotated)
        self.rows = {name: row for name, row in self.rows.items() if name not in gone}
        self.annotated = [item for item in self.annotated if item.item_id not in gone]
        self.notes.append(
            f"{len(gone)} items are those that {run.folder} was trained and chosen on "
            f"({len(texts)} by their text, {len(ids - texts)} by their name alone): left out, with "
            f"{before - len(self.annotated)} of the {before} annotated ones. The estimates are of "
            "the rest of the corpus."
        )
        if not set(found.columns.values()) <= set(self.table.columns):
            columns = names(list(found.columns.values()))
            self.notes.append(
                f"{self.table.location} has not all of the columns {columns} (see --column): its "
                "texts were not compared."
            )
        if before and not self.annotated:
            raise DataError(
                "The judge was trained on all annotated items, so they say nothing about its "
                "errors on others. Annotate a random sample of fresh items, or let each item be "
                f"judged by a judge that was not trained on it (--folds). {self.notes[-1]}"
            )
        return len(gone)

    def cell(self, column: str, item_id: str) -> str:
        """What a column says about an item, as a name."""
        if column in self.further:
            return str(self.further[column].get(item_id, ""))
        return read_name(self.rows[item_id].get(column))

    def labels(self, prefix: str, dimension: Dimension) -> dict[str, int]:
        """A judge's label of each item; rows without one are counted once, by their outcome."""
        column = f"{prefix}{dimension.name}"
        if column in self._labels:
            return self._labels[column]
        found: dict[str, int] = {}
        left: Counter[str] = Counter()
        findings = Findings(strict=False)
        for name, row in self.rows.items():
            raw = row.get(column)
            label = None if is_blank(raw) else findings.read(dimension, raw)
            if is_blank(raw):
                why = str(row.get(f"{prefix}outcome") or "no label")
                left["not asked" if dimension.ask_if and why in LABELLED else why] += 1
            elif label is None:
                left[f"{raw!r} is not in the rubric"] += 1
            else:
                found[name] = label
        self._say_left(f"for {column}", left)
        self.notes += findings.said(self.table.location)
        self._labels[column] = found
        return found

    def labelled(
        self, dimensions: Sequence[Dimension], usable: Iterable[str] | None = None
    ) -> Labelled:
        """The items with the judge's labels in all `dimensions`, and what people said about some.

        Args:
            dimensions: of the rubric.
            usable: items that count; by default all.

        Raises:
            DataError: too few items are annotated, or a chance, stratum or group is not given.
        """
        keys = [d.name for d in dimensions]
        given = [[self.labels(prefix, d) for d in dimensions] for prefix in self.prefixes]
        everywhere = [labels for one in given for labels in one]
        among = self.rows if usable is None else usable
        ids = [i for i in among if all(i in labels for labels in everywhere)]
        place = {name: i for i, name in enumerate(ids)}
        votes = {item.item_id: _complete(item, keys) for item in self.annotated}
        both = [i for i in votes if votes[i] and i in place]
        if len(both) < 2 or len(both) == len(ids):
            raise DataError(
                f"{', '.join(keys)}: {len(both)} items have a label of people and of the judge, "
                f"and {len(ids) - len(both)} of the judge alone; at least 2 and 1 are needed. "
                + " ".join(self.notes)
            )
        rows = [place[i] for i in both]
        own = [self._own_fold(i) for i in both]
        sample = self._sample(ids, both, rows)
        shares = sample.shares_of(np.array(own), len(given))
        judge = self._judge_views(given, keys, ids, dict(zip(both, own, strict=True)), shares)
        people = _views(
            [(n, 1 / len(votes[i]), vote) for n, i in enumerate(both) for vote in votes[i]], keys
        )
        return Labelled(ids, judge, people, sample)

    def _own_fold(self, item_id: str) -> int:
        if not self.drawing.folds:
            return 0
        return self.prefixes.index(self.cell(self.drawing.folds, item_id))

    def _judge_views(
        self,
        given: list[list[dict[str, int]]],
        keys: list[str],
        ids: list[str],
        own: dict[str, int],
        shares: Floats,
    ) -> Views:
        """All judges on each item; on one that some were trained on, the one that was not."""
        rows = []
        for n, name in enumerate(ids):
            judges = {own[name]: 1.0} if name in own else dict(enumerate(shares[n].tolist()))
            rows += [(n, share, tuple(labels[name] for labels in given[judge]))
                     for judge, share in judges.items() if share]  # fmt: skip
        return _views(rows, keys)

    def _sample(self, ids: list[str], both: list[str], rows: list[int]) -> Sample:
        drawing = self.drawing
        strata = self._numbers(drawing.strata, ids)
        groups = self._numbers(drawing.group, ids)
        chances = self._chances(both) if drawing.probability else None
        try:
            return Sample.drawn(len(ids), rows, chances, strata, groups)
        except ValueError as error:
            found = [self.cell(drawing.strata, name) for name in both] if drawing.strata else []
            every = {self.cell(drawing.strata, name) for name in ids} if drawing.strata else set()
            few = [f"{name} has {found.count(name)}" for name in sorted(every)]
            advice = f" {drawing.strata} {', '.join(few)}: join those with few." if few else ""
            raise DataError(
                f"Of {len(ids)} items, {len(both)} are annotated; {error}.{advice}"
            ) from None

    def _numbers(self, column: str | None, ids: list[str]) -> Whole | None:
        """The strata or groups of items, from 0."""
        if column is None:
            return None
        cells = [self.cell(column, name) for name in ids]
        if none := [k for k, cell in enumerate(cells) if is_nobody(cell)]:
            raise DataError(
                f"{column} is not given of {len(none)} of {len(ids)} items of "
                f"{self.table.location}, e.g. {ids[none[0]]}."
            )
        found: Whole = np.unique(cells, return_inverse=True)[1].astype(np.int64)
        return found

    def _chances(self, both: list[str]) -> Floats:
        column = self.drawing.probability
        assert column
        found = []
        for name in both:
            text = self.cell(column, name)
            try:
                found.append(float(text))
            except ValueError:
                found.append(float("nan"))
            if not 0 < found[-1] <= 1:
                raise DataError(
                    f"{column} of item {name} is {text!r}; a probability above 0, and not above 1, "
                    "is needed of each annotated item."
                )
        return np.array(found)

    def note_few(self, dimension: Dimension, sample: Sample) -> None:
        """Say where intervals rest on few items, or groups."""
        number = int(sample.groups_annotated.sum())
        if number < FEW:
            what = f"values of {self.drawing.group}" if self.drawing.group else "items"
            self.notes.append(
                f"{dimension.name}: only {number} {what} are annotated. With fewer than {FEW}, "
                "intervals may hold the truth less often than they say (91 % in place of 95 %, in "
                "simulations with 15 conversations)."
            )

    def check_chances(self) -> None:
        """Note a doubt where the probabilities do not add up to the corpus."""
        dimension = self.rubric.dimensions[0]
        judged = self.labels(self.prefixes[0], dimension) if self.prefixes else {}
        drawn = [i.item_id for i in self.annotated if i.votes and i.item_id in judged]
        if doubt := doubt_about_chances(len(judged), self._chances(drawn)):
            self.doubts.append(doubt)

    def confidences(self, dimension: Dimension, labelled: Labelled) -> Floats | None:
        """The judges' mean confidence in each item; None where it is not given of all."""
        columns = [f"{prefix}{dimension.name}_confidence" for prefix in self.prefixes]
        if not set(columns) <= set(self.table.columns):
            return None
        rows = labelled.sample.rows.tolist()
        own = np.array([self._own_fold(labelled.ids[row]) for row in rows])
        shares = labelled.sample.shares_of(own, len(columns))
        shares[rows] = np.eye(len(columns))[own]
        try:
            said = [[float(self.rows[i].get(c)) for c in columns] for i in labelled.ids]  # type: ignore[arg-type]
        except (TypeError, ValueError):
            return None
        found: Floats = (shares * said).sum(axis=1)
        return found if np.isfinite(found).all() else None


def _of_items(read: Annotations, name: str, location: str) -> dict[str, str]:
    """What a column says about each item, also where each annotator's items have one value."""
    if name in read.columns:
        return {i.item_id: cell for i, cell in zip(read.items, read.columns[name], strict=True)}
    by = read.of_annotators.get(name, {})
    cells = {i.item_id: {by.get(who, "") for votes in i.votes.values() for who in votes}
             for i in read.items}  # fmt: skip
    if not by or any(len(found) > 1 for found in cells.values()):
        raise DataError(f"{location}: {name} differs between the rows of one item.")
    return {item: "".join(found) for item, found in cells.items()}


def _complete(item: Item, keys: Sequence[str]) -> list[tuple[int, ...]]:
    """The options of each annotator who answered all dimensions of `keys`."""
    first, *rest = (item.votes.get(key, {}) for key in keys)
    people = [name for name in first if all(name in votes for votes in rest)]
    return [(first[name], *(votes[name] for votes in rest)) for name in people]


def _views(rows: Sequence[tuple[int, float, tuple[int, ...]]], keys: Sequence[str]) -> Views:
    items, share, options = zip(*rows, strict=True)
    columns = np.array(options, dtype=np.int64).T
    return Views(
        np.array(items, dtype=np.int64), np.array(share), dict(zip(keys, columns, strict=True))
    )


def _estimates(
    dimension: Dimension, labelled: Labelled, notes: list[str]
) -> dict[str, CorpusEstimate]:
    judged, human = labelled.shares(dimension)
    if dimension.asked_as == "score":
        levels = level_values(dimension)
        values = human @ levels[:, None], judged @ levels[:, None]
        step = float(np.diff(levels).mean())
        return {"mean": corpus_means(*values, labelled.sample, step)[0]}
    if dimension.type == "score":
        notes.append(
            f"{dimension.name} does not apply to all items, so no mean is estimated: its shares "
            "are of all items."
        )
    found = corpus_means(human, judged, labelled.sample)
    keys = [dimension.key(k) for k in range(len(found))]
    if below := [key for key, one in zip(keys, found, strict=True) if one.uncut < 0]:
        notes.append(
            f"{dimension.name}: corrected for the judge's errors, {names(below)} would be below 0; "
            "all its shares are moved to the nearest that are not, and sum to 1."
        )
    return dict(zip(keys, found, strict=True))


def estimate_table(found: Estimates) -> Sheet:
    """The estimates for a terminal."""
    first = next(iter(next(iter(found.dimensions.values())).values()))
    caption = (
        "This holds if the annotated items are a random sample, as described, and the judge was "
        "trained on none of them"
    )
    caption += "." if found.excluded is not None else " (--run leaves out those that it was)."
    table = Sheet(
        f"{first.n_human:,} items with human labels, {first.n_judged:,} judged alone; "
        "95 % intervals",
        ("prediction-powered", "humans alone", "judge alone"),
        caption,
    )
    for name, estimates in (*found.dimensions.items(), *found.models.items()):
        table.group(name)
        for key, one in estimates.items():
            alone = f"{one.judge_alone:.3f}" if np.isfinite(one.judge_alone) else "–"
            table.add(key, str(one.prediction_powered), str(one.humans_alone), alone)
    return table


def as_json(found: Estimates) -> dict[str, Any]:
    """Plain numbers, and what is to be said about them."""
    return asdict(found)
