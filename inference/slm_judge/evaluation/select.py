"""`slm-judge select`: which items of a pool people should annotate next, with the chance of each.

Items are drawn and not picked, and each has a chance: so what `slm-judge estimate` says of the pool
stays valid, whatever the judge doubts.
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
from slm_judge.agreement.sample import AUDIT, Whole, draw, inclusion_chances
from slm_judge.annotate.job import annotate_table
from slm_judge.annotate.rows import REVIEW_PROBABILITY, AnnotateOptions
from slm_judge.data.item import ITEM_ID
from slm_judge.data.predictions import spelled_like
from slm_judge.data.read import Columns, Findings, open_rows
from slm_judge.data.split import text_key
from slm_judge.data.tables import (
    Rows,
    TableStream,
    check_output,
    file_format,
    is_folder,
    read_table,
    require_columns,
)
from slm_judge.data.text import is_blank, read_state
from slm_judge.data.write import write_tables
from slm_judge.errors import DataError
from slm_judge.files import remove
from slm_judge.judge.judge import Judge
from slm_judge.rubric import Rubric

from .baselines import text_features

Mask = npt.NDArray[np.bool_]
_ROWS = 10_000  # of a piece
_POWER = 2  # of the doubt
_SIZE, _RADIUS = 64, 0.35  # of the space of texts, and of a cluster of near duplicates in it


@dataclass(frozen=True)
class Choice:
    """How items are chosen."""

    n: int
    """How many."""
    audit: float = AUDIT
    """Share of them that is drawn at random. In the rest, near duplicates share the chance of one
    item, and items that the judge doubts come more often."""
    item_id: str = ITEM_ID
    columns: Mapping[str, str] = field(default_factory=dict)
    """Field of the rubric -> column, where they differ."""
    prefix: str = ""
    """Of the judge's columns."""
    annotated: Sequence[str] = ()
    """Tables of what was annotated already."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the share."""
        if not 0 < self.audit <= 1:
            raise DataError(
                f"--audit is above 0 and at most 1, not {self.audit}: what has no chance to be "
                "drawn, nothing can be estimated of."
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
        pool: a table with the rubric's fields and a column that names the item; where it has the
            columns of `slm-judge annotate`, these say what the judge doubts.
        output: file for the rows that are drawn.
        rubric: names fields and dimensions.
        choice: how to choose.
        judge: annotates the pool first, where its doubt counts.
        corpus: file for all rows that could be drawn, with their chances.

    Returns:
        What people should know: what was left out, and how many are drawn.

    Raises:
        DataError: columns are missing, a file exists, or there are fewer items.
    """
    for place in filter(None, (output, corpus)):
        check_output(place)
        if is_folder(place) or Path(place).exists():
            raise DataError(f"{place} is a folder, or exists already: name another file.")
    if corpus and Path(corpus) == Path(output):
        raise DataError(f"{output}: the items to annotate and the corpus need a file each.")
    table, source, column = read_table(pool), pool, f"{choice.prefix}{REVIEW_PROBABILITY}"
    fields = {name: choice.columns.get(name, name) for name in rubric.fields}
    require_columns(table.columns, [choice.item_id, *fields.values()], pool)
    if column in table.columns:
        raise DataError(f"{pool} already has the column {column}: --prefix names it otherwise.")
    known, notes = _annotated(rubric, choice), table.notes
    if judge:
        _check_number(choice, *_candidates(table, fields, choice.item_id, known))
        kind = ".jsonl" if file_format(Path(pool)) == "json" else ".parquet"
        source = f"{output}.judged{kind}"
        annotate_table(judge, pool, source, AnnotateOptions(choice.columns, choice.prefix), True)
        table = read_table(source)
    judged = [f"{choice.prefix}{d.name}_confidence" for d in rubric.as_written]
    judged = judged if choice.audit < 1 and {*judged} <= {*table.columns} else []
    found, left = _candidates(table, fields, choice.item_id, known, judged)
    notes = [*notes, *_check_number(choice, found, left)]
    doubt = _doubt([table.rows[i] for i in found], judged) if judged else None
    texts = [*found.values()]
    alike = near_duplicates(texts) if choice.audit < 1 else np.zeros(len(texts), np.int64)
    chances, drawn = choose(alike, doubt, choice)
    each, mask = np.zeros((2, len(table.rows)))
    each[[*found]], mask[np.array([*found])[drawn]] = chances, 1
    for to, wanted in ((output, mask), (corpus, each)):
        if to:
            _write(source, Path(to), column, each, wanted > 0)
    if source != pool:
        remove(Path(source))
    rest = "by the judge's doubt" if judged else "with near duplicates as one"
    how = f"{choice.audit:.0%} of them at random" + (f", {rest}" if choice.audit < 1 else "")
    return [*notes, f"{choice.n} of {len(found)} items are drawn, {how}."]


def choose(alike: Whole, doubt: Floats | None, choice: Choice) -> tuple[Floats, Whole]:
    """The chance of each of N items, and the positions of those that are drawn.

    Args:
        alike: N numbers, see `near_duplicates`.
        doubt: N, of the judge; None where it does not count.
        choice: how to choose.
    """
    worth = (1 if doubt is None else doubt**_POWER) / np.bincount(alike)[alike]
    chances = inclusion_chances(worth, choice.n, choice.audit)
    order = np.lexsort((np.random.default_rng(choice.seed).random(len(alike)), alike))
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
        for index, row in enumerate(table.rows):
            ids.add(table.name(index, columns.item_id))
            state, problem = read_state({name: row.get(c) for name, c in fields.items()})
            if has_texts and not problem:
                keys.add(text_key(state))
    return ids - {""}, keys


def _candidates(
    table: Rows,
    fields: Mapping[str, str],
    item_id: str,
    known: tuple[set[str], set[str]],
    judged: Sequence[str] = (),
) -> tuple[dict[int, str], Counter[str]]:
    """The rows that can be drawn, with their texts, and why others cannot."""
    found, left, seen = dict[int, str](), Counter[str](), set[str]()
    named = [*dict.fromkeys(table.name(index, item_id) for index in range(len(table.rows)))]
    theirs = spelled_like(named, known[0], table.location, Findings(strict=False))
    as_annotated = dict(zip(named, theirs, strict=True))
    for index, row in enumerate(table.rows):
        name = table.name(index, item_id)
        state, problem = read_state({field: row.get(column) for field, column in fields.items()})
        reasons = {
            "no item is named": not name,
            "the item stands there already": name in seen,
            "annotated already, by its name": as_annotated[name] in known[0],
            "no text that can be judged": bool(problem),
            "annotated already, by its text": not problem and text_key(state) in known[1],
            "the judge gave no label": bool(judged)
            and all(is_blank(row.get(column)) for column in judged),
        }
        seen.add(name)
        if why := next((reason for reason, holds in reasons.items() if holds), ""):
            left[why] += 1
        else:
            found[index] = "\n".join(state.values())
    return found, left


def _check_number(choice: Choice, found: Mapping[int, str], left: Counter[str]) -> list[str]:
    """What is left out, in words.

    Raises:
        DataError: there are fewer items than wanted.
    """
    said = [f"{n} rows cannot be drawn: {why}." for why, n in left.items()]
    if not 1 <= choice.n <= len(found):
        raise DataError(" ".join([f"-n {choice.n}: {len(found)} items can be drawn.", *said]))
    return said


def _doubt(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Floats:
    """What the judge's confidence leaves open, mean of the dimensions that it was asked about.

    Raises:
        DataError: a confidence is no share.
    """
    doubt = np.zeros(len(rows))
    for k, row in enumerate(rows):
        cells = [row[column] for column in columns if not is_blank(row[column])]
        try:
            sure = [float(cell) for cell in cells]
        except (TypeError, ValueError):
            sure = [np.nan]
        if not all(0 <= one <= 1 for one in sure):
            raise DataError(f"{', '.join(columns)}: expected shares, from 0 to 1.")
        doubt[k] = 1 - np.mean(sure)
    return doubt


def _write(source: str, place: Path, column: str, chances: Floats, wanted: Mask) -> None:
    """The rows that are wanted as they came, with their chances."""

    def pieces() -> Iterator[pa.Table]:
        start = 0
        for piece in stream.pieces(_ROWS):
            part = slice(start, start := start + piece.table.num_rows)
            table = piece.table.append_column(column, pa.array(chances[part]))
            yield table.filter(pa.array(wanted[part]))

    stream = TableStream(source)
    write_tables(pieces(), place, stream.overview())
