"""What a file holds, on its way to a table with a row an annotation."""

import ast
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from slm_judge.data.item import ITEM_ID
from slm_judge.data.text import is_name, read_json, read_name
from slm_judge.errors import DataError
from slm_judge.text import normalise

SOURCE = " file"
"""Key of a row: the name of its file, or of the folder in a file's path that names a person."""
LINE = " line"
"""Key of a row: its line in a text file."""
_REST = " rest"
ANNOTATOR_ID = "annotator_id"
"""Column of the long table that names the annotator."""

Row = dict[str, Any]
_YES = {"1", "1.0", "true", "yes", "y", "t", "x", "on", "checked", "selected", "✓"}
_NO = {"0", "0.0", "false", "no", "n", "f", "off", "unchecked", "not selected", ""}


@dataclass
class Question:
    """What is known about one question besides its answers."""

    text: str = ""
    """As the annotators read it."""
    options: dict[str, str] = field(default_factory=dict)
    """Answer -> what it means, in the tool's order."""
    named: bool = False
    """Whether answers are written by their meanings: value labels of Stata, SPSS and code books."""
    ordered: bool | None = None
    """Whether `options` are in order from the lowest; None where nothing says so."""
    several: bool = False
    """Whether an annotator may give several answers."""
    flag: bool = False
    """Whether it was ticked or not."""
    doubts: list[str] = field(default_factory=list)
    """Questions to the user."""


@dataclass
class Export:
    """Rows, and what is known about their columns. What is None is not known yet."""

    location: str
    rows: list[Row]
    columns: list[str]
    format: str = "table"
    item: str | None = None
    annotator: str | None = None
    texts: list[str] | None = None
    answers: list[str] | None = None
    questions: dict[str, Question] = field(default_factory=dict)
    certain: set[str] = field(default_factory=set)
    """Columns that are answers, whatever stands in them."""
    commas: bool = True
    """Whether a comma in a cell may part answers: commas part the fields, or nothing does."""
    merged: bool = False
    """Whether an annotator's answers about an item stand in several rows."""
    n_read: int = 0
    """Rows, records or tasks of the files."""
    left_out: Counter[str] = field(default_factory=Counter)
    """What was left out -> how often."""
    notes: list[str] = field(default_factory=list)
    """What people should know about how it was read."""
    aliases: dict[str, str] = field(default_factory=dict)
    """The tool's column -> ours, where they differ."""

    def question(self, name: str) -> Question:
        """What is known about a question; nothing as yet."""
        return self.questions.setdefault(name, Question())

    def drop(self, columns: Iterable[str], why: str) -> None:
        """Leave columns out; a note says which."""
        gone = [name for name in self.columns if name in set(columns)]
        if gone:
            self.columns = [name for name in self.columns if name not in gone]
            self.notes.append(f"columns left out, {why}: {', '.join(gone)}.")

    def replace(self, columns: Iterable[str], made: list[str]) -> None:
        """Have columns of answers in the place of those that they were made of."""
        gone = set(columns) | set(made)
        for names in (self.columns, self.answers or []):
            at = min((i for i, name in enumerate(names) if name in gone), default=len(names))
            names[:] = [*(n for n in names[:at] if n not in gone), *made,
                        *(n for n in names[at:] if n not in gone)]  # fmt: skip
        self.certain |= set(made)

    def keep(self, test: Callable[[Row], bool], otherwise: str) -> None:
        """Leave out the rows that fail a test, counted."""
        kept = [row for row in self.rows if test(row)]
        self.left_out[otherwise] += len(self.rows) - len(kept)
        self.rows = kept

    def annotation(
        self, row: Row, item: object, annotator: object, answers: Mapping[str, Any], rest: Row
    ) -> Row:
        """A row an annotation, of what a tool says in `row`; new columns are noted.

        Args:
            row: names the line of the file.
            item: names the item.
            annotator: names the annotator.
            answers: question -> an answer, or a list of several.
            rest: texts and whatever else is to be kept; `become` names it.
        """
        own = {ITEM_ID: item, ANNOTATOR_ID: annotator}
        for name in own.keys() & answers.keys():
            self.questions[f"{name}_answer"] = self.question(name)
        answers = {f"{n}_answer" if n in own else n: value for n, value in answers.items()}
        self.answers = self.answers or []
        self.answers += [name for name in answers if name not in self.answers]
        return {**own, _REST: rest, **answers, LINE: row.get(LINE)}

    def become(self, rows: list[Row]) -> None:
        """Have these annotations in place of the tool's rows.

        A question's column holds answers alone, whoever answered: what else there is under its
        name, in any row, gets another, which is said.
        """
        taken = {ITEM_ID, ANNOTATOR_ID, *(self.answers or ())}
        called = {key: key for row in rows for key in row[_REST]}
        for key in [key for key in called if key in taken]:
            while called[key] in {*taken, *(called.keys() - {key})}:
                called[key] += "_text"
            self.notes.append(f"what the items have under {key} is called {called[key]}.")
            taken.add(called[key])
        for row in rows:
            row |= {called[key]: value for key, value in row.pop(_REST).items()}
        own = (ITEM_ID, ANNOTATOR_ID, *called.values(), *(self.answers or ()))
        self.rows, self.columns = rows, list(dict.fromkeys(own))
        self.item, self.annotator = ITEM_ID, ANNOTATOR_ID

    def check_names(self, columns: Iterable[str | None]) -> None:
        """Refuse ids, annotators and answers that are no plain values, before they are read.

        Raises:
            DataError: names the place.
        """
        for name in filter(None, columns):
            for row in self.rows:
                cell = row.get(name)
                many = isinstance(cell, list) and name in (self.answers or ())
                if not (all(map(is_name, cell or ())) if many else is_name(cell)):
                    where = f", line {row[LINE]}" if row.get(LINE) else ""
                    raise DataError(
                        f"{self.location}{where}: {name} holds {cell!r}; expected texts, numbers "
                        "or dates in the columns of items, annotators and answers."
                    )

    def values(self, column: str) -> list[str]:
        """What stands in a column, without blank cells; of a list, each part."""
        return [part for row in self.rows for part in parts(row.get(column))]


def parts(value: object) -> list[str]:
    """The plain answers in a cell: none, one, or those of a list."""
    found = value if isinstance(value, list | tuple) else [value]
    return [normalise(name) for name in map(read_name, filter(is_name, found)) if name]


def written_list(value: object) -> object:
    """A list of plain values that a text is, as JSON, Python or numpy write it; else as it is."""
    text = value.strip() if isinstance(value, str) else ""
    for read in (read_json, ast.literal_eval) if text[:1] == "[" and text[-1:] == "]" else ():
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            if isinstance(found := read(text), list) and all(map(is_name, found)):
                return found
        text = re.sub(r"(['\"])\s+(?=['\"])", r"\1, ", text)  # numpy's, which Python would join
    return value


def is_ticked(value: object, option: str = "") -> bool | None:
    """Whether a box was ticked: 1, true, yes, x, or its option's name; None if unclear."""
    text = " ".join(parts(value)).casefold()
    if text in _YES or (text and text == option.casefold()):
        return True
    return False if text in _NO else None


def clean_name(text: str, taken: Iterable[str] = ()) -> str:
    """A name that a rubric takes: letters, digits, underscores, letter first, and not `taken`."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9]+", "_", plain).strip("_")[:40].rstrip("_") or "column"
    name = name if name[0].isalpha() else f"q_{name}"
    used, number, first = set(taken), 2, name
    while name in used:
        name, number = f"{first}_{number}", number + 1
    return name


def conversation(value: object) -> object:
    """A dialogue of turns with a speaker and a text as one text; anything else as it is."""
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        return value
    lines = []
    for turn in value:
        who = next(
            (turn[key] for key in ("role", "author", "speaker", "user") if turn.get(key)), ""
        )
        text = next((turn[key] for key in ("content", "text") if turn.get(key)), "")
        lines.append(f"{who}: {text}" if who else str(text))
    return "\n".join(lines) if any(lines) else value


def counted(found: Mapping[str, int]) -> str:
    """`3 x this, 1 x that`, or "nothing"."""
    return ", ".join(f"{n:,} x {what}" for what, n in found.items() if n) or "nothing"
