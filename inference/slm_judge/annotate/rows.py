"""Pieces of a table: which rows can be annotated, and the judge's columns beside them."""

import hashlib
import json
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from slm_judge.backends import Backend
from slm_judge.data.tables import Piece, names
from slm_judge.data.text import MOST_CHARACTERS, TOO_LONG, is_replaced_in, read_state
from slm_judge.errors import DataError
from slm_judge.judge.answer import Annotation, annotations_from_logits, collected
from slm_judge.judge.judge import Judge
from slm_judge.prompt.readers import EncodedPrompt, encode_readings
from slm_judge.rubric import FLIPPED, Dimension, Multi, Preference, Rubric, format_value

Policy = Literal["skip", "fail"]
LengthPolicy = Literal["skip", "fail", "truncate"]

ANNOTATED, REPLACED, TRUNCATED = LABELLED = ("annotated", "replaced", "truncated")
"""Outcomes of rows that have labels: of the text as it is, of one in which characters were replaced
that engines do not read alike, and of one that was cut."""
REVIEW_PROBABILITY = "review_probability"
"""Behind the prefix, the column of the rows to review that `slm-judge estimate` needs."""
_CACHED_TEXTS = 100_000  # about 30 MB
# Of a confidence, as it is written. Beyond the second, digits depend on what is computed beside a
# row, unless each row is computed by itself: docs/annotation.md.
STABLE_DIGITS, EXACT_DIGITS = 2, 6


@dataclass(frozen=True)
class AnnotateOptions:
    """What to annotate, and what becomes of rows that cannot be annotated as they are."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """Field of the rubric -> column of the table, where they differ."""
    prefix: str = ""
    """Put before the names of the new columns: `<dimension>`, `<dimension>_confidence` for each
    dimension, `<dimension>_expected` for sliders, `<dimension>_flipped` for preferences, and
    `outcome`."""
    on_empty: Policy = "skip"
    """A row that lacks a field or its text."""
    on_too_long: LengthPolicy = "skip"
    """A row whose prompt is longer than the model can read; truncate cuts the end of its longest
    field, never the rubric."""
    review_below: float | None = None
    """Rows with a confidence below this, in any dimension, also go to `review`; it is compared with
    the confidence of `STABLE_DIGITS` digits, as `slm-judge threshold` chooses it."""
    review_share: float = 0.0
    """Of the other rows, as many also go there, drawn at random, each with this chance; a column
    `REVIEW_PROBABILITY` then says the chance of each row, 1 or this."""
    review: str | None = None
    """File for the rows to review; by default beside the output."""
    rows_per_piece: int = 2048
    """Rows of a piece that is computed and kept as a whole."""

    def __post_init__(self) -> None:
        """Check what belongs together."""
        if not 0 <= self.review_share <= 1:
            raise DataError(f"--review-share is between 0 and 1, not {self.review_share}.")
        if self.review_below is not None and not 0 <= self.review_below <= 1:
            raise DataError(f"--review-below is between 0 and 1, not {self.review_below}.")
        if self.review and not self.reviews:
            raise DataError(
                "A review file needs --review-below, the confidence to review under, or "
                "--review-share, the share of rows to draw."
            )

    @property
    def reviews(self) -> bool:
        """Whether some rows go to people."""
        return self.review_below is not None or self.review_share > 0


@dataclass
class Prepared:
    """A piece whose rows were read and tokenized."""

    piece: Piece
    keys: list[str]
    """Per row, its text's key, or the reason why it has none."""
    prompts: dict[str, EncodedPrompt]
    """Of each different text that can be annotated."""
    outcomes: dict[str, str]
    """Of each different text."""
    known: dict[str, Any]
    """Texts without a prompt, since they were annotated before: their states."""


class PieceAnnotator:
    """Annotates the pieces of one table, in order."""

    def __init__(self, judge: Judge, options: AnnotateOptions) -> None:
        """Use `judge` with `options`."""
        self.judge, self.options = judge, options
        rubric, prefix = judge.rubric, options.prefix
        self.sources = {name: options.columns.get(name, name) for name in rubric.fields}
        self.added: dict[str, pa.DataType] = {}
        """The new columns and their types, the outcome last."""
        for dimension in rubric.as_written:
            self.added[f"{prefix}{dimension.name}"] = label_type(dimension)
            self.added[f"{prefix}{dimension.name}_confidence"] = pa.float64()
            if dimension.span:
                self.added[f"{prefix}{dimension.name}_expected"] = pa.float64()
            if isinstance(dimension, Preference):
                self.added[f"{prefix}{dimension.name}{FLIPPED}"] = pa.bool_()
        self.outcome = f"{prefix}outcome"
        self.added[self.outcome] = pa.string()
        self.probability = f"{prefix}{REVIEW_PROBABILITY}" if options.review_share else ""
        preferences = [d.name for d in rubric.dimensions if isinstance(d, Preference)]
        self.flipped = {name: f"{prefix}{name}{FLIPPED}" for name in preferences}
        """Preference -> the column that says whether its two readings chose different labels."""
        self.confidences = [f"{prefix}{d.name}_confidence" for d in rubric.as_written]
        self.computed = 0
        self._digits = EXACT_DIGITS if judge.exact else STABLE_DIGITS
        self._cache: OrderedDict[str, tuple[Any, ...]] = OrderedDict()

    def check(self, columns: Sequence[str], location: str) -> None:
        """Refuse a table without the fields, or with columns that would be overwritten.

        Raises:
            DataError: names the columns.
        """
        if unknown := sorted(set(self.options.columns) - set(self.sources)):
            raise DataError(
                f"--column {unknown[0]}=...: the judge reads no field {unknown[0]}; it reads "
                f"{', '.join(self.sources)}."
            )
        missing = [name for name in self.sources.values() if name not in columns]
        if missing:
            raise DataError(
                f"{location} has no columns {', '.join(missing)}; it has {names(columns)}. Name "
                "the right ones with --column field=column."
            )
        if taken := [name for name in (*self.added, self.probability) if name and name in columns]:
            raise DataError(
                f"{location} already has the columns {names(taken)}. Keep both with a prefix "
                "for the judge's, e.g. --prefix judge_"
            )

    # --- reading ---

    def prepare(self, piece: Piece, first_row: int) -> Prepared:
        """Read and tokenize a piece; engine and cache are not changed, so threads may do it.

        Raises:
            DataError: a row cannot be annotated and the policy is to fail.
        """
        keys, states, outcomes = self._states(piece, first_row)
        known = {key: state for key, state in states.items() if key in self._cache}
        prompts = self._encode({key: states[key] for key in states if key not in known})
        for key, prompt in list(prompts.items()):
            length, most = prompt.n_tokens, self.judge.backend.max_tokens
            if length <= most:
                continue
            outcomes[key] = f"{TOO_LONG}: {length} tokens, room for {most}"
            if self.options.on_too_long == "fail":
                where = _where(piece, first_row, keys.index(key))
                raise DataError(f"{where} is {outcomes[key]}. See --on-too-long.")
            if self.options.on_too_long == "skip":
                del prompts[key]
            else:
                prompts[key] = self._cut(states[key])
                outcomes[key] = TRUNCATED
        return Prepared(piece, keys, prompts, outcomes, known)

    def _encode(self, states: Mapping[str, Any]) -> dict[str, EncodedPrompt]:
        return dict(zip(states, self.judge.encode([*states.values()]), strict=True))

    def _cut(self, state: Mapping[str, str]) -> EncodedPrompt:
        return truncate(self.judge.backend, self.judge.rubric, state)

    def _states(
        self, piece: Piece, first_row: int
    ) -> tuple[list[str], dict[str, Any], dict[str, str]]:
        """Per row, a key; and state and outcome of each key that can be annotated."""
        keys: list[str] = []
        states: dict[str, dict[str, str]] = {}
        outcomes: dict[str, str] = {}
        columns = piece.values(list(self.sources.values()))
        for row, values in enumerate(zip(*columns, strict=True)):
            state, problem, outcome = self._read(dict(zip(self.sources, values, strict=True)))
            option = "too_long" if problem.startswith(TOO_LONG) else "empty"
            if problem and getattr(self.options, f"on_{option}") == "fail":
                where = _where(piece, first_row, row)
                raise DataError(f"{where}: {problem}. See --on-{option.replace('_', '-')}.")
            key = problem or _key(state, outcome)
            if not problem:
                states[key], outcomes[key] = state, outcome
            keys.append(key)
        return keys, states, outcomes

    def _read(self, cells: Mapping[str, Any]) -> tuple[dict[str, str], str, str]:
        """State, problem (see `read_state`) and outcome of a row."""
        state, problem = read_state(cells)
        if problem.startswith(TOO_LONG) and self.options.on_too_long == "truncate":
            short = {n: c[:MOST_CHARACTERS] if isinstance(c, str) else c for n, c in cells.items()}
            return *read_state(short), TRUNCATED
        return state, problem, REPLACED if is_replaced_in(cells.values()) else ANNOTATED

    # --- deciding ---

    def annotate(self, piece: Prepared) -> pa.Table:
        """The piece with the judge's columns; equal texts are computed once."""
        forgotten = {key: s for key, s in piece.known.items() if key not in self._cache}
        for key, prompt in self._encode(forgotten).items():
            piece.prompts[key] = prompt
            if prompt.n_tokens > self.judge.backend.max_tokens:  # so it was cut then
                piece.prompts[key], piece.outcomes[key] = self._cut(forgotten[key]), TRUNCATED
        # In the order of the rows, whatever was known when: rows are computed beside the same ones.
        answered = [
            key for key in dict.fromkeys(piece.keys) if key in piece.prompts or key in piece.known
        ]
        fresh = [key for key in answered if key not in self._cache]
        found: dict[str, tuple[Any, ...]] = {
            key: self._cache[key] for key in answered if key in self._cache
        }
        rubric, calibration = self.judge.rubric, self.judge.backend.contract.calibration
        decided = self.judge.decide([piece.prompts[key] for key in fresh])
        logits = collected(rubric, decided, len(fresh))
        answers = annotations_from_logits(rubric, logits, calibration)
        for key, answer in zip(fresh, answers, strict=True):
            found[key] = (*self._cells(answer), piece.outcomes[key])
        self.computed += len(fresh)
        nothing = (None,) * (len(self.added) - 1)
        rows = [found.get(key) or (*nothing, piece.outcomes.get(key, key)) for key in piece.keys]
        self._remember({key: found[key] for key in answered})
        table = piece.piece.table
        columns = zip(*rows, strict=True)
        for (name, kind), column in zip(self.added.items(), columns, strict=True):
            table = table.append_column(name, pa.array(column, kind))
        return table

    def _cells(self, answer: Annotation) -> Iterator[Any]:
        """Of a row's new columns, but for the outcome."""
        for dimension in self.judge.rubric.as_written:
            label, sure = answer.labels[dimension.name], answer.confidence[dimension.name]
            if label is None or sure is None:  # not asked
                beside = bool(dimension.span) or isinstance(dimension, Preference)
                yield from (None, None, *([None] if beside else []))
                continue
            if isinstance(label, list):
                yield [format_value(value) for value in label]
            elif self.added[f"{self.options.prefix}{dimension.name}"] == pa.string():
                # Of a rubric that mixes numbers, or true and false, and words.
                yield format_value(label) if isinstance(label, bool) else str(label)
            else:
                yield label
            yield round(sure, self._digits)
            if dimension.span:
                digits = self._digits - math.ceil(math.log10(dimension.span))
                yield round(answer.expected(dimension), digits)
            if isinstance(dimension, Preference):
                yield answer.flipped[dimension.name]

    def forget(self) -> None:
        """Compute texts anew, so that a piece's columns are a function of its own rows alone."""
        self._cache.clear()

    def replay(self, piece: Piece, finished: pa.Table) -> None:
        """Remember the texts of a piece that an earlier run finished."""
        keys, states, _ = self._states(piece, 0)
        columns = [finished[name].to_pylist() for name in self.added]
        rows = dict(zip(keys, zip(*columns, strict=True), strict=True))
        done = {key: rows[key] for key in states if rows[key][-1] in LABELLED}
        self._remember(done)

    def _remember(self, answers: Mapping[str, tuple[Any, ...]]) -> None:
        """Keep the last texts; what is kept is a function of the input read so far alone."""
        for key, cells in answers.items():
            self._cache[key] = cells
            self._cache.move_to_end(key)
        while len(self._cache) > _CACHED_TEXTS:
            self._cache.popitem(last=False)


def _where(piece: Piece, first_row: int, row: int) -> str:
    return f"Line {piece.lines[row]}" if piece.lines else f"Row {first_row + row + 1}"


def label_type(dimension: Dimension | Multi) -> pa.DataType:
    """The column type of a dimension's labels."""
    if isinstance(dimension, Multi):
        return pa.list_(pa.string())
    kinds = {type(value) for value in dimension.values}
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int}:
        return pa.int64()
    return pa.float64() if kinds <= {int, float} else pa.string()


def _key(state: Mapping[str, str], outcome: str) -> str:
    text = outcome + json.dumps(state, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def truncate(backend: Backend, rubric: Rubric, state: Mapping[str, str]) -> EncodedPrompt:
    """The prompt of an item whose longest field is cut at its end until the prompt fits.

    Where one field alone cannot give enough, the next longest is cut too.

    Raises:
        DataError: not even empty fields fit.
    """
    cut = dict(state)
    for name in sorted(rubric.fields, key=lambda name: len(state[name]), reverse=True):
        low, high = 0, len(cut[name])  # `low` characters fit, `high` do not
        shortest = _encode_cut(backend, rubric, cut, name, low)
        if shortest.n_tokens > backend.max_tokens:
            cut[name] = ""
            continue
        best = shortest
        while high - low > 1:
            middle = min((low + high) // 2, 2 * low + backend.max_tokens)  # never far beyond
            prompt = _encode_cut(backend, rubric, cut, name, middle)
            if prompt.n_tokens <= backend.max_tokens:
                low, best = middle, prompt
            else:
                high = middle
        return best
    raise DataError(f"The rubric leaves no room for an item in {backend.max_tokens} tokens.")


def _encode_cut(
    backend: Backend, rubric: Rubric, state: Mapping[str, str], name: str, length: int
) -> EncodedPrompt:
    cut = {**state, name: state[name][:length]}
    return encode_readings(backend.reader.encode, rubric, [cut])[0]
