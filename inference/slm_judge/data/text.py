"""Texts and names from outside, as every reader sees them."""

import datetime
import decimal
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from slm_judge.errors import DataError
from slm_judge.rubric import Rubric, format_value
from slm_judge.text import is_replaced, normalise, to_utf8

MOST_CHARACTERS = 1_000_000
"""Of a field. Tokenizers take a few seconds for such a text, and no model here reads as much; a
longer one is too long, for training as for annotation, without a look at it."""
TOO_LONG = "too long"
_NOBODY = frozenset({"none", "nan", "null", "<na>", "na", "n/a", "#n/a"})
"""What R, Excel and pandas write where there is no name, whatever the letter case."""
_MOST_TOLD = 8  # of the ways in which labels are written
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
State = str | Mapping[str, Any]

_PLAIN = (str, bool, int, float, decimal.Decimal, datetime.date, datetime.time, datetime.timedelta)


def is_blank(value: object) -> bool:
    """Whether a cell holds nothing: null, NaN, no text, or white space alone."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value.strip())


class NoNameError(DataError):
    """A value that is no name; whoever knows the place adds it."""


def is_name(value: object) -> bool:
    """Whether a cell may be an id, a name or a label: one plain value, or none."""
    return not isinstance(value, bytes | list | tuple | dict)


def read_name(value: object) -> str:
    """The one form of an id or a name: without spaces around it, 1 and 1.0 alike; "" for none.

    Raises:
        NoNameError: the value is no text, number or date.
    """
    if isinstance(value, str):
        return value.strip()
    if not is_name(value):
        raise NoNameError(f"{value!r} is no name; expected a text, a number or a date.")
    return "" if is_blank(value) else format_value(value)


def is_nobody(name: str) -> bool:
    """Whether a name, as `read_name` gives it, is none: nothing, or what tables write for it."""
    return not name or name.casefold() in _NOBODY


def told_apart(names: Iterable[str]) -> str:
    """Names in a sentence; what cannot be seen in one is escaped."""
    return ", ".join(name if name.isprintable() and unicodedata.is_normalized("NFC", name)
                     else ascii(name) for name in names)  # fmt: skip


def told(read_as: Mapping[str, int]) -> str:
    """What was read as what, the most frequent first: `read 'Joy' as joy (3 times), ...`."""
    often = sorted(read_as.items(), key=lambda pair: -pair[1])
    shown = ", ".join(f"{what} ({n} times)" for what, n in often[:_MOST_TOLD])
    return f"read {shown}{', ...' if len(often) > _MOST_TOLD else ''}."


def read_text(value: object) -> tuple[str, str]:
    """The text of a cell, and what is wrong with it, with {} for the field's name; "" if nothing.

    Numbers and dates are texts; a list of chat messages is the conversation, a line a message.
    """
    text, problem = _as_written(value)
    if len(text) > MOST_CHARACTERS:
        problem = f"{TOO_LONG}: {len(text)} characters in {{}}, room for {MOST_CHARACTERS}"
    if problem:
        return "", problem
    text = normalise(text)
    return (text, "") if text.strip() else ("", "empty field: {}")


def read_json(text: str, halves: list[str] | None = None) -> Any:
    """What a text in JSON means; half an emoji, which UTF-8 cannot hold, is U+FFFD in it.

    Args:
        text: of a file, or of a cell.
        halves: takes the texts and keys that had half an emoji.

    Raises:
        ValueError: it is none, or an object has a key twice, so that one value would be lost.
    """
    value = json.loads(text, object_pairs_hook=_object)
    return _whole(value, [] if halves is None else halves) if _HALF.search(text) else value


def half_emoji(location: str, halves: Sequence[str]) -> list[str]:
    """The line about what `read_json` replaced, if it did."""
    what = f"{location}: {len(halves)} texts or keys hold half an emoji (a lone surrogate)"
    return [f"{what}: read as U+FFFD."] if halves else []


def _whole(value: Any, halves: list[str]) -> Any:
    if isinstance(value, list):
        return [_whole(part, halves) for part in value]
    if isinstance(value, dict):
        return _object([(_whole(k, halves), _whole(v, halves)) for k, v in value.items()])
    if not isinstance(value, str) or (text := to_utf8(value)) == value:
        return value
    halves.append(text)
    return text


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (key, times), *_ = Counter(key for key, _ in pairs).most_common()
        raise ValueError(f"an object has the key {key!r} {times} times: {str(found)[:80]}")
    return found


def is_replaced_in(values: Iterable[object]) -> bool:
    """Whether a cell has characters that `normalise` replaces."""
    return any(is_replaced(_as_written(value)[0]) for value in values)


def _as_written(value: object) -> tuple[str, str]:
    """`read_text` before anything is done to the text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "", "missing field: {}"
    if isinstance(value, list) and value and all(map(_is_message, value)):
        return "\n".join(f"{message['role']}: {message['content']}" for message in value), ""
    if isinstance(value, _PLAIN):
        return format_value(value), ""
    return "", f"no text in field: {{}} holds a {type(value).__name__}"


def _is_message(value: object) -> bool:
    """Whether a value is a message of a chat, as chat templates take them."""
    if not isinstance(value, dict) or not {"role", "content"} <= set(value):
        return False
    return isinstance(value["role"], str) and isinstance(value["content"], str)


def read_state(values: Mapping[str, object]) -> tuple[dict[str, str], str]:
    """The texts of an item's fields, and the first thing that is wrong with them, if any.

    Args:
        values: field -> cell.

    Returns:
        The state; and "" or e.g. "empty field: title".
    """
    state = {}
    for name, value in values.items():
        state[name], problem = read_text(value)
        if problem:
            return state, problem.format(name)
    return state, ""


def item_state(rubric: Rubric, row: State, where: str = "The row") -> dict[str, str]:
    """The rubric's fields of `row`, normalised.

    Args:
        rubric: names the fields.
        row: a mapping with at least those fields, or a string where there is only one field.
        where: names the row in errors.

    Raises:
        DataError: a field is missing, has no text, or is too long.
    """
    if isinstance(row, str):
        if len(rubric.fields) != 1:
            fields = ", ".join(rubric.fields)
            raise DataError(f"{where} is a string, but the rubric reads the fields {fields}.")
        row = {rubric.fields[0]: row}
    if not isinstance(row, Mapping):
        raise DataError(
            f"{where} is a {type(row).__name__}; a row is a mapping of the rubric's fields "
            f"{', '.join(rubric.fields)}, or a string where there is one field."
        )
    if absent := [name for name in rubric.fields if name not in row]:
        raise DataError(
            f"{where} has no field {absent[0]!r}; the columns are {', '.join(map(str, row))}."
        )
    state, problem = read_state({name: row[name] for name in rubric.fields})
    if problem:
        raise DataError(f"{where} has no text that can be judged: {problem}.")
    return state
