"""How often what `slm-judge curve` says of more items is true, on simulated curves.

    python -m benchmarks.learning_curves --repeats 40

Alpha is measured at five sizes, up to 800 items, with the chance of the test items, which all
trainings share in part, and that of each training. Where that is falling or rising, it is so with
the size, and as said in the middle; of 8 groups, the test items are of so few conversations. Shown
is how often the number of items for +0.05, and the gain of twice as many items, lie outside of
their 95 % intervals, and what is said.
"""

import argparse
import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from slm_judge.agreement.learning_curve import FURTHEST, GAIN, outlook

SIZES = (50, 100, 200, 400, 800)
Curve = Callable[[float], float]
CURVES: dict[str, Curve] = {
    "power 0.5": lambda n: 0.8 - 3 * n**-0.5,
    "power 0.15": lambda n: 1 - 1.2 * n**-0.15,
    "steep": lambda n: 0.05 + 0.6 * (n / 1000) ** 0.6,
    "logarithm": lambda n: 0.1 + 0.07 * math.log(n / 10),
    "exponential": lambda n: 0.7 - 0.5 * math.exp(-n / 200),
    "sigmoid, past": lambda n: 0.7 / (1 + (n / 150) ** -2),
    "sigmoid, ahead": lambda n: 0.7 / (1 + (n / 600) ** -2),
    "sigmoid, slow": lambda n: 0.8 / (1 + (n / 800) ** -1.2),
    "nearly flat": lambda n: 0.55 - 0.8 * n**-0.5,
    "flat": lambda n: 0.5,
}
FEW = ["power 0.5", "steep", "exponential", "flat"]
"""Which are also tried where the deviation falls or rises with the size, and of few groups."""
HEADER = (
    "| curve | seeds x deviation | items for +0.05 | outside | twice as many bring | outside "
    f"| width | said: items | no | cannot be said | not a law |\n|{' --- |' * 11}"
)
_SHARED = 0.7  # of the variance that the test items make, between trainings


def simulated(
    rng: np.random.Generator,
    curve: Curve,
    seeds: int,
    deviation: float,
    resamples: int = 500,
    items: float = 0.03,
    groups: int | None = None,
    trend: float = 0,
) -> np.ndarray:
    """What `outlook` is given.

    Args:
        rng: draws.
        curve: alpha by training items.
        seeds: trainings of each size.
        deviation: of alpha, by the chance of a training.
        resamples: of the test items.
        items: deviation of alpha by the chance of the test items; 0.03 is that of about 800.
        groups: of the test items, of whose bootstrap the deviation is; None for many.
        trend: power of the size with which the deviation of trainings grows, the mean being as is
            said.
    """

    def chance(n: int) -> np.ndarray:
        common = math.sqrt(_SHARED) * rng.standard_normal((n, 1, 1))
        own = math.sqrt(1 - _SHARED) * rng.standard_normal((n, len(SIZES), seeds))
        return items * (common + own)

    true, sizes = np.array([curve(n) for n in SIZES])[:, None], np.array(SIZES)[:, None]
    own = deviation * (sizes / np.exp(np.log(sizes).mean())) ** trend
    measured = true + own * rng.standard_normal((len(SIZES), seeds)) + chance(1)[0]
    shown = 1 if groups is None else math.sqrt(rng.chisquare(groups - 1) / groups)
    return np.concatenate([measured[None], measured + shown * chance(resamples)])


def needed(curve: Curve) -> float:
    """The further items that bring the gain; inf beyond what anything is said of."""
    largest = SIZES[-1]
    for n in np.geomspace(largest, FURTHEST * largest, 5000).tolist():
        if curve(n) >= curve(largest) + GAIN:
            return n - largest
    return math.inf


def row(
    name: str,
    seeds: int,
    deviation: float,
    repeats: int,
    groups: int | None = None,
    trend: float = 0,
) -> Sequence[str]:
    """Of the table."""
    curve, rng, said = CURVES[name], np.random.default_rng(0), Counter[str]()
    more, gain = needed(curve), curve(2 * SIZES[-1]) - curve(SIZES[-1])
    outside, widths = [0, 0], []
    for _ in range(repeats):
        drawn = simulated(rng, curve, seeds, deviation, groups=groups, trend=trend)
        found = outlook(SIZES, drawn, units=groups)
        said["not a law" if found.more is None else found.verdict] += 1
        if found.more and found.twice:
            outside[0] += not 0.999 * found.more.low <= more <= 1.001 * found.more.high
            outside[1] += not found.twice.low - 1e-4 <= gain <= found.twice.high + 1e-4
            widths.append(found.twice.high - found.twice.low)
    known, what = max(len(widths), 1), f", {groups} groups" if groups else ""
    what += {0: "", -1: ", falling", 1: ", rising"}[np.sign(trend)]
    verdicts = ("items", "no", "cannot be said", "not a law")
    return (
        f"{name}{what}", f"{seeds} x {deviation}", "never" if math.isinf(more) else f"{more:,.0f}",
        f"{outside[0] / known:.0%}", f"+{gain:.3f}", f"{outside[1] / known:.0%}",
        f"{np.mean(widths or [math.nan]):.3f}", *(f"{said[v] / repeats:.0%}" for v in verdicts),
    )  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=40)
    repeats = parser.parse_args().repeats
    print(HEADER)
    settings: list[tuple[int, float, int | None, float, list[str]]] = [
        (3, 0.03, None, 0, [*CURVES]), (5, 0.01, None, 0, [*CURVES]),
        (3, 0.02, None, -0.5, FEW), (3, 0.02, None, 0.3, FEW), (3, 0.01, 8, 0, FEW),
    ]  # fmt: skip
    for seeds, deviation, groups, trend, names in settings:
        for name in names:
            cells = row(name, seeds, deviation, repeats, groups, trend)
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
