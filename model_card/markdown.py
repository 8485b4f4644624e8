"""Texts of others in Markdown, read as they were written: CommonMark, and the tables of GitHub."""

import re
from typing import Any

# An underscore inside a word means nothing.
_SIGN = re.compile(r"[\\`*\[\]<>|~&$]|(?<![^\W_])_|_(?![^\W_])")
_START = re.compile(r"^( *)([#+=-]|\d+(?=[.)](?:\s|$)))")


class Markdown(str):
    """Text that is Markdown already; any other text is escaped where the card shows it."""

    __slots__ = ()


def escape(value: Any) -> Markdown:
    """A text in a line, whatever stands in it."""
    if isinstance(value, Markdown):
        return value
    line = _SIGN.sub(r"\\\g<0>", re.sub(r"\s*[^\S ]\s*", " ", str(value)))
    return Markdown(_START.sub(_escape_start, line))


def _escape_start(found: re.Match[str]) -> str:
    """What would make a line a heading, a list or a rule."""
    spaces, sign = found.groups()
    return f"{spaces}{sign}\\" if sign.isdigit() else f"{spaces}\\{sign}"


def lines(text: str) -> Markdown:
    """A text in its lines and paragraphs."""
    return Markdown("\n".join(escape(line.strip()) for line in text.splitlines()))


def code(value: Any) -> Markdown:
    """A text as code in a line; not for tables."""
    text = " ".join(str(value).split()) or " "
    fence = "`" * (_longest_run(text) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return Markdown(f"{fence}{space}{text}{space}{fence}")


def block(text: str, language: str) -> Markdown:
    """A text as a block of code."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return Markdown(f"{fence}{language}\n{text}\n{fence}")


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
