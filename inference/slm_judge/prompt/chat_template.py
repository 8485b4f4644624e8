"""The chat template of a base, rendered in a process of its own.

It is a program of strangers, in a language that can loop and grow without end.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from slm_judge.child import ChildDied, answer, ask_child
from slm_judge.errors import ModelError

_SECONDS, _GIB = 60, 2
_LONGEST = 2**20  # characters of what comes out
Messages = Sequence[dict[str, str]]


def render_chats(tokenizer: Any, chats: Sequence[Messages]) -> list[tuple[str, str]]:
    """Each chat as `apply_chat_template` gives it, with a generation prompt and without thinking.

    Returns:
        For each chat its text, and "" or what the template said against such messages.

    Raises:
        ModelError: the template does not end in time, or takes too much memory.
    """
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        raise ModelError(f"The base has no usable chat template: {error}") from error
    request = {"template": template, "special": tokenizer.special_tokens_map, "chats": chats}
    rendered: list[tuple[str, str]] = json.loads(_ask(json.dumps(request)))
    return rendered


@lru_cache(maxsize=32)
def _ask(request: str) -> str:
    try:
        return ask_child("prompt.chat_template", json.loads(request), _SECONDS)
    except ChildDied as death:
        raise ModelError(
            f"The base's chat template cannot be rendered: {death}. Choose another base."
        ) from None


def _render(template: str, special: dict[str, Any], chat: list[dict[str, str]]) -> tuple[str, str]:
    from transformers.utils.chat_template_utils import render_jinja_template

    options = special | {"add_generation_prompt": True, "enable_thinking": False}
    try:
        (text,), _ = render_jinja_template([chat], chat_template=template, **options)
    except MemoryError:
        raise ModelError("The base's chat template takes too much memory.") from None
    except Exception as error:  # whatever the template comes to
        return "", f"{type(error).__name__}: {error}"[:500]
    return (text, "") if len(text) <= _LONGEST else ("", f"a text of {len(text)} characters")


if __name__ == "__main__":
    answer(
        lambda template, special, chats: json.dumps(
            [_render(template, special, chat) for chat in chats]
        ),
        _GIB,
    )
