"""The page of an evaluation: HTML, figures and every number."""

import base64
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined
from jinja2.sandbox import SandboxedEnvironment
from markupsafe import Markup

from slm_judge.agreement.bias import AGREEMENT, BEYOND, FEWEST, FEWEST_CLUSTERS, SHIFT
from slm_judge.agreement.bootstrap import fixed
from slm_judge.files import atomic_file, write_json, write_text
from slm_judge.rubric import format_value
from slm_judge.screen import Sheet

from . import figures

PAGE, NUMBERS, FIGURES = "report.html", "report.json", "figures"
_MOST_ANNOTATORS = 100  # in a table of the page
_NAMED = 5  # groups in a sentence
_ERRORS = (
    "since on no side it is shown to be both farther from them than they are from each other and "
    "farther than on the other side"
)
_EITHER = {
    BEYOND: ("agrees with annotators, beyond their own agreement, more on one side", _ERRORS),
    AGREEMENT: ("agrees with annotators more on one side", "since most items have one annotator"),
    SHIFT: ("rates higher against annotators on one side",
            f"{_ERRORS}: who errs more is nearer to the middle of the scale"),
}  # fmt: skip
"""Measure -> what differs, and why it may be the annotators."""


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
    environment.filters |= {
        "interval": _spaced, "number": number, "value": _isolated, "whose": whose}  # fmt: skip
    source = (Path(__file__).parent / "report.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        report=report,
        images=images,
        first=report["systems"][0],
        probes=probes_of(report),
        found=significant(report),
        bias=bias_sentences(report),
        calibration=calibration,
        sets=report.get("sets", {}),
        inside={name for one in report.get("sets", {}).values() for name in one["members"]},
        most_annotators=_MOST_ANNOTATORS,
    )


def probes_of(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All probes, with their dimension."""
    return [
        {"dimension": name, **probe}
        for name, dimension in report["dimensions"].items()
        for probe in dimension["probes"]
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


def significant(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Probes that found a difference, corrected for their number; those of a bias first."""
    found = [probe for probe in probes_of(report) if probe["verdict"]]
    return sorted(found, key=lambda probe: probe["verdict"] != "bias")


def whose(probe: Mapping[str, Any]) -> str:
    """Whose a difference is shown to be."""
    if not probe["verdict"]:
        return ""
    known = "the judge" if probe["verdict"] == "bias" else "not known whose"
    return "the annotators" if probe["of"] == "annotations" else known


def bias_sentences(report: Mapping[str, Any]) -> list[str]:
    """What the probes of a report say, and what was not tested."""
    probes, found, judge = probes_of(report), significant(report), report["systems"][0]
    said = [_bias(probe, judge) for probe in found if probe["verdict"] == "bias"]
    said += [_of_annotators(probe, judge) for probe in found if probe["of"] == "annotations"]
    others = [p for p in found if p["verdict"] == "difference" and p["of"] == "items"]
    said += [
        f"Comparisons in which {judge} {what}: {n}. The files cannot say whether it is the judge "
        f"or the annotators, {why}."
        for measure, (what, why) in _EITHER.items()
        if (n := sum(probe["measure"] == measure for probe in others))
    ]
    if probes and not found:
        said.append(
            f"Comparisons of groups: {len(probes)}. None found a difference beyond chance in how "
            f"{judge} agrees with annotators, or rates against them."
        )
    untested: dict[str, set[str]] = {}
    for dimension in report["dimensions"].values():
        for attribute, groups in dimension["untested"].items():
            untested.setdefault(attribute, set()).update(groups)
    said += [
        f"Not tested in every dimension: {attribute}, {', '.join(sorted(names)[:_NAMED])}"
        f"{', ...' if len(names) > _NAMED else ''}. Both sides need {FEWEST} values, of "
        f"{FEWEST_CLUSTERS} groups of items or annotators, and some variation."
        for attribute, names in untested.items()
    ]
    return said or ["No groups of items were compared, so nothing is said about bias."]


def _of_annotators(probe: Mapping[str, Any], judge: str) -> str:
    """A difference between groups of annotators in words."""
    shift = probe["measure"] == SHIFT
    less = (probe["difference"]["estimate"] > 0) is shift  # low ratings leave the judge above them
    what = f"agree {'less' if less else 'more'} with {judge}, beyond how others agree with them,"
    if shift:
        what = f"rate {'lower' if less else 'higher'}"
    return (
        f"{probe['dimension']}: annotators of {probe['attribute']} {probe['group']} {what} than "
        f"{probe['others'] or 'the others'} ({_size(probe)}). That is of the annotators, and shows "
        f"no bias of {judge}."
    )


def _size(probe: Mapping[str, Any]) -> str:
    corrected = number(probe["p_adjusted"], 4)
    return f"difference {interval(probe['difference'])}, corrected p = {corrected}"


def _bias(probe: Mapping[str, Any], judge: str) -> str:
    """A bias in words."""
    change = probe["difference"]
    sides = [f"{probe['attribute']}: {probe['group']}", probe["others"] or "the others"]
    if probe["measure"] == SHIFT:
        kind = "higher" if change["estimate"] > 0 else "lower"
        return (
            f"{probe['dimension']}: on {sides[0]}, {judge} rates {kind} against annotators than on "
            f"{sides[1]} ({_size(probe)}), and on one side it is farther from them than they are "
            "from each other."
        )
    worse, better = (
        sides if change["estimate"] < 0 else (f"{probe['attribute']}: {sides[1]}", probe["group"])
    )
    return (
        f"{probe['dimension']}: on {worse}, {judge} agrees with annotators less than they do with "
        f"each other, and by more than on {better} ({_size(probe)})."
    )


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


def _isolated(value: object) -> Markup:
    """An option in a sentence, whichever way its script runs."""
    return Markup("<bdi>{}</bdi>").format(format_value(value))


def number(value: float | None, digits: int = 2) -> str:
    """A number, or a dash where there is none."""
    if value is None:
        return "–"
    return fixed(value, digits).replace("-", "−")


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
    for name, one in report.get("sets", {}).items():
        found.group(f"{name}, sets ({one['distance']}; accuracy: equal sets)")
        rows = {"an annotation": one["humans"], **one["systems"]}
        rows["always one set, at best"] = one.get("constant")
        for who, given in rows.items():
            if given:
                minus = given.get("minus_annotators")
                found.add(who, interval(given["alpha"]), interval(given["subset_accuracy"]),
                          interval(minus) if minus else "", "")  # fmt: skip
    return found


def _safe(name: str) -> str:
    safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
    return safe if len(safe) <= 80 else f"{safe[:80]}-{zlib.crc32(name.encode()):08x}"
