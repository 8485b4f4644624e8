"""The prompt: one layout, written down as two templates, read by three readers.

    <system: rubric instructions, then every dimension with its options, each behind its label>
    <user: the item's fields>
    <assistant: "name_1:" (answer read here)
                "name_2:" (answer read here) ...>

The rubric comes first because it is the same for every item. The answer to a dimension is the
next-token distribution at the colon of its line, over the label tokens alone; no label is fed
back, so one forward pass answers all dimensions.

`decision_template` writes the layout for transformers (`decision_template.jinja`, System One
variables `state` and `questions`, `<|mark|>` at each slot), `systemone_template` writes it for
llama.cpp (`tokenizer.chat_template.systemone`, one prompt per question). Everything here is a
pure function of text and of a tokenizer; no engine is loaded.
"""

import copy
import json
import re
import string
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .errors import DataError, ModelError, RubricError
from .rubric import Rubric, format_value

MARK, SPLIT = "<|mark|>", "<|split|>"
ESCAPE = "¦"
MAX_LABELS = 255  # as many as llama-server keeps
ANSWER_HINT = "Answer each line with the letter of one option."

# A slot's colon must stay a token of its own whether or not text follows it, which depends on
# the tokenizer: Qwen merges ":\n" into one token, but never ": \n".
_SEPARATORS = ("\n", " \n", " ", "; ")
_CONTROL_LIKE = re.compile(r"</?[A-Za-z][\w -]*>|\[[A-Z]{2,}\]")
_SYSTEM, _USER = "[[slm-judge-system]]", "[[slm-judge-user]]"

State = str | Mapping[str, Any]
Tokenize = Callable[[str], Sequence[int]]


# --- text ---------------------------------------------------------------------------------------


def normalise(text: str) -> str:
    """Item text as every reader sees it: valid UTF-8, without the sentinels of transformers, NFC.

    `pipeline("decision")` drops the sentinels from requests, and the tokenizers of transformers
    apply NFC, which llama.cpp does not; so both happen here for all.
    """
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    while MARK in text or SPLIT in text:
        text = text.replace(MARK, "").replace(SPLIT, "")
    return unicodedata.normalize("NFC", text)  # last: what was dropped may have parted marks


def item_state(rubric: Rubric, row: State, where: str = "The row") -> dict[str, str]:
    """The rubric's fields of `row`, normalised.

    Args:
        rubric: names the fields.
        row: a mapping with at least those fields, or a string where there is only one field.
        where: names the row in errors.

    Raises:
        DataError: a field is missing or has no text.
    """
    if isinstance(row, str):
        if len(rubric.fields) != 1:
            fields = ", ".join(rubric.fields)
            raise DataError(f"{where} is a string, but the rubric reads the fields {fields}.")
        row = {rubric.fields[0]: row}
    state = {}
    for field in rubric.fields:
        value = row.get(field)
        text = "" if value is None else normalise(format_value(value))
        if not text.strip():
            what = "has no field" if field not in row else "has no text in the field"
            raise DataError(f"{where} {what} {field!r}; the columns are {', '.join(row)}.")
        state[field] = text
    return state


# --- labels -------------------------------------------------------------------------------------


def label_codes() -> list[str]:
    """A..Z, then AA..ZZ: the order in which llama-server and slm-judge hand out labels."""
    letters = string.ascii_uppercase
    return [*letters, *(first + second for first in letters for second in letters)]


def single_token_labels(tokenize: Tokenize) -> dict[str, int]:
    """The label codes that are one token each, with their token ids, at most `MAX_LABELS`."""
    labels: dict[str, int] = {}
    for code in label_codes():
        ids = tokenize(code)
        if len(ids) == 1 and len(labels) < MAX_LABELS:
            labels[code] = int(ids[0])
    return labels


def check_label_count(rubric: Rubric, labels: Sequence[str]) -> None:
    """Refuse a rubric that asks for more options than there are labels.

    Raises:
        RubricError: names the dimension and both counts.
    """
    for dimension in rubric.dimensions:
        if len(dimension.options) > len(labels):
            raise RubricError(
                f"{dimension.name} has {len(dimension.options)} options, but there are only "
                f"{len(labels)} labels that are one token each. Merge options, or split the "
                "dimension in two."
            )


# --- the layout ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """All the text around the rubric and the item; fixed at training time.

    The prompt is `head` + system text + `middle` + item + `tail` + slots joined by `separator`.
    """

    head: str
    middle: str
    tail: str
    separator: str
    escapes: tuple[tuple[str, str], ...]
    """Replacements, in order, after which no control token is left in a text."""


def build_layout(tokenizer: Any, rubric: Rubric) -> Layout:
    """Take the layout from the chat template of `tokenizer`, with thinking disabled.

    Raises:
        ModelError: the tokenizer has no usable chat template.
    """
    head, middle, tail = _split_chat_template(tokenizer)
    names = [dimension.name for dimension in rubric.dimensions]
    separator = _stable_separator(tokenizer, tail, names)
    return Layout(head, middle, tail, separator, control_escapes(tokenizer))


def _split_chat_template(tokenizer: Any) -> tuple[str, str, str]:
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError("The base has no chat template; choose an instruction-tuned base.")
    with_system = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _USER}]
    user_only = [{"role": "user", "content": f"{_SYSTEM}\n\n{_USER}"}]  # bases without the role
    for messages in (with_system, user_only):
        try:
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        except (TemplateError, ValueError):
            continue
        head, found_system, rest = text.partition(_SYSTEM)
        middle, found_user, tail = rest.partition(_USER)
        if found_system and found_user and tail:
            return head, middle, tail
    raise ModelError(
        "The base's chat template prints neither a system and a user message nor a user message "
        "followed by a generation prompt; choose another base."
    )


def _stable_separator(tokenizer: Any, tail: str, names: Sequence[str]) -> str:
    """The first separator with which marks between the slots change no token."""

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    for separator in _SEPARATORS:
        slots = [f"{tail}{names[0]}:", *(f"{separator}{name}:" for name in names[1:])]
        if [token for text in slots for token in encode(text)] == encode("".join(slots)):
            return separator
    raise ModelError("The base's tokenizer merges the colon of an answer slot with what follows.")


def control_escapes(tokenizer: Any) -> tuple[tuple[str, str], ...]:
    """Replacements that keep text from imitating a control token of `tokenizer`.

    `<|x|>` becomes `<¦|x|>`; every other control token gets the sign after its first character
    too. No control token contains the sign, so no replacement can create one.

    Besides the added tokens, entries of the vocabulary that look like control tokens count:
    llama.cpp makes control tokens of some of them (`</s>` in Qwen's vocabulary), transformers
    does not.

    Raises:
        ModelError: a control token cannot be escaped.
    """
    added = {str(token) for token in tokenizer.get_added_vocab()} - {MARK, SPLIT}
    lookalikes = {token for token in tokenizer.get_vocab() if _CONTROL_LIKE.fullmatch(token)}
    searches = {"<|"} | {_search(token) for token in added | lookalikes if token.strip()}
    if any(ESCAPE in search or len(search) < 2 for search in searches) or len(searches) > 64:
        raise ModelError("The control tokens of the base cannot be escaped; choose another base.")
    shortest = [s for s in searches if not any(s != t and s.startswith(t) for t in searches)]
    return tuple((search, f"{search[0]}{ESCAPE}{search[1:]}") for search in sorted(shortest))


def _search(token: str) -> str:
    """The token, or what comes before the number where it is one of many (`<unused7>`)."""
    stem = re.split(r"\d", token, maxsplit=1)[0]
    return stem if len(stem) >= 3 else token


# --- the two templates --------------------------------------------------------------------------


def _quote(text: str) -> str:
    """A string literal for both template engines (llama.cpp knows only these escapes)."""
    for plain, escaped in (
        ("\\", "\\\\"),
        ('"', '\\"'),
        ("\n", "\\n"),
        ("\r", "\\r"),
        ("\t", "\\t"),
    ):
        text = text.replace(plain, escaped)
    return f'"{text}"'


def _out(expression: str) -> str:
    return "{{- " + expression + " -}}"


def _macro(replacements: Iterable[tuple[str, str]]) -> str:
    """`t(x)`: the text of a value, with nothing in it that could become a control token."""
    filters = "".join(f"|replace({_quote(old)}, {_quote(new)})" for old, new in replacements)
    return (
        "{%- macro t(x) -%}"
        + _out(f"(x if x is string else x|tojson){filters}")
        + "{%- endmacro -%}"
    )


def _escape(text: str, escapes: Iterable[tuple[str, str]]) -> str:
    """What the macro `t` of the templates does."""
    for old, new in escapes:
        text = text.replace(old, new)
    return text


def _item(rubric: Rubric) -> str:
    """The user's turn: a line a field."""
    lines = [f'{_quote(field + ": ")} ~ t(state["{field}"])' for field in rubric.fields]
    whole = _out(' ~ "\\n" ~ '.join(lines))
    if len(rubric.fields) > 1:
        return whole
    plain = _out(f"{_quote(rubric.fields[0] + ': ')} ~ t(state)")
    return "{%- if state is string -%}" + plain + "{%- else -%}" + whole + "{%- endif -%}"


def _system(rubric: Rubric, layout: Layout, name: str, option: str) -> str:
    """The system's turn. `name` and `option` are the template code that differs per reader."""
    instructions = _escape(normalise(rubric.instructions.strip()), layout.escapes)
    intro = f"{layout.head}{instructions}\n\n{ANSWER_HINT}"
    return (
        _out(_quote(intro))
        + "{%- for q in questions -%}"
        + _out(f'"\\n\\n" ~ t({name}) ~ ": " ~ t(q.instructions)')
        + option
        + "{%- endfor -%}"
        + _out(_quote(layout.middle))
    )


def _option_line(kind: str, label: str, key: str, description: str) -> str:
    return (
        "{%- if " + kind + ' == "score" -%}'
        + _out(f'"\\n" ~ {label} ~ ": " ~ t({description})')
        + "{%- elif " + description + " -%}"
        + _out(f'"\\n" ~ {label} ~ ": " ~ t({key}) ~ ": " ~ t({description})')
        + "{%- else -%}"
        + _out(f'"\\n" ~ {label} ~ ": " ~ t({key})')
        + "{%- endif -%}"
    )  # fmt: skip


def decision_head(rubric: Rubric, layout: Layout) -> str:
    """The part of `decision_template` before the item: everything that the rubric alone decides."""
    option = (
        "{%- for label in q.labels -%}"
        + _option_line("q.type", "label", "q.options[loop.index0]", "q.descriptions[loop.index0]")
        + "{%- endfor -%}"
    )
    return _macro(layout.escapes) + _system(rubric, layout, "q.name", option)


def decision_template(rubric: Rubric, layout: Layout) -> str:
    """The layout for transformers: `decision_template.jinja`, all slots in one prompt."""
    slots = (
        "{%- for q in questions -%}"
        + "{%- if not loop.first -%}" + _out(_quote(layout.separator)) + "{%- endif -%}"
        + _out(f't(q.name) ~ ":{MARK}"')
        + "{%- endfor -%}"
    )  # fmt: skip
    return decision_head(rubric, layout) + _item(rubric) + _out(_quote(layout.tail)) + slots


def item_spans(rubric: Rubric, layout: Layout, state: Mapping[str, str]) -> list[tuple[int, int]]:
    """Where the texts of the fields are, in characters from the start of the item's part."""
    spans, position = [], 0
    for field in rubric.fields:
        position += len(f"{field}: ")
        length = len(_escape(state[field], layout.escapes))
        spans.append((position, position + length))
        position += length + 1  # a line break
    return spans


def systemone_template(rubric: Rubric, layout: Layout) -> str:
    """The layout for llama.cpp: the prompt of question `id`, with all earlier slots before it.

    llama-server does not drop the sentinels of transformers from a request, so the template does.
    """
    option = (
        "{%- for o in q.options -%}"
        + _option_line("q.type", "o.label", "o.key", "o.description")
        + "{%- endfor -%}"
    )
    slots = (
        "{%- set ns = namespace(open=true) -%}"
        "{%- for q in questions -%}{%- if ns.open -%}"
        "{%- if not loop.first -%}" + _out(_quote(layout.separator)) + "{%- endif -%}"
        + _out('t(q.id) ~ ":"')
        + "{%- if q.id == id -%}{%- set ns.open = false -%}{%- endif -%}"
        + "{%- endif -%}{%- endfor -%}"
    )  # fmt: skip
    return (
        _macro(((MARK, ""), (SPLIT, ""), *layout.escapes))
        + _system(rubric, layout, "q.id", option)
        + _item(rubric)
        + _out(_quote(layout.tail))
        + slots
    )


def decision_questions(rubric: Rubric, labels: Sequence[str]) -> list[dict[str, Any]]:
    """The rubric's questions as `pipeline("decision")` hands them to the template."""
    questions = []
    for dimension in rubric.dimensions:
        criteria = dimension.question()["criteria"]
        scored = isinstance(criteria, list)
        questions.append(
            {
                "name": dimension.name,
                "type": dimension.type,
                "instructions": dimension.instructions,
                "options": [str(i) for i in range(len(criteria))] if scored else list(criteria),
                "labels": list(labels[: len(criteria)]),
                "descriptions": criteria if scored else list(criteria.values()),
            }
        )
    return questions


def systemone_questions(rubric: Rubric, labels: Sequence[str]) -> list[dict[str, Any]]:
    """The rubric's questions as llama-server hands them to the template."""
    return [
        {
            "id": question["name"],
            "type": question["type"],
            "instructions": question["instructions"],
            "options": [
                {"key": key, "description": description, "label": label}
                for key, description, label in zip(
                    question["options"], question["descriptions"], question["labels"], strict=True
                )
            ],
        }
        for question in decision_questions(rubric, labels)
    ]


@lru_cache(maxsize=32)
def compile_template(source: str) -> Template:
    """Compile a template in a sandbox, with the settings of transformers and llama.cpp."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise ModelError(f"The judge's prompt template is not valid: {error}") from error


# --- the readers --------------------------------------------------------------------------------


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids of one item's prompt, and where its answers are read."""

    input_ids: list[int]
    slots: list[int]
    """Per dimension, the position whose next-token distribution is the answer."""


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

    def in_other_words(self, template: str, rubric: Rubric) -> "DecisionReader":
        """A reader of another rubric that shares the tokenizer, which is slow to copy."""
        reader = copy.copy(self)
        reader._ask(template, rubric, self._labels)
        return reader

    def render(self, state: State) -> str:
        """The prompt as text, with `<|mark|>` at each slot."""
        return self._template.render(state=state, questions=self.questions)

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
        self, tokenize: Tokenize, template: str, rubric: Rubric, labels: Sequence[str]
    ) -> None:
        """Read `rubric` through `template`.

        Args:
            tokenize: text to token ids, control tokens parsed, none added.
            template: the value of `tokenizer.chat_template.systemone`.
            rubric: the rubric of the judge.
            labels: label codes in order.

        Raises:
            ModelError: prompt k is not a prefix of prompt k+1.
        """
        check_label_count(rubric, labels)
        self._tokenize = tokenize
        self._template = compile_template(template)
        self._questions = systemone_questions(rubric, labels)
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

    def render(self, state: State, question_id: str | None = None) -> str:
        """The prompt of one question (by default the last, which holds all slots) as text."""
        question = next(
            q for q in reversed(self._questions) if question_id is None or q["id"] == question_id
        )
        return self._template.render(state=state, questions=self._questions, **question)

    def encode(self, states: Sequence[State]) -> list[EncodedPrompt]:
        """Tokenize the prompts of many items."""
        prompts = []
        for state in states:
            ids = self._ids(state)
            prompts.append(EncodedPrompt(ids, [len(ids) - end for end in self._ends]))
        return prompts

    def _ids(self, state: State, question_id: str | None = None) -> list[int]:
        return list(self._tokenize(self.render(state, question_id)))


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
