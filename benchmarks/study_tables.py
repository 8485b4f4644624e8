"""What `benchmarks.study --show` prints and draws, from the rows that were computed."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from slm_judge.model_card.figures import COLOURS, HUMAN, save, style

METRICS = {"alpha": "alpha", "accuracy": "accuracy", "macro_f1": "macro-F1"}
Rows = Sequence[tuple[Any, Mapping[str, Any]]]
"""Row of the plan and its result."""
Seeds = dict[int, Mapping[str, Any]]
"""Seed -> result."""


def markdown(table: str, rows: Rows) -> str:
    """The table, mean ± standard deviation over seeds."""
    if not rows:
        return "Nothing was computed yet.\n"
    return {"curve": _curve, "ablation": _ablation}.get(table, _systems)(rows)


def _grid(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    cells = [header, ["---", *["---:"] * (len(header) - 1)], *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"


def spread(values: Sequence[float | None], digits: int = 3) -> str:
    """Mean ± standard deviation of what is known."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    deviation = f" ± {np.std(known, ddof=1):.{digits}f}" if len(known) > 1 else ""
    return f"{np.mean(known):.{digits}f}{deviation}".replace("-", "−")


def _interval(scores: Sequence[Mapping[str, float]]) -> str:
    """Over seeds; of one alone, with its interval over items."""
    text = spread([one["estimate"] for one in scores])
    if len(scores) == 1 and scores[0]["low"] is not None:
        text += f" [{scores[0]['low']:.3f}, {scores[0]['high']:.3f}]".replace("-", "−")
    return text


def _systems(rows: Rows) -> str:
    """What annotates, and how it agrees with people: the first dimension in full, alpha of all."""
    found: dict[str, dict[str, list[Any]]] = {}
    for _, result in rows:
        for dimension, systems in result["results"].items():
            for system, scores in systems.items():
                if scores["alpha"]["estimate"] is not None:  # nobody to agree with
                    found.setdefault(dimension, {}).setdefault(system, []).append(scores)
    first, *others = found
    lines = [
        [system, *(_interval([one[m] for one in scores]) for m in METRICS), str(len(scores))]
        for system, scores in found[first].items()
    ]
    parts = [_about(rows), _grid([first, *METRICS.values(), "seeds"], lines)]
    if others:
        lines = [
            [system, *(spread([one["alpha"]["estimate"] for one in by_system.get(system, [])])
                       for by_system in found.values())]
            for system in found[first]
        ]  # fmt: skip
        parts.append(_grid(["alpha", *found], lines))
    return "\n".join(parts)


def _about(rows: Rows) -> str:
    parts = rows[0][1]["items"]
    of = {name: {result["items"][name]: None for _, result in rows} for name in parts}
    items = ", ".join(f"{' or '.join(map(str, numbers))} {name}" for name, numbers in of.items())
    seconds = spread([result["seconds"] for _, result in rows], 0)
    return f"Seeds: {len(rows)}; items: {items}; {seconds} s of training.\n"


def _by_label(rows: Rows) -> dict[str, dict[str, Seeds]]:
    """Data -> variant or size -> seed -> result."""
    found: dict[str, Any] = defaultdict(lambda: defaultdict(dict))
    for row, result in rows:
        data, _, name = row.label.partition("-")
        found[data][name][row.seed] = result
    return found


def _only(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """The scores of a result with one dimension."""
    (scores,) = result["results"].values()
    return scores  # type: ignore[no-any-return]


def _ablation(rows: Rows) -> str:
    """A table for each data set; the difference in alpha is paired, seed by seed."""
    parts = []
    for data, variants in _by_label(rows).items():
        lines = []
        for name, seeds in variants.items():
            judge = [_only(result)["judge"] for result in seeds.values()]
            plain = variants.get("recipe", {})
            gains = [
                _only(result)["judge"]["alpha"]["estimate"]
                - _only(plain[seed])["judge"]["alpha"]["estimate"]
                for seed, result in seeds.items()
                if seed in plain and name != "recipe"
            ]
            same = all(r["row"]["label"] == f"{data}-recipe" for r in seeds.values())
            shown = f"{name} (as the recipe)" if same and name != "recipe" else name
            lines.append([
                shown, *(spread([one[m]["estimate"] for one in judge]) for m in METRICS),
                spread([v for r in seeds.values() for v in r["log_loss"].values()]),
                spread(gains), spread([r["seconds"] for r in seeds.values()], 0), str(len(seeds)),
            ])  # fmt: skip
        header = [data, *METRICS.values(), "log loss", "Δ alpha, paired", "seconds", "seeds"]
        parts.append(_grid(header, lines))
    return "\n".join(parts)


def _points(sizes: Mapping[str, Seeds]) -> dict[str, dict[int, list[Any]]]:
    """System -> labelled items -> alpha of each seed."""
    found: dict[str, Any] = defaultdict(lambda: defaultdict(list))
    for seeds in sizes.values():
        results = list(seeds.values())
        labelled = round(np.mean([r["items"]["train"] + r["items"]["validation"] for r in results]))
        for result in results:
            for system, scores in _only(result).items():
                if (alpha := scores["alpha"]["estimate"]) is not None:
                    found[system][labelled].append(alpha)
    return found


def _told(system: str) -> bool:
    """Whether a curve shows it: of each kind of baseline, the one that finds rare options too."""
    return system in ("annotator", "judge", "base, zero-shot") or "balanced" in system


def _curve(rows: Rows) -> str:
    """A table for each data set: labelled items down, systems across."""
    parts = []
    for data, sizes in _by_label(rows).items():
        points = {name: by for name, by in _points(sizes).items() if _told(name)}
        counts = sorted({n for by_size in points.values() for n in by_size})
        lines = [[str(n), *(spread(by_size.get(n, [])) for by_size in points.values())]
                 for n in counts]  # fmt: skip
        parts.append(_grid([f"{data}: labelled items", *points], lines))
    return "\n".join(parts)


def curve_figure(rows: Rows, path: Path) -> None:
    """Alpha over labelled items, mean and standard deviation over seeds, as PNG."""
    if not rows:
        return
    found = _by_label(rows)
    with style():
        figure = Figure(figsize=(4.2 * len(found), 3.6))
        shown: dict[str, Any] = {}
        panels = figure.subplots(1, len(found), squeeze=False)[0]
        for axes, (data, sizes) in zip(panels, found.items(), strict=True):
            shown |= _panel(axes, _points(sizes))
            axes.set(title=data, xlabel="labelled items", ylabel="Krippendorff's alpha")
        figure.legend(shown.values(), shown, loc="outside lower center", ncols=2, frameon=False)
        path.write_bytes(save(figure, "png"))
    print(path)


def _panel(axes: Any, points: Mapping[str, Mapping[int, list[float]]]) -> dict[str, Any]:
    """One data set; returns what the legend names."""
    shown = {}
    everyone = [alpha for alphas in points["annotator"].values() for alpha in alphas]
    shown["one annotator"] = axes.axhline(np.mean(everyone), color=HUMAN, linestyle="--")
    drawn = ["judge", *(name for name in points if "balanced" in name)]
    if asked := [alpha for alphas in points["base, zero-shot"].values() for alpha in alphas]:
        told = f"base, zero-shot: {spread([np.mean(asked)], 2)}"  # as a line, it lies far below
        axes.text(0.98, 0.03, told, transform=axes.transAxes, ha="right", color="#777777")
    for name, colour in zip(drawn, COLOURS, strict=False):
        counts = sorted(points[name])
        means = np.array([np.mean(points[name][n]) for n in counts])
        spreads = np.array([np.std(a, ddof=1) if len(a := points[name][n]) > 1 else 0.0
                            for n in counts])  # fmt: skip
        (shown[name],) = axes.plot(counts, means, "o-", color=colour)
        axes.fill_between(counts, means - spreads, means + spreads, color=colour, alpha=0.15)
    axes.set_xscale("log")
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    counts = sorted({n for by_size in points.values() for n in by_size})
    ticks = [n for n, before in zip(counts, [0, *counts], strict=False) if n > 1.4 * before]
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.minorticks_off()
    return shown
