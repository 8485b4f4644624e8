"""The long table: a row an annotation, a plain value an answer; and what each question is."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Literal

from slm_judge.data.item import ITEM_ID
from slm_judge.data.tables import names
from slm_judge.data.text import is_blank, is_name, is_nobody, read_name, read_text, told
from slm_judge.errors import DataError
from slm_judge.rubric import LARGEST, plain_forms

from .export import ANNOTATOR_ID, LINE, Export, Question, Row, clean_name, is_ticked, parts
from .roles import may_name_people

Kind = Literal["score", "choice", "noul"]
_NO_ANSWERS = "annotations without an answer"
_MOST_OPTIONS = 60
_MOST_LEVELS, _MOST_UNEVEN, _BINS = 21, 11, 10  # levels; those that are no halves; of a slider
_SPLITS = (r"\s*[;|,]\s*", r"\s*[;|]\s*")
_DECIMAL = re.compile(r"[-+]?\d+(,\d+)?")
_NO_ANSWER = {"-9", "-66", "-77", "-88", "-99", "-999", "-9999", "99", "999"}
_NOTHING = {"n/a", "n.a.", "na", "nan", "null", "missing", "no answer", "-", ".", "?"}
_MISSING = re.compile(
    r"missing( (value|answer|response))?s?|refused( to answer)?|no (answer|response)|unanswered"
    r"|not (applicable|asked|answered|stated)|(i )?do(n['’]?t| not) know|skipped|n/?a|n\.a\.|dk"
    r"|k\. ?a\.|keine (angabe|antwort)|wei(ß|ss) (ich )?nicht|(antwort )?verweigert"
    r"|sans r[ée]ponse|ne sait pas|no sabe|no contesta", re.I
)  # fmt: skip
_SAID = re.compile(r"missing.*|refus.*|not (answered|stated)|unanswered|no .*|skipped", re.I)
"""What may also be said of a text: an answer, unless its code lies beyond the others."""
_WRITTEN = re.compile(r"item_id|annotator_id|outcome|.*_(confidence|probabilities|expected)")
_SCALES = [scale.split("<") for scale in (
    "never<rarely<seldom<occasionally<sometimes<often<usually<very often<always",
    "strongly disagree<disagree<somewhat disagree<slightly disagree<neither agree nor disagree"
    "<neutral<undecided<slightly agree<somewhat agree<agree<strongly agree",
    "very negative<negative<slightly negative<neutral<mixed<slightly positive<positive"
    "<very positive",
    "none<very low<low<medium<moderate<high<very high",
    "not at all<a little<slightly<somewhat<moderately<quite<very<very much<extremely",
    "very poor<poor<fair<acceptable<good<very good<excellent",
    "none<weak<mild<medium<moderate<strong<severe<very strong",
    "much worse<worse<slightly worse<about the same<same<slightly better<better<much better",
)]  # fmt: skip


@dataclass
class Asked:
    """A dimension: what was asked, and what people answered."""

    name: str
    column: str
    """Where the export had it."""
    kind: Kind
    options: dict[str, str]
    """Answer -> what it means, in order."""
    counts: Counter[str]
    text: str = ""
    ordered: bool = False
    codes: dict[str, str] = field(default_factory=dict)
    """Option -> the number that stands for it in the export."""
    doubts: list[str] = field(default_factory=list)
    range: tuple[int, int] | None = None
    """Of a slider."""


@dataclass
class Long:
    """A table with a row an annotation."""

    export: Export
    rows: list[Row]
    texts: list[str]
    asked: list[Asked]
    further: list[str]

    @property
    def columns(self) -> list[str]:
        """Those of the table, in order."""
        return [ITEM_ID, ANNOTATOR_ID, *self.texts, *(d.name for d in self.asked), *self.further]


def lengthen(export: Export) -> Long:
    """Rows with plain answers: lists become a yes or no for each option, repeats are left out.

    Raises:
        DataError: no row has a text and an answer, or no question has two different answers.
    """
    assert export.texts
    assert export.answers
    export.check_names([export.item, export.annotator, *export.answers])
    _split_lists(export)
    _usable(export)
    _respell(export)
    _first_of_each(export)
    texts, taken = _text_names(export)
    rows: list[Row] = [{} for _ in export.rows]
    item = str(export.item)
    asked = [made for column in export.answers for made in _asked(export, column, taken, rows)]
    if not asked:
        raise DataError(f"{export.location}: no question has two different answers. "
                        f"{' '.join(export.notes)}")  # fmt: skip
    known = {export.item, export.annotator, *export.texts, *(d.column for d in asked)}
    further = {}
    for name in (name for name in export.columns if name not in known):
        is_name = name.strip() and name not in taken
        further[name] = name if is_name else clean_name(name, taken)
        taken.append(further[name])
    if changed := [f"{names([old])} as {new}" for old, new in further.items() if old != new]:
        export.notes.append(f"kept under other names: {', '.join(changed)}.")
    for row, source in zip(rows, export.rows, strict=True):
        row |= {ITEM_ID: read_name(source.get(item)), ANNOTATOR_ID: _who(export, source)}
        row |= {new: read_text(source.get(name))[0] for name, new in texts.items()}
        row |= {new: _alone(source.get(name)) for name, new in further.items()}
        row[LINE] = source.get(LINE)
    kept = [row for row in rows if any(row.get(d.name) is not None for d in asked)]
    export.left_out[_NO_ANSWERS] += len(rows) - len(kept)
    export.aliases |= {old: new for old, new in (texts | further).items() if old != new}
    for own, new in ((item, ITEM_ID), (export.annotator, ANNOTATOR_ID)):
        if own and own not in (new, " item"):
            export.aliases[own] = new
    return Long(export, kept, list(texts.values()), asked, list(further.values()))


def _alone(value: object) -> object:
    """What a list of one holds."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _text_names(export: Export) -> tuple[dict[str, str], list[str]]:
    """The texts' columns by our names for them; and the names that are taken then."""
    taken, texts = [ITEM_ID, ANNOTATOR_ID], {}
    for name in export.texts or ():
        texts[name] = clean_name(name, taken)
        taken.append(texts[name])
        if texts[name] != name:
            export.notes.append(f"the text {names([name])} is called {texts[name]}.")
    return texts, taken


def _who(export: Export, row: Row) -> str:
    return read_name(row.get(export.annotator)) if export.annotator else ""


def _usable(export: Export) -> None:
    """Leave out rows without an item, a text or an answer; nobody is called NA."""
    for row in export.rows:
        if (who := _who(export, row)) and is_nobody(who):
            export.left_out[f"{who} in {export.annotator}, read as nobody"] += 1
            row[str(export.annotator)] = None
    texts, answers = export.texts or [], export.answers or []
    item = str(export.item)
    export.keep(lambda row: bool(read_name(row.get(item))), "rows without an item")
    for name in texts:
        export.keep(lambda row, name=name: not read_text(row.get(name))[1],  # type: ignore[misc]
                    f"rows without a usable {name}")  # fmt: skip
    export.keep(
        lambda row: any(isinstance(row.get(name), list) or not is_blank(row.get(name))
                        for name in answers), _NO_ANSWERS
    )  # fmt: skip
    if not export.rows:
        left = ", ".join(f"{n} {what}" for what, n in export.left_out.items() if n)
        raise DataError(f"{export.location}: no row has a text and an answer; left out: {left}.")


def _first_of_each(export: Export) -> None:
    """What an annotator says first about an item counts."""
    first: dict[tuple[str, str], Row] = {}
    kept: list[Row] = []
    later, filled = 0, 0
    for row in export.rows:
        who = _who(export, row)
        earlier = first.setdefault((read_name(row.get(str(export.item))), who), row) if who else row
        if earlier is row:
            kept.append(row)
            continue
        said = [name for name in (export.answers or ()) if not is_blank(row.get(name))]
        open_ = [name for name in said if is_blank(earlier.get(name))]
        both = [(parts(earlier[name]), parts(row[name])) for name in said if name not in open_]
        differs = any(before != now for before, now in both)
        new = {name: row[name] for name in open_ if export.merged or not differs}
        later += len(new) < len(said)
        filled += bool(new)
        earlier |= new
    if later > len(first) / 2:
        _refuse_names_of_questions(export)
    if filled and not export.merged:
        export.notes.append(f"{filled} later rows answer what the same annotator's first row about "
                            "the item leaves open: taken together.")  # fmt: skip
    what = "later annotations of the same item by the same annotator (the first counts)"
    export.left_out[what] += later
    export.rows = kept


def _refuse_names_of_questions(export: Export) -> None:
    """Refuse rows that answer another question each, which a column names."""
    asked = [f"{_who(export, row)} {read_name(row.get(str(export.item)))}" for row in export.rows]
    found: dict[str, set[str]] = {}
    for name in (name for name in export.columns if name != export.annotator):
        cells = [read_name(cell) if is_name(cell := row.get(name)) else "" for row in export.rows]
        if may_name_people(asked, cells) and not any(map(_DECIMAL.match, cells)):
            found[name] = set(cells)
    name = min(found, key=lambda name: len(found[name]), default="")
    if len(found.get(name, ())) > 1:
        raise DataError(f"{export.location}: {name} holds {', '.join(sorted(found[name])[:3])}, "
            "each once an item and annotator. Are they questions? Make a column of each "
            f"(pandas: pivot). Else leave out {name}, and first rows count.")  # fmt: skip


def _respell(export: Export) -> None:
    """Answers that differ in letter case, spaces or the way of writing a number, in one way.

    That is the tool's, else the one that people wrote most often.
    """
    for column in export.answers or ():
        question, counts = export.question(column), Counter(export.values(column))
        if _is_typed_in(
            len({plain_forms(value)[-1] for value in counts}), counts.total(), question
        ):
            continue
        usual: dict[str | float, str] = {}
        for value in [*question.options, *(value for value, _ in counts.most_common())]:
            usual.setdefault(plain_forms(value)[-1], value)
        spelled = {value: usual[plain_forms(value)[-1]] for value in counts}
        changed = {f"{v!r} as {one}": counts[v] for v, one in spelled.items() if v != one}
        if not changed:
            continue
        for row in export.rows:
            found = list(dict.fromkeys(spelled[part] for part in parts(row.get(column))))
            row[column] = found if isinstance(row.get(column), list) else next(iter(found), None)
        export.notes.append(f"{column}: {told(changed)}")
        question.doubts.append(f"R{told(changed)[1:]} Are they the same?")


# --- questions with several answers ---


def _split_lists(export: Export) -> None:
    """Cells that hold several answers with a mark between them, as lists."""
    for name in export.answers or ():
        cells = {row[name].strip() for row in export.rows if isinstance(row.get(name), str)} - {""}
        behind = {cell.partition(",")[2] for cell in cells if "," in cell}
        is_list = export.commas and len(behind) > 1 and 2 * len(behind & cells) >= len(behind)
        if behind and all(map(_DECIMAL.fullmatch, cells)) and not is_list:
            _decimals(export, name, cells)
            continue
        pattern = next((p for p in _SPLITS if _is_list(cells, p)), None)
        if pattern is None:
            continue
        for row in export.rows:
            if isinstance(row.get(name), str) and row[name].strip():
                row[name] = [part for part in re.split(pattern, row[name].strip()) if part]
        export.question(name).several = True


def _decimals(export: Export, name: str, cells: set[str]) -> None:
    """Numbers with decimal commas, as numbers; refused where they may be several answers."""
    one = min(cell for cell in cells if "," in cell)
    if export.commas:
        raise DataError(f"{export.location}: {name} holds {one!r}. A decimal comma?"
                        " Write a point. Two answers? Write a semicolon between them. No question? "
                        "Name the questions with --label.")  # fmt: skip
    for row in export.rows:
        row[name] = read_name(row.get(name)).replace(",", ".")
    export.notes.append(f"{name}: commas are read as decimal commas.")
    export.question(name).doubts.append("Are commas decimal commas, and not between two answers?")


def _is_list(cells: set[str], pattern: str) -> bool:
    """Whether a mark parts answers: the parts come in several mixtures, or alone."""
    split = [tuple(p for p in re.split(pattern, cell.strip()) if p) for cell in cells]
    found = {part for parts_ in split for part in parts_}
    several = [parts_ for parts_ in split if len(parts_) > 1]
    alone = {parts_[0] for parts_ in split if len(parts_) == 1}
    words = max((len(part.split()) for part in found), default=0)
    if not several or words > 6 or len(found) > _MOST_OPTIONS:
        return False
    return {part for parts_ in several for part in parts_} <= alone or len(found) < len(cells)


def _asked(export: Export, column: str, taken: list[str], rows: list[Row]) -> list[Asked]:
    """The dimensions that a column becomes, whose values are put into `rows`."""
    question = export.question(column)
    answers = [parts(row.get(column)) for row in export.rows]
    question.several |= any(len(found) > 1 for found in answers)
    question.several |= any(answers) and [] in [row.get(column) for row in export.rows]
    if not question.several:
        single = _single(export, column, question, taken, rows)
        return [single] if single else []
    for row, found in zip(rows, answers, strict=True):  # for a rubric that takes them together
        row[column] = found[0] if len(found) == 1 else found or None
    options = [o for o in question.options if any(o in found for found in answers)]
    options += sorted({value for found in answers for value in found} - set(options))
    if _is_typed_in(len(options), sum(map(bool, answers)), question):
        _leave_out(export, column, f"{len(options)} different answers")
        return []
    made: list[Asked] = []
    for option in options:
        meaning = question.options.get(option, "")
        name = _name(f"{column}_{meaning if question.named and meaning else option}", taken)
        for row, source, found in zip(rows, export.rows, answers, strict=True):
            answered = isinstance(source.get(column), list) or bool(found)
            row[name] = ("true" if option in found else "false") if answered else None
        counts = Counter(row[name] for row in rows if row[name])
        if len(counts) < 2:
            _leave_out(export, f"{column}: {option}", f"always {next(iter(counts), 'blank')}")
            taken.remove(name)
            continue
        text = f"{question.text.rstrip(' ?:')}: {meaning or option}?" if question.text else ""
        doubts = question.doubts if not made else []
        made.append(Asked(name, column, "noul", {}, counts, text, doubts=list(doubts)))
    if made:
        each = ", ".join(d.name for d in made)
        export.notes.append(f"{column} takes several answers: a yes or no for each, {each}.")
    return made


def _is_typed_in(different: int, answers: int, question: Question) -> bool:
    """Whether there are so many different answers that they were typed in, not chosen."""
    return different > (
        _MOST_OPTIONS if question.options else min(_MOST_OPTIONS, max(10, answers / 2))
    )


def _leave_out(export: Export, what: str, why: str) -> None:
    export.notes.append(f"{what} is no question with options ({why}): not in the rubric.")


def _name(column: str, taken: list[str]) -> str:
    """A name for a dimension, which is taken then."""
    name = clean_name(column)
    name = f"{name}_label" if _WRITTEN.fullmatch(name) else name
    name = clean_name(name if name not in taken else f"{name}_answer", taken)
    taken.append(name)
    return name


# --- questions with one answer ---


def _single(
    export: Export, column: str, question: Question, taken: list[str], rows: list[Row]
) -> Asked | None:
    answers = [next(iter(parts(row.get(column))), "") for row in export.rows]
    counts = Counter(value for value in answers if value)
    doubts = list(question.doubts)
    labelled = question.options if question.named else {}
    missing = _missing(labelled, counts)
    for code in dict.fromkeys([*missing, *_codes_of_no_answer(counts, question)]):
        what = f"{code} ({question.options[code]})" if question.options.get(code) else code
        export.left_out[f"{what} in {column}, read as no answer"] += counts[code]
        doubts.append(f"{what} was read as no answer, {counts[code]} times. Was it one?")
        del counts[code]
    typed = _is_typed_in(len(counts), counts.total(), question) and not _is_slider(counts)
    if len(counts) < 2 or typed:
        _leave_out(export, column, f"{len(counts)} different answers")
        return None
    name = _name(column, taken)
    if name != column:
        export.aliases.setdefault(column, name)
        export.notes.append(f"the question {names([column])} is called {name}.")
    if question.named and set(counts) <= set(question.options):
        asked = _labelled(name, column, question, counts)
    else:
        asked = _guessed(name, column, question, counts)
    asked.doubts = doubts + asked.doubts
    meant = {value: _written(value, asked, question) for value in counts}
    asked.counts = Counter()
    for value, times in counts.items():
        asked.counts[meant[value]] += times
    if changed := {f"{v!r} as {meant[v]}": n for v, n in counts.items() if v != meant[v]}:
        export.notes.append(f"{column}: {told(changed)}")
    for row, value in zip(rows, answers, strict=True):
        row[name] = meant.get(value)
    return asked


def _written(value: str, asked: Asked, question: Question) -> str:
    """An answer as the table has it."""
    meaning = question.options.get(value) or value if question.named else value
    if asked.kind == "noul":
        return "true" if is_ticked(meaning) else "false"
    if asked.kind == "choice":
        return meaning
    number = _number(value)
    return read_name(number) if asked.kind == "score" and number is not None else value


def _number(value: str) -> float | None:
    try:
        return float(value) if re.fullmatch(r"[-+]?\d+(\.\d+)?", value) else None
    except ValueError:
        return None


def _codes_of_no_answer(counts: Counter[str], question: Question) -> list[str]:
    """Numbers far outside the others that tools write for no answer."""
    numbers = {value: _number(value) for value in counts}
    codes = [value for value in counts if value in _NO_ANSWER and value not in question.options]
    others = [number for value, number in numbers.items() if value not in codes]
    left = [number for number in others if number is not None]
    words = [value for value in counts if numbers[value] is None]
    if words and (len(left) < 2 or not {word.casefold() for word in words} <= _NOTHING):
        return [code for code in codes if code.startswith("-")]
    if len(left) < 2:
        return []
    low, high = min(left), max(left)
    far = [code for code in codes if not low - 2 <= (numbers[code] or 0) <= max(high + 2, 20)]
    return words + far


def _labelled(name: str, column: str, question: Question, counts: Counter[str]) -> Asked:
    """Value labels: they are the options, in the order of their numbers."""
    used = {value: meaning or value for value, meaning in question.options.items()
            if value in counts or not _is_missing(value, meaning)}  # fmt: skip
    asked = Asked(name, column, "choice", dict.fromkeys(used.values(), ""), counts, question.text)
    asked.codes = {meaning: value for value, meaning in used.items()}
    if {is_ticked(meaning) for meaning in used.values()} == {True, False} and len(used) == 2:
        return replace(asked, kind="noul", options={})
    if question.ordered:
        return replace(asked, ordered=True)
    if len(used) > 2:
        asked.doubts.append(
            "Options stand in the order of their numbers. Is that an order from least to most? "
            "Then add: level_of_measurement: ordinal"
        )
    return asked


def _is_missing(value: str, meaning: str) -> bool:
    return value in _NO_ANSWER - {"-9", "99", "999"} or bool(_MISSING.fullmatch(meaning.strip()))


def _missing(labelled: Mapping[str, str], counts: Counter[str]) -> list[str]:
    """Codes that were chosen and are called no answer; see `_SAID`."""
    found = [value for value, meaning in labelled.items() if _is_missing(value, meaning)]
    others = {*labelled, *counts} - {*found}
    levels = [number for value in others if (number := _number(value)) is not None]
    low, high = min(levels, default=inf), max(levels, default=-inf)
    beyond = {value for value in found if (number := _number(value)) is not None
              and not low <= number <= high}  # fmt: skip
    return [
        value
        for value in found
        if value in counts and (value in beyond or not _SAID.fullmatch(labelled[value].strip()))
    ]


def _guessed(name: str, column: str, question: Question, counts: Counter[str]) -> Asked:
    two = {plain_forms(value)[-1] for value in counts} <= _TWO
    if question.flag or (two and len({*map(is_ticked, counts)}) > 1):
        doubt = [] if question.flag else _doubt_two(counts)
        return Asked(name, column, "noul", {}, counts, question.text, doubts=doubt)
    numbers = {value: number for value in counts
               if (number := _number(value)) is not None and abs(number) <= LARGEST}  # fmt: skip
    if len(numbers) == len(counts):
        return _levels(name, column, question, counts)
    known = {option: meaning for option, meaning in question.options.items() if option in counts}
    order = [*known, *sorted(set(counts) - set(known), key=str.casefold)]
    scale = _scale(order)
    doubts = ["Guessed: words in no order (choice). If they are levels, put them in order and add: "
              "level_of_measurement: ordinal"]  # fmt: skip
    if scale:
        doubts = [f"Guessed: levels in this order, {' < '.join(scale)}. Is it right?"]
    options = {option: question.options.get(option, "") for option in scale or order}
    return Asked(name, column, "choice", options, counts, question.text, bool(scale), doubts=doubts)


_TWO = {0.0, 1.0, "true", "false", "yes", "no", "y", "n", "t", "f"}


def _doubt_two(counts: Counter[str]) -> list[str]:
    seen = " and ".join(f"{value} ({counts[value]:,} times)" for value in sorted(counts))
    return [f"Guessed: true or false (noul), from {seen}. Does 1 or yes mean true here?"
            ] if {plain_forms(value)[-1] for value in counts} & {0.0, 1.0} else []  # fmt: skip


def _is_slider(counts: Counter[str]) -> bool:
    """Whether answers are numbers of which too many differ to be levels."""
    numbers = {_number(value) for value in counts}
    halves = all(number is not None and (2 * number).is_integer() for number in numbers)
    return None not in numbers and len(numbers) > (_MOST_LEVELS if halves else _MOST_UNEVEN)


def _levels(name: str, column: str, question: Question, counts: Counter[str]) -> Asked:
    """Numbers: levels from the lowest to the highest, with those in between that nobody chose."""
    levels = sorted({float(value) for value in counts})
    if _is_slider(counts):
        return _slider(Asked(name, column, "score", {}, counts, question.text, True), levels)
    doubts = [f"Guessed: ordered levels (score), {read_name(levels[0])} the lowest and "
              f"{read_name(levels[-1])} the highest. Right, or the other way round, or no order "
              "(choice)? What does each mean?"]  # fmt: skip
    step = 1.0 if all(level.is_integer() for level in levels) else 0.5
    n_steps = (levels[-1] - levels[0]) / step
    if n_steps < _MOST_LEVELS and all((level / step).is_integer() for level in levels):
        span = [levels[0] + step * k for k in range(int(n_steps) + 1)]
        if missing := [read_name(level) for level in span if level not in levels]:
            doubts.append(f"Nobody chose {', '.join(missing)}: are they levels?")
        levels = span
    if levels[0] < 0:
        doubts.append(f"What does {read_name(levels[0])} mean: a level, or no answer?")
    meanings = {read_name(_number(value)): text for value, text in question.options.items()
                if _number(value) is not None}  # fmt: skip
    options = {read_name(level): meanings.get(read_name(level), "") for level in levels}
    return Asked(name, column, "score", options, counts, question.text, True, doubts=doubts)


def _slider(asked: Asked, numbers: Sequence[float]) -> Asked:
    """Whole levels where the range has a few, else the middles of ten bins of equal width."""
    ends = ((0, 1), (0, 100), (-100, 100), (math.floor(numbers[0]), math.ceil(numbers[-1])))
    low, high = next(pair for pair in (ends[3:] if 1 < ends[3][1] - ends[3][0] <= _BINS else ends)
                     if pair[0] <= numbers[0] and numbers[-1] <= pair[1])  # fmt: skip
    if 1 < high - low <= _BINS:
        levels = [float(level) for level in range(low, high + 1)]
    else:
        levels = [round(low + (high - low) * (k + 0.5) / _BINS, 9) for k in range(_BINS)]
    asked.doubts.append(
        f"Guessed: a slider from {low} to {high}, {len(numbers)} different numbers. The nearest of "
        f"{len(levels)} levels is learned, and the mean level is told. Are these its ends?"
    )
    return replace(asked, options={read_name(level): "" for level in levels}, range=(low, high))


def _scale(options: Sequence[str]) -> list[str]:
    """The options in the order of a common scale that has all of them; none if there is none."""
    plain = {option.casefold().replace("_", " "): option for option in options}
    for scale in _SCALES:
        if len(plain) > 2 and set(plain) <= set(scale):
            return [plain[word] for word in scale if word in plain]
    return []
