"""Requests that wait are asked together, behind one copy of the rubric."""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any

from slm_judge.backends import Logits
from slm_judge.data.text import item_state
from slm_judge.errors import DataError, JudgeError
from slm_judge.judge.judge import Judge
from slm_judge.prompt.readers import EncodedPrompt

_TURN = 8  # rows of a request before others have their turn
Observe = Callable[[int], object]


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

    def __init__(self, judge: Judge, at_once: int, room: int, observe: Observe) -> None:
        """Start the thread.

        Args:
            judge: closed in the end.
            at_once: rows of a batch.
            room: rows that may wait.
            observe: called with the rows of each batch.
        """
        self.judge, self._at_once, self._room, self._observe = judge, at_once, room, observe
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
        """The prompts of rows.

        Args:
            rows: as `Judge.annotate` takes them.
            where: names a row, with its number in `{}`.

        Raises:
            DataError: a row lacks a field or its text, or is longer than the model can read.
        """
        rubric, most = self.judge.rubric, self.judge.backend.max_tokens
        states = [item_state(rubric, row, where.format(i + 1)) for i, row in enumerate(rows)]
        with self._reading:  # tokenizers have settings that threads would share
            prompts = self.judge.encode(states)
        for i, prompt in enumerate(prompts):
            if (length := prompt.n_tokens) > most:
                said = f"{where.format(i + 1)} needs {length} tokens, but there is room for {most}."
                raise DataError(f"{said} Shorten its longest field.")
        return prompts

    def ask(self, prompts: Sequence[EncodedPrompt]) -> Future[list[Logits]]:
        """The logits of each row, in order, when they are there.

        Raises:
            BusyError: too much waits already, or the server ends.
        """
        asked = Asked(prompts)
        with self._change:
            if self._closed:
                raise BusyError("The server ends.")
            waiting = sum(one.left for one in self._waiting)
            if waiting and waiting + len(prompts) > self._room:
                raise BusyError(f"{waiting} rows wait already, of at most {self._room}. Ask later.")
            self._waiting.append(asked)
            self._change.notify()
        return asked.answer

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
            try:
                prompts = [asked.prompts[row] for asked, row in batch]
                for index, logits in self.judge.decide(prompts):
                    asked, row = batch[index]
                    asked.put(row, logits)
            except Exception as error:  # theirs who asked: the next batch may do
                for asked, _ in batch:
                    asked.fail(error)

    def close(self) -> None:
        """Compute what waits still, and free the model."""
        with self._change:
            self._closed = True
            self._change.notify()
        self._thread.join()
        self.judge.close()
