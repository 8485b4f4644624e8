"""The layout: all the text around the rubric and the item, taken from the base's chat template."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slm_judge.errors import ModelError
from slm_judge.rubric import Rubric
from slm_judge.text import MARK, SPLIT

from .chat_template import render_chats

ESCAPE = "¦"
ANSWER_HINT = "Answer each line with the letter of one option."
# A slot's colon must stay a token of its own whether or not text follows it, which depends on
# the tokenizer: Qwen merges ":\n" into one token, but never ": \n".
_SEPARATORS = ("\n", " \n", " ", "; ")
_CONTROL_LIKE = re.compile(r"</?[A-Za-z][\w -]*>|\[[A-Z]{2,}\]")
_SYSTEM, _USER = "[[slm-judge-system]]", "[[slm-judge-user]]"


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
    rendered = render_chats(tokenizer, (with_system, user_only))
    for text, _ in rendered:
        head, found_system, rest = text.partition(_SYSTEM)
        middle, found_user, tail = rest.partition(_USER)
        if found_system and found_user and tail:
            return head, middle, tail
    said = "; ".join(dict.fromkeys(reason for _, reason in rendered if reason))
    raise ModelError(
        "The base's chat template prints neither a system and a user message nor a user message "
        f"followed by a generation prompt; choose another base.{said and ' It says: '}{said}"
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


def escape(text: str, escapes: Iterable[tuple[str, str]]) -> str:
    """What the macro `t` of the templates does."""
    for old, new in escapes:
        text = text.replace(old, new)
    return text


def item_spans(rubric: Rubric, layout: Layout, state: Mapping[str, str]) -> list[tuple[int, int]]:
    """Where the texts of the fields are, in characters from the start of the item's part."""
    spans, position = [], 0
    for field in rubric.fields:
        position += len(f"{field}: ")
        length = len(escape(state[field], layout.escapes))
        spans.append((position, position + length))
        position += length + 1  # a line break
    return spans
