"""TRL's SFTTrainer with the loss and the evaluation at the answer slots."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import EvalPrediction, PrinterCallback
from trl import SFTTrainer

from slm_judge.agreement import judge_alpha
from slm_judge.items import Item, votes_of
from slm_judge.rubric import Rubric

from .slots import slot_loss


class SlotTrainer(SFTTrainer):
    """Trains on batches of `SlotCollator`; evaluation returns the labels' logits (N x K x M)."""

    def __init__(self, *args: Any, label_ids: Sequence[int], **kwargs: Any) -> None:
        """As `SFTTrainer`, with the token ids of the labels."""
        super().__init__(*args, **kwargs)
        self.remove_callback(PrinterCallback)
        self._label_ids = torch.tensor(label_ids)
        # The targets are no shifted next tokens: Trainer must count every label of a batch.
        self._loss_shifts_labels = False
        # TRL rounds the adapter of a quantized base to bfloat16, in which small updates vanish.
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """Mean over the answered slots of the whole optimiser step."""
        targets = inputs["targets"]
        slots = [model(**packed, use_cache=False).logits[0] for packed in inputs["packs"]]
        logits = torch.cat(slots).unflatten(0, targets.shape[:2])
        total = slot_loss(logits, targets, self._label_ids.to(targets.device))
        if num_items_in_batch is None:
            count = (targets.sum(dim=-1) > 0).sum()
        else:
            count = torch.as_tensor(num_items_in_batch, device=total.device)
            if self.args.average_tokens_across_devices:  # gradients are averaged over processes
                total = total * self.accelerator.num_processes
        loss = total / count.clamp(min=1)
        return (loss, logits) if return_outputs else loss

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Loss, the labels' logits and the targets."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, logits = self.compute_loss(model, inputs, return_outputs=True)
        label_ids = self._label_ids.to(logits.device)
        return loss, logits[:, :, label_ids].float(), inputs["targets"]


def option_logits(logits: npt.NDArray[Any], rubric: Rubric) -> list[npt.NDArray[Any]]:
    """Per dimension, N x options, from the trainer's N x K x M."""
    return [logits[:, k, : len(d.options)] for k, d in enumerate(rubric.dimensions)]


def alpha_metrics(
    rubric: Rubric, items: Sequence[Item]
) -> Callable[[EvalPrediction], dict[str, float]]:
    """Metrics of the validation items: alpha of the judge against the annotators."""

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        alphas = {}
        rows = option_logits(np.asarray(prediction.predictions), rubric)
        for dimension, logits in zip(rubric.dimensions, rows, strict=True):
            judged = logits.argmax(axis=-1).tolist()
            votes = votes_of(items, dimension.name)
            alphas[f"alpha_{dimension.name}"] = judge_alpha(judged, votes, dimension)
        return {"alpha": float(np.nanmean(list(alphas.values()))), **alphas}

    return compute
