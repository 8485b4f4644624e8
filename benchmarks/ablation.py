"""Train variants of a recipe, with several seeds, and score them on the same test items.

    python benchmarks/ablation.py recipes/popquorn-tiny.yaml --seeds 3 \
        --set sampled training.targets=sampled --set ordinal training.ordinal_weight=1

Each run stays in the output folder, so that an interrupted benchmark goes on where it stopped.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from slm_judge.training.calibration import log_loss
from slm_judge.training.train import train

from slm_judge import Judge
from slm_judge.agreement.aggregate import vote_shares
from slm_judge.agreement.alpha import judge_alpha, judge_confusions
from slm_judge.agreement.scores import accuracy, macro_f1
from slm_judge.data.item import load_split, votes_of
from slm_judge.files import write_text
from slm_judge.recipe import Recipe
from slm_judge.run import Run

METRICS = ("alpha", "accuracy", "macro_f1", "log_loss", "seconds")


def with_settings(recipe: Recipe, settings: dict[str, str]) -> Recipe:
    """The recipe with `section.key` settings, validated."""
    raw = recipe.model_dump()
    for path, value in settings.items():
        *parents, key = path.split(".")
        section = raw
        for parent in parents:
            section = section[parent]
        if key not in section:
            raise SystemExit(f"{path} is no setting of a recipe.")
        section[key] = yaml.safe_load(value)
    return Recipe.model_validate(raw)


def score(run: Run) -> dict[str, float]:
    """Metrics of the run's adapter on its test items, averaged over dimensions."""
    items = load_split(run.data, "test")
    with Judge.from_pretrained(run.adapter) as judge:
        dimensions = judge.rubric.dimensions
        temperatures = judge.backend.contract.temperatures
        found: list[Any] = [None] * len(items)
        for index, logits in judge.logits([item.state for item in items]):
            found[index] = logits
    rows: list[dict[str, float]] = []
    for k, dimension in enumerate(dimensions):
        logits = np.stack([row[k] for row in found])
        votes = votes_of(items, dimension.name)
        labels = logits.argmax(axis=1).tolist()
        confusion = judge_confusions(labels, votes, len(dimension.options)).sum(axis=0)
        answered = [i for i, row in enumerate(votes) if row]
        shares = np.array([vote_shares(votes[i], len(dimension.options)) for i in answered])
        temperature = temperatures.get(dimension.type, 1.0)
        rows.append(
            {
                "alpha": judge_alpha(labels, votes, dimension),
                "accuracy": float(accuracy(confusion)),
                "macro_f1": float(macro_f1(confusion)),
                "log_loss": log_loss([logits[answered]], [shares], temperature),
            }
        )
    facts = json.loads((run.adapter / "training.json").read_text(encoding="utf-8"))
    means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    return means | {"seconds": facts["seconds"]}


def run_one(recipe: Recipe, folder: Path, keep: bool) -> dict[str, float]:
    """Train and score one run, or read what it scored before."""
    result = folder.with_name(f"{folder.name}.json")  # a name may have dots
    if not result.exists():
        run = train(recipe.model_copy(update={"output": str(folder)}), resume=True)
        write_text(result, json.dumps(score(run)) + "\n")
        if not keep:
            shutil.rmtree(folder)
    scores: dict[str, float] = json.loads(result.read_text(encoding="utf-8"))
    return scores


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Mean and standard deviation over seeds, Markdown."""
    lines = ["| | " + " | ".join(METRICS) + " |", "| --- |" + " ---: |" * len(METRICS)]
    for name, runs in results.items():
        cells = []
        for metric in METRICS:
            values = [run[metric] for run in runs]
            digits = 0 if metric == "seconds" else 3
            spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.{digits}f}{spread}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--keep", action="store_true", help="keep the runs' folders")
    parser.add_argument(
        "--common", nargs="+", default=[], metavar="section.key=value", help="for all variants"
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "section.key=value"),
        help="a variant: its name and what differs from the recipe",
    )
    arguments = parser.parse_args()
    base = Recipe.from_file(arguments.recipe)
    common = dict(setting.split("=", 1) for setting in arguments.common)
    variants = {"recipe as it is": {}} | {
        name: dict(setting.split("=", 1) for setting in settings)
        for name, *settings in arguments.set
    }
    results: dict[str, list[dict[str, float]]] = {}
    for name, settings in variants.items():
        for seed in range(arguments.seeds):
            recipe = with_settings(base, common | settings | {"training.seed": str(seed)})
            folder = arguments.output / f"{base.name}-{name.replace(' ', '-')}-{seed}"
            results.setdefault(name, []).append(run_one(recipe, folder, arguments.keep))
        print(table(results), flush=True)
    write_text(arguments.output / f"{base.name}.json", json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
