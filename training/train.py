"""`slm-judge train`: a recipe in, an adapter that annotates out."""

import json
import platform
import shutil
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from rich.console import Console

from slm_judge import __version__
from slm_judge.annotation import softmax
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
from slm_judge.labels import write_predictions
from slm_judge.recipe import Recipe, RecipeError
from slm_judge.rubric import Rubric
from slm_judge.run import Run

from .calibration import fit_temperatures
from .data import file_hash, load_splits
from .energy import EnergyMeter, device_name
from .loss import SlotLoss
from .progress import CheckpointClock, TrainingProgress, tensorboard
from .slots import SlotCollator, TrainingCollator, label_token_ids, make_dataset
from .targets import Targets, option_weights
from .trainer import EpochOfCollator, SlotTrainer, alpha_metrics, per_dimension

_PACKAGES = (
    "slm-judge", "torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets",
)  # fmt: skip


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
            _claim(run, recipe, resume, overwrite)
        print_settings(recipe, console)
        splits = splits or load_splits(recipe.data, rubric, recipe.training.seed)
        counts = ", ".join(f"{len(items)} {name}" for name, items in splits.items())
        console.print(f"Items: {counts}")
        if process.is_main_process:
            _keep_splits(run, splits)
    if run.adapter.exists():
        console.print(f"{run.folder} is trained already; --overwrite trains it again")
        return run
    try:
        _train(recipe, run, rubric, splits, console)
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not _is_out_of_memory(error):
            raise
        raise ModelError(_memory_advice(recipe)) from error
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
        "recipe": _public(recipe.model_dump()),
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
    _save_adapter(run.adapter, model, tokenizer, contract, base, facts)
    alpha = prediction.metrics["validation_alpha"]
    console.print(f"Validation alpha {alpha:.3f}; adapter saved in {run.adapter}")


def _is_out_of_memory(error: BaseException) -> bool:
    words = ("out of memory", "can't allocate memory", "cannot allocate memory")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


def _memory_advice(recipe: Recipe) -> str:
    config = recipe.training
    budget = config.tokens_per_pack or "the default"
    checkpointing = "" if config.gradient_checkpointing else "gradient_checkpointing: true, or "
    return (
        f"Out of memory. Lower training.tokens_per_pack (now {budget}), which changes no result; "
        f"then set training.{checkpointing}lower lora.r (now {recipe.lora.r}), take a smaller base "
        f"than {recipe.base}, or keep it in 4 bits (quantization: nf4; now "
        f"{recipe.quantization}). Then run the same command again."
    )


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


@dataclass
class Learner:
    """Everything that the trainer of a run is made of."""

    recipe: Recipe
    run: Run
    base: dict[str, Any]
    contract: Contract
    tokenizer: Any
    splits: dict[str, list[Item]]
    targets: Targets

    def __post_init__(self) -> None:
        """Tokenize, so that what is too long is reported before a model loads."""
        rubric, config = self.contract.rubric, self.recipe.training
        soft = Targets(self.splits["validation"], rubric, "soft")
        self.train, self.validation = (
            make_dataset(
                self.splits[name], self.contract, self.tokenizer, targets, config.max_length
            )
            for name, targets in (("train", self.targets), ("validation", soft))
        )
        budget = config.tokens_per_pack or pack_budget(self.base["device"])
        self.eval_collator = SlotCollator(soft, budget)
        self.collator = TrainingCollator(
            self.splits["train"],
            self.contract,
            self.tokenizer,
            self.targets,
            budget,
            self.recipe.augmentation,
            config.seed,
        )

    def model(self) -> Any:
        """The base with a fresh adapter."""
        from peft import LoraConfig, get_peft_model
        from transformers import set_seed

        set_seed(self.recipe.training.seed)
        base, lora = self.base, self.recipe.lora
        try:
            model = load_base(base, base["device"])
        except (OSError, ValueError) as error:
            raise ModelError(hub_message(base["base"], base["revision"], error)) from error
        options: dict[str, Any] = {"target_modules": "all-linear"}
        if lora.embedding_r:
            options = _embedding_options(model, lora.embedding_r)
        return get_peft_model(
            model,
            LoraConfig(
                r=lora.r,
                lora_alpha=lora.alpha,
                lora_dropout=lora.dropout,
                task_type="CAUSAL_LM",
                **options,
            ),
        )

    def trainer(self, evaluate: bool = True) -> SlotTrainer:
        """The trainer, ready to train; benchmarks do without evaluation and checkpoints."""
        rubric, config = self.contract.rubric, self.recipe.training
        label_ids = label_token_ids(self.contract, self.tokenizer)
        weights = None
        if config.class_balance:
            weights = torch.tensor(option_weights(self.targets.fixed, config.class_balance))
        trainer = SlotTrainer(
            model=self.model(),
            args=training_arguments(self.recipe, self.run, self.base, evaluate),
            train_dataset=self.train,
            eval_dataset=self.validation,
            processing_class=self.tokenizer,
            data_collator=self.collator,
            eval_collator=self.eval_collator,
            compute_metrics=alpha_metrics(rubric, self.splits["validation"]),
            loss=SlotLoss(rubric, label_ids, config.ordinal_weight, weights),
            plain_loss=SlotLoss(rubric, label_ids),
        )
        trainer.add_callback(EpochOfCollator(self.collator))
        trainer.add_callback(CheckpointClock(config.checkpoint_minutes * 60))
        if "tensorboard" in config.report_to:
            trainer.add_callback(tensorboard(self.run.folder / "logs"))
        return trainer


def _embedding_options(model: Any, rank: int) -> dict[str, Any]:
    """LoRA on all linear layers but the output, and on the input embeddings with scale 1."""
    if model.config.get_text_config().tie_word_embeddings:
        raise ModelError(
            "lora.embedding_r needs a base whose output embeddings are its own: merging would "
            f"change the output of {model.config.name_or_path} too, which was not trained so."
        )
    embeddings = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embeddings)
    output = model.get_output_embeddings()
    linear = [
        path
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not output
    ]
    return {
        "target_modules": [*linear, name],
        "rank_pattern": {name: rank},
        "alpha_pattern": {name: rank},
    }


def training_arguments(
    recipe: Recipe, run: Run, base: dict[str, Any], evaluate: bool = True
) -> Any:
    """The recipe as arguments of TRL."""
    from trl import SFTConfig

    config = recipe.training
    on_gpu = base["device"] == "cuda"
    n_processes = PartialState().num_processes
    if config.batch_size % n_processes:
        raise JudgeError(
            f"training.batch_size ({config.batch_size}) must be a multiple of the "
            f"{n_processes} processes that share it."
        )
    automatic = "adamw_bnb_8bit" if on_gpu else "adamw_torch"
    arguments = SFTConfig(
        output_dir=str(run.checkpoints),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size // n_processes,
        per_device_eval_batch_size=config.batch_size,
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
        eval_strategy="epoch" if evaluate else "no",
        save_strategy="epoch" if evaluate else "no",
        save_total_limit=2,
        load_best_model_at_end=evaluate,
        metric_for_best_model="alpha",
        greater_is_better=True,
        logging_steps=10,
        disable_tqdm=True,  # TrainingProgress has a bar
        report_to=["trackio"] if "trackio" in config.report_to else [],
        project=recipe.name,
        run_name=run.folder.name,
        remove_unused_columns=False,
        label_names=["labels"],
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        dataloader_pin_memory=on_gpu,
        ddp_find_unused_parameters=False,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs: one process each, by accelerate
    return arguments


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
