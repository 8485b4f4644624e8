"""Training examples, batches and the loss: everything happens at the answer slots."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset

from slm_judge.backends.transformers import left_padded
from slm_judge.contract import Contract
from slm_judge.errors import DataError
from slm_judge.items import Item
from slm_judge.prompt import DecisionReader, EncodedPrompt

IGNORE = -100


def vote_shares(votes: Sequence[int], n_options: int) -> list[float]:
    """Share of the annotators who chose each option; zeros where nobody answered."""
    return [votes.count(option) / len(votes) if votes else 0.0 for option in range(n_options)]


def make_dataset(
    items: Sequence[Item], contract: Contract, tokenizer: Any, max_length: int
) -> Dataset:
    """Tokenize items for the trainer.

    Returns:
        Columns `input_ids`, `slots` (K positions), `labels` (-100 but at each answered slot, where
        the colon's target is the label token with most votes) and `targets` (K x M vote shares,
        M options of the longest dimension).

    Raises:
        DataError: some prompts are longer than `max_length`.
    """
    dimensions = contract.rubric.dimensions
    width = max(len(dimension.options) for dimension in dimensions)
    label_ids = label_token_ids(contract, tokenizer)
    reader = DecisionReader(tokenizer, contract.decision_template, contract.rubric, contract.labels)
    prompts = reader.encode([item.state for item in items])
    _check_lengths(items, prompts, max_length)
    rows = []
    for item, prompt in zip(items, prompts, strict=True):
        targets = [vote_shares(item.votes.get(d.name, []), width) for d in dimensions]
        labels = [IGNORE] * len(prompt.input_ids)
        for slot, shares in zip(prompt.slots, targets, strict=True):
            if any(shares):
                labels[slot] = label_ids[shares.index(max(shares))]
        rows.append(
            {
                "input_ids": prompt.input_ids,
                "slots": prompt.slots,
                "labels": labels,
                "targets": targets,
            }
        )
    return Dataset.from_list(rows)


def label_token_ids(contract: Contract, tokenizer: Any) -> list[int]:
    """Token ids of the labels that the rubric can use, in option order."""
    width = max(len(dimension.options) for dimension in contract.rubric.dimensions)
    ids = tokenizer(list(contract.labels[:width]), add_special_tokens=False)["input_ids"]
    return [token for (token,) in ids]


def _check_lengths(
    items: Sequence[Item], prompts: Sequence[EncodedPrompt], max_length: int
) -> None:
    sizes = [(len(prompt.input_ids), item.item_id) for item, prompt in zip(items, prompts, strict=True)]
    too_long = [(size, name) for size, name in sizes if size > max_length]
    if too_long:
        longest, name = max(too_long)
        raise DataError(
            f"{len(too_long)} of {len(items)} prompts are longer than training.max_length "
            f"({max_length} tokens); the longest has {longest} (item {name}). Raise max_length, or "
            "shorten these items."
        )


@dataclass
class SlotCollator:
    """Makes a batch: prompts padded on the left, so that the K slots line up at the right."""

    padding: int
    """Token id of the padding."""

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """See `left_padded`; adds `labels` (B x L) and `targets` (B x K x M)."""
        prompts = [EncodedPrompt(row["input_ids"], row["slots"]) for row in rows]
        batch = {key: torch.as_tensor(v) for key, v in left_padded(prompts, self.padding).items()}
        length = batch["input_ids"].shape[1]
        labels = [[IGNORE] * (length - len(row["labels"])) + row["labels"] for row in rows]
        batch["labels"] = torch.tensor(labels)
        batch["targets"] = torch.tensor([row["targets"] for row in rows])
        return batch


def slot_loss(logits: torch.Tensor, targets: torch.Tensor, label_ids: torch.Tensor) -> torch.Tensor:
    """Cross-entropy at the slots over the whole vocabulary, summed over answered slots.

    Args:
        logits: B x K x V.
        targets: B x K x M, shares that sum to 1, or to 0 where nobody answered.
        label_ids: M token ids.
    """
    log_probabilities = logits.float().log_softmax(dim=-1)[:, :, label_ids]
    return -(targets * log_probabilities).sum()
