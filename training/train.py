"""`slm-judge train`: a recipe in, an adapter that annotates out."""

import time
from pathlib import Path

import numpy as np
from accelerate import PartialState
from rich.console import Console

from slm_judge.artefact.base import load_tokenizer
from slm_judge.artefact.judge_files import Contract
from slm_judge.data.item import Item
from slm_judge.data.predictions import write_predictions
from slm_judge.data.split import file_hash, load_splits
from slm_judge.errors import ModelError
from slm_judge.files import write_text
from slm_judge.judge.answer import softmax
from slm_judge.recipe import Recipe, RecipeError
from slm_judge.rubric import Rubric
from slm_judge.run import Run

from .calibration import fit_temperatures
from .energy import EnergyMeter, device_name
from .facts import base_settings, print_settings, public_settings, versions
from .memory import is_out_of_memory, memory_advice
from .model import Learner
from .progress import TrainingProgress
from .run_folder import claim, keep_splits, last_checkpoint, save_adapter
from .targets import Targets
from .trainer import per_dimension


def train(
    recipe: Recipe,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
    splits: dict[str, list[Item]] | None = None,
) -> Run:
    """Train an adapter.

    Args:
        recipe: all settings.
        resume: continue from the last checkpoint of an interrupted run.
        overwrite: throw an earlier run in the same folder away.
        console: where progress is written.
        splits: items of "train", "validation" and "test", in place of the recipe's data.

    Returns:
        The run, with `adapter/` in it.

    Raises:
        DataError: the data cannot be used.
        ModelError: the base cannot be loaded.
        JudgeError: the run's folder is taken.
    """
    process = PartialState()
    console = (console or Console()) if process.is_main_process else Console(quiet=True)
    run = Run(recipe.run_folder)
    rubric = Rubric.from_file(recipe.rubric)
    _check_augmentation(recipe, rubric)
    with process.main_process_first():
        if process.is_main_process:
            claim(run, recipe, resume, overwrite)
        print_settings(recipe, console)
        splits = splits or load_splits(recipe.data, rubric, recipe.training.seed)
        counts = ", ".join(f"{len(items)} {name}" for name, items in splits.items())
        console.print(f"Items: {counts}")
        if process.is_main_process:
            keep_splits(run, splits)
    if run.adapter.exists():
        console.print(f"{run.folder} is trained already; --overwrite trains it again")
        return run
    try:
        _train(recipe, run, rubric, splits, console)
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not is_out_of_memory(error):
            raise
        raise ModelError(memory_advice(recipe)) from error
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


def _train(
    recipe: Recipe, run: Run, rubric: Rubric, splits: dict[str, list[Item]], console: Console
) -> None:
    base = base_settings(recipe)
    tokenizer = load_tokenizer(base["base"], base["revision"])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    contract = Contract.build(rubric, tokenizer)
    targets = Targets(splits["train"], rubric, recipe.training.targets)
    console.print(f"Targets: {targets.method}", highlight=False)
    learner = Learner(recipe, run, base, contract, tokenizer, splits, targets)
    if PartialState().is_main_process:
        write_text(run.recipe_file, recipe.model_dump_json(indent=2) + "\n")

    started = time.monotonic()
    trainer = learner.trainer()
    with EnergyMeter() as energy, TrainingProgress(console) as progress:
        trainer.add_callback(progress)
        trainer.train(resume_from_checkpoint=last_checkpoint(run.checkpoints))
    prediction = trainer.predict(learner.validation, metric_key_prefix="validation")
    if not trainer.is_world_process_zero():
        return
    logits = per_dimension(np.asarray(prediction.predictions), rubric)
    contract = contract.with_temperatures(fit_temperatures(rubric, splits["validation"], logits))
    probabilities = {
        d.name: softmax(rows, contract.temperature(d.type))
        for d, rows in zip(rubric.dimensions, logits, strict=True)
    }
    write_predictions(run.validation, splits["validation"], rubric, probabilities)
    files = (recipe.rubric, recipe.data.train, recipe.data.validation, recipe.data.test)
    facts = {
        "recipe": public_settings(recipe.model_dump()),
        "base": base,
        "targets": targets.method,
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
    save_adapter(run.adapter, model, tokenizer, contract, base, facts)
    alpha = prediction.metrics["validation_alpha"]
    console.print(f"Validation alpha {alpha:.3f}; adapter saved in {run.adapter}")
