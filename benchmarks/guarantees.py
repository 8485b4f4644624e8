"""How often `verify`, `threshold` and the calibration error say what is not so.

    python -m benchmarks.guarantees verify threshold calibration --runs 1000

Judges, artefacts and annotators are simulated, so the truth is known. Each table says how often in
so many runs; what is guaranteed stands in its heading.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from slm_judge.export.answers import Heard, between, losses
from slm_judge.export.artefacts import ADAPTER
from slm_judge.export.decide import checks

from slm_judge.agreement.alpha import alpha_of_coincidences
from slm_judge.agreement.calibration import (
    calibration_error,
    choose_threshold,
    guaranteed_threshold,
    threshold_sequence,
)
from slm_judge.agreement.parts import parts
from slm_judge.data.predictions import Answers
from slm_judge.recipe import VerifyConfig
from slm_judge.rubric import Dimension, Rubric

Floats = npt.NDArray[np.float64]
Right = Callable[[Floats], Floats]
"""From confidences to the probabilities of being right."""

JUDGES: dict[str, Right] = {
    "perfect": lambda c: c,
    "too sure": lambda c: c - 0.1,
    "too sure at the top": lambda c: np.where(c > 0.93, c - 0.25, c),
    "worse when surer": lambda c: np.where(c > 0.85, 0.88, 0.93),
}
TARGET, LEVEL = 0.1, 0.9
_LARGE = 200_000  # items from which a truth is computed


# --- calibration error and thresholds -------------------------------------------------------------


def confidences(n: int, rng: np.random.Generator) -> Floats:
    """Confidences of a judge of two options, most of them high."""
    return 0.5 + 0.5 * rng.beta(4.5, 1.5, n).clip(0, 0.998)


def shown_off(right: Right, n: int, votes: int, runs: int) -> dict[str, float]:
    """What the calibration error shows of n items with so many votes each.

    Votes of one item go together (beta-binomial, correlation 0.3).

    Returns:
        Means of `estimate`, `perfect` and `truth`, and the shares of runs in which the judge is
        said to be `off`, and in which the truth is `covered` by the interval.
    """
    found = []
    for run in range(runs):
        rng = np.random.default_rng(run)
        sure = confidences(n, rng)
        truth, together = right(sure).clip(0.001, 0.999), 1 / 0.3 - 1
        share = rng.beta(truth * together, (1 - truth) * together) if votes > 1 else truth
        agreement = rng.binomial(votes, share) / votes
        error = calibration_error(sure, agreement, np.full(n, votes))
        bins = np.array_split(np.argsort(sure, kind="stable"), 10)
        real = sum(abs((truth - sure)[rows].sum()) for rows in bins) / n
        covered = error.low <= real <= error.high
        found.append((error.estimate, error.perfect, real, error.low > 0, covered))
    names = ("estimate", "perfect", "truth", "off", "covered")
    return dict(zip(names, np.mean(found, axis=0).tolist(), strict=True))


def exceeded(right: Right, n: int, runs: int, target: float = TARGET) -> dict[str, float]:
    """Thresholds chosen on n validation and n test items.

    Returns:
        Shares of the runs in which the error on new items exceeds the target, of the `estimate` and
        of the `guaranteed` threshold, and the mean share of the items that each one keeps
        (`estimate_keeps`, `guaranteed_keeps`).
    """
    sure = confidences(_LARGE, np.random.default_rng(0)).round(2)
    wrong = 1 - right(sure)
    found = []
    for run in range(runs):
        rng, drawn = np.random.default_rng(1 + run), []
        for _ in range(2):
            c = confidences(n, rng).round(2)
            drawn.append((c, (rng.random(n) > right(c)).astype(float)))
        sequence = threshold_sequence(*drawn[0], target)
        chosen = (
            choose_threshold(*drawn[0], target),
            guaranteed_threshold(sequence, *drawn[1], target, LEVEL),
        )
        kept = [sure >= one.confidence - 1e-9 for one in chosen]
        exceeds = [k.any() and wrong[k].mean() > target + 1e-4 for k in kept]
        found.append([*exceeds, *(k.mean() for k in kept)])
    names = ("estimate", "guaranteed", "estimate_keeps", "guaranteed_keeps")
    return dict(zip(names, np.mean(found, axis=0).tolist(), strict=True))


# --- verify -------------------------------------------------------------------------------------

_QUESTION = {"name": "d", "type": "choice", "instructions": "i", "options": ["a", "b", "c"]}
WORLDS = {
    "balanced": (0.4, 0.35, 0.25),
    "10 % rare": (0.9, 0.1, 0.0),
    "2 % rare": (0.98, 0.02, 0.0),
}
"""Shares of the options."""


def dimension() -> Dimension:
    """The one that is simulated."""
    rubric = {"name": "r", "instructions": "i", "fields": ["text"], "dimensions": [_QUESTION]}
    return Rubric.model_validate(rubric).dimensions[0]


def drawn_labels(world: str, changed: float, n: int, rng: np.random.Generator) -> list[Any]:
    """Two votes of each of n items, the adapter's labels, and those of an artefact.

    Annotators err in a quarter of the items, the adapter in a fifth; the artefact draws a share
    `changed` of its labels anew.
    """
    shares = WORLDS[world]

    def noisy(labels: Any, error: float) -> Any:
        return np.where(rng.random(n) < error, rng.choice(3, n, p=shares), labels)

    truth = rng.choice(3, n, p=shares)
    adapter = noisy(truth, 0.2)
    votes = np.stack([noisy(truth, 0.25), noisy(truth, 0.25)], axis=1).tolist()
    return [votes, adapter, noisy(adapter, changed)]


def true_loss(world: str, changed: float) -> float:
    """Alpha that such an artefact loses to the adapter, with any number of items."""
    shares = np.array(WORLDS[world])

    def noise(error: float) -> Floats:
        return (1 - error) * np.eye(3) + error * shares

    alphas = []
    for said in (noise(0.2), noise(0.2) @ noise(changed)):
        pairs = noise(0.25).T @ np.diag(shares) @ said  # votes and labels of one item
        alphas.append(alpha_of_coincidences((pairs + pairs.T) * 1e9, "abc", "nominal"))
    return float(alphas[0] - alphas[1])


def decided(
    world: str, changed: float, n: int, runs: int, *margins: float
) -> list[dict[str, float]]:
    """Shares of the runs in which an artefact is said to lose less than a margin, or more.

    Returns:
        Per margin: `holds`, `does not hold` and `not decided`, of the loss against the annotators;
        and `refused`, by any threshold of `verify` with its defaults but this margin.
    """
    asked, found = dimension(), []
    for run in range(runs):
        votes, adapter, other = drawn_labels(world, changed, n, np.random.default_rng(1 + run))
        judged = {ADAPTER: adapter.tolist(), "other": other.tolist()}
        loss = losses(judged, votes, asked, 0.05)["other"]
        alike, row = between(parts(asked)[0], heard(adapter), heard(other)), []
        for margin in margins:
            checked = checks("d", "other", alike, loss, n, VerifyConfig(max_alpha_loss=margin))
            verdicts = [check.verdict for check in checked]
            refused = {"does not hold", "not defined"} & set(verdicts)
            row.append([*(verdicts[-1] == name for name in VERDICTS), bool(refused)])
        found.append(row)
    names, shares = (*VERDICTS, "refused"), np.mean(found, axis=0)
    return [dict(zip(names, row.tolist(), strict=True)) for row in shares]


VERDICTS = ("holds", "does not hold", "not decided")


def heard(labels: Any) -> Heard:
    """An artefact that says these labels."""
    return Heard({"d": Answers(labels, np.eye(3)[labels])}, [])


# --- the tables ---------------------------------------------------------------------------------


def verify_table(runs: int) -> Iterator[tuple[Any, ...]]:
    """What is said of losses beside the margin of 0.05, and where the margin is the loss itself."""
    for world in WORLDS:
        for changed in (0.0, 0.05, 0.12):
            loss = true_loss(world, changed)
            for n in (100, 300, 1000):
                said, sharp = decided(world, changed, n, runs, 0.05, max(loss, 0.0))
                cells = [said[name] for name in (*VERDICTS, "refused")]
                if loss > 0:
                    cells += [sharp["holds"], sharp["does not hold"]]
                yield world, f"{changed:.0%}", f"{loss:.3f}", n, *(f"{cell:.0%}" for cell in cells)


def threshold_table(runs: int) -> Iterator[tuple[Any, ...]]:
    """How often the error exceeds the target."""
    for name, right in JUDGES.items():
        for n in (50, 100, 300, 1000):
            said = exceeded(right, n, runs)
            cells = ("estimate", "estimate_keeps", "guaranteed", "guaranteed_keeps")
            yield name, n, *(f"{said[cell]:.0%}" for cell in cells)


def calibration_table(runs: int) -> Iterator[tuple[Any, ...]]:
    """What is said of the calibration error."""
    for name, right in JUDGES.items():
        for n in (100, 300, 1000):
            for votes in (1, 3):
                said = shown_off(right, n, votes, runs)
                shown = [f"{said[c]:.3f}" for c in ("truth", "estimate", "perfect")]
                yield name, n, votes, *shown, f"{said['off']:.0%}", f"{said['covered']:.0%}"


TABLES = {
    "verify": (
        "Margin 0.05; the last two columns, where the margin is the loss itself, at most 5 %",
        ("options", "drawn anew", "loss", "items", "no worse", "worse", "not decided", "refused",
         "said no worse", "said worse"),
        verify_table,
    ),
    "threshold": (
        f"Target {TARGET:.0%}; guaranteed to exceed it in at most {1 - LEVEL:.0%}",
        ("judge", "items", "estimate exceeds", "keeps", "guaranteed exceeds", "keeps"),
        threshold_table,
    ),
    "calibration": (
        "A perfect judge is said to be off in at most 5 %; at least 95 % are covered",
        ("judge", "items", "votes", "true", "estimate", "of a perfect one", "said off", "covered"),
        calibration_table,
    ),
}  # fmt: skip


def main() -> None:
    """Run the simulations."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="+", choices=list(TABLES))
    parser.add_argument("--runs", type=int, default=1000)
    arguments = parser.parse_args()
    for name in arguments.tables:
        title, columns, rows = TABLES[name]
        print(f"{title}\n\n| {' | '.join(columns)} |\n| --- |{' ---: |' * (len(columns) - 1)}")
        for row in rows(arguments.runs):
            print(f"| {' | '.join(map(str, row))} |", flush=True)
        print()


if __name__ == "__main__":
    main()
