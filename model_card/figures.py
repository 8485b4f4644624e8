"""Figures of a report, each as PNG and as SVG.

Names and labels are drawn as they are: `$` and `_` mean nothing, and what the font lacks is a sign.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

from slm_judge.files import atomic_file
from slm_judge.rubric import format_value

# Okabe and Ito's palette, which people with any colour vision can tell apart.
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999"]
HUMAN = "#222222"
_ANNOTATOR, _AGGREGATE = " an annotator", " the others' aggregate"  # no system has such a name
_FONT = "DejaVu Sans"  # which matplotlib brings
_NAME = 24  # letters of a name of a dimension or a system
_MOST_NAMED = 12  # options whose counts are written into a heat map

Report = Mapping[str, Any]


def draw(report: Report) -> dict[str, Figure]:
    """All figures of a report, by file name.

    Args:
        report: of `slm_judge.evaluation.evaluate`.
    """
    with style():
        figures = {"alpha": alpha_by_dimension(report)}
        if any(_gaps(dimension) for dimension in report["dimensions"].values()):
            figures["minus-annotators"] = minus_annotators(report)
        for name, dimension in report["dimensions"].items():
            if dimension["systems"]:
                figures[f"confusion-{name}"] = confusion(name, dimension)
        calibrated = {n: c for n, d in report["dimensions"].items() if (c := _calibration(d))}
        if calibrated:
            figures["reliability"] = reliability(calibrated)
            figures["risk-coverage"] = risk_coverage(calibrated)
    return figures


def save(figure: Figure, kind: str) -> bytes:
    """A figure as "png" or "svg", the same bytes each time."""
    buffer = io.BytesIO()
    with style():
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(buffer, format=kind, dpi=160, metadata=metadata)
    return buffer.getvalue()


@contextmanager
def style() -> Iterator[None]:
    """How all figures look."""
    settings = {
        "font.family": _FONT,
        "font.size": 10,
        "text.parse_math": False,
        "text.usetex": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e6e6e6",
        "axes.axisbelow": True,
        "figure.constrained_layout.use": True,
        "svg.fonttype": "path",
        "svg.hashsalt": "slm-judge",
    }
    with mpl.rc_context(settings):
        yield


def alpha_by_dimension(report: Report) -> Figure:
    """Alpha with intervals: an annotator, the aggregate of the others, and each system."""

    def alphas(dimension: Report) -> Report:
        humans = dimension["humans"] or {"alpha": None, "aggregate": {"alpha": None}}
        found = {_ANNOTATOR: humans["alpha"], _AGGREGATE: humans["aggregate"]["alpha"]}
        return found | {
            system: s["compared"]["alpha"] for system, s in dimension["systems"].items()
        }

    rows = [_ANNOTATOR, _AGGREGATE, *report["systems"]]
    return _by_dimension(report, rows, alphas, "Krippendorff's alpha (95 % interval)")


def minus_annotators(report: Report) -> Figure:
    """Alpha of each system minus that of the annotators, with intervals."""
    label = "alpha minus the annotators' own (95 % interval)"
    return _by_dimension(report, report["systems"], _gaps, label)


def _gaps(dimension: Report) -> Report:
    gaps = {system: one["minus_annotators"] for system, one in dimension["systems"].items()}
    return {system: gap for system, gap in gaps.items() if gap}


def _by_dimension(
    report: Report, rows: Sequence[str], found: Callable[[Report], Report], label: str
) -> Figure:
    """Intervals of each row in each dimension."""
    dimensions = {n: d for n, d in report["dimensions"].items() if d["systems"]}
    figure = Figure(figsize=(7, 1.1 + 0.24 * len(dimensions) * (len(rows) + 1)))
    axes = figure.add_subplot()
    ticks, shown = [], {}
    for k, (name, dimension) in enumerate(dimensions.items()):
        for r, (row, interval) in enumerate((row, found(dimension).get(row)) for row in rows):
            if interval is None or interval["estimate"] is None:
                continue
            y = -(k * (len(rows) + 1) + r)
            marker = {_ANNOTATOR: "D", _AGGREGATE: "s"}.get(row, "o")
            system = row in report["systems"]
            colour = COLOURS[report["systems"].index(row) % len(COLOURS)] if system else HUMAN
            estimate = interval["estimate"]
            if interval["low"] is not None:
                axes.hlines(y, interval["low"], interval["high"], color=colour, linewidth=2)
            (shown[row],) = axes.plot(estimate, y, marker, color=colour)
        ticks.append((-(k * (len(rows) + 1) + (len(rows) - 1) / 2), name))
    axes.set_yticks([y for y, _ in ticks], [_label(name, _NAME) for _, name in ticks])
    axes.axvline(0, color="#888888", linewidth=0.8)
    axes.set_xlabel(label)
    axes.grid(visible=False, axis="y")
    _legend(figure, {row: shown[row] for row in rows if row in shown})
    return figure


def confusion(name: str, dimension: Report) -> Figure:
    """What the judge said (columns) where annotators said (rows), shares of each row."""
    first = next(iter(dimension["systems"].values()))
    counts = np.array(first["confusion"])
    options = [f"option {k}" if "�" in (label := _label(option)) else label
               for k, option in enumerate(dimension["options"], start=1)]  # fmt: skip
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-12)
    size, longest = min(8.0, 2.6 + 0.42 * len(options)), max(map(len, options))
    upright, room = len(options) > 6 or len(options) * longest > 40, 0.12 * max(0, longest - 6)
    figure = Figure(figsize=(size + 0.9 + room, size + (room if upright else 0)))
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(options)), options, rotation=90 if upright else 0)
    axes.set_yticks(range(len(options)), options)
    axes.grid(visible=False)
    axes.set_title(_label(name, _NAME))
    axes.set_xlabel("the judge said")
    axes.set_ylabel("an annotator said")
    if len(options) <= _MOST_NAMED:
        for (row, column), share in np.ndenumerate(shares):
            if counts[row].sum():
                axes.text(column, row, f"{share:.0%}", ha="center", va="center", fontsize=8,
                          color="white" if share > 0.55 else "#333333")  # fmt: skip
    figure.colorbar(image, ax=axes, label="share of the row", shrink=0.8)
    return figure


def reliability(calibrated: Mapping[str, Report]) -> Figure:
    """Share of annotators who agree, by the judge's confidence."""
    columns = min(3, len(calibrated))
    rows = -(-len(calibrated) // columns)
    figure = Figure(figsize=(2.6 * columns + 0.6, 2.6 * rows + 0.4))
    for k, (name, calibration) in enumerate(calibrated.items(), start=1):
        axes = figure.add_subplot(rows, columns, k)
        axes.plot([0, 1], [0, 1], color="#999999", linestyle="--", linewidth=1)
        bins = calibration["bins"]
        axes.plot([b["confidence"] for b in bins], [b["accuracy"] for b in bins],
                  "o-", color=COLOURS[0], markersize=4)  # fmt: skip
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02), title=_label(name, _NAME), aspect="equal")
    figure.supxlabel("the judge's confidence", fontsize=10)
    figure.supylabel("annotators who agree", fontsize=10)
    return figure


def risk_coverage(calibrated: Mapping[str, Report]) -> Figure:
    """Error of the answers that are kept, by the share that is kept."""
    figure = Figure(figsize=(6, 3.8))
    axes, shown = figure.add_subplot(), {}
    for k, (name, calibration) in enumerate(calibrated.items()):
        curve = calibration["risk_coverage"]
        (shown[name],) = axes.plot(
            curve["coverage"], curve["risk"], color=COLOURS[k % len(COLOURS)],
            linestyle="-" if k < len(COLOURS) else "--",
        )  # fmt: skip
    axes.set(xlim=(0, 1.02), ylim=(0, None))
    axes.set_xlabel("share of the items that the judge answers, surest first")
    axes.set_ylabel("errors among them")
    _legend(figure, shown)
    return figure


def write_curve(report: Report, folder: Path) -> Path:
    """Draw `learning_curve`, as PNG and SVG; returns the first."""
    with style():
        figure = learning_curve(report)
    for kind in ("svg", "png"):
        with atomic_file(path := folder / f"curve.{kind}") as temporary:
            temporary.write_bytes(save(figure, kind))
    return path


def learning_curve(report: Report) -> Figure:
    """Alpha by training items of each dimension, with what the power law says of more.

    Args:
        report: of `slm_judge.training.curve`.
    """
    dimensions, shown = report["dimensions"], dict[str, Any]()
    columns = min(3, len(dimensions))
    rows = -(-len(dimensions) // columns)
    figure = Figure(figsize=(3.4 * columns + 0.6, 3.0 * rows + 1.4))
    for k, (name, dimension) in enumerate(dimensions.items(), start=1):
        axes = figure.add_subplot(rows, columns, k)
        axes.set(title=_label(name, _NAME), xscale="log")
        shown |= _curve_panel(axes, report["items"], dimension)
        further = [report["items"][-1] * k for k in (2, 4) if dimension["outlook"]["curve"]]
        ticks = [*report["items"], *further]
        axes.set_xticks(ticks, [f"{n:.0f}" for n in ticks], fontsize=7)
        axes.minorticks_off()
    figure.supxlabel("training items", fontsize=10)
    figure.supylabel("Krippendorff's alpha", fontsize=10)
    _legend(figure, shown, 40)
    return figure


def _curve_panel(axes: Any, items: Sequence[float], dimension: Report) -> dict[str, Any]:
    """One dimension; returns what the legend names. JSON's null is a gap."""
    shown = {}
    if (annotators := dimension["annotators"]) and annotators["low"] is not None:
        axes.axhspan(annotators["low"], annotators["high"], color=HUMAN, alpha=0.07, linewidth=0)
        shown["the annotators"] = axes.axhline(
            annotators["estimate"], color=HUMAN, linestyle="--", linewidth=1
        )
    for (name, system), colour in zip(dimension["systems"].items(), COLOURS, strict=False):
        means = np.array([one["estimate"] for one in system["mean"]], dtype=float)
        (shown[name],) = axes.plot(items, means, "o-", color=colour, markersize=3)
        if name == "judge":
            each = np.array(system["by_seed"], dtype=float)
            axes.plot(items, each, ".", color=colour, alpha=0.4, markersize=4)
            if law := dimension["outlook"]["curve"]:
                axes.fill_between(law["items"], law["low"], law["high"], color=colour, alpha=0.12)
                axes.plot(law["items"], law["estimate"], ":", color=colour)
    return shown


def _legend(figure: Figure, shown: Mapping[str, Any], most: int = _NAME) -> None:
    """Names of what is shown, also of those that matplotlib keeps for itself (`_name`)."""
    if not shown:
        return
    names = [_label(name, most) for name in shown]
    columns = max(1, min(4, 72 // (6 + max(map(len, names)))))
    legend = figure.legend(
        shown.values(), ["-"] * len(names), loc="outside upper center", ncols=columns, frameon=False
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)


def _calibration(dimension: Report) -> Report | None:
    first: Report = next(iter(dimension["systems"].values()), {})
    return first.get("calibration")


def _label(option: object, most: int = 18) -> str:
    """A name or a label as a figure has room for it and the font has signs for it."""
    font, text = get_font(findfont(_FONT)), " ".join(format_value(option).split())
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    return "".join(letter if font.get_char_index(ord(letter)) else "�" for letter in text)
