"""The judges behind the page: one request at a time, and the items' answers in the background."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slm_judge.data.text import read_state
from slm_judge.errors import JudgeError
from slm_judge.judge.answer import Annotation, annotations_from_logits, collected
from slm_judge.judge.judge import Judge
from slm_judge.rubric import Rubric, format_value

from .store import Judged, Store

_AT_ONCE = 8  # items between two looks for somebody who waits


@dataclass(frozen=True)
class Named:
    """A judge, its name on the page, and the name of its content in the store."""

    name: str
    key: str
    judge: Judge


class Judges:
    """Judges that share the machine: an engine computes one request at a time."""

    def __init__(self, named: list[Named], rubric: Rubric) -> None:
        """Use judges of `rubric`; the first one's answers stand beside people's."""
        self.named, self.rubric = named, rubric
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self.problem = ""
        """Why the items are not judged, if something went wrong."""

    def ask(self, named: Named, states: Mapping[str, Mapping[str, str]]) -> dict[str, Judged]:
        """What a judge says about items, and why it says nothing about others."""
        said, problems, _ = self._annotate(named, states)
        found = {name: Judged(problem=problems.get(name, "")) for name in states}
        for name, one in said.items():
            for dimension, label in one.labels.items():
                sure = one.confidence[dimension]
                if label is not None and sure is not None:
                    found[name].labels[dimension] = _word(label), sure
        return found

    def _annotate(
        self, named: Named, states: Mapping[str, Mapping[str, str]]
    ) -> tuple[dict[str, Annotation], dict[str, str], float]:
        """Item -> what the judge says; or -> why it says nothing; and seconds, without waiting."""
        backend, contract = named.judge.backend, named.judge.backend.contract
        read = {name: read_state(state) for name, state in states.items()}
        problems = {name: problem for name, (_, problem) in read.items() if problem}
        names = [name for name in read if name not in problems]
        with self._lock:
            started = time.perf_counter()
            encoded = named.judge.encode([read[name][0] for name in names])
            prompts = dict(zip(names, encoded, strict=True))
            for name, prompt in list(prompts.items()):
                if (length := prompt.n_tokens) > backend.max_tokens:
                    problems[name] = f"too long: {length} tokens, room for {backend.max_tokens}"
                    del prompts[name]
            decided = named.judge.decide(list(prompts.values()))
            logits = collected(contract.rubric, decided, len(prompts))
            seconds = time.perf_counter() - started
        # The page asks people each yes or no of a set by itself.
        asked = contract.rubric.model_copy(update={"sets": []})
        said = annotations_from_logits(asked, logits, contract.calibration)
        return dict(zip(prompts, said, strict=True)), problems, seconds

    def try_out(self, state: Mapping[str, str]) -> list[dict[str, Any]]:
        """Every judge's probabilities for a text, its label, and the seconds that it took."""
        answers = []
        for named in self.named:
            said, problems, seconds = self._annotate(named, {"": state})
            dimensions = _shares(said[""]) if said else {}
            answers.append({"judge": named.name, "seconds": seconds, "dimensions": dimensions,
                            "problem": problems.get("", "")})  # fmt: skip
        return answers

    def judge_items(self, store: Store) -> None:
        """Judge the store's items in the background; what is done is kept, and not done again."""

        def work() -> None:
            try:
                self._judge_all(store)
            except Exception as error:
                # Of any kind: what ends this thread is said nowhere else, and an engine may raise
                # anything.
                said = str(error) if isinstance(error, JudgeError) else repr(error)
                self.problem = f"The judge stopped judging the items: {said}"

        self._thread = threading.Thread(target=work, name="judging", daemon=True)
        self._thread.start()

    def _judge_all(self, store: Store) -> None:
        first = self.named[0]
        todo = list(store.unjudged(first.key).items())
        for start in range(0, len(todo), _AT_ONCE):
            if self._stop.is_set():
                return
            store.add_judged(first.key, self.ask(first, dict(todo[start : start + _AT_ONCE])))

    def wait(self, seconds: float | None = None) -> None:
        """Wait until the background work is done, so many seconds at most."""
        if self._thread:
            self._thread.join(seconds)

    def close(self) -> None:
        """End the background work after the items at hand, and free the models."""
        self._stop.set()
        self.wait()
        with self._lock:
            for named in self.named:
                named.judge.close()


def _shares(said: Annotation) -> dict[str, Any]:
    return {
        name: {
            "label": None if label is None else _word(label),  # not asked, by its other answers
            "confidence": said.confidence[name],
            "probabilities": {format_value(k): p for k, p in said.probabilities[name].items()},
        }
        for name, label in said.labels.items()
    }


def _word(label: object) -> str:
    assert isinstance(label, bool | int | float | str)
    return format_value(label)
