"""Calibration of a run's judge on its test items, before and after temperature scaling.

python benchmarks/calibration.py runs/demo runs/goemotions
"""

import argparse
from pathlib import Path

import numpy as np

from slm_judge import Judge
from slm_judge.agreement.alpha import vote_counts
from slm_judge.agreement.calibration import brier_score, cross_entropy, expected_calibration_error
from slm_judge.data.item import load_split, votes_of
from slm_judge.judge.answer import softmax
from slm_judge.run import Run


def measure(run: Run) -> list[str]:
    """Rows of a Markdown table."""
    items = load_split(run.data, "test")
    with Judge.from_pretrained(run.gguf) as judge:
        contract = judge.backend.contract
        found = dict(judge.logits([item.state for item in items]))
    lines = []
    for k, dimension in enumerate(contract.rubric.dimensions):
        counts = vote_counts(votes_of(items, dimension.name), len(dimension.options))
        rows = np.flatnonzero(counts.sum(axis=1))
        shares = counts[rows] / counts[rows].sum(axis=1, keepdims=True)
        logits = np.stack([found[row][k] for row in rows.tolist()])
        for name, temperature in (("before", 1.0), ("after", contract.temperature(dimension.type))):
            p = softmax(logits, temperature)
            labels = p.argmax(axis=1)
            everyone = np.arange(len(rows))
            error = expected_calibration_error(p[everyone, labels], shares[everyone, labels])
            cells = (error, brier_score(p, shares), cross_entropy(p, shares))
            lines.append(
                f"| {run.recipe().name}, {dimension.name} | {name} | {temperature:.2f} | "
                f"{' | '.join(f'{cell:.3f}' for cell in cells)} |"
            )
    return lines


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    arguments = parser.parse_args()
    print("| | | temperature | ECE | Brier | log loss |\n| --- | --- | ---: | ---: | ---: | ---: |")
    for folder in arguments.runs:
        print("\n".join(measure(Run(folder))))


if __name__ == "__main__":
    main()
