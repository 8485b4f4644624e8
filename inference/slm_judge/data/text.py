"""Texts from outside, as every reader sees them."""

import unicodedata
from collections.abc import Mapping
from typing import Any

from slm_judge.errors import DataError
from slm_judge.rubric import Rubric, format_value

MARK, SPLIT = "<|mark|>", "<|split|>"
State = str | Mapping[str, Any]


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
