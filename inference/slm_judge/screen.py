"""What people read in a terminal, or in a file that its output went to: tables and notes."""

import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

_GAP = "  "
# What moves the cursor or changes colours in a terminal, as a sign that can be seen.
_SEEN = {n: 0x2400 + n for n in range(32)} | {9: " ", 127: "\u2421"}
_SEEN |= dict.fromkeys(range(128, 160), "\ufffd")


@dataclass
class Sheet:
    """Figures beside names, in groups: aligned text, the same in a terminal and in a file."""

    title: str
    columns: tuple[str, ...]
    """Headings of the figures."""
    caption: str = ""
    rows: list[tuple[str, tuple[str, ...], str]] = field(default_factory=list)
    """Name, figures and style; the name of a group has no figures."""

    def group(self, name: str) -> None:
        """Start a group of rows."""
        self.rows.append((name, (), "bold"))

    def add(self, name: str, *figures: str, style: str = "") -> None:
        """Add a row to the group."""
        self.rows.append((f"{_GAP}{name}", figures, style))

    def show(self, console: Console) -> None:
        """Print it."""
        for line, style in self.lines(console.width):
            _print(console, line, style)

    def lines(self, width: int) -> Iterator[tuple[str, str]]:
        """The lines and their styles; a name that does not fit beside its figures is above them."""
        table = [self.columns, *(figures for _, figures, _ in self.rows if figures)]
        widths = [max(map(cell_len, column)) for column in zip(*table, strict=True)]
        room = width - sum(widths) - len(_GAP) * len(widths)
        beside = [n for name, figures, _ in self.rows if figures and (n := cell_len(name)) <= room]
        room = max(beside, default=len(_GAP))
        yield from ((line, "bold") for line in _wrapped(self.title, width))
        yield _row("", self.columns, room, widths), "italic"
        for name, figures, style in self.rows:
            if figures and cell_len(name) <= room:
                yield _row(name, figures, room, widths), style
                continue
            yield from ((line, style) for line in _wrapped(name, width))
            if figures:
                yield _row("", figures, room, widths), style
        yield from ((line, "dim") for line in _wrapped(self.caption, width))


def _row(name: str, figures: Iterable[str], room: int, widths: Iterable[int]) -> str:
    cells = (
        " " * (width - cell_len(text)) + text for text, width in zip(figures, widths, strict=True)
    )
    return _GAP.join((name + " " * (room - cell_len(name)), *cells)).rstrip()


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of whole words, those after the first at the same depth."""
    depth = text[: len(text) - len(text.lstrip())]
    return textwrap.wrap(
        text, width, subsequent_indent=depth, break_long_words=False, break_on_hyphens=False
    )


def say(console: Console, texts: Iterable[str], kind: str = "note: ", style: str = "") -> None:
    """Print texts as they are, wrapped between words alone."""
    for text in texts:
        for part in f"{kind}{text}".split("\n"):
            for line in _wrapped(part, console.width) or [""]:
                _print(console, line, style)


def _print(console: Console, line: str, style: str) -> None:
    """A line as it is: no markup, no emoji codes, no control characters, whatever the encoding."""
    coded = line.translate(_SEEN).encode(console.encoding, "backslashreplace")
    console.print(Text(coded.decode(console.encoding), style), soft_wrap=True)
