"""The alternative annotator test (Calderon, Reichart and Dror, 2025), for `evaluate`."""

from typing import Any

import datasets
import evaluate
import numpy as np

from slm_judge.agreement.alpha import alpha_of_coincidences, judge_coincidences, vote_counts
from slm_judge.agreement.alt_test import alt_test
from slm_judge.agreement.bootstrap import Bootstrap, percentile_interval
from slm_judge.agreement.stand_in import StandIn, best_constant

_DESCRIPTION = """
May a judge stand in for an annotator? Each annotator in turn is left out, and the judge and the one
left out are compared by how well they represent the others. The judge passes where it wins against
at least half of them, agrees with them beyond chance, and more than always saying the same would.
Annotators with fewer than 30 items that others annotated too are not compared.
"""

_INPUTS = """
Args:
    predictions: the judge's label of each item, a number.
    references: per item, a list with the label of each annotator, nan where one did not answer;
        the k-th number of each list is the k-th annotator's.
    epsilon: 0.2 for experts, 0.15 for skilled annotators, 0.1 for crowd workers.
    score: accuracy, or neg_rmse for ordered labels.

Returns:
    winning_rate (by an exact test), winning_rate_t_test (by the paper's), advantage_probability,
    passed; nan, nan, nan and False where it cannot be done.
"""

_CITATION = """
@inproceedings{calderon2025alternative,
  title = {The Alternative Annotator Test for {LLM}-as-a-Judge},
  author = {Calderon, Nitay and Reichart, Roi and Dror, Rotem}, booktitle = {ACL}, year = {2025}
}
"""


class AlternativeAnnotatorTest(evaluate.Metric):  # type: ignore[misc]
    """See the description."""

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": number, "references": datasets.List(number)}
            ),
        )

    def _compute(
        self,
        predictions: list[float],
        references: list[list[float]],
        epsilon: float = 0.15,
        score: str = "accuracy",
    ) -> dict[str, Any]:
        said = np.array(references, dtype=float)
        levels = np.unique(np.concatenate([said[np.isfinite(said)], np.array(predictions)]))
        ratings = np.where(np.isfinite(said), np.searchsorted(levels, said), -1)
        judged = np.searchsorted(levels, predictions).tolist()
        names = [str(m) for m in range(said.shape[1])]
        found = alt_test(judged, ratings, names, levels, epsilon, score)  # type: ignore[arg-type]
        level = "nominal" if score == "accuracy" else "interval"
        votes = [row[row >= 0].tolist() for row in ratings]
        bootstrap = Bootstrap(len(votes))
        said = bootstrap.totals(vote_counts(votes, len(levels)).astype(float))
        totals = bootstrap.totals(judge_coincidences(judged, votes, len(levels)))
        alphas = alpha_of_coincidences(totals, levels.tolist(), level)
        constant, of_constant = best_constant(said, levels.tolist(), level)
        over = percentile_interval(alphas - of_constant)
        verdict = StandIn(found, percentile_interval(alphas), over, str(levels[constant]))
        return {
            "winning_rate": found.winning_rate,
            "winning_rate_t_test": found.t_test_winning_rate,
            "advantage_probability": found.advantage_probability,
            "passed": verdict.passed,
        }
