"""Does a judge that is told who annotates answer as that annotator?

    python -m benchmarks.annotator_field convabuse --items 500 --passes 2 --tested 150

The rubric has a field more. In half of the training prompts it names an annotator of the item,
whose vote is the target; in the others it says "someone". Then the judge is asked about held-out
items as each of their annotators, and as someone; intervals are paired and draw groups of items.
"""

import argparse
import random
import re
from dataclasses import replace
from pathlib import Path

from slm_judge.training.train import train

from benchmarks.study import ROOT, Row, recipe_of, splits_of, with_settings
from slm_judge import Judge, Rubric
from slm_judge.agreement.alpha import alpha_of_coincidences, judge_coincidences
from slm_judge.agreement.bootstrap import Bootstrap, percentile_interval
from slm_judge.data.item import Item
from slm_judge.files import write_text
from slm_judge.judge.answer import collected

FOLDER, SOMEONE = ROOT / "runs" / "annotator-field", "someone"
SEVERITY = {"rubric": str(ROOT / "rubrics" / "abuse-severity.yaml"), "training.targets": "sampled"}
SETTINGS = {"convabuse": SEVERITY, "popquorn": {"training.targets": "soft"}}


def told(item: Item, name: str) -> Item:
    """The item with the field; with the vote of one annotator alone, where one is named."""
    votes = {d: {a: v for a, v in said.items() if name in (a, SOMEONE)}
             for d, said in item.votes.items()}  # fmt: skip
    return replace(item, state={**item.state, "annotator": name}, votes=votes)


def drawn(item: Item, seed: int, number: int) -> Item:
    """The item in its pass `number`: as one of its annotators, or as someone."""
    rng = random.Random(f"{seed}/{number}/{item.item_id}")  # noqa: S311
    names = sorted({name for said in item.votes.values() for name in said})
    name = SOMEONE if rng.random() < 0.5 else rng.choice(names)
    return replace(told(item, name), item_id=f"{item.item_id}/{number}")


def main() -> None:
    """Train and ask."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=[*SETTINGS])
    for name, value in {"items": 500, "passes": 2, "tested": 150, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    data, items, passes, tested, seed = vars(parser.parse_args()).values()
    row = Row(data, data, seed, SETTINGS[data], items)
    recipe = with_settings(recipe_of(row, {}), {"training.epochs": 1})
    longer, text = FOLDER / f"{data}.yaml", Path(recipe.rubric).read_text(encoding="utf-8")
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_text(longer, re.sub(r"(\nfields: \[.*)\]", r"\1, annotator]", text))
    splits = splits_of(row, recipe, rubric := Rubric.from_file(recipe.rubric))
    learned = [drawn(item, seed, number) for number in range(passes) for item in splits["train"]]
    validation = [told(item, SOMEONE) for item in splits["validation"][:40]]
    output = FOLDER / f"{data}-{items}x{passes}-field-seed{seed}"
    recipe = with_settings(recipe, {"rubric": str(longer), "output": str(output)})
    given = {"train": learned, "validation": validation, "test": [told(splits["test"][0], SOMEONE)]}
    run = train(recipe, resume=True, splits=given)
    dimension, test = rubric.dimensions[0], splits["test"][:tested]
    votes = [item.votes[dimension.name] for item in test]
    pairs = [(n, who, vote) for n, said in enumerate(votes) for who, vote in said.items()]
    asked = [*(told(item, SOMEONE) for item in test), *(told(test[n], who) for n, who, _ in pairs)]
    with Judge.from_pretrained(run.adapter) as judge:
        decided = judge.logits([item.state for item in asked])
        logits = collected(judge.rubric, decided, len(asked))
    labels = logits[0].argmax(axis=1).tolist()
    draws, scores = Bootstrap(len(pairs), groups=[test[n].group for n, *_ in pairs]), []
    for said in ([labels[n] for n, *_ in pairs], labels[len(test) :]):
        tables = judge_coincidences(said, [[vote] for *_, vote in pairs], len(dimension.options))
        sums, level = draws.totals(tables), dimension.level_of_measurement
        accuracy = sums.trace(axis1=1, axis2=2) / sums.sum(axis=(1, 2))
        scores.append((alpha_of_coincidences(sums, dimension.values, level), accuracy))
    for what, one, two in zip(("alpha", "accuracy"), *scores, strict=True):
        a, b, change = (percentile_interval(v, units=draws.units) for v in (one, two, two - one))
        print(f"{len(pairs)} pairs, {what}: {a} as someone, {b} as the annotator, change {change}")


if __name__ == "__main__":
    main()
