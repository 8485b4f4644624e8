"""`slm-judge annotate`: a table in, the same table with the judge's columns out.

The input is read in pieces; each finished piece is kept (see `slm_judge.shards`), so that an
interrupted job goes on where it stopped, and memory does not grow with the input.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from math import sqrt
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pyarrow as pa

from slm_judge.data.tables import (
    Overview,
    Piece,
    TableStream,
    check_output,
    file_format,
    is_folder,
    names,
    plain_type,
)
from slm_judge.data.write import write_tables
from slm_judge.errors import DataError
from slm_judge.files import check_places, content_hash, local_path, locked, sweep
from slm_judge.judge.judge import Judge
from slm_judge.progress import progress_bar
from slm_judge.version import __version__

from .rows import LABELLED, STABLE_DIGITS, AnnotateOptions, PieceAnnotator, Prepared
from .store import ShardStore, digest_of

_SUMMARY = "_summary.json"
"""Among the pieces: all of them are finished, and the output is written, or was."""


@dataclass
class Summary:
    """What became of the rows."""

    rows: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    computed: int = 0
    """Rows that the model read in this run: not those of earlier runs, nor repeated texts."""
    reviewed: int = 0
    flips: dict[str, Counter[bool]] = field(default_factory=dict)
    """Of each preference: rows whose two readings chose different labels, and the same."""
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    """What people should know about how the input was read."""

    @property
    def not_annotated(self) -> int:
        """Rows without labels."""
        return self.rows - sum(self.outcomes[name] for name in LABELLED)

    def flip_rates(self) -> list[str]:
        """A line a preference: how often the order of the two texts decided the label."""
        lines = []
        for name, found in self.flips.items():
            flips, rows = found[True], found.total()
            low, high = _wilson(flips, rows)
            lines.append(
                f"{name}: {flips:,} of {rows:,} rows get another label when their texts change "
                f"places: {flips / max(rows, 1):.1%}, 90 % interval {low:.1%} to {high:.1%}"
            )
        return lines


def _wilson(count: int, total: int) -> tuple[float, float]:
    """The 90 % interval of a share (Wilson, 1927), which needs no further library; 0 to 1 of none.

    Returns:
        (p + z^2/2n ± z sqrt(p(1 - p)/n + z^2/4n^2)) / (1 + z^2/n)
    """
    if not total:
        return 0.0, 1.0
    p, z = count / total, NormalDist().inv_cdf(0.95)
    middle, reach = p + z**2 / (2 * total), z * sqrt(p * (1 - p) / total + (z / total) ** 2 / 4)
    scale = 1 + z**2 / total
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)


@dataclass(frozen=True)
class Finished:
    """A piece that is kept."""

    n_rows: int
    outcomes: Counter[str]
    computed: int
    """Rows that the model read for it now."""
    flips: dict[str, Counter[bool]] = field(default_factory=dict)
    """See `Summary`."""


Engine = Callable[[TableStream, PieceAnnotator, ShardStore], Iterator[Finished]]
"""Finishes every piece of a table, in any order."""


def annotate_table(
    judge: Judge,
    source: str,
    output: str | Path,
    options: AnnotateOptions | None = None,
    overwrite: bool = False,
    show_progress: bool = True,
    engine: Engine | None = None,
) -> Summary:
    """Annotate every row of a table; all input columns are kept, and rows keep their order.

    Args:
        judge: the judge.
        source: see `TableStream`.
        output: `.csv`, `.tsv`, `.jsonl` or `.parquet` (the first three also compressed), written
            atomically at the end, while finished pieces wait in `<output>.parts`; or, with a slash
            at its end, a folder on any path that fsspec opens, where the pieces stay as Parquet
            files.
        options: see `AnnotateOptions`.
        overwrite: replace an earlier output, and throw pieces of another job or input away.
        show_progress: draw a progress bar.
        engine: what computes the pieces; by default this process.

    Returns:
        Counts of outcomes.

    Raises:
        DataError: columns are missing or would be overwritten, the input cannot be read, or the
            finished pieces are those of another job.
        JudgeError: another process is making the output.
    """
    options, output = options or AnnotateOptions(), str(output)
    output = output if "://" in output else os.path.expanduser(output)  # noqa: PTH111 (keeps the slash)
    check_output(output)
    review = review_file(output, options)
    with _alone(output, review):
        going_on = Path(f"{output}.parts", _SUMMARY).exists()  # killed while it wrote the output
        _check_places(source, output, review, overwrite or going_on)
        return _annotate(judge, source, (output, review), options, overwrite, show_progress, engine)


@contextmanager
def _alone(output: str, review: Path | None) -> Iterator[None]:
    """Hold what is written, and remove what killed processes left half-written beside it.

    Only on file systems of this machine, or mounted on it: object stores have no locks.
    """
    places = [place for place in (None if "://" in output else Path(output), review) if place]
    with ExitStack() as held:
        for whole in dict.fromkeys(place.resolve() for place in places):
            held.enter_context(locked(whole))
        for place in places:
            sweep(place)
        yield


def _annotate(
    judge: Judge,
    source: str,
    places: tuple[str, Path | None],
    options: AnnotateOptions,
    overwrite: bool,
    show_progress: bool,
    engine: Engine | None,
) -> Summary:
    """Annotate into the output and the file to review of `places`."""
    output, review = places
    started = time.monotonic()
    stream, annotator = TableStream(source), PieceAnnotator(judge, options)
    overview = stream.overview()
    if overview.n_rows == 0:
        raise DataError(f"{source} has no rows.")
    annotator.check(overview.columns, source)
    texts = [place for place in (output, review) if place and not as_parquet(str(place))]
    if texts and (binary := overview.binary()):
        raise DataError(
            f"{source}: the columns {names(binary)} hold bytes, which {texts[0]} cannot. Write "
            ".parquet, or leave these columns out."
        )
    folder = is_folder(output)
    store = ShardStore(
        output if folder else f"{output}.parts",
        job_of(judge, options),
        overwrite,
        overview if folder else None,
    )
    summary = Summary(notes=[*stream.notes, *notes_on(overview, output)])
    n_pieces = 0
    try:
        with progress_bar("rows", show_progress) as progress:
            task = progress.add_task("annotating", total=overview.n_rows)
            for piece in (engine or here)(stream, annotator, store):
                n_pieces += 1
                summary.rows += piece.n_rows
                summary.computed += piece.computed
                summary.outcomes.update(piece.outcomes)
                for name, found in piece.flips.items():
                    summary.flips.setdefault(name, Counter()).update(found)
                progress.update(task, completed=summary.rows)
    except BaseException:
        store.remove_if_empty()
        raise
    store.close(n_pieces)
    summary.notes += store.notes
    if not (Path(store.folder) / _SUMMARY).exists():  # what came there meanwhile stays
        _check_places(source, output, review, overwrite)
    if not folder:
        store.write_record(_SUMMARY, {})
        write_tables(store.tables(), Path(output), overview, summary.rows)
    if review:
        summary.reviewed = write_tables(_to_review(store.tables(), annotator), review, overview)
    if folder:
        store.write_record(_SUMMARY, {"rows": summary.rows, "outcomes": summary.outcomes})
    else:
        store.remove()
    summary.seconds = time.monotonic() - started
    return summary


def _check_places(source: str, output: str, review: Path | None, overwrite: bool) -> None:
    """See `check_places`; a folder is judged by the pieces in it."""
    read = {"the input": source, **({"the output": output} if is_folder(output) else {})}
    own = {} if is_folder(output) else {"the output": output}
    check_places(read, {**own, "the file to review": review}, overwrite)
    if not is_folder(output):
        return
    folder = local_path(output)
    for what, place in (("the input", source), ("the file to review", review)):
        path = place and local_path(place)
        if path and folder in path.parents and (place is review or path.exists()):
            raise DataError(f"{place}, {what}, lies in {output}, the output; name another folder.")


def as_parquet(output: str) -> bool:
    """Whether an output is Parquet, one file or many."""
    return is_folder(output) or file_format(Path(output)) == "parquet"


def notes_on(overview: Overview, output: str) -> list[str]:
    """What the output cannot hold as it is in the input."""
    if not as_parquet(output):
        floats = [one.name for one in overview.schema or () if pa.types.is_floating(one.type)]
        if floats and file_format(Path(output)) == "json":
            return [f"{output}: what is no finite number in {names(floats)} is written as null."]
        return []
    mixed = [name for name, kinds in overview.kinds.items() if plain_type(kinds) is None]
    if not mixed:
        return []
    return [f"{output}: {names(mixed)} hold lists, objects or mixed types, written as JSON texts."]


def review_file(output: str, options: AnnotateOptions) -> Path | None:
    """Where the rows to review go.

    Raises:
        DataError: it cannot be written there.
    """
    if not options.reviews:
        return None
    if options.review is None and is_folder(output):
        raise DataError("Name the file for the rows to review: --review review.csv")
    beside = Path(output)
    packed = beside.suffix if file_format(beside.with_suffix("")) else ""
    plain = Path(beside.name.removesuffix(packed))
    review = Path(options.review or beside.with_name(f"{plain.stem}.review{plain.suffix}{packed}"))
    if is_folder(str(review)):
        raise DataError(f"{review}: the rows to review go into one file, not a folder.")
    check_output(str(review))
    return review


def here(stream: TableStream, annotator: PieceAnnotator, store: ShardStore) -> Iterator[Finished]:
    """Finish the pieces one after the other in this process.

    The next piece is read and tokenized in a thread while the engine computes.
    """

    def load() -> Iterator[tuple[int, Piece, str, pa.Table | None, Prepared | None]]:
        row = 0
        for index, piece, digest in pieces_of(stream, annotator):
            finished = store.find(index, digest)
            prepared = None if finished is not None else annotator.prepare(piece, row)
            row += piece.table.num_rows
            yield index, piece, digest, finished, prepared

    with ThreadPoolExecutor(1) as executor:
        loader = load()
        waiting = executor.submit(next, loader, None)
        while (loaded := waiting.result()) is not None:
            waiting = executor.submit(next, loader, None)
            index, piece, digest, finished, prepared = loaded
            before = annotator.computed
            if prepared is None:
                assert finished is not None
                annotator.replay(piece, finished)
            else:
                finished = annotator.annotate(prepared)
                store.write(index, finished, digest)
            yield summarise(finished, annotator, annotator.computed - before)


def pieces_of(stream: TableStream, annotator: PieceAnnotator) -> Iterator[tuple[int, Piece, str]]:
    """Yield the index, the rows and the digest of each piece."""
    for index, piece in enumerate(stream.pieces(annotator.options.rows_per_piece)):
        yield index, piece, digest_of(piece.table)


def summarise(finished: pa.Table, annotator: PieceAnnotator, computed: int) -> Finished:
    """What became of the rows of a piece."""
    outcomes = Counter(kind_of(text) for text in finished[annotator.outcome].to_pylist())
    flips = {
        name: Counter(cell for cell in finished[column].to_pylist() if cell is not None)
        for name, column in annotator.flipped.items()
    }
    return Finished(finished.num_rows, outcomes, computed, flips)


def kind_of(outcome: str) -> str:
    """The outcome without the figures of the row."""
    return outcome.partition(": ")[0] if outcome.startswith("too long") else outcome


def _to_review(tables: Iterator[pa.Table], annotator: PieceAnnotator) -> Iterator[pa.Table]:
    """Rows that are not sure in some dimension, and a random share of the others.

    The same job always draws the same rows: those of a fixed stream of random numbers, one a row.
    """
    options, stream = annotator.options, np.random.default_rng(0)
    for table in tables:
        rows = zip(*(table[name].to_pylist() for name in annotator.confidences), strict=True)
        chances = np.array([_chance(row, options) for row in rows])
        drawn = pa.array(stream.random(table.num_rows) < chances)
        if annotator.probability:
            table = table.append_column(annotator.probability, pa.array(chances))
        yield table.filter(drawn)


def _chance(confidences: Sequence[float | None], options: AnnotateOptions) -> float:
    """With which a row goes to people: 0 where it has no labels."""
    given = [round(v, STABLE_DIGITS) for v in confidences if v is not None]
    if not given:
        return 0.0
    below = options.review_below
    return 1.0 if below is not None and min(given) < below else options.review_share


def job_of(judge: Judge, options: AnnotateOptions) -> dict[str, Any]:
    """What decides the output, besides the input."""
    settings = asdict(options)
    for key in ("review_below", "review_share", "review"):
        settings.pop(key)
    return {
        "slm_judge": __version__,
        "model": "-".join(map(content_hash, judge.backend.files)),
        "rubric": json.loads(judge.rubric.to_json()),
        "exact": judge.exact,
        "room for a row (--max-memory)": judge.backend.max_tokens,
        "settings": settings,
    }
