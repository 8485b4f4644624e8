"""Which column is the item, the annotator, a text, an answer; what is left is kept as it is."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from slm_judge.data.tables import names, read_table, require_columns
from slm_judge.data.text import is_blank, is_name, read_name
from slm_judge.errors import DataError

from .export import SOURCE, Export, Row, is_ticked, parts

_TEXTS = re.compile(
    r"(.*[_ ])?(text|comment|sentence|message|post|tweet|content|title|body|passage|document|"
    r"utterance|prompt|reply|context|premise|hypothesis|headline)"
    r"([_ ]?\d+)?",
    re.I,
)
_REMARKS = re.compile(
    r".*((?-i:_TEXT)|explanation|rationale|reason|justification|feedback|remark|notes?|comments|why)",
    re.I,
)
_ITEMS = re.compile(
    r"(item|text|comment|post|tweet|doc(ument)?|instance|sentence|sample|example|record|message|"
    r"hit|task|unit|passage|response|input|conv|dialog(ue)?)?"
    r"[ _]?(id|no|nr|number|idx|index|key|hash)"
    r"|item|uid|uuid|_unit_id|guid|unnamed: 0",
    re.I,
)
_PEOPLE = [re.compile(pattern, re.I) for pattern in (
    r"annot(ator)?([ _]?(id|name|nr|no))?",
    r"(kodierer(in)?|annotat(eur|rice|or[ea])|codeur|codificador|anotador)([ _]?(id|nr|name))?",
    r"(worker|rater|coder|labell?er|judge|evaluator|reviewer|assessor|expert)([ _]?(id|name|nr))?",
    r"(prolific[ _]?(pid|id)|participant|respondent|subject|turker|pid)([ _]?(id|nr|number))?",
    r"(user|author of annotation|person)([ _]?(id|name))?|email( address)?|e-?mail",
)]  # fmt: skip
_NAME = re.compile(r"(sur|first|vor|full)?[ _]?name|nom|nombre|nome|who|wer|initials", re.I)
_ABOUT = re.compile(
    r"meta(data)?\..*|"
    r"(data)?set|source|split|fold|lang(uage)?|locale|platform|subreddit|url|link|file(name)?|"
    r"(.*[_ ])?(date|time|timestamp|created_at|updated_at|created_utc|duration|seconds|author|year)"
    r"|gender|sex|age|education|country|ethnicity|race|occupation|native.*",
    re.I,
)
_SLIDERS = re.compile(r".*(slider|rating|score|scale|intensity|percent|(\b|_)vas(\b|_)).*", re.I)
_MOST_OPTIONS = 40
_WORDS = 2.5  # of a text, on average
_FILLED = 0.9  # of the rows, where a column is a text of the items
_REPEATED = 0.2  # of the rows, from where on repeated texts are one item said several things about
_CHANCE = 0.001  # that no two annotators of any item gave the same answer
_SOME = 3  # items with several annotations that show what differs between them


@dataclass(frozen=True)
class Options:
    """What the user says about a file, where a guess would be wrong."""

    format: str = ""
    item: str | None = None
    annotator: str | None = None
    texts: Sequence[str] = ()
    answers: Sequence[str] = ()
    columns: str = ""
    """How columns of annotators are named, e.g. "{question}_{annotator}"."""
    n_annotators: int = 0
    """How many annotators are behind each share."""
    items: str | None = None
    """Table with the texts, where the export has only the names of the items."""

    def within(self, export: Export) -> "Options":
        """The same by our names for the tool's columns."""

        def ours(name: str) -> str:
            return name if name in export.columns else export.aliases.get(name, name)

        return replace(
            self,
            item=self.item and ours(self.item),
            annotator=self.annotator and ours(self.annotator),
            texts=[ours(name) for name in self.texts],
            answers=[ours(name) for name in self.answers],
        )


def looks_like_text(export: Export, column: str) -> bool:
    """Whether a column holds texts: many different ones, of several words each."""
    cells = [cell for row in export.rows if not is_blank(cell := row.get(column))]
    if any(isinstance(cell, list | dict) for cell in cells):
        return all(isinstance(cell, list) and cell and isinstance(cell[0], dict) for cell in cells)
    different = {read_name(cell) for cell in cells}
    if not different or _PEOPLE[0].fullmatch(column) or all(map(_is_number, different)):
        return False
    words = sum(len(text.split()) for text in different) / len(different)
    many = len(different) > min(30, max(2, 0.2 * len(export.rows)))
    if _TEXTS.fullmatch(column):
        return many or words >= _WORDS
    return many and words >= _WORDS


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"[-+]?\d+([.,]\d+)?", text))


def assign(export: Export, options: Options) -> None:
    """Settle the item, the annotator, the texts and the answers of an export.

    Raises:
        DataError: no column holds texts, or none answers; or a column that was named is not there.
    """
    named = [options.item, options.annotator, *options.answers]
    named += [] if options.items else options.texts
    require_columns(export.columns, [name for name in named if name], export.location)
    if options.items:
        _join(export, options)
    export.check_names([options.item or export.item])
    export.annotator = options.annotator or export.annotator or find_annotator(export)
    export.texts = list(options.texts) or export.texts or _texts(export, options)
    if not export.texts:
        raise DataError(
            f"{export.location}: no column holds texts; it has {names(export.columns)}. Name it "
            "with --text, or the table that has the texts with --items."
        )
    _item(export, options)
    _files_or_names(export)
    export.answers = list(options.answers) or export.answers or _answers(export)
    if not export.answers:
        raise DataError(
            f"{export.location}: no column holds answers of annotators; it has "
            f"{names(export.columns)}. Name them with --label."
        )
    _hint_at_columns(export)


def _join(export: Export, options: Options) -> None:
    """The texts of the items, from a table of their own.

    Raises:
        DataError: the export or that table names no items.
    """
    table = read_table(str(options.items))
    known = Export(str(options.items), table.rows, table.columns)
    ours = options.item or export.item or next(_item_columns(export, ()), None)
    theirs = [name for name in (ours, "item_id", "id") if name in table.columns]
    if ours is None or not theirs:
        raise DataError(f"{options.items}: no column names the items; say which with --item-id.")
    columns = list(options.texts) or [c for c in table.columns if looks_like_text(known, c)]
    require_columns(table.columns, columns, known.location)
    if twice := sorted(set().union(*(_differing(table.rows, theirs[0], name) for name in columns))):
        raise DataError(f"{options.items} has different texts of the items {names(twice[:3])}.")
    texts = {read_name(row.get(theirs[0])): row for row in table.rows}
    export.keep(
        lambda row: read_name(row.get(ours)) in texts, f"rows of items not in {options.items}"
    )
    for row in export.rows:
        row |= {name: texts[read_name(row.get(ours))].get(name) for name in columns}
    export.item, export.texts = ours, columns
    export.columns = [*(name for name in export.columns if name not in columns), *columns]


def find_annotator(export: Export) -> str | None:
    """The column whose name says that it names a person, if there is one."""
    for pattern in _PEOPLE:
        for name in export.columns:
            if (
                pattern.fullmatch(name)
                and export.values(name)
                and not looks_like_text(export, name)
            ):
                return name
    return None


def may_name_people(items: Sequence[str], values: Sequence[str]) -> bool:
    """Whether values are few, and each stands at many items and at each at most once."""
    pairs = [pair for pair in zip(items, values, strict=True) if pair[1]]
    people = {value for _, value in pairs}
    return (0 < 3 * len(people) <= 2 * len(pairs) and 2 * len(pairs) >= len(values)
            and len(set(pairs)) == len(pairs))  # fmt: skip


def _are_people(export: Export, name: str, chance: float = 1) -> bool:
    """Whether a column may name people, and answers were like that with less than a chance."""
    items = [read_name(row.get(str(export.item))) for row in export.rows]
    values = [read_name(cell) if is_name(cell := row.get(name)) else "" for row in export.rows]
    alike = sum((times / len(values)) ** 2 for times in Counter(values).values())
    pairs = sum(n * (n - 1) / 2 for n in Counter(items).values())
    return may_name_people(items, values) and len({*values}) > 1 and (1 - alike) ** pairs < chance


def _share_items(export: Export) -> bool:
    """Whether a good part of the rows are of items with several, as where all annotate the same."""
    times = Counter(read_name(row.get(str(export.item))) for row in export.rows)
    several = [n for n in times.values() if n > 1]
    return len(several) >= _SOME and sum(several) >= _REPEATED * len(export.rows)


def _files_or_names(export: Export) -> None:
    """Annotators whom a file of their own names, or a column called name."""
    if export.annotator or not _share_items(export):
        return
    for name in [SOURCE, *(name for name in export.columns if _NAME.fullmatch(name))]:
        known = (export.item, *(export.texts or ()))
        if name not in known and _are_people(export, name):
            export.annotator = name
            what = "each file is taken for what one annotator said; it" if name == SOURCE else name
            export.notes.append(f"{what} names the annotator.")
            return


def _hint_at_columns(export: Export) -> None:
    """Say what to do where columns without a common name may be annotators."""
    found = {name: set(export.values(name)) for name in export.answers or ()}
    most = max(found.values(), key=len)
    same = [name for name, values in found.items() if len(most - values) < 2 <= len(values)
            and values <= most and None in map(is_ticked, values)]  # fmt: skip
    if not export.annotator and len(same) > 1:
        start = same[0][: max(map(same[0].rfind, "._ -")) + 1]
        pattern = f"{start if all(name.startswith(start) for name in same) else ''}{{annotator}}"
        export.notes.append(f"{names(same)} hold the same answers. Where each of them is an "
                            f"annotator, --columns {pattern!r} reads them so.")  # fmt: skip


def _texts(export: Export, options: Options) -> list[str]:
    """Columns that look like texts, are filled, and are the same for all annotators of an item."""
    taken = {export.annotator, options.item, *options.answers, *(export.answers or ())}
    taken |= export.certain
    found = [name for name in export.columns
             if name not in taken and not _REMARKS.fullmatch(name) and not _ABOUT.fullmatch(name)
             and looks_like_text(export, name)]  # fmt: skip
    item = options.item or export.item
    most = _FILLED * len(export.rows)
    full = [name for name in found
            if sum(not is_blank(row.get(name)) for row in export.rows) > most]  # fmt: skip
    if item:
        return [name for name in full if not _differing(export.rows, item, name)] or full
    return full


def _differing(rows: Iterable[Row], item: str, column: str) -> set[str]:
    """Items for which a column holds several values."""
    seen: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        seen[read_name(row.get(item))] |= {" ".join(parts(row.get(column)))} - {""}
    return {name for name, values in seen.items() if len(values) > 1}


def _item_columns(export: Export, texts: Sequence[str]) -> Iterator[str]:
    """Columns that may name the items, likely ones first."""
    likely = [name for name in export.columns
              if _ITEMS.fullmatch(name) and name not in (*texts, export.annotator)
              and all(is_name(row.get(name)) for row in export.rows)]  # fmt: skip
    return iter(sorted(likely, key=lambda name: not name.casefold().startswith("item")))


def _item(export: Export, options: Options) -> None:
    """The column that names the item, else a number for each different text."""
    texts = export.texts or []
    by_text: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in export.rows:
        by_text[tuple(str(row.get(name)) for name in texts)].append(row)
    several = len(by_text) < (1 - _REPEATED) * len(export.rows)
    asked = options.item or export.item
    for name in [asked] if asked else _item_columns(export, texts):
        ids = [read_name(row.get(name)) for row in export.rows]
        whole = all(ids) and not any(_differing(export.rows, name, text) for text in texts)
        if whole and (asked or not several or len(set(ids)) < len(ids)):
            export.item = name
            return
        if options.item or asked:
            why = "is empty in some rows" if not all(ids) else "has rows with different texts"
            export.notes.append(f"{name} {why}, so an item is its texts.")
    export.item = " item"
    for number, rows in enumerate(by_text.values(), start=1):
        for row in rows:
            row[" item"] = str(number)
    export.notes.append(
        "no column names the items alone: the same texts are the same item, numbered."
    )


def _answers(export: Export) -> list[str]:
    """Columns with few different values that differ between annotators of an item."""
    taken = {export.item, export.annotator, *(export.texts or ())}
    left = [name for name in export.columns if name not in taken]
    found = [name for name in left
             if not looks_like_text(export, name) and (name in export.certain
             or _looks_like_answers(export, name) or looks_like_slider(export, name))]  # fmt: skip
    item = str(export.item)
    sizes: dict[str, int] = defaultdict(int)
    for row in export.rows:
        sizes[read_name(row.get(item))] += 1
    if sum(size > 1 for size in sizes.values()) < _SOME:
        return [name for name in found if name in export.certain or _SLIDERS.fullmatch(name)
                or _looks_like_answers(export, name)]  # fmt: skip
    likely = [] if export.annotator else [name for name in found if name not in export.certain
                                           and _are_people(export, name, _CHANCE)]  # fmt: skip
    for name in likely if len(likely) < len(found) else ():
        found.remove(name)
        export.notes.append(f"{name} has each value at most once an item, as names of people: no "
            f"question. --annotator {name!r} takes it for names, --label as one.")  # fmt: skip
    varying = [name for name in found
               if name in export.certain or _differing(export.rows, item, name)]  # fmt: skip
    same = [name for name in found if name not in varying]
    if varying and same:
        export.notes.append(
            f"{', '.join(same)}: the same for all annotators of an item, so kept as it is; --label "
            "makes it a question."
        )
    return varying or found


def may_answer(name: str) -> bool:
    """Whether a column may hold answers, by its name: it is called like no text, item or person."""
    called_so = any(named.fullmatch(name) for named in (_TEXTS, *_PEOPLE))
    return not (called_so or is_named_otherwise(name))


def looks_like_slider(export: Export, name: str) -> bool:
    """Whether a column may hold positions of a slider: many numbers up to 100, or down to -100."""
    different = set(export.values(name))
    if not name or is_named_otherwise(name) or not all(map(_is_number, different)):
        return False
    numbers = {abs(float(text.replace(",", "."))) for text in different}
    return len(different) > 10 and max(numbers) <= 100


def is_named_otherwise(name: str) -> bool:
    """Whether a column is called as what is known about an item or a person, or as a remark."""
    return any(named.fullmatch(one) for named in (_ABOUT, _ITEMS, _REMARKS)
               for one in (name, name.rpartition(".")[2]))  # fmt: skip


def _looks_like_answers(export: Export, name: str) -> bool:
    values = export.values(name)
    different = set(values)
    is_index = not name and len(different) == len(values)  # of pandas
    if is_index or is_named_otherwise(name):
        return False
    if any(isinstance(row.get(name), dict) for row in export.rows):
        return False
    lists = {part for value in different for part in re.split(r"\s*[;|,]\s*", value)}
    fewest = min(len(different), len(lists))
    return 1 < fewest <= _MOST_OPTIONS and fewest <= max(10, len(values) / 2)
