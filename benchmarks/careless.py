"""Who is flagged as a careless annotator, by `by_annotator` and by crowd-kit's MACE.

    python -m benchmarks.careless

Simulated: 200 items with 5 options, 20 annotators, 5 of them an item. In half of the settings three
are careless: one draws options as often as they occur, one always says the commonest, one draws
evenly. The others say what is true with a chance around 0.4 or 0.7, and draw otherwise. MACE (Hovy
et al., NAACL 2013) flags whose probability of spamming is above one half. Some minutes.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from slm_judge.agreement.annotators import by_annotator
from slm_judge.rubric import Dimension, Rubric

ITEMS, ANNOTATORS, EACH, TRIALS, MACE_TRIALS = 200, 20, 5, 20, 2
EVEN, SKEWED = (0.2,) * 5, (0.58, 0.16, 0.12, 0.08, 0.06)
CARELESS = ("draws", "one option", "evenly")


def dimension() -> Dimension:
    """Five options by name."""
    options = {"type": "choice", "instructions": "?", "options": list("abcde")}
    whole = {"name": "r", "instructions": "?", "fields": ["text"]}
    return Rubric.parse(whole | {"dimensions": [{"name": "d", **options}]}, "here").dimensions[0]


def votes(
    seed: int, shares: Sequence[float], skill: float, careless: Sequence[str]
) -> list[dict[str, int]]:
    """Annotator -> option of each item; the careless ones come first."""
    rng, options = np.random.default_rng(seed), len(shares)
    truth = rng.choice(options, ITEMS, p=shares)
    skills = np.clip(rng.normal(skill, 0.08, ANNOTATORS), 0.05, 0.98)

    def says(annotator: int, right: int) -> int:
        how = careless[annotator] if annotator < len(careless) else ""
        if how == "one option":
            return int(np.argmax(shares))
        if how == "evenly":
            return int(rng.integers(options))
        if how == "draws" or rng.random() > skills[annotator]:
            return int(rng.choice(options, p=shares))
        return right

    return [
        {f"{a:02d}": says(a, right) for a in rng.choice(ANNOTATORS, EACH, replace=False).tolist()}
        for right in truth.tolist()
    ]


def flagged_by_mace(rows: Sequence[dict[str, int]]) -> set[str]:
    """Whom MACE finds more likely to spam than not."""
    from crowdkit.aggregation import MACE

    table = [(n, name, option) for n, row in enumerate(rows) for name, option in row.items()]
    model = MACE(n_restarts=5, random_state=0)
    model.fit(pd.DataFrame(table, columns=["task", "worker", "label"]))
    spamming = np.asarray(model.spamming_, dtype=float)
    chances = spamming[:, 0] / spamming.sum(axis=1)
    names = list(dict.fromkeys(name for _, name, _ in table))  # its order
    return {name for name, chance in zip(names, chances, strict=True) if chance > 0.5}


def main() -> None:
    """Print the table."""
    print(
        "| options | skill | careless | flagged of the careless | of the careful |"
        " MACE, of the careless | of the careful |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, shares in (("even", EVEN), ("skewed", SKEWED)):
        for skill in (0.7, 0.4):
            for careless in ((), CARELESS):
                guilty = {f"{a:02d}" for a in range(len(careless))}
                shown = []
                for trials, flag in ((TRIALS, flagged), (MACE_TRIALS, flagged_by_mace)):
                    hits = [flag(votes(s, shares, skill, careless)) for s in range(trials)]
                    for group in (guilty, {f"{a:02d}" for a in range(ANNOTATORS)} - guilty):
                        n = len(group) * trials
                        shown.append(f"{sum(len(h & group) for h in hits)} of {n}" if n else "–")
                print(f"| {name} | {skill} | {len(careless)} | {' | '.join(shown)} |", flush=True)


def flagged(rows: Sequence[dict[str, int]]) -> set[str]:
    """Whom `by_annotator` calls careless."""
    return {one.name for one in by_annotator(rows, dimension(), 500) if one.careless}


if __name__ == "__main__":
    main()
