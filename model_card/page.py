"""The page of an evaluation: HTML, figures and every number."""

import base64
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined
from jinja2.sandbox import SandboxedEnvironment
from markupsafe import Markup

from slm_judge.files import atomic_file, write_json, write_text
from slm_judge.rubric import format_value
from slm_judge.screen import Sheet

from . import figures

PAGE, NUMBERS, FIGURES = "report.html", "report.json", "figures"
_MOST_ANNOTATORS = 100  # in a table of the page


def write(report: Mapping[str, Any], folder: Path) -> Path:
    """Write `report.json`, the figures (PNG and SVG) and `report.html`, which needs no other file.

    Returns:
        The page.
    """
    write_json(folder / NUMBERS, report)
    inline = {}
    for name, figure in figures.draw(report).items():
        for kind in ("png", "svg"):
            content = figures.save(figure, kind)
            with atomic_file(folder / FIGURES / f"{_safe(name)}.{kind}") as path:
                path.write_bytes(content)
        inline[name] = f"data:image/svg+xml;base64,{base64.b64encode(content).decode()}"
    write_text(folder / PAGE, render(report, inline))
    return folder / PAGE


def render(report: Mapping[str, Any], images: Mapping[str, str]) -> str:
    """The page; all texts are escaped.

    Args:
        report: of `evaluate`.
        images: name of a figure -> its address.
    """
    environment = SandboxedEnvironment(
        undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"interval": _spaced, "number": number, "value": format_value}
    source = (Path(__file__).parent / "report.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        report=report,
        images=images,
        first=report["systems"][0],
        significant=significant(report),
        calibration=calibration,
        most_annotators=_MOST_ANNOTATORS,
    )


def significant(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Probes that found a difference, corrected for their number."""
    return [
        {"dimension": name, **probe}
        for name, dimension in report["dimensions"].items()
        for probe in dimension["probes"]
        if probe["p_adjusted"] < 0.05
    ]


def calibration(found: Mapping[str, float]) -> str:
    """Whether confidences mean what they say, from `agreement.calibration.CalibrationError`."""
    low, high = number(found["low"], 3), number(found["high"], 3)
    shown = (
        f"The calibration error is {interval(found, 3)}; on as many items a perfect judge would "
        f"show {number(found['perfect'], 3)} on average."
    )
    if not found["low"]:
        return f"{shown} So its confidence is not shown to be off; it may be by up to {high}."
    return f"{shown} So its confidence is off, by {low} to {high}."


def interval(found: Mapping[str, float | None] | None, digits: int = 2) -> str:
    """An estimate with its interval."""
    if not found or found["estimate"] is None:
        return "–"
    text = number(found["estimate"], digits)
    if found["low"] is not None:
        text += f" [{number(found['low'], digits)}, {number(found['high'], digits)}]"
    return text


def _spaced(found: Mapping[str, float | None] | None, digits: int = 2) -> Markup:
    """The same for a page, whose lines break before the interval alone."""
    estimate, _, rest = interval(found, digits).partition(" ")
    spaced = Markup(' <span class="interval">{}</span>').format(rest)
    return Markup("{}{}").format(estimate, spaced if rest else "")


def number(value: float | None, digits: int = 2) -> str:
    """A number, or a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:.{digits}f}".replace("-", "−")


def table(report: Mapping[str, Any]) -> Sheet:
    """The report in short, for a terminal."""
    found = Sheet(
        f"{report['title']}: {report['items']} items, 95 % intervals",
        ("alpha", "accuracy", "minus annotators", "may replace"),
        "minus annotators: alpha of the judge minus theirs, on the same items; may replace: "
        "whether the judge may stand in for an annotator",
    )

    def add(name: str, one: Mapping[str, Any], minus: Any = None, may: str = "") -> None:
        found.add(name, interval(one["alpha"]), interval(one["accuracy"]),
                  interval(minus) if minus else "", may)  # fmt: skip

    for name, dimension in report["dimensions"].items():
        found.group(name)
        if humans := dimension["humans"]:
            add("an annotator" if dimension["named"] else "an annotation", humans)
            add("the aggregate of the others", humans["aggregate"])
        for system, one in dimension["systems"].items():
            test = one["alternative_annotator_test"]
            may = ("yes" if test["passed"] else "not shown") if test["annotators"] else "–"
            add(system, one["compared"], one["minus_annotators"], may)
            if apart := one["apart"]:
                add(f"{system}, {apart['items']} items with one annotation", apart)
        if constant := dimension.get("constant"):
            add("always one option, at best", constant, constant["minus_annotators"])
        if not dimension["systems"]:
            found.add("no annotations", "–", "–", "–", "–")
    return found


def _safe(name: str) -> str:
    safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
    return safe if len(safe) <= 80 else f"{safe[:80]}-{zlib.crc32(name.encode()):08x}"
