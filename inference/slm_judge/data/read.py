"""From the rows of a table to items: the one rule for ids, annotators, texts and labels.

Training is strict: whatever cannot be used is a problem, and all problems come in one error. An
evaluation is lenient: it goes on with what can be used. Either way, what was left out, and what was
read as something else than what is written, is counted and said.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from slm_judge.errors import DataError
from slm_judge.rubric import Dimension, Multi, Rubric

from .applies import drop_unasked
from .importers.opening import is_only_importable
from .importers.read import FORMATS, as_rows, countable, read_export, tool_of
from .importers.roles import Options, may_name_people
from .item import ITEM_ID, Item, unnamed
from .sets import columns_of, options_of, unfold
from .tables import IMPORTER, Rows, names, read_table, require_columns
from .text import is_blank, is_name, is_nobody, is_replaced_in, read_name, read_state, told

_EXAMPLES = 3
_MOST_LISTED = 8  # options in a message
_CALLED_SO = re.compile(r"annotator|rater\b|coder\b|worker|label?ler|judged_by", re.IGNORECASE)


@dataclass
class Findings:
    """What was found in the rows, counted, with the first examples of each kind."""

    strict: bool = True
    problems: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """What cannot be used, kind -> examples; its first entry counts them."""
    counts: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    read_as: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Dimension -> "'Joy' as joy" -> how often."""

    def add(self, kind: str, example: str) -> None:
        """Count something that cannot be used."""
        self.counts[kind] += 1
        if len(self.problems[kind]) < _EXAMPLES:
            self.problems[kind].append(example)

    def read(self, dimension: Dimension | Multi, raw: object) -> int | None:
        """The option that a label means, noted where it is written otherwise; None for none."""
        found = dimension.read(raw)
        if found is None:
            return None
        option, exact = found
        if not exact:
            self.read_as[dimension.name][dimension.read_as(raw, option)] += 1
        return option

    def said(self, location: str) -> list[str]:
        """Lines for people: what was read as what, and what was left out (lenient)."""
        lines = list(self.notes)
        lines += [f"{location}: {name}: {told(found)}" for name, found in self.read_as.items()]
        for kind, count in self.counts.items() if not self.strict else ():
            examples = "; ".join(self.problems[kind])
            lines.append(f"{location}: left out {count} x {kind}, e.g. {examples}.")
        return lines

    def raise_any(self, origin: str, advice: str = "") -> None:
        """Raise one error with all problems, if there is any.

        Raises:
            DataError: there is.
        """
        if not self.counts:
            return
        lines = [f"{origin} cannot be used:"]
        for kind, count in self.counts.items():
            lines.append(f"  {count} x {kind}")
            lines += [f"      {example}" for example in self.problems[kind]]
        raise DataError("\n".join([*lines, *([advice] if advice else [])]))


@dataclass(frozen=True)
class Columns:
    """Where a table has what an item is made of."""

    item_id: str | None = ITEM_ID
    """None numbers the rows."""
    annotator: str | None = None
    """None where no column names who annotated."""
    group: str | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Field or dimension of the rubric -> column, where they differ."""
    further: Sequence[str] = ()
    """Columns to keep beside the items, or beside the annotators; see `Annotations`."""

    def of(self, name: str) -> str:
        """The column of a field or a dimension."""
        return self.renamed.get(name, name)

    def within(self, table: Rows) -> "Columns":
        """These columns by the names that they got where a table is an export of a tool."""

        def ours(name: str) -> str:
            return name if name in table.columns else table.aliases.get(name, name)

        return Columns(
            (ours(self.item_id) if self.item_id else table.annotator and ITEM_ID) or None,
            ours(self.annotator) if self.annotator else table.annotator,
            ours(self.group) if self.group else None,
            {name: ours(column) for name, column in self.renamed.items()},
            [ours(name) for name in self.further],
        )

    def named(self) -> list[str]:
        """Columns that somebody asked for."""
        own = (self.item_id, self.annotator, self.group, *self.further)
        return [name for name in own if name]


@dataclass
class Annotations:
    """Annotated items, with what is to be said about how they were read."""

    items: list[Item]
    columns: dict[str, list[str]] = field(default_factory=dict)
    """Of the items, the further columns that were asked for."""
    of_annotators: dict[str, dict[str, str]] = field(default_factory=dict)
    """Those that differ between an item's rows, but not between an annotator's: annotator ->
    value."""
    of_rows: list[str] = field(default_factory=list)
    """Those that are neither."""
    notes: list[str] = field(default_factory=list)

    def select(self, rows: Sequence[int]) -> "Annotations":
        """Some of the items."""
        return Annotations(
            [self.items[i] for i in rows],
            {name: [values[i] for i in rows] for name, values in self.columns.items()},
            self.of_annotators,
            self.of_rows,
            self.notes,
        )


def read_items(
    table: Rows, columns: Columns, rubric: Rubric, findings: Findings, numbered: str = ""
) -> Annotations:
    """Group the rows of a table into items.

    Args:
        table: wide (a row an item) or long (a row an annotation).
        columns: where it has what.
        rubric: gives fields and dimensions; in a lenient reading the table may lack some.
        findings: takes problems and notes; says whether the reading is strict.
        numbered: put before the number of a row where rows are numbered.
    """
    reader = _Reader(table, columns, rubric, findings)
    for index in range(len(table.rows)):
        reader.read(index, f"{numbered}{index + 1}")
    if reader.differing:
        findings.notes.append(
            f"{table.location}: {len(reader.differing)} rows have another text than the first row "
            f"with the same {columns.item_id}, e.g. {reader.differing[0]}: taken for one item all "
            "the same. Are these several tables, whose items are numbered alike?"
        )
    if reader.trimmed:
        findings.notes.append(
            f"{table.location}: {reader.trimmed} names of items or annotators have spaces around "
            "them: trimmed."
        )
    if reader.nobody:
        found_as = f"{', '.join(map(repr, reader.nobody))} ({reader.nobody.total()} cells)"
        findings.notes.append(
            f"{table.location}: {found_as} stands for a missing name. Where it is a name, or "
            f"somebody's initials, write it otherwise, e.g. {next(iter(reader.nobody))}_1."
        )
    if reader.replaced:
        findings.notes.append(
            f"{table.location}: {reader.replaced} rows have characters that the engines do not "
            "all read alike (letters of Unicode 16, some controls): read as U+FFFD."
        )
    if reader.repeated:
        findings.notes.append(
            f"{table.location}: {reader.repeated} labels repeat what the same annotator said about "
            "the same item: counted once."
        )
    if reader.regrouped:
        findings.notes.append(
            f"{table.location}: {reader.regrouped} rows name another {columns.group} than their "
            "item's first row, which counts."
        )
    found = Annotations(list(reader.items.values()))
    sets = {name: one.name for one in rubric.sets for name in one.members}
    dropped = drop_unasked(rubric, found.items)
    counts = Counter[str]()
    for name, count in dropped.items():
        counts[sets.get(name, name)] = max(count, counts[sets.get(name, name)])
    for name, count in counts.items():
        findings.notes.append(
            f"{table.location}: {count} labels of {name} do not count: by `ask_if`, its question "
            "was not asked there."
        )
    for name in columns.further:
        _sort_attribute(name, reader.further[name], found, table.location)
    return found


def _sort_attribute(
    name: str, cells: Sequence[tuple[str, str, str]], found: Annotations, location: str
) -> None:
    """Whether a column is of the items or of the annotators; a note where it is of neither.

    Where no item has two rows, it is of the annotators if each has one value on several items.

    Args:
        name: of the column.
        cells: item, annotator (or "") and value of each row; blank values say nothing.
        found: takes the column, or the note.
        location: of the table.
    """
    of_item, of_annotator = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
    known = [(item, annotator, value) for item, annotator, value in cells if value]
    for item, annotator, value in known:
        of_item[item].add(value)
        of_annotator[annotator].add(value)
    alone = len(cells) == len(found.items) and len(of_annotator) < len(of_item)
    varies = max(map(len, of_item.values()), default=0) > 1
    named = known and all(annotator for _, annotator, _ in known)
    if (varies or alone) and named and max(map(len, of_annotator.values())) == 1:
        found.of_annotators[name] = {who: next(iter(one)) for who, one in of_annotator.items()}
    elif varies:
        found.of_rows.append(name)
        why = "annotators" if named else "annotators, whom nobody named (--annotator)"
        found.notes.append(
            f"{location}: {name} differs between rows of one item, and is none of the items or the "
            f"{why}: not probed."
        )
    else:
        found.columns[name] = ["".join(of_item[item.item_id]) for item in found.items]


class _Reader:
    """Reads one row after the other."""

    def __init__(self, table: Rows, columns: Columns, rubric: Rubric, findings: Findings) -> None:
        self.table, self.columns, self.findings = table, columns, findings
        present = set(table.columns)
        self.fields = {f: c for f in rubric.fields if (c := columns.of(f)) in present}
        self.dimensions = [
            (d, c) for d in rubric.dimensions if (c := columns.of(d.name)) in present
        ]
        self.items: dict[str, Item] = {}
        self.further: dict[str, list[tuple[str, str, str]]] = {n: [] for n in columns.further}
        self.trimmed = self.repeated = self.replaced = self.regrouped = 0
        self.nobody: Counter[str] = Counter()  # names that are none
        self.differing: list[str] = []  # rows with other texts than their item's first
        self._whole = set[str]()  # items that have all their texts
        self._rows: Counter[str] = Counter()  # rows of each item without an annotator's name

    def read(self, index: int, number: str) -> None:
        """Add a row to its item."""
        columns, strict = self.columns, self.findings.strict
        row, where = self.table.rows[index], self.table.where(index)
        item_id = self._name(index, columns.item_id) if columns.item_id else number
        if not item_id:
            self.findings.add("rows without an item", where)
            return
        cells = {name: row.get(c) for name, c in self.fields.items()}
        state, problem = read_state(cells)
        self.replaced += is_replaced_in(cells.values())
        if problem and strict:
            self.findings.add(f"rows with {problem}", where)
        item = self.items.get(item_id)
        annotator = group = ""
        if columns.annotator:
            name = self._name(index, columns.annotator)
            annotator = self._somebody(columns.annotator, name, "somebody unnamed")
        if columns.group:
            name = self.table.name(index, columns.group)
            group = self._somebody(columns.group, name, "a group of one item")
        group = group or item_id
        for name, seen in self.further.items():
            seen.append((item_id, annotator, self.table.name(index, name)))
        if item is None:
            item = self.items[item_id] = Item(item_id, state, {}, group)
        elif strict and not columns.annotator:
            self.findings.add("the same item_id twice (wide layout)", f"{where}: {item_id}")
        elif strict and state != item.state:
            self.findings.add("the same item_id with different texts", f"{where}: {item_id}")
        elif not problem and item_id in self._whole and state != item.state:
            self.differing.append(where)
        if not problem:
            self._whole.add(item_id)
        self.regrouped += group != item.group
        self._vote(row, item, annotator, where)

    def _name(self, index: int, column: str) -> str:
        name, value = self.table.name(index, column), self.table.rows[index].get(column)
        self.trimmed += isinstance(value, str) and bool(name) and name != value
        return name

    def _somebody(self, column: str, name: str, otherwise: str) -> str:
        """The name of a person or a group, or "" where it is none, which is counted."""
        if not is_nobody(name):
            return name
        self.nobody.update([name] if name else [])
        self.findings.read_as[column][f"{repr(name) if name else 'nothing'} as {otherwise}"] += 1
        return ""

    def _vote(self, row: Mapping[str, Any], item: Item, annotator: str, where: str) -> None:
        if not annotator:
            annotator = unnamed(self._rows[item.item_id])
            self._rows[item.item_id] += 1
        for dimension, column in self.dimensions:
            option = self._label(dimension, row.get(column), where)
            if option is None:
                continue
            votes = item.votes.setdefault(dimension.name, {})
            if annotator not in votes:
                votes[annotator] = option
            elif (earlier := votes[annotator]) == option:
                self.repeated += 1
            else:
                rule = "" if self.findings.strict else " (the first one counts)"
                self.findings.add(
                    f"the same item and annotator twice with different labels{rule}",
                    f"{where}: item {item.item_id}, annotator {annotator}, {dimension.name} "
                    f"{dimension.key(earlier)} and {dimension.key(option)}",
                )

    def _label(self, dimension: Dimension, raw: object, where: str) -> int | None:
        """The option that a cell means; None where it holds none."""
        if is_blank(raw):
            return None
        option = self.findings.read(dimension, raw)
        if option is None:
            self.findings.add(
                f"labels of {dimension.name} outside the rubric",
                f"{where}: {raw!r} ({_allowed(dimension)}{_why(dimension, raw)})",
            )
        return option


def _allowed(dimension: Dimension) -> str:
    keys = [dimension.key(i) for i in range(len(dimension.options))]
    shown = ", ".join(keys[:_MOST_LISTED])
    return f"the rubric has {shown}{', ...' if len(keys) > _MOST_LISTED else ''}"


def _why(dimension: Dimension, raw: object) -> str:
    """A hint why a cell holds no label, e.g. since it holds several."""
    why = dimension.why_not(raw)
    return f"; {why}" if why else _several(dimension, raw)


def _several(dimension: Dimension, raw: object) -> str:
    parts = raw if isinstance(raw, list) else []
    if isinstance(raw, str):
        parts = next((raw.split(mark) for mark in ";,|/" if mark in raw), [])
    if not parts or any(dimension.read(part) is None for part in parts):
        return ""
    return "; a cell holds one label, but for a dimension of `type: multi`"


def open_rows(
    location: str, wanted: Sequence[str], instead: Mapping[str, Sequence[str]] | None = None
) -> Rows:
    """The rows of a table; of a tool's export, as a table with a row an annotation.

    A file is read as an export where no other reader knows its kind, where columns are missing, or
    where a column of a known tool holds lists.

    Args:
        location: see `TableStream`; also .json, .xlsx, .dta, .sav, .zip and folders of Potato.
        wanted: the columns that will be asked for.
        instead: of one of these, others that do as well.

    Raises:
        DataError: it cannot be read.
    """

    def lacks(columns: Iterable[str]) -> bool:
        there = set(columns)
        others = (set((instead or {}).get(name, [name])) for name in wanted if name not in there)
        return any(not names <= there for names in others)

    if is_only_importable(location):
        return as_rows(read_export([location]))
    table = read_table(location)
    missing = lacks(table.columns)
    nested = any(isinstance(row.get(name), list | dict) for row in table.rows for name in wanted)
    tool = tool_of(table)
    if not Path(location).is_file() or not (missing or (nested and tool.nested)):
        return countable(table)
    if tool.nested:
        return as_rows(read_export([location]))
    for pattern in ("", "{question}_{annotator}", "{annotator}_{question}"):
        with suppress(DataError):
            imported = as_rows(read_export([location], Options(columns=pattern)))
            if not lacks([*imported.columns, *imported.aliases]):
                return imported
    return countable(table)


def advice(table: Rows, rubric: Rubric) -> str:
    """What to do with a table that somebody's tool exported, or with a column an annotator."""
    if table.annotator or table.aliases:
        return f"It was read as an export.{IMPORTER}"
    if (tool := tool_of(table)) is not FORMATS["table"]:
        return f"It looks like an export of {tool.title}.{IMPORTER}"
    for dimension in rubric.dimensions:
        like = [c for c in table.columns if c.startswith(f"{dimension.name}_") or
                c.endswith(f"_{dimension.name}")]  # fmt: skip
        if dimension.name not in table.columns and len(like) > 1:
            return f"{names(like)} look like a column an annotator.{IMPORTER}"
    return ""


def read_annotations(
    location: str,
    rubric: Rubric,
    item_id: str | None = ITEM_ID,
    annotator: str | None = None,
    further: Sequence[str] = (),
    group: str | None = None,
    optional: Sequence[str] = (),
) -> Annotations:
    """Read annotations, wide (one row an item) or long (one row an annotation), leniently.

    Args:
        location: see `TableStream`.
        rubric: gives the dimensions, and the fields, which may be missing here.
        item_id: column that names the item; None numbers the rows.
        annotator: column that names the annotator; without it, nothing is known about who voted.
        further: columns to keep, e.g. for bias probes.
        group: column whose items belong together, e.g. the author.
        optional: further columns, which the table may lack.

    Raises:
        DataError: a column that was named is missing, or no annotation is usable.
    """
    columns = Columns(item_id, annotator, group, further=further)
    table = open_rows(location, [*columns.named(), *columns_of(rubric)], options_of(rubric))
    there = [name for name in optional if name in table.columns]
    columns = replace(columns, further=[*further, *there]).within(table)
    require_columns(table.columns, columns.named(), location)
    findings = Findings(strict=False, notes=list(table.notes))
    unfold(table, rubric, findings, columns.of)
    absent = [d.name for d in rubric.dimensions if d.name not in table.columns]
    if len(absent) == len(rubric.dimensions):
        raise DataError(
            f"{location} has none of the rubric's dimensions {', '.join(absent)}; it has "
            f"{names(table.columns)}. {advice(table, rubric)}"
        )
    if absent:
        findings.notes.append(f"{location} lacks {', '.join(absent)}: left out.")
    found = read_items(table, columns, rubric, findings)
    if not columns.annotator:
        likely = likely_annotators(table, columns, rubric)
        hint = f" {names(likely)} may name them: --annotator {likely[0]}." if likely else ""
        if len(found.items) < len(table.rows):
            findings.notes.append(
                f"{location}: items have several rows, and no column was named that says who made "
                "them, so nothing is said about annotators: what agrees, or does not, are "
                f"annotations, perhaps of one person.{hint}"
            )
        elif likely:
            findings.notes.append(f"{location}: no column was named that says who annotated.{hint}")
    found.notes = [*findings.said(location), *found.notes]
    if not any(item.votes for item in found.items):
        raise DataError(f"{location} has no label of the rubric. {' '.join(found.notes)}")
    return found


def likely_annotators(table: Rows, columns: Columns, rubric: Rubric) -> list[str]:
    """Columns that look as if they named the annotator, though nobody said so.

    They hold few values, each of them for many items and for each at most once. Where items have a
    row each, nearly any column is like that, so its name must say it too.
    """
    labels = (columns.of(d.name) for d in (*rubric.dimensions, *rubric.sets))
    known = {*columns.named(), *rubric.fields, *labels}
    ids = [table.name(index, columns.item_id) for index in range(len(table.rows))]
    several = len(set(ids)) < len(ids) if columns.item_id else False
    likely = []
    for name in (c for c in table.columns if c not in known):
        values = [read_name(v) if is_name(v := row.get(name)) else "" for row in table.rows]
        fits = len({*values} - {""}) > 1 if several else _CALLED_SO.search(name)
        if fits and may_name_people(ids, values):
            likely.append(name)
    return sorted(likely, key=lambda name: not _CALLED_SO.search(name))
