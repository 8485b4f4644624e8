"""Metrics for the `evaluate` package, a folder each, as they could stand on the Hub.

import evaluate
from slm_judge.metrics import metric_path

alpha = evaluate.load(metric_path("krippendorff_alpha"))
alpha.compute(predictions=[1, 2], references=[[1, 1], [2, 3]], level_of_measurement="ordinal")
"""

from pathlib import Path

from slm_judge.errors import JudgeError

NAMES = ("alternative_annotator_test", "krippendorff_alpha")


def metric_path(name: str) -> str:
    """The folder of a metric, for `evaluate.load`.

    Raises:
        JudgeError: there is no such metric.
    """
    if name not in NAMES:
        raise JudgeError(f"There is no metric {name}; there are {', '.join(NAMES)}.")
    return str(Path(__file__).parent / name)
