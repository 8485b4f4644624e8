"""Training examples, batches and the loss: everything happens at the answer slots."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset

from slm_judge.backends.transformers import pack_tensors
from slm_judge.contract import Contract
from slm_judge.errors import DataError
from slm_judge.items import Item
from slm_judge.packing import pack, shared_prefix, split_into_packs
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
    sizes = [
        (len(prompt.input_ids), item.item_id) for item, prompt in zip(items, prompts, strict=True)
    ]
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
    """Makes a batch: rows packed behind one copy of the rubric, in one or more packs."""

    budget: int
    """Tokens a pack."""

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Pack B rows.

        Returns:
            `targets` (B x K x M), `labels` (B x K) and `packs`, a list of model inputs whose
            slots, one pack after the other, are the rows' B x K.
        """
        prompts = [EncodedPrompt(row["input_ids"], row["slots"]) for row in rows]
        prefix = shared_prefix(prompts)
        packs = [
            pack_tensors(pack([prompts[i] for i in part], prefix), "cpu")
            for part in split_into_packs(prompts, prefix, self.budget)
        ]
        return {
            "targets": torch.tensor([row["targets"] for row in rows]),  # first: gives Trainer B
            "labels": torch.tensor(
                [[row["labels"][slot] for slot in row["slots"]] for row in rows]
            ),
            "packs": packs,
        }


def slot_loss(logits: torch.Tensor, targets: torch.Tensor, label_ids: torch.Tensor) -> torch.Tensor:
    """Cross-entropy at the slots over the whole vocabulary, summed over answered slots.

    Args:
        logits: B x K x V.
        targets: B x K x M, shares that sum to 1, or to 0 where nobody answered.
        label_ids: M token ids.
    """
    log_probabilities = logits.float().log_softmax(dim=-1)[:, :, label_ids]
    return -(targets * log_probabilities).sum()
