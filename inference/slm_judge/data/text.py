"""Texts and names from outside, as every reader sees them."""

import datetime
import decimal
import math
import unicodedata
from collections.abc import Mapping
from typing import Any

from slm_judge.errors import DataError
from slm_judge.rubric import Rubric, format_value

MARK, SPLIT = "<|mark|>", "<|split|>"
State = str | Mapping[str, Any]

_PLAIN = (str, bool, int, float, decimal.Decimal, datetime.date, datetime.time, datetime.timedelta)


def to_utf8(text: str) -> str:
    """Text as UTF-8 can hold it: half a surrogate pair becomes the replacement character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def normalise(text: str) -> str:
    """Item text as every reader sees it: valid UTF-8, without the sentinels of transformers, NFC.

    `pipeline("decision")` drops the sentinels from requests, and the tokenizers of transformers
    apply NFC, which llama.cpp does not; so both happen here for all.
    """
    text = to_utf8(text)
    while MARK in text or SPLIT in text:
        text = text.replace(MARK, "").replace(SPLIT, "")
    return unicodedata.normalize("NFC", text)  # last: what was dropped may have parted marks


def is_blank(value: object) -> bool:
    """Whether a cell holds nothing: null, NaN, no text, or white space alone."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value.strip())


def read_name(value: object) -> str:
    """The one form of an id or a name: without spaces around it, 1 and 1.0 alike; "" for none."""
    if isinstance(value, str):
        return value.strip()
    return "" if is_blank(value) else format_value(value)


def read_text(value: object) -> tuple[str, str]:
    """The text of a cell, and what is wrong with it, with {} for the field's name; "" if nothing.

    Numbers and dates are texts; a list of chat messages is the conversation, a line a message.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "", "missing field: {}"
    if isinstance(value, list) and value and all(map(_is_message, value)):
        text = "\n".join(f"{message['role']}: {message['content']}" for message in value)
    elif isinstance(value, _PLAIN):
        text = format_value(value)
    else:
        return "", f"no text in field: {{}} holds a {type(value).__name__}"
    text = normalise(text)
    return (text, "") if text.strip() else ("", "empty field: {}")


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
        DataError: a field is missing or has no text.
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
        raise DataError(f"{where} has no text to judge: {problem}.")
    return state
