"""Requests that wait are asked together, behind one copy of the rubric."""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from slm_judge.backends import Logits
from slm_judge.errors import JudgeError
from slm_judge.judge.judge import Judge
from slm_judge.prompt.readers import EncodedPrompt

_TURN = 8  # rows of a request before others have their turn
_ENDS = "The server ends."


@dataclass(frozen=True)
class Limits:
    """What a request may be."""

    body: int = 8 * 2**20
    """Bytes."""
    rows: int = 1000
    tokens: int = 8192
    """Of a row's prompt, the rubric included: memory grows with the longest."""
    waiting: int = 10_000
    """Rows of all requests, and at least twice `rows`."""
    at_once: int = 32
    """Rows that are computed together."""


class BusyError(JudgeError):
    """More rows wait than there is room for."""


class Asked:
    """The rows of a request, and what is known of them so far."""

    def __init__(self, prompts: Sequence[EncodedPrompt]) -> None:
        """At least one row."""
        self.prompts = prompts
        self.answer: Future[list[Logits]] = Future()
        self._found: dict[int, Logits] = {}
        self._taken = 0

    def take(self, room: int) -> list[int]:
        """The next rows to compute, at most `room`."""
        rows = list(range(self._taken, min(self._taken + room, len(self.prompts))))
        self._taken += len(rows)
        return rows

    @property
    def left(self) -> int:
        """Rows that nobody computes yet; none where nobody waits for them any more."""
        return 0 if self.answer.done() else len(self.prompts) - self._taken

    def missing(self, rows: Sequence[int]) -> list[int]:
        """Those that are not computed, of a request for which somebody waits."""
        return [] if self.answer.done() else [row for row in rows if row not in self._found]

    def put(self, row: int, logits: Logits) -> None:
        """Keep what a row's answers are; the last one answers the request."""
        self._found[row] = logits
        if len(self._found) == len(self.prompts):
            self._end(lambda: self.answer.set_result([self._found[i] for i in sorted(self._found)]))

    def fail(self, error: BaseException) -> None:
        """Answer the request with an error."""
        self._end(lambda: self.answer.set_exception(error))

    def _end(self, how: Callable[[], None]) -> None:
        with suppress(InvalidStateError):  # who asked has gone
            how()


class Batches:
    """A judge in a thread of its own, which computes what waits, whoever asked.

    Labels do not depend on what is computed together: that is `Judge.decide`'s.
    """

    def __init__(self, judge: Judge, limits: Limits, observe: Callable[[int], object]) -> None:
        """Start the thread.

        Args:
            judge: closed in the end.
            limits: of the rows.
            observe: called with the rows of each batch.
        """
        self.judge, self._observe = judge, observe
        self._at_once, self._longest = limits.at_once, limits.tokens
        self._room = max(limits.waiting, 2 * limits.rows)
        self._waiting: deque[Asked] = deque()
        self._change, self._reading = threading.Condition(), threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="judge", daemon=True)
        self._thread.start()

    @property
    def rows_waiting(self) -> int:
        """That are not computed yet."""
        with self._change:
            return sum(asked.left for asked in self._waiting)

    def encode(self, rows: Sequence[str | Mapping[str, Any]], where: str) -> list[EncodedPrompt]:
        """See `Judge.prompts`.

        Raises:
            DataError: as there.
            BusyError: the server ends.
        """
        with self._reading:  # tokenizers have settings that threads would share
            if self._closed:
                raise BusyError(_ENDS)
            return self.judge.prompts(rows, where, self._longest)

    def ask(self, prompts: Sequence[EncodedPrompt]) -> Future[list[Logits]]:
        """The logits of each row, in order, when they are there.

        Raises:
            BusyError: too much waits already, or the server ends.
        """
        asked = Asked(prompts)
        with self._change:
            self._check_room(len(prompts))
            self._waiting.append(asked)
            self._change.notify()
        return asked.answer

    def check_room(self, n_rows: int) -> None:
        """Refuse rows before they are tokenized.

        Raises:
            BusyError: see `ask`.
        """
        with self._change:
            self._check_room(n_rows)

    def _check_room(self, n_rows: int) -> None:
        if self._closed:
            raise BusyError(_ENDS)
        waiting = sum(one.left for one in self._waiting)
        if waiting and waiting + n_rows > self._room:
            raise BusyError(f"{waiting} rows wait already, of at most {self._room}. Ask later.")

    def _next(self) -> list[tuple[Asked, int]]:
        """Rows to compute together, a few of each request in turn; none at the end."""
        batch: list[tuple[Asked, int]] = []
        with self._change:
            while not batch:
                while not self._waiting and not self._closed:
                    self._change.wait()
                if not self._waiting:
                    return []
                while self._waiting and len(batch) < self._at_once:
                    asked = self._waiting.popleft()
                    if asked.left:
                        rows = asked.take(min(_TURN, self._at_once - len(batch)))
                        batch += [(asked, row) for row in rows]
                    if asked.left:
                        self._waiting.append(asked)
        return batch

    def _work(self) -> None:
        while batch := self._next():
            self._observe(len(batch))
            self._compute(batch)

    def _compute(self, batch: list[tuple[Asked, int]]) -> None:
        try:
            prompts = [asked.prompts[row] for asked, row in batch]
            for index, logits in self.judge.decide(prompts):
                asked, row = batch[index]
                asked.put(row, logits)
            problem: Exception = RuntimeError("The engine left rows out.")
        except Exception as error:
            problem = error
        rows = dict[Asked, list[int]]()
        for asked, row in batch:
            rows.setdefault(asked, []).append(row)
        missing = {asked: left for asked, own in rows.items() if (left := asked.missing(own))}
        if len(rows) > 1:  # what is wrong may be wrong with one of them
            for asked, left in missing.items():
                self._compute([(asked, row) for row in left])
        else:
            for asked in missing:
                asked.fail(problem)

    @property
    def works(self) -> bool:
        """Whether anything is computed still."""
        return self._thread.is_alive()

    def close(self) -> None:
        """End after what is being computed; what waits then is refused. Free the model."""
        with self._change:
            self._closed = True
            for asked in self._waiting:
                asked.fail(BusyError(_ENDS))
            self._waiting.clear()
            self._change.notify()
        self._thread.join()
        with self._reading:
            self.judge.close()
