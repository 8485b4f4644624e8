"""From the rows of a table to items: the one rule for ids, annotators, texts and labels.

Training is strict: whatever cannot be used is a problem, and all problems come in one error. An
evaluation is lenient: it goes on with what can be used. Either way, what was left out, and what was
read as something else than what is written, is counted and said.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from slm_judge.errors import DataError
from slm_judge.rubric import Dimension, Rubric

from .item import ITEM_ID, Item, unnamed
from .tables import IMPORTER, Rows, names, read_table, require_columns
from .text import is_blank, is_replaced_in, read_name, read_state

_EXAMPLES = 3
_MOST_LISTED = 8  # options in a message
_TOOLS = {
    "Label Studio": {"annotation_id", "lead_time"},
    "Prodigy": {"_input_hash", "_task_hash"},
    "doccano": {"label", "Comments"},
    "Amazon Mechanical Turk": {"HITId", "WorkerId"},
}
"""Annotation tools, by columns that only their exports have."""


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

    def read(self, dimension: Dimension, raw: object) -> int | None:
        """The option that a label means, noted where it is written otherwise; None for none."""
        found = dimension.read(raw)
        if found is None:
            return None
        option, exact = found
        if not exact:
            self.read_as[dimension.name][f"{raw!r} as {dimension.key(option)}"] += 1
        return option

    def said(self, location: str) -> list[str]:
        """Lines for people: what was read as what, and what was left out (lenient)."""
        lines = list(self.notes)
        for name, found in self.read_as.items():
            shown = ", ".join(f"{what} ({n} times)" for what, n in found.most_common(_MOST_LISTED))
            more = ", ..." if len(found) > _MOST_LISTED else ""
            lines.append(f"{location}: {name}: read {shown}{more}.")
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
    notes: list[str] = field(default_factory=list)

    def select(self, rows: Sequence[int]) -> "Annotations":
        """Some of the items."""
        return Annotations(
            [self.items[i] for i in rows],
            {name: [values[i] for i in rows] for name, values in self.columns.items()},
            self.of_annotators,
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
    for index, row in enumerate(table.rows):
        reader.read(row, table.where(index), f"{numbered}{index + 1}")
    if reader.trimmed:
        findings.notes.append(
            f"{table.location}: {reader.trimmed} names of items or annotators have spaces around "
            "them: trimmed."
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
        self.columns, self.findings = columns, findings
        present = set(table.columns)
        self.fields = {f: c for f in rubric.fields if (c := columns.of(f)) in present}
        self.dimensions = [
            (d, c) for d in rubric.dimensions if (c := columns.of(d.name)) in present
        ]
        self.items: dict[str, Item] = {}
        self.further: dict[str, list[tuple[str, str, str]]] = {n: [] for n in columns.further}
        self.trimmed = self.repeated = self.replaced = self.regrouped = 0
        self._rows: Counter[str] = Counter()  # rows of each item without an annotator's name

    def read(self, row: Mapping[str, Any], where: str, number: str) -> None:
        """Add a row to its item."""
        columns, strict = self.columns, self.findings.strict
        item_id = self._name(row.get(columns.item_id)) if columns.item_id else number
        if not item_id:
            self.findings.add("rows without an item", where)
            return
        cells = {name: row.get(c) for name, c in self.fields.items()}
        state, problem = read_state(cells)
        self.replaced += is_replaced_in(cells.values())
        if problem and strict:
            self.findings.add(f"rows with {problem}", where)
        item = self.items.get(item_id)
        group = (read_name(row.get(columns.group)) if columns.group else "") or item_id
        annotator = self._name(row.get(columns.annotator)) if columns.annotator else ""
        for name, seen in self.further.items():
            seen.append((item_id, annotator, read_name(row.get(name))))
        if item is None:
            item = self.items[item_id] = Item(item_id, state, {}, group)
        elif strict and not columns.annotator:
            self.findings.add("the same item_id twice (wide layout)", f"{where}: {item_id}")
        elif strict and state != item.state:
            self.findings.add("the same item_id with different texts", f"{where}: {item_id}")
        self.regrouped += group != item.group
        self._vote(row, item, annotator, where)

    def _name(self, value: object) -> str:
        name = read_name(value)
        self.trimmed += isinstance(value, str) and bool(name) and name != value
        return name

    def _vote(self, row: Mapping[str, Any], item: Item, annotator: str, where: str) -> None:
        if not annotator:
            annotator = unnamed(self._rows[item.item_id])
            self._rows[item.item_id] += 1
            if self.columns.annotator:
                self.findings.read_as[self.columns.annotator]["nothing as somebody unnamed"] += 1
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
                self.findings.add(
                    "the same item and annotator twice with different labels",
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
                f"{where}: {raw!r} ({_allowed(dimension)}{_several(dimension, raw)})",
            )
        return option


def _allowed(dimension: Dimension) -> str:
    keys = [dimension.key(i) for i in range(len(dimension.options))]
    shown = ", ".join(keys[:_MOST_LISTED])
    return f"the rubric has {shown}{', ...' if len(keys) > _MOST_LISTED else ''}"


def _several(dimension: Dimension, raw: object) -> str:
    """A hint where a cell holds several labels."""
    parts = raw if isinstance(raw, list) else []
    if isinstance(raw, str):
        parts = next((raw.split(mark) for mark in ";,|/" if mark in raw), [])
    if not parts or any(dimension.read(part) is None for part in parts):
        return ""
    return "; a cell holds one label: `type: multi` for several is planned"


def advice(columns: Sequence[str], rubric: Rubric) -> str:
    """What to do with a table that somebody's tool exported, or with a column an annotator."""
    for tool, marks in _TOOLS.items():
        if marks <= set(columns):
            return f"It looks like an export of {tool}.{IMPORTER}"
    for dimension in rubric.dimensions:
        like = [c for c in columns if c.startswith(f"{dimension.name}_") or
                c.endswith(f"_{dimension.name}")]  # fmt: skip
        if dimension.name not in columns and len(like) > 1:
            return f"{names(like)} look like a column an annotator.{IMPORTER}"
    return ""


def read_annotations(
    location: str,
    rubric: Rubric,
    item_id: str = ITEM_ID,
    annotator: str | None = None,
    further: Sequence[str] = (),
    group: str | None = None,
) -> Annotations:
    """Read annotations, wide (one row an item) or long (one row an annotation), leniently.

    Args:
        location: see `TableStream`.
        rubric: gives the dimensions, and the fields, which may be missing here.
        item_id: column that names the item.
        annotator: column that names the annotator; without it, nothing is known about who voted.
        further: columns to keep, e.g. for bias probes.
        group: column whose items belong together, e.g. the author.

    Raises:
        DataError: a column that was named is missing, or no annotation is usable.
    """
    table, columns = read_table(location), Columns(item_id, annotator, group, further=further)
    require_columns(table.columns, columns.named(), location)
    absent = [d.name for d in rubric.dimensions if d.name not in table.columns]
    if len(absent) == len(rubric.dimensions):
        raise DataError(
            f"{location} has none of the rubric's dimensions {', '.join(absent)}; it has "
            f"{names(table.columns)}. {advice(table.columns, rubric)}"
        )
    findings = Findings(strict=False, notes=list(table.notes))
    if absent:
        findings.notes.append(f"{location} lacks {', '.join(absent)}: left out.")
    found = read_items(table, columns, rubric, findings)
    if not annotator and len(found.items) < len(table.rows):
        findings.notes.append(_who(table, columns, rubric))
    found.notes = [*findings.said(location), *found.notes]
    if not any(item.votes for item in found.items):
        raise DataError(f"{location} has no label of the rubric. {' '.join(found.notes)}")
    return found


def _who(table: Rows, columns: Columns, rubric: Rubric) -> str:
    """A note on items with several rows of which nobody knows who made them."""
    known = {*columns.named(), *rubric.fields, *(d.name for d in rubric.dimensions)}
    likely = []
    ids = [read_name(row.get(columns.item_id or "")) for row in table.rows]
    for name in (c for c in table.columns if c not in known):
        values = [read_name(row.get(name)) for row in table.rows]
        pairs = set(zip(ids, values, strict=True))
        if "" not in values and 1 < len(set(values)) < len(values) == len(pairs):
            likely.append(name)
    hint = f" {names(likely)} may be one: --annotator {likely[0]}." if likely else ""
    return (
        f"{table.location}: items have several rows, and no column was named that says who "
        f"annotated them, so nothing is said about annotators.{hint}"
    )
