"""TRL's SFTTrainer with the loss and the evaluation at the answer slots."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import (
    EvalPrediction,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTTrainer

from slm_judge.agreement.alpha import judge_alpha
from slm_judge.agreement.parts import all_parts
from slm_judge.agreement.sets import judge_pairs
from slm_judge.artefact.calibration import Calibration
from slm_judge.artefact.device import full_width
from slm_judge.backends import row_attention
from slm_judge.backends.transformers import as_scores
from slm_judge.data.item import Item, votes_of
from slm_judge.data.sets import chosen_by, chosen_by_annotators
from slm_judge.errors import JudgeError
from slm_judge.judge.answer import leanings
from slm_judge.rubric import Preference, Rubric

from .loss import SlotLoss, option_logits
from .slots import SlotCollator, TrainingCollator


class SlotTrainer(SFTTrainer):
    """Trains and evaluates on the packs of `SlotCollator`, one pack after the other.

    Memory is bounded by a pack, whatever the batch: each pack's backward pass runs before the next
    pack's forward pass, with gradients that sum to those of the whole batch.
    """

    data_collator: Any

    def __init__(
        self, *args: Any, loss: SlotLoss, plain_loss: SlotLoss, eval_collator: SlotCollator,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        """As `SFTTrainer`.

        Args:
            loss: for training.
            plain_loss: for evaluation, so that runs with different training losses compare.
            eval_collator: makes the batches for evaluation.
            args: of `SFTTrainer`.
            kwargs: of `SFTTrainer`.
        """
        super().__init__(*args, **kwargs)
        self.remove_callback(PrinterCallback)
        self._loss, self._plain_loss, self._eval_collator = loss, plain_loss, eval_collator
        attention = self.model.config.get_text_config()._attn_implementation
        self._by_rows = attention == row_attention.NAME
        # On a GPU no layer looks at a mask, which would take longer to make than the pass takes.
        for collator in (self.data_collator, eval_collator):
            collator.masks = not self._by_rows or self.args.device.type != "cuda"
        # The targets are no shifted next tokens: Trainer must count every label of a batch.
        self._loss_shifts_labels = False
        self._head = None
        if self._dtype() != torch.float32:
            self._head = _Head(self.model.get_output_embeddings(), plain_loss.label_ids)
        # TRL rounds the adapter of a quantized base to bfloat16, in which small updates vanish.
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """As `Trainer`, with the evaluation's collator."""
        return self._with_eval_collator(super().get_eval_dataloader, eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """As `Trainer`, with the evaluation's collator."""
        return self._with_eval_collator(super().get_test_dataloader, test_dataset)

    def _with_eval_collator(self, make: Callable[[Any], Any], dataset: Any) -> Any:
        collator, self.data_collator = self.data_collator, self._eval_collator
        try:
            return make(dataset)
        finally:
            self.data_collator = collator

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Mean loss over the answered slots of the optimiser step; gradients are left behind.

        Raises:
            JudgeError: the loss is not a finite number.
        """
        model.train()
        inputs = self._prepare_inputs(inputs)
        count = self._count(inputs, num_items_in_batch)
        total = torch.zeros((), device=count.device)
        for number, pack in enumerate(inputs["packs"], start=1):
            last = number == len(inputs["packs"])
            alone = nullcontext() if last else self.accelerator.no_sync(model)
            with alone, full_width(self.args.device):
                with self.compute_loss_context_manager():
                    loss = self._pack_loss(model, pack, self._loss)[0] / count
                self.accelerator.backward(loss)
            total += loss.detach()
        if not torch.isfinite(total):
            in_16 = "Set training.dtype: float32. Or lower " if self.args.fp16 else "Lower "
            raise JudgeError(
                f"The loss is {total.item()} at step {self.state.global_step + 1}. {in_16}"
                f"training.learning_rate (now {self.args.learning_rate:g}) or "
                f"training.max_grad_norm (now {self.args.max_grad_norm:g}), raise "
                "training.warmup_share, and train again with --overwrite."
            )
        return total

    def _count(self, inputs: dict[str, Any], num_items_in_batch: Any) -> torch.Tensor:
        """Answered slots of the step, divided by what averaging over processes will divide by."""
        if num_items_in_batch is None:
            return (inputs["labels"] >= 0).sum().clamp(min=1)
        count = torch.as_tensor(num_items_in_batch, device=inputs["labels"].device).clamp(min=1)
        if self.args.average_tokens_across_devices:
            count = count / self.accelerator.num_processes
        return count

    def _pack_loss(
        self, model: Any, pack: dict[str, Any], loss: SlotLoss
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The summed loss of a pack, and its logits (R x K x V)."""
        logits = self.logits_of(model, pack)
        return loss(logits, pack["targets"], pack["positions"]), logits

    def logits_of(self, model: Any, pack: dict[str, Any]) -> torch.Tensor:
        """The logits at the slots of a pack's R rows: R x K x V."""
        inputs = dict(pack["inputs"])
        if self._by_rows:
            inputs["rows"] = pack["rows"]
            if "attention_mask" not in inputs:
                inputs |= row_attention.no_mask(self.args.device)
        else:
            inputs["attention_mask"] = as_scores(inputs["attention_mask"], self._dtype())
        with full_width(self.args.device):
            logits: torch.Tensor = model(**inputs, use_cache=False).logits[0]
        if self._head:
            logits = self._head.with_exact_labels(logits)
        return logits.unflatten(0, pack["targets"].shape[:2])

    def _dtype(self) -> Any:
        """In which attention is computed."""
        kind = self.args.device.type
        with self.accelerator.autocast():  # as around the model's forward pass
            autocast = torch.is_autocast_enabled(kind)
            return torch.get_autocast_dtype(kind) if autocast else self.model.dtype

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Mean loss, the options' logits (B x K x M) and the labels."""
        inputs = self._prepare_inputs(inputs)
        count = self._count(inputs, None)
        total, rows = torch.zeros((), device=count.device), []
        with torch.no_grad(), self.compute_loss_context_manager():
            for pack in inputs["packs"]:
                loss, logits = self._pack_loss(model, pack, self._plain_loss)
                total += loss / count
                ids = self._plain_loss.label_ids
                rows.append(option_logits(logits.float(), ids, pack["positions"]))
        return total, torch.cat(rows), inputs["labels"]


class _Head:
    """The labels' logits in float32, of a model that computes in 16 bits.

    Above 16, logits of bfloat16 are multiples of 0.125: too coarse to tell a judge's two best
    labels apart, and to fit a calibration to.
    """

    def __init__(self, layer: torch.nn.Module, label_ids: torch.Tensor) -> None:
        self._layer, self._ids = layer, label_ids
        self._hidden, self._said = torch.empty(0), torch.empty(0)
        self._right: bool | None = None if type(layer) is torch.nn.Linear else False
        layer.register_forward_hook(self._note)

    def _note(self, _: Any, given: tuple[torch.Tensor], said: torch.Tensor) -> None:
        self._hidden, self._said = given[0], said

    def with_exact_labels(self, logits: torch.Tensor) -> torch.Tensor:
        """N x V logits that the model has just given, with its labels' in float32.

        As they are where they are not the output layer's: Gemma caps them, Granite scales them.
        """
        hidden, said = self._hidden, self._said
        self._hidden = self._said = torch.empty(0)
        if self._right is None:  # as for the label rows of `TransformersBackend`
            self._right = torch.equal(said[0].float(), logits.float())
        if not self._right:
            return logits
        ids = self._ids.to(logits.device)
        rows, bias = self._layer.weight[ids].float(), self._layer.bias
        with torch.autocast(logits.device.type, enabled=False):
            exact = torch.nn.functional.linear(
                hidden[0].float(), rows, None if bias is None else bias[ids].float()
            )
        return logits.float().index_copy(-1, ids, exact)


class EpochOfCollator(TrainerCallback):
    """Tells the collator which epoch it draws for."""

    def __init__(self, collator: TrainingCollator) -> None:
        """Follow the trainer's epochs with `collator`."""
        self._collator = collator

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Called before the first batch of the epoch is made."""
        self._collator.epoch = int((state.epoch or 0) + 1e-6)


def per_dimension(logits: npt.NDArray[Any], rubric: Rubric) -> list[npt.NDArray[Any]]:
    """Per dimension, N x options, from the trainer's N x K x M.

    Where the rubric has a preference, the trainer's 2N rows are both readings of N items
    (`Targets.with_exchanged`), and of a preference N x 2 x options are given, as `Judge.logits`.
    """
    rows = [logits[:, k, : len(d.options)] for k, d in enumerate(rubric.dimensions)]
    if rubric.pair is None:
        return rows
    both = (np.stack(np.split(one, 2), axis=1) for one in rows)
    return [
        one if isinstance(d, Preference) else one[:, 0]
        for d, one in zip(rubric.dimensions, both, strict=True)
    ]


def alphas_of(
    rubric: Rubric, items: Sequence[Item], labels: Mapping[str, npt.NDArray[np.int64]]
) -> dict[str, float]:
    """Alpha of labels of N items against the annotators, by dimension, where it is defined.

    A set counts once, whatever the number of its options.
    """
    alphas, inside = {}, {name for one in rubric.sets for name in one.members}
    for one in rubric.sets:
        judged = chosen_by(one, {name: labels[name].tolist() for name in one.members})
        votes = chosen_by_annotators(one, items)
        pairs = judge_pairs(judged, votes, len(one.options), one.distance)
        alphas[one.name] = float(pairs.alpha(pairs.per_item.sum(axis=0)))
    for part in all_parts(d for d in rubric.dimensions if d.name not in inside):
        own = part.labels(labels[part.source]).tolist()
        said = part.votes_of(votes_of(items, part.source))
        alphas[part.dimension.name] = judge_alpha(own, said, part.dimension)
    return {name: alpha for name, alpha in alphas.items() if np.isfinite(alpha)}


def alpha_metrics(
    rubric: Rubric, items: Sequence[Item], temperature: float
) -> Callable[[EvalPrediction], dict[str, float]]:
    """Metrics of the validation items: alpha of the judge against the annotators.

    Args:
        rubric: of the judge.
        items: of validation.
        temperature: of training.
    """
    calibration = Calibration(temperature=temperature)

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        rows = per_dimension(np.asarray(prediction.predictions), rubric)
        labels = {
            d.name: leanings(d, one, calibration).argmax(axis=-1)
            for d, one in zip(rubric.dimensions, rows, strict=True)
        }
        found = alphas_of(rubric, items, labels)
        mean = float(np.mean(list(found.values())))
        return {"alpha": mean, **{f"alpha_{name}": alpha for name, alpha in found.items()}}

    return compute
