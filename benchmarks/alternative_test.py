"""How often the tests behind the alternative annotator test err, and find a good judge.

    python -m benchmarks.alternative_test

Nothing is simulated: all outcomes of n items are summed up, each with its probability. An annotator
is better than the judge on a share of the items, and worse on another. The error is the largest
chance, over all such shares whose difference is epsilon, of rejecting that difference at the 5 %
level; the power is the chance of rejecting it where both are better on 15 % of the items.
"""

import numpy as np
from scipy.stats import multinomial

from slm_judge.agreement.alt_test import EPSILON, t_test_p
from slm_judge.agreement.exact_test import noninferiority_p

ITEMS = (30, 40, 50, 100)
SHARES, LEVEL, EQUAL = 40, 0.05, 0.15


def outcomes(n: int) -> np.ndarray:
    """All (wins, losses, ties) of n items."""
    return np.array([(a, b, n - a - b) for a in range(n + 1) for b in range(n + 1 - a)])


def rejects(n: int, epsilon: float, test: str) -> np.ndarray:
    """Whether a test rejects, for each of `outcomes`."""
    found = []
    for wins, losses, ties in outcomes(n).tolist():
        if (wins - losses) / n >= epsilon:
            found.append(False)  # what was observed is what is to be rejected
        elif test == "exact":
            found.append(noninferiority_p(wins, losses, n, epsilon) <= LEVEL)
        else:
            lead = np.repeat([1.0, -1.0, 0.0], [wins, losses, ties])
            found.append(t_test_p(lead, epsilon) <= LEVEL)
    return np.array(found)


def chance(n: int, rejected: np.ndarray, wins: float, losses: float) -> float:
    """Of rejecting, where the annotator wins and loses with these chances."""
    shares = [wins, losses, max(1 - wins - losses, 0.0)]
    return float(multinomial.pmf(outcomes(n)[rejected], n, shares).sum())


def error(n: int, epsilon: float, rejected: np.ndarray) -> float:
    """The largest chance of rejecting a difference of epsilon."""
    differing = np.linspace(epsilon, 1, SHARES)
    return max(chance(n, rejected, (q + epsilon) / 2, (q - epsilon) / 2) for q in differing)


def main() -> None:
    """Print the table."""
    print("| items | epsilon | t-test errs | exact test errs | t-test finds | exact test finds |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for n in ITEMS:
        for epsilon in sorted(EPSILON.values()):
            found = [rejects(n, epsilon, test) for test in ("t", "exact")]
            errors = [f"{100 * error(n, epsilon, one):.1f}" for one in found]
            powers = [f"{100 * chance(n, one, EQUAL, EQUAL):.0f}" for one in found]
            print(f"| {n} | {epsilon} | {' | '.join(errors)} | {' | '.join(powers)} |", flush=True)


if __name__ == "__main__":
    main()
