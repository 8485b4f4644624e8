"""What a run's trainer is made of: datasets, collators, the base with its adapter."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import PartialState

from slm_judge.artefact.base import Base, load_base, tokens_read
from slm_judge.artefact.device import pack_budget
from slm_judge.artefact.judge_files import Contract
from slm_judge.backends import row_attention
from slm_judge.data.item import Item
from slm_judge.errors import ModelError
from slm_judge.prompt.readers import DecisionReader, encode_readings
from slm_judge.recipe import Recipe
from slm_judge.run import Run

from .arguments import training_arguments
from .facts import text_config
from .lora import add_in_place
from .loss import ORDINAL, SlotLoss
from .progress import CheckpointClock, tensorboard
from .slots import (
    SlotCollator,
    TrainingCollator,
    check_lengths,
    label_token_ids,
    make_dataset,
)
from .targets import Targets, exchanged, option_weights
from .trainer import EpochOfCollator, SlotTrainer, alpha_metrics


@dataclass
class Learner:
    """Everything that the trainer of a run is made of."""

    recipe: Recipe
    run: Run
    base: Base
    contract: Contract
    tokenizer: Any
    splits: dict[str, list[Item]]
    targets: Targets

    def __post_init__(self) -> None:
        """Tokenize, so that what is too long is reported before a model loads."""
        rubric, config = self.contract.rubric, self.recipe.training
        soft = Targets(self.splits["validation"], rubric, "soft")
        contract = self.contract
        reader = DecisionReader(self.tokenizer, contract.decision_template, rubric, contract.labels)
        prompts = {
            name: encode_readings(reader.encode, rubric, [item.state for item in items])
            for name, items in self.splits.items()
        }
        shape = text_config(self.base)
        check_lengths(self.splits, prompts, config.max_length, tokens_read(shape))
        self.label_ids = label_token_ids(contract, self.tokenizer)
        self.train = make_dataset(prompts["train"], self.targets, self.label_ids)
        known = prompts["validation"]
        if rubric.pair:
            soft = soft.with_exchanged(rubric)
            known = [*known, *(one.exchanged for one in known if one.exchanged)]
        self.validation = make_dataset(known, soft, self.label_ids)
        budget = config.tokens_per_pack or pack_budget("cpu", shape)
        self.eval_collator = SlotCollator(soft, budget)
        self.collator = TrainingCollator(
            self.splits["train"],
            self.contract,
            self.tokenizer,
            self.targets,
            budget,
            self.recipe.augmentation,
            config.seed,
            reader,
        )

    def model(self) -> Any:
        """The base with a fresh adapter."""
        from peft import LoraConfig, get_peft_model
        from transformers import set_seed

        set_seed(self.recipe.training.seed)
        lora = self.recipe.lora
        # Of several GPUs, each process of `accelerate launch` has one of its own.
        device = str(PartialState().device) if self.base.device == "cuda" else self.base.device
        model = load_base(self.base, device, self.base.dtype)
        layers, options = _adapted(model, lora.layers), dict[str, Any]()
        if lora.embedding_r:
            layers.append(name := _embeddings(model))
            scale = lora.embedding_r**0.5 if lora.rslora else lora.embedding_r  # makes it 1
            options = {
                "rank_pattern": {name: lora.embedding_r},
                "alpha_pattern": {name: scale},
            }
        config = LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            use_rslora=lora.rslora,
            target_modules=layers,
            task_type="CAUSAL_LM",
            **options,
        )
        if self.base.device == "cpu":
            row_attention.use(model)
        add_in_place(config)
        adapted = get_peft_model(model, config)
        if self.base.device != "cpu":
            row_attention.use_where_right(adapted, getattr(torch, self.base.dtype), training=True)
        return adapted

    @property
    def weights(self) -> npt.NDArray[np.float64] | None:
        """K x M, by which `training.class_balance` weighs options; None where it does not."""
        exponent, rubric = self.recipe.training.class_balance, self.contract.rubric
        if not exponent:
            return None
        targets = self.targets.fixed
        if rubric.pair:  # as they are learned: in either order, so that both texts weigh the same
            targets = targets + exchanged(targets, rubric)
        return option_weights(targets, exponent)

    def trainer(self, evaluate: bool = True) -> SlotTrainer:
        """The trainer, ready to train; benchmarks do without evaluation and checkpoints."""
        rubric, config = self.contract.rubric, self.recipe.training
        label_ids, weights, model = self.label_ids, self.weights, self.model()
        if not config.tokens_per_pack:  # by the memory that the base leaves
            budget = pack_budget(model.device, model.config.get_text_config())
            self.collator.budget = self.eval_collator.budget = budget
        trainer = SlotTrainer(
            model=model,
            args=training_arguments(self.recipe, self.run, self.base, evaluate),
            train_dataset=self.train,
            eval_dataset=self.validation,
            processing_class=self.tokenizer,
            data_collator=self.collator,
            eval_collator=self.eval_collator,
            compute_metrics=alpha_metrics(rubric, self.splits["validation"], config.temperature),
            loss=SlotLoss(
                rubric,
                label_ids,
                config.ordinal_weight,
                None if weights is None else torch.tensor(weights),
                ORDINAL[config.ordinal_loss],
                config.vocabulary_weight,
                config.temperature,
            ),
            plain_loss=SlotLoss(rubric, label_ids, temperature=config.temperature),
        )
        trainer.add_callback(EpochOfCollator(self.collator))
        trainer.add_callback(CheckpointClock(config.checkpoint_minutes * 60))
        if "tensorboard" in config.report_to:
            trainer.add_callback(tensorboard(self.run.folder / "logs"))
        return trainer


def _adapted(model: Any, share: float) -> list[str]:
    """Paths of the linear layers but the output, in the last `share` of the model's layers.

    Raises:
        ModelError: there are none.
    """
    from transformers.pytorch_utils import Conv1D

    output = model.get_output_embeddings()
    linear = {
        path: re.search(r"\.(\d+)\.", path)
        for path, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not output
    }
    layers = model.config.get_text_config().num_hidden_layers
    first = min(round((1 - share) * layers), layers - 1)
    if found := [path for path, layer in linear.items() if not layer or int(layer[1]) >= first]:
        return found
    raise ModelError(f"{model.config.name_or_path} has no linear layers that LoRA could adapt.")


def _embeddings(model: Any) -> str:
    """Path of the input embeddings.

    Raises:
        ModelError: they are the output's too.
    """
    if model.config.get_text_config().tie_word_embeddings:
        raise ModelError(
            "lora.embedding_r needs a base whose output embeddings are its own: merging would "
            f"change the output of {model.config.name_or_path} too, which was not trained so."
        )
    embeddings = model.get_input_embeddings()
    path: str = next(path for path, module in model.named_modules() if module is embeddings)
    return path
