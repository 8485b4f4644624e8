"""`slm-judge train`: a recipe in, an adapter that annotates out."""

import json
import platform
import shutil
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from slm_judge import __version__
from slm_judge.backends.transformers import (
    load_base,
    load_tokenizer,
    pack_budget,
)
from slm_judge.contract import Contract
from slm_judge.errors import JudgeError, ModelError
from slm_judge.files import atomic_folder, write_text
from slm_judge.hub import hub_message
from slm_judge.items import Item, load_split, save_splits
from slm_judge.recipe import Recipe, TrainingConfig
from slm_judge.rubric import Rubric
from slm_judge.run import Run

from .calibration import fit_temperatures
from .data import file_hash, load_splits
from .progress import TrainingProgress
from .slots import SlotCollator, label_token_ids, make_dataset
from .trainer import SlotTrainer, alpha_metrics, option_logits

_PACKAGES = (
    "slm-judge", "torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets",
)  # fmt: skip


def train(
    recipe: Recipe, resume: bool = False, overwrite: bool = False, console: Console | None = None
) -> Run:
    """Train an adapter.

    Args:
        recipe: all settings.
        resume: continue from the last checkpoint of an interrupted run.
        overwrite: throw an earlier run in the same folder away.
        console: where progress is written.

    Returns:
        The run, with `adapter/` in it.

    Raises:
        DataError: the data cannot be used.
        ModelError: the base cannot be loaded.
        JudgeError: the run's folder is taken.
    """
    console = console or Console()
    run = Run(recipe.run_folder)
    _claim(run, recipe, resume, overwrite)
    rubric = Rubric.from_file(recipe.rubric)
    print_settings(recipe, console)

    splits = load_splits(recipe.data, rubric, recipe.training.seed)
    counts = ", ".join(f"{len(items)} {name}" for name, items in splits.items())
    console.print(f"Items: {counts}")
    _keep_splits(run, splits)
    if run.adapter.exists():
        console.print(f"{run.folder} is trained already; --overwrite trains it again")
        return run

    base = base_settings(recipe)
    tokenizer = load_tokenizer(base["base"], base["revision"])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    contract = Contract.build(rubric, tokenizer)
    datasets = {
        name: make_dataset(splits[name], contract, tokenizer, recipe.training.max_length)
        for name in ("train", "validation")
    }
    write_text(run.recipe_file, recipe.model_dump_json(indent=2) + "\n")

    started = time.monotonic()
    trainer = _make_trainer(recipe, run, base, contract, tokenizer, datasets, splits["validation"])
    with TrainingProgress(console) as progress:
        trainer.add_callback(progress)
        trainer.train(resume_from_checkpoint=last_checkpoint(run.checkpoints))
    prediction = trainer.predict(datasets["validation"], metric_key_prefix="validation")
    logits = option_logits(np.asarray(prediction.predictions), rubric)
    contract = contract.with_temperatures(fit_temperatures(rubric, splits["validation"], logits))
    facts = {
        "recipe": _public(recipe.model_dump()),
        "base": base,
        "versions": versions(),
        "sha256": {
            Path(location).name: digest
            for location in (
                recipe.rubric,
                recipe.data.train,
                recipe.data.validation,
                recipe.data.test,
            )
            if location and (digest := file_hash(location))
        },
        "items": {name: len(items) for name, items in splits.items()},
        "validation": prediction.metrics,
        "best_checkpoint": Path(trainer.state.best_model_checkpoint or "").name,
        "seconds": round(time.monotonic() - started, 1),
        "history": trainer.state.log_history,
    }
    _save_adapter(run.adapter, trainer.model, tokenizer, contract, base, facts)
    alpha = prediction.metrics["validation_alpha"]
    console.print(f"Validation alpha {alpha:.3f}; adapter saved in {run.adapter}")
    return run


def _public(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as they may be published: files by name, without the folders of this machine."""
    public: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            public[key] = _public(value)
        else:
            is_path = isinstance(value, str) and Path(value).is_absolute()
            public[key] = Path(value).name if is_path else value
    return public


def _claim(run: Run, recipe: Recipe, resume: bool, overwrite: bool) -> None:
    """Make sure that no earlier run is lost and that a resumed one has the same settings."""
    if resume and run.recipe_file.exists() and run.recipe() != recipe:
        raise JudgeError(
            f"{run.folder} was started with other settings; resume it with the recipe it was "
            "started with, or start over with --overwrite."
        )
    if resume or not run.folder.exists():
        return
    if not overwrite:
        raise JudgeError(
            f"{run.folder} exists. Continue it with --resume, throw it away with --overwrite, or "
            "give the recipe another name or output."
        )
    shutil.rmtree(run.folder)


def _keep_splits(run: Run, splits: dict[str, list[Item]]) -> None:
    """Write the splits of a new run; a resumed one must have the same."""
    if not run.recipe_file.exists():
        save_splits(splits, run.data)
    elif {name: load_split(run.data, name) for name in splits} != splits:
        raise JudgeError(
            f"The data changed since {run.folder} was started. Put the old data back, or start "
            "over with --overwrite."
        )


def base_settings(recipe: Recipe) -> dict[str, Any]:
    """What `load_base` needs, saved with the adapter."""
    import torch

    on_gpu = torch.cuda.is_available() and recipe.training.device != "cpu"
    if recipe.training.device == "cuda" and not on_gpu:
        raise ModelError("training.device is cuda, but PyTorch finds no CUDA device here.")
    return {
        "base": recipe.base,
        "revision": recipe.base_revision,
        "quantization": recipe.quantization,
        "dtype": "bfloat16" if on_gpu else "float32",  # bfloat16 is slow without AVX512-BF16
        "device": "cuda" if on_gpu else "cpu",
    }


def print_settings(recipe: Recipe, console: Console) -> None:
    """Print every setting and whether the recipe or the default gave it."""
    for section, values in recipe.model_dump().items():
        model = getattr(recipe, section)
        if not isinstance(values, dict):
            source = "recipe" if section in recipe.model_fields_set else "default"
            console.print(f"  {section} = {values} ({source})", highlight=False)
            continue
        for key, value in values.items():
            source = "recipe" if key in model.model_fields_set else "default"
            console.print(f"  {section}.{key} = {value} ({source})", highlight=False)


def _make_trainer(
    recipe: Recipe,
    run: Run,
    base: dict[str, Any],
    contract: Contract,
    tokenizer: Any,
    datasets: dict[str, Any],
    validation: list[Item],
) -> SlotTrainer:
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    set_seed(recipe.training.seed)
    try:
        model = load_base(base, base["device"])
    except (OSError, ValueError) as error:
        raise ModelError(hub_message(base["base"], base["revision"], error)) from error
    model = get_peft_model(
        model,
        LoraConfig(
            r=recipe.lora.r,
            lora_alpha=recipe.lora.alpha,
            lora_dropout=recipe.lora.dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )
    return SlotTrainer(
        model=model,
        args=_arguments(recipe.training, run, base),
        train_dataset=datasets["train"],
        eval_dataset=datasets["validation"],
        processing_class=tokenizer,
        data_collator=SlotCollator(pack_budget(base["device"])),
        compute_metrics=alpha_metrics(contract.rubric, validation),
        label_ids=label_token_ids(contract, tokenizer),
    )


def _arguments(config: TrainingConfig, run: Run, base: dict[str, Any]) -> Any:
    from trl import SFTConfig

    on_gpu = base["device"] == "cuda"
    micro = config.micro_batch_size or config.batch_size
    automatic = "adamw_bnb_8bit" if on_gpu else "adamw_torch"
    return SFTConfig(
        output_dir=str(run.checkpoints),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=config.batch_size // micro,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.scheduler,
        warmup_steps=config.warmup_share,
        weight_decay=config.weight_decay,
        optim=automatic if config.optimizer == "auto" else config.optimizer,
        max_grad_norm=config.max_grad_norm,
        gradient_checkpointing=config.gradient_checkpointing,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        seed=config.seed,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="alpha",
        greater_is_better=True,
        logging_steps=10,
        disable_tqdm=True,  # TrainingProgress has a bar
        report_to=[],
        remove_unused_columns=False,
        label_names=["targets"],
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        dataloader_pin_memory=on_gpu,
    )


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; the trainer's state is written last."""
    checkpoints = sorted(
        folder.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]), reverse=True
    )
    for checkpoint in checkpoints:
        try:
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            continue
        return str(checkpoint)
    return None


def versions() -> dict[str, str]:
    """Versions of what decides the result."""
    found = {"python": platform.python_version(), "slm-judge": __version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _save_adapter(
    folder: Path,
    model: Any,
    tokenizer: Any,
    contract: Contract,
    base: dict[str, Any],
    facts: dict[str, Any],
) -> None:
    # The base's name as in the recipe, not the folder that it was loaded from on this machine.
    model.peft_config["default"].base_model_name_or_path = base["base"]
    with atomic_folder(folder) as work:
        model.save_pretrained(work, save_embedding_layers=False)
        tokenizer.save_pretrained(work)
        contract.save(work)
        write_text(work / "base.json", json.dumps(base, indent=2) + "\n")
        write_text(work / "training.json", json.dumps(facts, indent=2) + "\n")
