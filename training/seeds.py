"""`slm-judge train --seeds N`: one training with several seeds, of which the best is kept.

They differ in the adapter's first weights, the order of the items and what is drawn for them; the
split is that of the recipe's own seed. The first is trained in the run itself, as without
`--seeds`, the others in `seeds/<seed>/`, where the adapter and the predictions of each one stay.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import inf, isfinite, nan
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from accelerate import PartialState
from accelerate.utils.memory import clear_device_cache
from rich.console import Console

from slm_judge.agreement.alpha import judge_alpha
from slm_judge.agreement.parts import all_parts
from slm_judge.data.item import Item, votes_of
from slm_judge.data.predictions import Answers, read_predictions, write_predictions
from slm_judge.errors import JudgeError
from slm_judge.files import atomic_folder, finite, remove, write_json, write_text
from slm_judge.judge.answer import answers_from_logits, collected
from slm_judge.judge.judge import Judge
from slm_judge.progress import progress_bar
from slm_judge.rubric import Rubric
from slm_judge.run import FACTS, Run
from slm_judge.screen import Sheet, say

from .model import Learner
from .trainer import alphas_of

OVERALL = "mean of the dimensions"  # no dimension can be called so


def wanted_seeds(run: Run, first: int, number: int | None, overwrite: bool) -> list[int]:
    """The seeds of a run: as many as are asked for from `first` on, and those that are trained.

    Where `number` is None, they are those that the run was started with, or `first` alone.

    Raises:
        JudgeError: the number is not sensible.
    """
    if number is not None and not 1 <= number <= 100:
        raise JudgeError(f"--seeds is how often to train, from 1 to 100; it is {number}.")
    begun = [int(path.name) for path in run.seeds.glob("*") if path.name.isdecimal()]
    kept = [seed for seed in begun if number is None or run.of_seed(seed).adapter.exists()]
    return sorted({*range(first, first + (number or 1)), *(() if overwrite else kept)})


def train_seeds(
    learner: Learner,
    seeds: Sequence[int],
    train: Callable[[Learner, Console], None],
    console: Console,
) -> None:
    """Train with each seed that has no adapter yet, and make the best one's that of the run.

    Args:
        learner: of the run.
        seeds: all of them, the recipe's own first.
        train: trains what it is given.
        console: where progress is written.
    """
    run, process = learner.run, PartialState()
    if process.is_main_process:
        for seed in seeds:
            run.of_seed(seed).folder.mkdir(parents=True, exist_ok=True)
    process.wait_for_everyone()  # what is being overwritten is out of the way
    if not (run.adapter.exists() or run.of_seed(seeds[0]).adapter.exists()):
        train(learner, console)
    if process.is_main_process and run.adapter.exists():
        own = run.of_seed(run.facts()["recipe"]["training"]["seed"])
        if not own.adapter.exists():
            _copy(run, own)
    process.wait_for_everyone()
    for number, seed in enumerate(seeds, start=1):
        if not (own := run.of_seed(seed)).adapter.exists():
            clear_device_cache(garbage_collection=True)
            say(console, [f"Seed {seed}, {number} of {len(seeds)}"], "")
            training = learner.recipe.training.model_copy(update={"seed": seed})
            recipe = learner.recipe.model_copy(update={"training": training})
            train(replace(learner, run=own, recipe=recipe), console)
    clear_device_cache(garbage_collection=True)
    if process.is_main_process:
        _conclude(learner, seeds, console)


def _conclude(learner: Learner, seeds: Sequence[int], console: Console) -> None:
    """Measure all seeds, make the best one's adapter that of the run, and report."""
    run, report = learner.run, dict[str, Any](seeds=list(seeds), items={})
    for split in ("validation", "test"):
        report["items"][split] = len(learner.splits[split])
        rows = [_alphas(learner, seed, split, console) for seed in seeds]
        report[split] = {name: _spread([row[name] for row in rows]) for name in rows[0]}
    scores = report["validation"][OVERALL]["by_seed"]
    best = max(range(len(seeds)), key=lambda k: scores[k] if isfinite(scores[k]) else -inf)
    report = finite(report | {"kept": seeds[best]})
    own, before = run.of_seed(seeds[best]), run.adapter.exists() and run.facts()
    facts = own.facts() | {"seeds": report}
    if facts != before:
        if before and {**before, "seeds": report} != facts and run.predictions.exists():
            remove(run.predictions)  # of another adapter, by which nobody is to judge this one
            say(console, [f"{run.predictions} were of another seed: they are removed."])
        _copy(own, run, facts)
        if run.merged.exists():
            say(console, [f"{run.adapter} is written anew: export and verify again."])
    write_json(run.report / "seeds.json", report)
    others = [run.of_seed(seed) for seed in seeds if seed != seeds[best]]
    for other in [*others, *([run] if best else [])]:
        remove(other.checkpoints)
    table(report).show(console)
    say(console, [f"Seed {seeds[best]} is kept in {run.adapter}. The adapters and predictions of "
                  f"all are in {run.seeds}; the others' checkpoints are removed."], "")  # fmt: skip


def _alphas(learner: Learner, seed: int, split: str, console: Console) -> dict[str, float]:
    """Alpha of a seed's adapter against the annotators by dimension, and the mean of these."""
    own, items, rubric = learner.run.of_seed(seed), learner.splits[split], learner.contract.rubric
    path = own.validation if split == "validation" else own.predictions / "adapter.jsonl"
    if not path.exists():
        name, device = f"seed {seed}, {split}", learner.base.device
        said = answers_of(own.adapter, rubric, items, name, console, device)
        write_predictions(path, items, rubric, said)
    answers = read_predictions(str(path), rubric, [item.item_id for item in items]).answers
    alphas = {
        part.dimension.name: judge_alpha(
            part.labels(answers[part.source].labels).tolist(),
            part.votes_of(votes_of(items, part.source)),
            part.dimension,
        )
        for part in all_parts(rubric.dimensions)
    }
    labels = {name: said.labels for name, said in answers.items()}
    return alphas | {OVERALL: _spread([*alphas_of(rubric, items, labels).values()])["mean"]}


def answers_of(
    adapter: Path,
    rubric: Rubric,
    items: Sequence[Item],
    name: str,
    console: Console,
    device: str | None = None,
) -> dict[str, Answers]:
    """What an adapter says about items, by dimension; `name` is that of the progress bar."""
    loaded = Judge.from_pretrained(adapter, device=device)
    with progress_bar(console=console) as bar, loaded as judge:
        advance = partial(bar.advance, bar.add_task(name, total=len(items)))
        decided = judge.logits([item.state for item in items])
        logits = collected(rubric, decided, len(items), advance)
        return answers_from_logits(rubric, logits, judge.backend.contract.calibration)


def _spread(values: list[float]) -> dict[str, Any]:
    """The values, and mean and standard deviation (of a sample) of those that are defined."""
    known = [value for value in values if isfinite(value)]
    mean, deviation = fmean(known) if known else nan, stdev(known) if len(known) > 1 else nan
    return {"by_seed": values, "mean": mean, "sd": deviation}


def _copy(source: Run, target: Run, facts: Mapping[str, Any] | None = None) -> None:
    """Copy an adapter, which is there when all is, and what it said of the validation items."""
    if source.validation.exists():
        write_text(target.validation, source.validation.read_text(encoding="utf-8"))
    with atomic_folder(target.adapter) as work:
        shutil.copytree(source.adapter, work, dirs_exist_ok=True)
        if facts:
            write_json(work / FACTS, facts)


def table(report: Mapping[str, Any]) -> Sheet:
    """The report in short, for a terminal."""
    seeds, splits = report["seeds"], (report["validation"], report["test"])
    found = Sheet(
        f"{len(seeds)} seeds, Krippendorff's alpha against the annotators",
        ("validation", "test"),
        "mean ± standard deviation over the seeds; choosing flatters the kept one's validation",
    )
    found.group(OVERALL)
    for k, seed in enumerate(seeds):
        name = f"seed {seed}{' (kept)' if seed == report['kept'] else ''}"
        found.add(name, *(_number(split[OVERALL]["by_seed"][k]) for split in splits))
    found.group("mean ± standard deviation")
    for name in splits[0]:
        found.add(name, *(f"{_number(s[name]['mean'])} ± {_number(s[name]['sd'])}" for s in splits))
    return found


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
