"""The recipe as arguments of TRL."""

from typing import Any

from accelerate import PartialState

from slm_judge.artefact.base import Base
from slm_judge.errors import JudgeError
from slm_judge.recipe import Recipe
from slm_judge.run import Run


def training_arguments(recipe: Recipe, run: Run, base: Base, evaluate: bool = True) -> Any:
    """The recipe as arguments of TRL."""
    from trl import SFTConfig

    config = recipe.training
    on_gpu = base.device == "cuda"
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
        adam_beta2=config.adam_beta2,
        weight_decay=config.weight_decay,
        optim=automatic if config.optimizer == "auto" else config.optimizer,
        max_grad_norm=config.max_grad_norm,
        gradient_checkpointing=config.gradient_checkpointing,
        bf16=base.dtype == "bfloat16",
        fp16=base.dtype == "float16",
        use_cpu=base.device == "cpu",
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
