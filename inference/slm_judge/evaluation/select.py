"""`slm-judge select`: which items of a pool people should annotate next, with the chance of each.

Items are drawn, not picked, and each has a chance: so what `slm-judge estimate` says of the pool
stays valid, whatever the judge is unsure of.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sklearn.cluster import Birch
from sklearn.decomposition import TruncatedSVD
from sklearn.preprocessing import normalize

from slm_judge.agreement.alpha import Floats
from slm_judge.agreement.sample import Whole, draw, inclusion_chances
from slm_judge.annotate.job import annotate_table
from slm_judge.annotate.rows import REVIEW_PROBABILITY, AnnotateOptions
from slm_judge.data.item import ITEM_ID
from slm_judge.data.read import Columns, open_rows
from slm_judge.data.split import text_key
from slm_judge.data.tables import (
    Rows,
    TableStream,
    check_output,
    file_format,
    read_table,
    require_columns,
)
from slm_judge.data.text import is_blank, read_name, read_state, read_text
from slm_judge.data.write import write_tables
from slm_judge.errors import DataError
from slm_judge.files import remove
from slm_judge.judge.judge import Judge
from slm_judge.rubric import Rubric

from .baselines import text_features

AUDIT = 1.0
"""Share of the items that is drawn at random, where nobody says otherwise (docs/evaluation.md)."""
Mask = npt.NDArray[np.bool_]
_ROWS = 10_000  # of a piece
_POWER = 4  # of what confidence leaves open: the unsure come often, and not they alone
_SIZE, _RADIUS = 64, 0.35  # of the space of texts, and of a cluster of near duplicates in it


@dataclass(frozen=True)
class Choice:
    """How items are chosen."""

    n: int
    """How many."""
    audit: float = AUDIT
    """Share of them that is drawn at random; the others by the judge's doubt, at most 1."""
    item_id: str = ITEM_ID
    columns: Mapping[str, str] = field(default_factory=dict)
    """Field of the rubric -> column, where they differ."""
    prefix: str = ""
    """Of the judge's columns, where the pool has them."""
    annotated: Sequence[str] = ()
    """Tables of what was annotated already."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 < self.audit <= 1:
            raise DataError(
                f"--audit is above 0 and at most 1, not {self.audit}: without a random share, "
                "nothing could be estimated from what is annotated."
            )


def select(
    pool: str,
    output: str,
    rubric: Rubric,
    choice: Choice,
    judge: Judge | None = None,
    corpus: str | None = None,
) -> list[str]:
    """Write the items to annotate next, with `review_probability`, the chance of each.

    Args:
        pool: a table with the rubric's fields and a column that names the item.
        output: file for the rows that were drawn.
        rubric: names fields and dimensions.
        choice: how to choose.
        judge: annotates the pool first; without it, where `choice.audit` is below 1, the pool is
            what `slm-judge annotate` wrote.
        corpus: file for all rows that could have been drawn, with their chances: the corpus of
            `slm-judge estimate`.

    Returns:
        What people should know: what was left out, and how many are drawn.

    Raises:
        DataError: columns are missing, a file exists, or there are fewer items.
    """
    for place in filter(None, (output, corpus)):
        check_output(place)
        if Path(place).exists():
            raise DataError(f"{place} exists: name another file, or move it away.")
    known = _annotated(rubric, choice)
    source = pool
    if judge:
        kind = ".jsonl" if file_format(Path(pool)) == "json" else ".parquet"
        source = f"{output}.judged{kind}"
        annotate_table(judge, pool, source, AnnotateOptions(choice.columns, choice.prefix), True)
    table = read_table(source)
    rows, left = _candidates(table, rubric, choice, known)
    notes = [*table.notes, *(f"{n} rows cannot be drawn: {why}." for why, n in left.items())]
    if not 1 <= choice.n <= len(rows):
        raise DataError(" ".join([f"-n {choice.n}: {len(rows)} items can be drawn.", *notes]))
    texts = [_text(table.rows[i], rubric, choice) for i in rows]
    doubt = _doubt([table.rows[i] for i in rows], rubric, choice)
    chances, drawn = choose(texts, doubt, choice)
    each, mask = np.zeros(len(table.rows)), np.zeros(len(table.rows), dtype=bool)
    each[rows], mask[np.array(rows)[drawn]] = chances, True
    for to, wanted in ((output, mask), (corpus, each > 0)):
        if to:
            _write(source, Path(to), f"{choice.prefix}{REVIEW_PROBABILITY}", each, wanted)
    if judge:
        remove(Path(source))
    how = "" if doubt is None else f", {1 - choice.audit:.0%} of them by the judge's doubt"
    return [*notes, f"{choice.n} of {len(rows)} items are drawn{how}."]


def choose(texts: Sequence[str], doubt: Floats | None, choice: Choice) -> tuple[Floats, Whole]:
    """The chance of each of N items, and the positions of those that are drawn.

    Near duplicates share the chance of one item, and are seldom drawn together.

    Args:
        texts: N texts.
        doubt: N: what the judge's confidence leaves open; None where all are drawn at random.
        choice: how to choose.
    """
    rng = np.random.default_rng(choice.seed)
    alike = np.zeros(len(texts), np.int64) if doubt is None else near_duplicates(texts)
    worth = np.ones(len(texts)) if doubt is None else doubt**_POWER / np.bincount(alike)[alike]
    chances = inclusion_chances(worth, choice.n, choice.audit)
    order = np.lexsort((rng.random(len(texts)), alike))
    return chances, draw(chances, order, choice.seed)


def near_duplicates(texts: Sequence[str]) -> Whole:
    """A number for each text; near duplicates have the same, and similar texts follow each other.

    They are the leaves of BIRCH (Zhang, Ramakrishnan and Livny, 1996) in the space of the largest
    components of TF-IDF.
    """
    vectors = text_features(texts).fit_transform(texts)
    size = min(_SIZE, *(n - 1 for n in vectors.shape))
    if size < 1:
        return np.zeros(len(texts), np.int64)
    reduced = normalize(TruncatedSVD(size, random_state=0).fit_transform(vectors))
    found: Whole = Birch(threshold=_RADIUS, n_clusters=None).fit_predict(reduced).astype(np.int64)
    return found


def _annotated(rubric: Rubric, choice: Choice) -> tuple[set[str], set[str]]:
    """Names, and keys of the texts, of what is annotated already.

    Raises:
        DataError: a table has neither.
    """
    ids, keys = set[str](), set[str]()
    for location in choice.annotated:
        own = Columns(choice.item_id, renamed=choice.columns)
        table = open_rows(location, [choice.item_id, *map(own.of, rubric.fields)])
        columns = own.within(table)
        fields = {name: columns.of(name) for name in rubric.fields}
        has_texts = {*fields.values()} <= {*table.columns}
        if columns.item_id not in table.columns and not has_texts:
            raise DataError(f"{location} has neither {choice.item_id} nor the rubric's fields.")
        for row in table.rows:
            ids.add(read_name(row.get(str(columns.item_id))))
            state, problem = read_state({name: row.get(c) for name, c in fields.items()})
            if has_texts and not problem:
                keys.add(text_key(state))
    return ids - {""}, keys


def _candidates(
    table: Rows, rubric: Rubric, choice: Choice, known: tuple[set[str], set[str]]
) -> tuple[list[int], Counter[str]]:
    """The rows that can be drawn, and why the others cannot."""
    fields = {name: choice.columns.get(name, name) for name in rubric.fields}
    judged = _confidences(rubric, choice) if choice.audit < 1 else []
    require_columns(table.columns, [choice.item_id, *fields.values(), *judged], table.location)
    rows, left, seen = list[int](), Counter[str](), set[str]()
    for index, row in enumerate(table.rows):
        name = read_name(row.get(choice.item_id))
        state, problem = read_state({field: row.get(column) for field, column in fields.items()})
        reasons = {
            "no item is named": not name,
            "the item stands there already": name in seen,
            "annotated already, by its name": name in known[0],
            "no text that can be judged": bool(problem),
            "annotated already, by its text": not problem and text_key(state) in known[1],
            "the judge gave no label": any(is_blank(row.get(column)) for column in judged),
        }
        seen.add(name)
        why = next((reason for reason, holds in reasons.items() if holds), None)
        if why:
            left[why] += 1
        else:
            rows.append(index)
    return rows, left


def _text(row: Mapping[str, Any], rubric: Rubric, choice: Choice) -> str:
    return "\n".join(read_text(row[choice.columns.get(f, f)])[0] for f in rubric.fields)


def _confidences(rubric: Rubric, choice: Choice) -> list[str]:
    return [f"{choice.prefix}{d.name}_confidence" for d in rubric.dimensions]


def _doubt(rows: Sequence[Mapping[str, Any]], rubric: Rubric, choice: Choice) -> Floats | None:
    """What the judge's confidence leaves open, mean of the dimensions.

    Raises:
        DataError: a confidence is no share.
    """
    if choice.audit == 1:
        return None
    columns = _confidences(rubric, choice)
    try:
        found = 1 - np.array([[float(row[c]) for c in columns] for row in rows]).mean(axis=1)
    except (TypeError, ValueError):
        found = np.array([-1.0])
    if not ((found >= 0) & (found <= 1)).all():
        raise DataError(f"{', '.join(columns)}: expected shares, from 0 to 1.")
    return found  # type: ignore[no-any-return]


def _write(source: str, place: Path, column: str, chances: Floats, wanted: Mask) -> None:
    """The rows that are wanted as they came, with their chances."""

    def pieces() -> Iterator[pa.Table]:
        start = 0
        for piece in stream.pieces(_ROWS):
            part = slice(start, start := start + piece.table.num_rows)
            table = piece.table.append_column(column, pa.array(chances[part]))
            yield table.filter(pa.array(wanted[part]))

    stream = TableStream(source)
    overview = stream.overview()
    if column in overview.columns:
        raise DataError(f"{source} already has the column {column}: --prefix names it otherwise.")
    write_tables(pieces(), place, overview)
