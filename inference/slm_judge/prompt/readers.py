"""The readers: items as token ids with the positions of their answers, one reader a template."""

import copy
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from slm_judge.data.text import State
from slm_judge.errors import ModelError
from slm_judge.rubric import Rubric
from slm_judge.text import MARK, SPLIT

from .labels import Tokenize, check_label_count
from .templates import PromptTemplate, compile_template, decision_questions, systemone_questions

_DEEP = 4000  # characters without a change of kind, which get a stack of their own
_PROBE = "\ue000probe\ue001"
_RUN = re.compile(r"\w+|\s+|[^\w\s]+")


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids of one item's prompt, and where its answers are read."""

    input_ids: list[int]
    slots: list[int]
    """Per dimension, the position whose next-token distribution is the answer."""


class _Renderer:
    """A template with its questions, which are written out once, not for every item.

    Our templates write the instructions, the questions, the item and the slots one after the other,
    so what the questions add is the same around every item.
    """

    def __init__(
        self, template: PromptTemplate, fields: Sequence[str], questions: Sequence[Any], **more: str
    ) -> None:
        self._render, self._questions = partial(template.render, **more), questions
        probe = dict.fromkeys(fields, _PROBE)
        bare, whole = (self._render(state=probe, questions=asked) for asked in ([], questions))
        found = {text.count(_PROBE) for text in (bare, whole)} == {len(fields)}
        self._bare: tuple[str, str] | None
        self._bare, self.around = (_around(bare), _around(whole)) if found else (None, ("", ""))

    def __call__(self, state: State) -> str:
        if self._bare is None:  # a rubric that has the probe in it
            return self._render(state=state, questions=self._questions)
        text = self._render(state=state, questions=[])
        (before, after), (head, tail) = self._bare, self.around
        return f"{head}{text[len(before) : len(text) - len(after)]}{tail}"


def _around(text: str) -> tuple[str, str]:
    return text.partition(_PROBE)[0], text.rpartition(_PROBE)[2]


class DecisionReader:
    """Prompts for transformers, as `pipeline("decision")` would make them, but many at a time."""

    def __init__(
        self, tokenizer: Any, template: str, rubric: Rubric, labels: Sequence[str]
    ) -> None:
        """Read `rubric` through `template`; `tokenizer` is copied, never changed."""
        self.tokenizer = _with_sentinels(tokenizer)
        self._mark = self.tokenizer.convert_tokens_to_ids(MARK)
        self._ask(template, rubric, labels)
        self.prefix = _common_prefix([prompt.input_ids for prompt in self.encode(_probes(rubric))])
        """Tokens that (nearly) all prompts share: the rubric."""

    def _ask(self, template: str, rubric: Rubric, labels: Sequence[str]) -> None:
        check_label_count(rubric, labels)
        self._labels = labels
        self._template = compile_template(template)
        self.questions = decision_questions(rubric, labels)
        self._render = _Renderer(self._template, rubric.fields, self.questions)

    def in_other_words(self, template: str, rubric: Rubric) -> "DecisionReader":
        """A reader of another rubric that shares the tokenizer, which is slow to copy."""
        reader = copy.copy(self)
        reader._ask(template, rubric, self._labels)
        return reader

    def render(self, state: State) -> str:
        """The prompt as text, with `<|mark|>` at each slot."""
        return self._render(state)

    def encode(self, states: Sequence[State]) -> list[EncodedPrompt]:
        """Tokenize the prompts of many items."""
        if not states:
            return []
        texts = [self.render(state) for state in states]
        encoded = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [self.read_marks(ids) for ids in encoded]

    def read_marks(self, ids: Sequence[int]) -> EncodedPrompt:
        """Take the marks out of token ids; the answers are read where they stood."""
        marks = [position for position, token in enumerate(ids) if token == self._mark]
        slots = [position - rank - 1 for rank, position in enumerate(marks)]
        return EncodedPrompt([token for token in ids if token != self._mark], slots)


def _with_sentinels(tokenizer: Any) -> Any:
    """A copy of `tokenizer` that knows the sentinels. Never save it."""
    from tokenizers import AddedToken

    tokenizer = copy.deepcopy(tokenizer)
    sentinels = [AddedToken(token, special=True, normalized=False) for token in (MARK, SPLIT)]
    tokenizer.add_tokens(sentinels)
    return tokenizer


class SystemoneReader:
    """Prompts for llama.cpp, through the template that the GGUF file carries.

    Prompt k is a prefix of prompt k+1, so the last prompt holds every slot; the tokens from the
    first slot on are the same for every item, which gives the positions of the others.
    """

    def __init__(
        self,
        tokenize: Tokenize,
        template: str,
        rubric: Rubric,
        labels: Sequence[str],
        is_control: Callable[[int], bool] = lambda _: False,
    ) -> None:
        """Read `rubric` through `template`.

        Args:
            tokenize: text to token ids, control tokens parsed, none added.
            template: the value of `tokenizer.chat_template.systemone`.
            rubric: the rubric of the judge.
            labels: label codes in order.
            is_control: of a token. Texts around one are tokenized apart, so what stands before the
                last one before the item, the rubric of most bases, is tokenized once.

        Raises:
            ModelError: prompt k is not a prefix of prompt k+1.
        """
        check_label_count(rubric, labels)
        self._tokenize = tokenize
        self._template = compile_template(template)
        self._questions = systemone_questions(rubric, labels)
        last = self._questions[-1]["id"]
        self._render = _Renderer(self._template, rubric.fields, self._questions, id=last)
        self._head, self._head_ids = "", list[int]()
        encoded = [
            [self._ids(state, q["id"]) for q in self._questions] for state in _probes(rubric)
        ]
        for prompts in encoded:
            for shorter, longer in pairwise(prompts):
                if longer[: len(shorter)] != shorter:
                    raise ModelError("The judge's template does not keep answer slots as prefixes.")
        ends = [[len(prompts[-1]) - len(prompt) + 1 for prompt in prompts] for prompts in encoded]
        if any(end != ends[0] for end in ends):
            raise ModelError("The judge's template does not end every prompt in the same tokens.")
        self._ends = ends[0]
        self.prefix = _common_prefix([prompts[-1] for prompts in encoded])
        """Tokens that (nearly) all prompts share: the rubric."""
        head = self._until_control(is_control)
        first = list(tokenize(head)) if head else []
        if all(
            [*first, *tokenize(self._render(state)[len(head) :])] == prompts[-1]
            for state, prompts in zip(_probes(rubric), encoded, strict=True)
        ):
            self._head, self._head_ids = head, first

    def _until_control(self, is_control: Callable[[int], bool]) -> str:
        """The text before the last control token before the item; none, where there is none."""
        text = self._render.around[0]
        for found in reversed([*re.finditer(r"[<\[]", text)]):
            tokens = self._tokenize(text[found.start() :])
            if tokens and is_control(tokens[0]):
                return text[: found.start()]
        return ""

    def render(self, state: State, question_id: str | None = None) -> str:
        """The prompt of one question (by default the last, which holds all slots) as text."""
        if question_id is None:
            return self._render(state)
        question = next(q for q in self._questions if q["id"] == question_id)
        return self._template.render(state=state, questions=self._questions, **question)

    def encode(self, states: Sequence[State]) -> list[EncodedPrompt]:
        """Tokenize the prompts of many items."""
        prompts = []
        for state in states:
            ids = self._ids(state)
            prompts.append(EncodedPrompt(ids, [len(ids) - end for end in self._ends]))
        return prompts

    def _ids(self, state: State, question_id: str | None = None) -> list[int]:
        text, first = self.render(state, question_id), list[int]()
        if self._head and text.startswith(self._head):
            text, first = text[len(self._head) :], self._head_ids
        longest = max(map(len, _RUN.findall(text))) if len(text) > _DEEP else 0
        if longest > _DEEP:
            return [*first, *on_deep_stack(self._tokenize, text, longest)]
        return [*first, *self._tokenize(text)]


def on_deep_stack(tokenize: Tokenize, text: str, longest: int) -> Sequence[int]:
    """Tokenize in a thread whose stack grows with the longest word, number or gap of the text.

    For many bases (not Qwen's) llama.cpp parts words with `std::regex`, which calls itself for
    each character of one: about 320 bytes, so that the usual stack of 8 MiB ends after 26,000 of
    them, and the process with it.

    Raises:
        MemoryError: there is no room for the stack.
    """
    # Some systems want whole pages.
    usual = threading.stack_size(2**24 + 2**16 * (longest // 64 + 1))
    try:
        with ThreadPoolExecutor(1) as executor:
            return executor.submit(tokenize, text).result()
    except RuntimeError as error:
        raise MemoryError(f"for the stack of a run of {longest} characters") from error
    finally:
        threading.stack_size(usual)


def _probes(rubric: Rubric) -> list[dict[str, str]]:
    """Items that differ in their first token."""
    return [dict.fromkeys(rubric.fields, text) for text in ("a", "Zebra 1.", "!?\n5")]


def _common_prefix(sequences: Sequence[Sequence[int]]) -> list[int]:
    prefix = []
    for tokens in zip(*sequences, strict=False):
        if len(set(tokens)) > 1:
            break
        prefix.append(tokens[0])
    return prefix
