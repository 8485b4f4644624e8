"""`slm-judge train`: a recipe in, an adapter that annotates out."""

import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
from accelerate import PartialState
from rich.console import Console

from slm_judge.artefact.base import load_tokenizer
from slm_judge.artefact.judge_files import Contract, calibration_notes
from slm_judge.backends import memory_errors
from slm_judge.data.item import Item
from slm_judge.data.predictions import write_predictions
from slm_judge.data.split import file_hash, load_splits
from slm_judge.judge.answer import answers_from_logits
from slm_judge.recipe import Recipe, RecipeError, public_settings
from slm_judge.rubric import Rubric
from slm_judge.run import Run
from slm_judge.screen import say

from .calibration import fit_calibration, fit_thresholds
from .energy import EnergyMeter, device_name
from .facts import base_settings, print_settings, versions
from .initial import start_at_activations
from .memory import memory_advice
from .model import Learner
from .progress import TrainingProgress
from .run_folder import (
    check_folder,
    check_same,
    claimed,
    give_back,
    keep,
    last_checkpoint,
    save_adapter,
)
from .seeds import train_seeds, wanted_seeds
from .targets import Targets
from .trainer import per_dimension


def train(
    recipe: Recipe,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
    splits: dict[str, list[Item]] | None = None,
    seeds: int | None = None,
) -> Run:
    """Train an adapter.

    Args:
        recipe: all settings.
        resume: continue from the last checkpoint of an interrupted run.
        overwrite: throw an earlier run in the same folder away.
        console: where progress is written.
        splits: items of "train", "validation" and "test", in place of the recipe's data.
        seeds: how often to train, to keep the best by validation; None: as before, or once.

    Returns:
        The run, with `adapter/` in it.

    Raises:
        DataError: the data cannot be used.
        ModelError: the base cannot be loaded.
        JudgeError: the run's folder is taken, or another process is at work on it.
    """
    main = PartialState().is_main_process
    console = (console or Console()) if main else Console(quiet=True)
    run = Run(recipe.run_folder)
    with run.alone() if main else nullcontext():
        return _train_run(run, recipe, resume, overwrite, console, splits, seeds)


def _train_run(
    run: Run,
    recipe: Recipe,
    resume: bool,
    overwrite: bool,
    console: Console,
    splits: dict[str, list[Item]] | None,
    number: int | None,
) -> Run:
    process = PartialState()
    rubric = Rubric.from_file(recipe.rubric)
    _check_augmentation(recipe, rubric)
    with process.main_process_first():
        if process.is_main_process:
            give_back(run)
    seeds = wanted_seeds(run, recipe.training.seed, number, overwrite)
    check_folder(run, recipe, resume, overwrite)
    print_settings(recipe, console)
    notes = rubric.warnings()
    with process.main_process_first():
        splits = splits or load_splits(recipe.data, rubric, recipe.training.seed, notes)
    say(console, notes)
    counts = ", ".join(f"{len(items)} {name}" for name, items in splits.items())
    say(console, [f"Items: {counts}"], "")
    going_on = resume and run.recipe_file.exists()
    if going_on:
        check_same(run, rubric, splits)
    if going_on and run.adapter.exists() and len(seeds) == 1:
        run.keep_recipe(recipe)
        say(console, [f"{run.folder} is trained already; --overwrite trains it again"], "")
        return run
    with memory_errors(memory_advice(recipe)):
        learner = _prepare(recipe, run, rubric, splits, going_on)
        base = learner.base
        say(console, [f"Targets: {learner.targets.method}",
                      f"Computes on {base.device} in {base.dtype}"], "")  # fmt: skip
        process.wait_for_everyone()  # before the first one makes the folder that others look for
        with claimed(run, overwrite) if process.is_main_process else nullcontext():
            if process.is_main_process:
                keep(run, recipe, learner.base, rubric, splits)
            if len(seeds) > 1:
                train_seeds(learner, seeds, _train, console)
            else:
                _train(learner, console)
    return run


def _check_augmentation(recipe: Recipe, rubric: Rubric) -> None:
    """Refuse an augmentation that could not do anything.

    Raises:
        RecipeError: there is nothing to paraphrase with.
    """
    asked = (rubric, *rubric.dimensions)
    if recipe.augmentation.paraphrase and not any(one.paraphrases for one in asked):
        raise RecipeError(
            f"augmentation.paraphrase is on, but {recipe.rubric} has no `paraphrases` of its "
            "instructions. Add some, or switch it off."
        )


def _prepare(
    recipe: Recipe, run: Run, rubric: Rubric, splits: dict[str, list[Item]], going_on: bool
) -> Learner:
    """All that can be checked before a model is loaded, and nothing written yet."""
    base = base_settings(recipe, run.folder if going_on else None)
    tokenizer = load_tokenizer(base.base, base.revision)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    contract = Contract.build(rubric, tokenizer)
    targets = Targets(splits["train"], rubric, recipe.training.targets)
    return Learner(recipe, run, base, contract, tokenizer, splits, targets)


def _train(learner: Learner, console: Console) -> None:
    recipe, run, splits = learner.recipe, learner.run, learner.splits
    rubric = learner.contract.rubric
    started = time.monotonic()
    trainer, notes = learner.trainer(), list[str]()
    checkpoint = last_checkpoint(run.checkpoints, notes)
    say(console, notes)
    if recipe.lora.init == "eva" and checkpoint is None:
        with console.status("first weights of the adapter"):
            start_at_activations(trainer)
    with EnergyMeter() as energy, TrainingProgress(console) as progress:
        trainer.add_callback(progress)
        trainer.train(resume_from_checkpoint=checkpoint)
    prediction = trainer.predict(learner.validation, metric_key_prefix="validation")
    if not trainer.is_world_process_zero():
        return
    logits = per_dimension(np.asarray(prediction.predictions), rubric)
    known = splits["validation"]
    learned_at = recipe.training.temperature
    temperatures, calibrations = fit_calibration(rubric, known, logits, learner.weights, learned_at)
    calibrations = fit_thresholds(rubric, known, logits, calibrations)
    contract = learner.contract.calibrated(temperatures, calibrations)
    say(console, calibration_notes(contract))
    answers = answers_from_logits(rubric, logits, contract.calibration)
    write_predictions(run.validation, splits["validation"], rubric, answers)
    files = (recipe.rubric, recipe.data.train, recipe.data.validation, recipe.data.test)
    facts = {
        "recipe": public_settings(recipe.model_dump()),
        "base": public_settings(asdict(learner.base)),
        "targets": learner.targets.method,
        "versions": versions(),
        "sha256": {
            Path(location).name: digest
            for location in files
            if location and (digest := file_hash(location))
        },
        "items": {name: len(items) for name, items in splits.items()},
        "validation": prediction.metrics,
        "best_checkpoint": Path(trainer.state.best_model_checkpoint or "").name,
        "seconds": round(time.monotonic() - started, 1),
        "device": device_name(),
        "energy_kwh": energy.kwh,
        "history": trainer.state.log_history,
    }
    model = trainer.accelerator.unwrap_model(trainer.model)
    save_adapter(run.adapter, model, learner.tokenizer, contract, learner.base, facts)
    alpha = prediction.metrics["validation_alpha"]
    say(console, [f"Validation alpha {alpha:.3f}; adapter saved in {run.adapter}"], "")
