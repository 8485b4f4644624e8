"""Krippendorff's alpha of a judge against annotators, for `evaluate`."""

from typing import Any

import datasets
import evaluate
import numpy as np

from slm_judge.agreement.alpha import krippendorff_alpha

_DESCRIPTION = """
Krippendorff's alpha of a judge against one annotator or several: 1 minus observed over expected
disagreement, over all (judge, annotator) pairs of an item. 1 is perfect agreement, 0 is chance.
"""

_INPUTS = """
Args:
    predictions: the judge's label of each item.
    references: per item, an annotator's label, or a list of several annotators' labels (items may
        have different numbers of them).
    level_of_measurement: nominal, ordinal, interval or ratio; all but nominal need numbers.

Returns:
    krippendorff_alpha: at most 1; 1 where all ratings are one value, nan without pairs.
"""

_CITATION = """
@book{krippendorff2004content,
  title = {Content Analysis: An Introduction to Its Methodology},
  author = {Krippendorff, Klaus}, year = {2004}, publisher = {Sage}
}
"""


class KrippendorffAlpha(evaluate.Metric):  # type: ignore[misc]
    """See the description."""

    def _info(self) -> evaluate.MetricInfo:
        kinds = [datasets.Value("float64"), datasets.Value("string")]
        features = [
            datasets.Features({"predictions": kind, "references": shape})
            for kind in kinds
            for shape in (datasets.List(kind), kind)
        ]
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=features,
        )

    def _compute(
        self, predictions: list[Any], references: list[Any], level_of_measurement: str = "nominal"
    ) -> dict[str, float]:
        rows = [given if isinstance(given, list) else [given] for given in references]
        values = sorted({*predictions, *(value for row in rows for value in row)})
        position = {value: k for k, value in enumerate(values)}
        pairs = [
            (position[label], position[value])
            for label, row in zip(predictions, rows, strict=True)
            for value in row
        ]
        counts = np.zeros((len(pairs), max(len(values), 1)), dtype=int)
        for unit, pair in enumerate(pairs):
            np.add.at(counts[unit], list(pair), 1)
        return {"krippendorff_alpha": krippendorff_alpha(counts, values, level_of_measurement)}
