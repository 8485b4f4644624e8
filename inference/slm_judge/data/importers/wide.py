"""Columns that are annotators, boxes to tick, or shares of annotators, as rows and answers."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from slm_judge.data.text import is_blank, read_name
from slm_judge.errors import DataError

from .export import ANNOTATOR_ID, Export, Question, Row, is_ticked, parts, written_list
from .roles import find_annotator, is_named_otherwise, looks_like_text

_PERSON = (
    r"(?:annotator|annot|anno|ann|rater|coder|judge|worker|labell?er|evaluator|expert|reviewer|"
    r"assessor|participant|user|kodierer|annotateur|codeur)"
)
_ONE = rf"(?:{_PERSON}[ _-]?\d+|{_PERSON}[ _-][A-Za-z])"
_RATER = "(?:annotator|ann|rater|coder|labell?er|kodierer|annotateur|codeur)"
_OF_A_PERSON = "(id|name|nr|no|num|age|gender|sex|country|confidence|comment|note|email|type)s?$"
_PATTERNS = [
    re.compile(rf"(?P<annotator>{_ONE}|[arw]\d+)[ _.:-]+(?P<question>.+)", re.I),
    re.compile(rf"(?P<question>.+?)[ _.:-]+(?P<annotator>{_ONE}|[arw]\d+)", re.I),
    re.compile(r"(?P<question>label|rating|score|annotation|vote|class|category|judge?ment)"
               r"[ _-]?(?P<annotator>\d+)", re.I),
    re.compile(rf"(?P<annotator>{_ONE})", re.I),
    re.compile(rf"(?P<annotator>{_RATER}[ _-](?!{_OF_A_PERSON})[^\W\d_]{{2,}})", re.I),
]  # fmt: skip
PEOPLE = re.compile(rf"{_PERSON}s?([ _]?ids?|[ _]?names?)?", re.I)
_MARKS = (":::", " - ", ".", "/", ":", "_", " ")
_COUNT = re.compile(
    r"(n|num|number|count|total|votes)(_of)?(_?(annotators|annotations|votes|raters))?", re.I
)
_VOTES = re.compile(r"(^|[^a-z])(votes?|counts?)([^a-z]|$)", re.I)
_CHANCE = 0.125  # a share fits n annotators by chance once in 4, where n is this by its rounding
_MOST_ANNOTATORS = 50
_ENOUGH = 5  # rows with the same sum that are no chance
_LABEL = "label"
_NOBODY = "rows that nobody annotated"
_FLAGS = {"is", "has", "contains"}  # words that are no question by themselves
_NEARLY_ALL = 0.9  # of the answered rows have one tick; of all, lists of one length


def unfold(export: Export, pattern: str = "", n_annotators: int = 0) -> None:
    """Find such columns and make rows and answers of them; notes say which.

    Args:
        export: of which nobody has said yet what the columns are, or which of them are answers.
        pattern: how names of columns are made, e.g. "{question}_{annotator}".
        n_annotators: how many annotators are behind each share.

    Raises:
        DataError: no column is named like the pattern, or no number of annotators makes the shares.
    """
    lists = _lists(export)
    if not _annotators(export, pattern) and not lists and (n_annotators or not _annotator(export)):
        _shares(export, n_annotators)
    _ticks(export)


def _annotator(export: Export) -> str | None:
    """The column that names who annotated, of a table with a row an annotation."""
    return export.annotator or find_annotator(export)


def _lists(export: Export) -> bool:
    """Lists of one length in each row, an annotator an entry: a row an entry.

    They may be written with commas, beside a column of lists of annotators. Objects of numbers
    become a column a key.
    """
    for name in list(export.columns):
        cells = [row.get(name) for row in export.rows]
        if any(isinstance(cell, dict) for cell in cells):
            keys = dict.fromkeys(key for c in cells if isinstance(c, dict) for key in c)
            for row, cell in zip(export.rows, cells, strict=True):
                row |= {f"{name}.{key}": cell.get(key) for key in keys if isinstance(cell, dict)}
            export.replace([name], made := [f"{name}.{key}" for key in keys])
            if str in {type(row.get(part)) for row in export.rows for part in made}:
                export.certain -= set(made)
    who = next((name for name in export.columns if PEOPLE.fullmatch(name)), None)
    if who is None:
        return False
    split = {name: [_entries(row.get(name)) for row in export.rows] for name in export.columns}
    sizes = [len(entries) for entries in split[who]]
    if max(sizes) < 2:
        return False
    fits = {name: [len(c) == size for c, size in zip(cells, sizes, strict=True)]
            for name, cells in split.items()}  # fmt: skip
    same = [name for name, fit in fits.items() if all(fit) or (
            fit.count(True) >= _NEARLY_ALL * len(fit)
            and any(isinstance(row.get(name), list) for row in export.rows))]  # fmt: skip
    if len(same) < 2:
        return False
    rows: list[Row] = []
    for at, row in enumerate(export.rows):
        if not all(fits[name][at] for name in same):
            export.left_out[f"rows in which the lists {', '.join(same)} differ in length"] += 1
            continue
        for entry, person in enumerate(split[who][at]):
            said = {name: split[name][at][entry] for name in same}
            rows.append({**row, **said, ANNOTATOR_ID: person})
    export.rows = rows
    export.certain |= {name for name in same if name != who}
    export.columns = [*(name for name in export.columns if name != who), ANNOTATOR_ID]
    export.annotator = ANNOTATOR_ID
    export.notes.append(f"lists with an entry an annotator: {', '.join(same)}, a row an entry.")
    return True


def _entries(value: object) -> list[str]:
    """The entries of a list, or of a text with commas."""
    value = written_list(value)
    found = value if isinstance(value, list) else ",".join(parts(value)).split(",")
    return [" ".join(parts(part)) for part in found]


def _candidates(export: Export) -> list[str]:
    known = {export.item, export.annotator, *(export.texts or ())}
    return [name for name in export.answers or export.columns if name not in known]


def _annotators(export: Export, pattern: str) -> bool:
    """A column an annotator (and question): a row an annotator; whether there are such columns."""
    for how in [_compiled(pattern)] if pattern else _PATTERNS:
        found: dict[str, dict[str, str]] = defaultdict(dict)
        for name in _candidates(export):
            of_item = is_named_otherwise(name) or looks_like_text(export, name)
            if (match := how.fullmatch(name)) and not (pattern and of_item):
                said = match.groupdict()
                found[said["annotator"]][said.get("question") or _LABEL] = name
        found = _several(found) if "{question}" in pattern else found
        if how is _PATTERNS[-1] and (who := _annotator(export)):
            people = export.values(who)
            if 2 * len({*people}) <= len(people):  # so these are what raters are asked
                continue
        if len(found) > 1 and (pattern or _share_questions(export, found)):
            _melt(export, found)
            return True
    if pattern:
        raise DataError(
            f"{export.location}: fewer than two annotators in columns named like {pattern!r}; the "
            f"columns are {', '.join(export.columns)}."
        )
    return False


def _compiled(pattern: str) -> re.Pattern[str]:
    if "{annotator}" not in pattern:
        raise DataError(f"--columns is e.g. '{{question}}_{{annotator}}', got {pattern!r}.")
    name = "[^_. ]+" if "{question}" in pattern else ".+"
    escaped = re.escape(pattern).replace(r"\{annotator\}", f"(?P<annotator>{name})")
    return re.compile(escaped.replace(r"\{question\}", "(?P<question>.+)"))


def _several(found: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """The questions that several annotators were asked: `item_id` is named like a pattern too."""
    times = Counter(name for columns in found.values() for name in columns)
    left = {who: {name: column for name, column in columns.items() if times[name] > 1}
            for who, columns in found.items()}  # fmt: skip
    return {who: columns for who, columns in left.items() if columns}


def _share_questions(export: Export, found: Mapping[str, Mapping[str, str]]) -> bool:
    """Whether each question was asked of several annotators, and their answers are no texts."""
    questions = Counter(name for columns in found.values() for name in columns)
    columns = [column for asked in found.values() for column in asked.values()]
    plain = any(not looks_like_text(export, column) for column in columns)
    different = [set(export.values(column)) for column in columns]
    most = max(different, key=len)
    alike = all(values <= most and len(most - values) < 2 for values in different)
    named = any(re.search(r"[^\W\d_]{2}$", who) for who in found)  # which may be anything else
    return plain and all(times > 1 for times in questions.values()) and (alike or not named)


def _melt(export: Export, found: Mapping[str, Mapping[str, str]]) -> None:
    gone = {column: name for columns in found.values() for name, column in columns.items()}
    rows: list[Row] = []
    beside = {who: name for who in found if who.isdigit() for name in export.columns
              if re.fullmatch(rf"{_PERSON}([ _-]?(id|name))?[ _-]?{who}", name, re.I)}  # fmt: skip
    for row in export.rows:
        rest = {key: value for key, value in row.items() if key not in gone}
        said = {who: {name: row.get(column) for name, column in columns.items()}
                for who, columns in found.items()}  # fmt: skip
        said = {who: cells for who, cells in said.items()
                if not all(map(is_blank, cells.values()))}  # fmt: skip
        rows += [{**rest, ANNOTATOR_ID: read_name(row.get(beside.get(who, ""))) or who, **cells}
                 for who, cells in said.items()]  # fmt: skip
        export.left_out[_NOBODY] += not said
    names = dict.fromkeys(gone.values())
    for column, name in gone.items():
        export.questions.setdefault(name, export.questions.get(column, Question()))
    export.notes.append(
        f"a column an annotator: {len(found)} annotators ({', '.join(list(found)[:4])}"
        f"{', ...' if len(found) > 4 else ''}), {len(names)} columns each ({', '.join(names)})."
    )
    export.rows, export.annotator = rows, ANNOTATOR_ID
    export.replace(gone, list(names))
    others = [name for name in export.columns if name not in {ANNOTATOR_ID, *beside.values()}]
    export.columns = [*others, ANNOTATOR_ID]


# --- groups of columns, a column an option ---


def _groups(names: Sequence[str]) -> Iterable[tuple[str, dict[str, str]]]:
    """Groups of at least two columns with the same beginning: its name, and option -> column."""
    by: dict[tuple[int, str], dict[str, str]] = defaultdict(dict)
    for name in names:
        if match := re.fullmatch(r"(.+?) ?\[(.+)\]", name):
            by[0, match[1]][match[2]] = name
        for rank, mark in enumerate(_MARKS):
            for split in re.finditer(re.escape(mark), name) if rank > 4 else [name.find(mark)]:
                at = split if isinstance(split, int) else split.start()
                if at > 0 and name[at + len(mark) :]:
                    by[min(rank, 5), name[:at]][name[at + len(mark) :]] = name
    used: set[str] = set()
    order = sorted(by.items(), key=lambda pair: (pair[0][0], -len(pair[1]), -len(pair[0][1])))
    for (_, prefix), columns in order:
        left = {option: name for option, name in columns.items() if name not in used}
        if len(left) > 1:
            used |= set(left.values())
            yield prefix, left


def _number(value: object) -> float | None:
    try:
        return float("".join(parts(value)))
    except ValueError:
        return None


def _shares(export: Export, n_annotators: int) -> None:
    """Numbers that are the shares, percentages or counts of annotators who gave each label."""
    numeric = []
    for name in _candidates(export):
        values = [_number(row.get(name)) for row in export.rows if not is_blank(row.get(name))]
        if values and all(value is not None and value >= 0 for value in values):
            numeric.append(name)
    counts = [name for name in numeric if _COUNT.fullmatch(name)]
    plain = [name for name in numeric if name not in counts]
    bounds = [[_number(row.get(name)) or 0 for name in counts] or [1] for row in export.rows]
    alone = [name for name in plain
             if all((_number(row.get(name)) or 0) <= max(bound)
                    for row, bound in zip(export.rows, bounds, strict=True))]  # fmt: skip
    for prefix, columns in [*_groups(plain), (_LABEL, {name: name for name in alone})]:
        if len(columns) < 2 or not set(columns.values()) <= set(export.columns):
            continue
        if (votes := _votes(export, columns, counts, n_annotators)) is not None:
            _cast(export, prefix, columns, votes)
            return


def _votes(
    export: Export, columns: Mapping[str, str], counts: Sequence[str], n_annotators: int
) -> list[list[int]] | None:
    """Votes of each row, by option; None where the numbers are no distribution.

    Raises:
        DataError: they are, but of no number of annotators up to 50.
    """
    cells = [[_number(row.get(name)) or 0.0 for name in columns.values()] for row in export.rows]
    sums = [sum(row) for row in cells]
    whole = all(value.is_integer() for row in cells for value in row)
    totals = [[_number(row.get(name)) for row in export.rows] for name in counts]
    constant = min(sums) == max(sums) < 100 and len(sums) >= _ENOUGH
    known = sums in totals or constant
    called = max(sums) <= _MOST_ANNOTATORS and all(map(_VOTES.search, columns.values()))
    if whole and max(sums) > 1 and (known or called):
        if not known:
            export.notes.append("no column has the number of annotators: the sum of their votes.")
        return [[int(value) for value in row] for row in cells]
    rounding = 0.51 * 10.0 ** -_digits(export, columns.values())
    near = len(columns) * rounding
    scale = next((s for s in (1, 100) if all(abs(x - s) < near for x in sums if x)), None)
    if (whole and scale != 100) or scale is None or len({*map(tuple, cells)}) < 2:
        return None
    shares, rounding = [[value / scale for value in row] for row in cells], rounding / scale
    most = min(_MOST_ANNOTATORS, int(_CHANCE / rounding))
    asked = [n_annotators] if n_annotators else range(2, most + 1)
    tries: list[Sequence[float | None]] = [[float(number)] * len(shares) for number in asked]
    for n in tries if n_annotators else [*totals, *tries]:
        found = _whole(shares, n, rounding)
        if found or n_annotators:
            votes, error = found or _whole(shares, n, 1) or ([], 1.0)
            how = "--annotators" if n_annotators else "the fewest that make all of them; if there "
            how += (
                f"; shares and votes differ by up to {error:.2g}"
                if n_annotators
                else ("were others, name their number in --annotators")
            )
            many = f"{n[0]:g}" if len(set(n)) == 1 else "as many as the column of counts says"
            export.notes.append(
                f"shares of annotators a label are read as the votes of {many} ({how})."
            )
            return votes
    raise DataError(
        f"{export.location}: {', '.join(columns.values())} look like shares of annotators a label, "
        f"but no number of annotators up to {most} makes them; name it in --annotators."
    )


def _digits(export: Export, columns: Iterable[str]) -> int:
    """How many digits behind the point the numbers have at most, up to 9."""
    cells = {read_name(row.get(name)) for name in columns for row in export.rows}
    return min(9, max((len(cell.partition(".")[2]) for cell in cells), default=0))


def _whole(
    shares: Sequence[Sequence[float]], n: Sequence[float | None], rounding: float
) -> tuple[list[list[int]], float] | None:
    """Votes that make the shares but for their rounding, and the largest difference."""
    votes, error = [], 0.0
    for row, total in zip(shares, n, strict=True):
        cast = [round(share * (total or 0)) for share in row]
        error = max([error, *(abs(s - v / total) for s, v in zip(row, cast, strict=True) if total)])
        if error > rounding or (rounding < 1 and any(row) and sum(cast) != total):
            return None
        votes.append(cast)
    return votes, error


def _cast(
    export: Export, name: str, columns: Mapping[str, str], votes: Sequence[Sequence[int]]
) -> None:
    """A row a vote, of nobody in particular."""
    rows, gone = [], list(columns.values())
    for row, cast in zip(export.rows, votes, strict=True):
        rest = {key: value for key, value in row.items() if key not in gone}
        export.left_out[_NOBODY] += not any(cast)
        for option, n in zip(columns, cast, strict=True):
            rows += [{**rest, name: option} for _ in range(n)]
    export.rows = rows
    export.replace(gone, [name])
    export.notes.append(
        f"a column a label, with how many annotators gave it: {', '.join(gone)} are {name}, a row "
        "a vote without an annotator's name."
    )


def _ticks(export: Export) -> None:
    """Boxes to tick: one question with one answer, or a yes or no for each box."""
    boxes = [name for name in _candidates(export) if _is_box(export, name)]
    grouped: set[str] = set()
    for prefix, columns in _groups(boxes):
        if prefix not in _FLAGS and prefix not in export.columns:
            grouped |= set(columns.values())
            if not _are_apart(export, columns):
                _group(export, prefix, columns)
    left = {name: name for name in boxes if name not in grouped and export.values(name)}
    if len(left) > 2 and _is_one_choice(export, left) and not _are_apart(export, left):
        _group(export, _LABEL, left)


def _are_apart(export: Export, columns: Mapping[str, str]) -> bool:
    """Whether single boxes are blank beside others that say no: each is a question by itself."""
    rows = [[read_name(row.get(name)) for name in columns.values()] for row in export.rows]
    blank = sum(row.count("") for row in rows if any(row))
    apart = blank > 0 and any(cell and is_ticked(cell) is False for row in rows for cell in row)
    if apart:
        export.notes.append(f"{', '.join(columns.values())}: a question each, since some say no: "
                            f"{blank} blank cells beside others are no answer.")  # fmt: skip
    return apart


def _is_box(export: Export, name: str) -> bool:
    """Whether a column holds ticks alone: 0 and 1, true and false, or one value and blanks."""
    cells = [row.get(name) for row in export.rows]
    if any(isinstance(cell, list | dict) for cell in cells):
        return False
    values = {read_name(cell).casefold() for cell in cells} - {""}
    if values <= {"0", "1"} or values <= {"true", "false"}:
        return True
    blank = any(is_blank(cell) for cell in cells)
    return (
        len(values) == 1 and blank and bool(values & {"x", "yes", "on", "✓", _option(export, name)})
    )


def _option(export: Export, name: str) -> str:
    """What a box says: its value, where that ends the column's name or its wording."""
    (value,) = {value.casefold() for value in export.values(name)} or {""}
    wording = export.questions.get(name, Question()).text
    return value if f"{name} {wording}".casefold().rstrip("] ").endswith(value) else ""


def _ticked(export: Export, row: Row, columns: Mapping[str, str]) -> list[str] | None:
    """The options that a row ticks; None where all of its boxes are blank."""
    if all(is_blank(row.get(name)) for name in columns.values()):
        return None
    return [option for option, name in columns.items()
            if is_ticked(row.get(name)) is not False]  # fmt: skip


def _is_one_choice(export: Export, columns: Mapping[str, str]) -> bool:
    ticks = [found for row in export.rows if (found := _ticked(export, row, columns)) is not None]
    once = sum(len(found) == 1 for found in ticks)
    return bool(ticks) and max(map(len, ticks)) == 1 and once >= _NEARLY_ALL * len(ticks)


def _group(export: Export, prefix: str, columns: Mapping[str, str]) -> None:
    named = {}
    for option, name in columns.items():
        values = {value.casefold() for value in export.values(name)} - {"0", "1", "true", "false"}
        text = next(iter(export.values(name)), "") if len(values) == 1 else ""
        named[text if text and text.casefold() not in ("x", "yes", "on", "✓") else option] = name
    one = _is_one_choice(export, named)
    for row in export.rows:
        ticked = _ticked(export, row, named)
        row[prefix] = ticked if ticked is None or not one else next(iter(ticked), None)
    question = export.question(prefix)
    question.several = not one
    question.options = question.options or dict.fromkeys(named, "")
    wording = export.questions.get(next(iter(named.values())), Question()).text
    question.text = question.text or wording.rpartition(" - ")[0]
    if not one:
        _doubt(export, prefix, named, question)
    export.replace(named.values(), [prefix])
    what = "one question with one answer" if one else "a yes or no each"
    export.notes.append(f"boxes to tick: {', '.join(named.values())} are {prefix}, {what}.")


def _doubt(export: Export, prefix: str, columns: Mapping[str, str], question: Question) -> None:
    ticks = [_ticked(export, row, columns) for row in export.rows]
    none = sum(found == [] for found in ticks)
    if none:
        question.doubts.append(
            f"In {none:,} of {len(ticks):,} rows nothing of {prefix} is ticked: false, or not "
            "asked?"
        )
    if max(len(found or ()) for found in ticks) == 1:
        question.doubts.append(
            f"Nobody ticked two of {prefix}: is it one question with one answer?"
        )
