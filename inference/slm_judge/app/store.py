"""What people answered, in one SQLite file: append-only, one transaction an answer.

The journal is written ahead (WAL) and synced at every commit, so that an answer that was confirmed
outlives a killed process and a power failure, and readers and writers do not wait for each other.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from slm_judge.errors import DataError
from slm_judge.rubric import Dimension, Rubric

Order = Literal["random", "uncertainty", "design"]
Shown = Literal["never", "after", "before"]
CLAIMED = timedelta(minutes=30)
"""How long an item that somebody opened, and did not answer, is kept for them."""
_APPLICATION = 0x51A3
_WAIT = 30  # seconds for another writer
_TABLES = """
CREATE TABLE IF NOT EXISTS rubric (version TEXT PRIMARY KEY, content TEXT, at TEXT);
CREATE TABLE IF NOT EXISTS item (id TEXT PRIMARY KEY, place INTEGER, state TEXT, chance REAL,
  drawn INTEGER DEFAULT 0);
CREATE TABLE IF NOT EXISTS judged (item TEXT, dimension TEXT, question TEXT, judge TEXT,
  option TEXT, confidence REAL, problem TEXT, PRIMARY KEY (item, dimension));
CREATE TABLE IF NOT EXISTS answer (id INTEGER PRIMARY KEY AUTOINCREMENT, item TEXT, annotator TEXT,
  dimension TEXT, option TEXT, undone INTEGER DEFAULT 0, seconds REAL, at TEXT, rubric TEXT,
  question TEXT, shown TEXT, seen INTEGER);
CREATE INDEX IF NOT EXISTS latest ON answer (item, annotator, dimension, id);
CREATE TABLE IF NOT EXISTS settled (id INTEGER PRIMARY KEY AUTOINCREMENT, item TEXT, dimension TEXT,
  option TEXT, comment TEXT, who TEXT, at TEXT, rubric TEXT, question TEXT);
CREATE TABLE IF NOT EXISTS claim (item TEXT, annotator TEXT, at TEXT, revealed INTEGER DEFAULT 0,
  PRIMARY KEY (item, annotator));
"""
# What counts now: the last word on a question that the rubric still asks.
_VIEWS = """
CREATE TEMP VIEW answers AS SELECT * FROM answer a WHERE question IN ({asked}) AND NOT undone
  AND NOT EXISTS (SELECT 1 FROM answer b WHERE b.item = a.item AND b.annotator = a.annotator
    AND b.dimension = a.dimension AND b.id > a.id AND b.question IN ({asked}));
CREATE TEMP VIEW settlements AS SELECT * FROM settled WHERE id IN (SELECT MAX(id) FROM settled
  WHERE question IN ({asked}) GROUP BY item, dimension);
CREATE TEMP VIEW verdicts AS SELECT * FROM judged WHERE question IN ({asked});
"""


@dataclass(frozen=True)
class Task:
    """How items are given out; what of it bears on an answer is kept with the answer."""

    order: Order = "random"
    overlap: int = 1
    """Annotators an item."""
    shown: Shown = "never"
    """When annotators see the judge's answer."""


@dataclass
class Judged:
    """What a judge said about an item; `problem` where it said nothing."""

    labels: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Dimension -> key of the option, confidence."""
    problem: str = ""


def version(rubric: Rubric) -> str:
    """The name of a version of a rubric."""
    return _digest(rubric.to_json())


def question(rubric: Rubric, dimension: Dimension) -> str:
    """What an answer answers: it changes with the name, the wording, the options, or the whole
    task's.
    """
    wording = [rubric.instructions, rubric.fields, dimension.name, dimension.question()]
    return _digest(json.dumps(wording, ensure_ascii=False))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def now() -> str:
    """The time, as it is kept."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Store:
    """The answers of one rubric's annotators. Each method is a transaction of its own."""

    def __init__(self, path: Path, rubric: Rubric, task: Task | None = None) -> None:
        """Open a store, or make one.

        Raises:
            DataError: `path` is something else, or cannot be written.
        """
        self.path, self.rubric, self.task = path, rubric, task or Task()
        self.version = version(rubric)
        self.questions = {d.name: question(rubric, d) for d in rubric.dimensions}
        marks = ", ".join(f"'{digest}'" for digest in self.questions.values())  # hexadecimal
        self._views = _VIEWS.format(asked=marks)
        self._open()

    @property
    def mark(self) -> str:
        """Changes with the rubric, and with what annotators are shown of the judge."""
        return f"{self.version}-{self.task.shown}"

    def _open(self) -> None:
        if self.path.is_file() and self.path.stat().st_size:
            with self.path.open("rb") as file:
                head = file.read(72)
            if not head.startswith(b"SQLite format 3\0") or head[68:] != _APPLICATION.to_bytes(4):
                raise DataError(f"{self.path} is no store of annotations. Name another --store.")
        with self._connected() as db:  # the mark is in the file itself before the journal is
            if not db.execute("PRAGMA application_id").fetchone()[0]:
                mark = f"PRAGMA application_id = {_APPLICATION}"
                db.executescript(f"BEGIN IMMEDIATE; {_TABLES} {mark}; COMMIT")
            db.execute("PRAGMA journal_mode = WAL")
        with self.writing() as db:
            row = self.version, self.rubric.to_json(), now()
            db.execute("INSERT OR IGNORE INTO rubric VALUES (?, ?, ?)", row)

    @contextmanager
    def _connected(self, views: str = "") -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=_WAIT, isolation_level=None)) as db:
                db.row_factory = sqlite3.Row
                db.execute("PRAGMA synchronous = FULL")
                db.executescript(views)
                yield db
        except sqlite3.Error as error:
            raise DataError(f"The store {self.path} cannot be used: {error}.") from error

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is on the disk when the block ends, or leaves nothing."""
        with self._connected(self._views) as db:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")

    def rows(self, query: str, *values: object) -> list[sqlite3.Row]:
        """The rows of a query over the tables, or the views of what counts now."""
        with self._connected(self._views) as db:
            return db.execute(query, values).fetchall()

    # --- items ---

    def add_items(
        self, items: Mapping[str, Mapping[str, str]], chances: Mapping[str, float]
    ) -> None:
        """Add items that are not there yet, with the chances with which they were drawn, if known.

        Raises:
            DataError: the store has another text under an item's name.
        """
        with self.writing() as db:
            known = dict(db.execute("SELECT id, state FROM item").fetchall())
            for name, state in items.items():
                text = json.dumps(state, ensure_ascii=False)
                if known.get(name, text) != text:
                    raise DataError(
                        f"{self.path} has another text for the item {name}. Give changed items "
                        "new names, or name another --store."
                    )
                place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6])  # at random
                db.execute(
                    "INSERT OR IGNORE INTO item (id, place, state, chance) VALUES (?, ?, ?, ?)",
                    (name, place, text, chances.get(name)),
                )

    def add_judged(self, judge: str, found: Mapping[str, Judged]) -> None:
        """Keep what `judge` said about items, in place of what a judge said before."""
        with self.writing() as db:
            for item, one in found.items():
                for name, digest in self.questions.items():
                    label, sure = one.labels.get(name, (None, None))
                    row = (item, name, digest, judge, label, sure, one.problem)
                    db.execute("REPLACE INTO judged VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def unjudged(self, judge: str) -> dict[str, dict[str, str]]:
        """The items that `judge` was not asked all about yet, in the order of annotation."""
        query = """SELECT id, state FROM item WHERE id NOT IN (SELECT item FROM verdicts
                   WHERE judge = ? GROUP BY item HAVING COUNT(*) >= ?) ORDER BY place"""
        found = self.rows(query, judge, len(self.questions))
        return {row["id"]: json.loads(row["state"]) for row in found}

    def draw(self, chances: Mapping[str, float], drawn: Sequence[str]) -> None:
        """Keep a design: the chance of every item, and the items that were drawn."""
        with self.writing() as db:
            db.executemany("UPDATE item SET chance = ? WHERE id = ?",
                           [(chance, name) for name, chance in chances.items()])  # fmt: skip
            db.executemany("UPDATE item SET drawn = 1 WHERE id = ?", [(name,) for name in drawn])

    # --- annotating ---

    def next_item(self, annotator: str) -> str | None:
        """The item to annotate now: one that was begun, one that others began, or a fresh one."""
        lapsed = (datetime.now(UTC) - CLAIMED).isoformat(timespec="milliseconds")
        sure = "(SELECT MIN(confidence) FROM verdicts WHERE item = i.id)"
        query = f"""
            WITH done AS MATERIALIZED (SELECT item, annotator, COUNT(*) AS n FROM answers
                          GROUP BY item, annotator),
              taken AS MATERIALIZED (SELECT item, annotator FROM done WHERE n >= ?2 UNION
                        SELECT item, annotator FROM claim WHERE at > ?3),
              own AS MATERIALIZED (SELECT item FROM claim WHERE annotator = ?1 AND at <> '' UNION
                      SELECT item FROM done WHERE annotator = ?1)
            SELECT i.id,
              (SELECT COUNT(*) FROM taken WHERE item = i.id AND annotator <> ?1) AS others,
              i.id IN own AS begun, {sure if self.task.order == "uncertainty" else "NULL"} AS sure
            FROM item i
            WHERE i.id NOT IN (SELECT item FROM done WHERE annotator = ?1 AND n >= ?2)
              AND (begun AND i.id IN (SELECT item FROM done WHERE annotator = ?1) OR others < ?4)
              {"AND i.drawn" if self.task.order == "design" else ""}
            ORDER BY NOT begun, others = 0, sure IS NULL, sure, i.place LIMIT 1"""
        with self.writing() as db:
            values = (annotator, len(self.questions), lapsed, self.task.overlap)
            found = db.execute(query, values).fetchone()
            if found:
                self._claim(db, found["id"], annotator, self.task.shown == "before")
        return found["id"] if found else None

    def answer(
        self, item: str, annotator: str, dimension: str, option: str | None, seconds: float
    ) -> None:
        """Keep an answer; None is "cannot tell". What counts is an annotator's last answer.

        Raises:
            DataError: there is no such item, question or option.
        """
        self._check(item, dimension, option)
        with self.writing() as db:
            query = "SELECT revealed FROM claim WHERE item = ? AND annotator = ?"
            known = db.execute(query, (item, annotator)).fetchone()
            seen = self.task.shown == "before" or (known is not None and bool(known["revealed"]))
            own = self._own(db, item, annotator) | {dimension: option}
            seen = seen and self.asked(own)[dimension]  # else there is nothing to be swayed in
            self._insert(db, item, annotator, dimension, option, 0, seconds, seen)
            self._claim(db, item, annotator, not self.open(own) and self.task.shown != "never")

    def _insert(self, db: sqlite3.Connection, item: str, annotator: str, dimension: str,
                option: str | None, undone: int, seconds: float, seen: bool) -> None:  # fmt: skip
        db.execute(
            "INSERT INTO answer (item, annotator, dimension, option, undone, seconds, at, rubric, "
            "question, shown, seen) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (item, annotator, dimension, option, undone, seconds, now(), self.version,
             self.questions[dimension], self.task.shown, int(seen)),
        )  # fmt: skip

    def _claim(
        self, db: sqlite3.Connection, item: str, annotator: str, revealed: bool = False
    ) -> None:
        """Keep an item for somebody, and whether they may have seen the judge's answer by now."""
        db.execute(
            "INSERT INTO claim VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET at = excluded.at, "
            "revealed = revealed OR excluded.revealed",
            (item, annotator, now(), revealed),
        )

    def reveal(self, items: Iterable[str], annotator: str) -> None:
        """Keep that somebody was shown the judge's answers about items; it claims none."""
        query = "INSERT INTO claim VALUES (?, ?, '', 1) ON CONFLICT DO UPDATE SET revealed = 1"
        with self.writing() as db:
            db.executemany(query, [(item, annotator) for item in items])

    def undo(self, annotator: str) -> str | None:
        """Take back the annotator's last answer, which stays in the file; the item, if any.

        What was kept after it, of questions that do not apply, nobody gave: it goes as well.
        """
        query = "SELECT * FROM answers WHERE annotator = ? ORDER BY id DESC LIMIT 1"
        item = None
        with self.writing() as db:
            while last := db.execute(query, (annotator,)).fetchone():
                if item not in (None, last["item"]):
                    break
                item = str(last["item"])
                asked = self.asked(self._own(db, item, annotator))
                self._insert(db, item, annotator, last["dimension"], last["option"], 1, 0.0,
                             bool(last["seen"]))  # fmt: skip
                if last["option"] is not None or asked[last["dimension"]]:
                    break
            if item:
                self._claim(db, item, annotator)
        return item

    def settle(self, item: str, dimension: str, option: str | None, comment: str, who: str) -> None:
        """Keep what was settled about an item; None takes it back, and keeps the comment.

        Raises:
            DataError: there is no such item, question or option.
        """
        self._check(item, dimension, option)
        with self.writing() as db:
            db.execute(
                "INSERT INTO settled (item, dimension, option, comment, who, at, rubric, question) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (item, dimension, option, comment, who, now(), self.version,
                 self.questions[dimension]),
            )  # fmt: skip

    def _check(self, item: str, dimension: str, option: str | None) -> None:
        if dimension not in self.questions:
            raise DataError(f"The rubric asks nothing called {dimension!r}. Load the page again.")
        keys = [self.rubric.dimension(dimension).key(i)
                for i in range(len(self.rubric.dimension(dimension).options))]  # fmt: skip
        if option is not None and option not in keys:
            raise DataError(f"{dimension} has no option {option!r}. Load the page again.")
        if not self.rows("SELECT 1 FROM item WHERE id = ?", item):
            raise DataError(f"There is no item {item!r}.")

    # --- what is known ---

    def state(self, item: str) -> dict[str, str]:
        """The texts of an item."""
        found: dict[str, str] = json.loads(
            self.rows("SELECT state FROM item WHERE id = ?", item)[0]["state"]
        )
        return found

    def items_of(self, state: Mapping[str, str]) -> list[str]:
        """The items that have these texts."""
        text = json.dumps({name: state[name] for name in self.rubric.fields}, ensure_ascii=False)
        return [row["id"] for row in self.rows("SELECT id FROM item WHERE state = ?", text)]

    def own(self, item: str, annotator: str) -> dict[str, str | None]:
        """What an annotator answered about an item: dimension -> option, None for "cannot tell"."""
        with self._connected(self._views) as db:
            return self._own(db, item, annotator)

    def _own(self, db: sqlite3.Connection, item: str, annotator: str) -> dict[str, str | None]:
        query = "SELECT dimension, option FROM answers WHERE item = ? AND annotator = ?"
        found = db.execute(query, (item, annotator)).fetchall()
        return {row["dimension"]: row["option"] for row in found}

    def asked(self, own: Mapping[str, str | None]) -> dict[str, bool]:
        """Which questions apply, by an annotator's answers to an item: see `Rubric.asked`."""
        given = {
            name: option
            for name, key in own.items()
            if (option := self.rubric.dimension(name).index(key)) is not None
        }
        return self.rubric.asked(given)

    def open(self, own: Mapping[str, str | None]) -> list[str]:
        """The questions that apply, and have no answer yet."""
        return [name for name, applies in self.asked(own).items() if applies and name not in own]

    def progress(self, annotator: str) -> dict[str, int]:
        """Items that the annotator answered, that enough people answered, and all to annotate."""
        among = "WHERE drawn" if self.task.order == "design" else ""
        query = f"""WITH complete AS MATERIALIZED (SELECT item, annotator FROM answers
                      GROUP BY item, annotator HAVING COUNT(*) >= ?)
          SELECT (SELECT COUNT(*) FROM complete WHERE annotator = ?) AS own,
            (SELECT COUNT(*) FROM (SELECT item FROM complete GROUP BY item HAVING COUNT(*) >= ?)
             WHERE item IN (SELECT id FROM item {among})) AS done,
            (SELECT COUNT(*) FROM item {among}) AS total"""
        n = len(self.questions)
        return dict(self.rows(query, n, annotator, self.task.overlap)[0])

    def annotators(self) -> list[str]:
        """Who has answered anything."""
        found = self.rows("SELECT DISTINCT annotator FROM answers ORDER BY annotator")
        return [row["annotator"] for row in found]

    def stale(self) -> dict[str, int]:
        """Dimension -> answers under another wording, name or other options, which do not count."""
        marks = ", ".join("?" * len(self.questions))
        query = f"""SELECT dimension, COUNT(*) AS n FROM answer WHERE NOT undone
                    AND question NOT IN ({marks}) GROUP BY dimension"""
        found = self.rows(query, *self.questions.values())
        return {row["dimension"]: row["n"] for row in found}
