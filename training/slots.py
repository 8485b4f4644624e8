"""Training examples and batches: everything happens at the answer slots."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset

from slm_judge.artefact.judge_files import Contract
from slm_judge.backends.packing import pack, shared_prefix, split_into_packs
from slm_judge.backends.row_attention import Rows, pack_tensors
from slm_judge.data.item import Item
from slm_judge.errors import DataError
from slm_judge.prompt.readers import DecisionReader, EncodedPrompt
from slm_judge.recipe import AugmentationConfig
from slm_judge.rubric import Preference

from .augment import Variant, VariantReader, draw_variant, identity
from .targets import Targets, exchanged

IGNORE = -100


def make_dataset(
    prompts: Sequence[EncodedPrompt], targets: Targets, label_ids: Sequence[int]
) -> Dataset:
    """The prompts of items for the trainer.

    Args:
        prompts: of N items.
        targets: of the same items.
        label_ids: see `label_token_ids`.

    Returns:
        Columns `index`, `input_ids`, `slots` (K positions) and `labels` (-100 but at each answered
        slot, where the colon's target is the label token of the likeliest option).
    """
    rows = []
    for index, prompt in enumerate(prompts):
        labels = [IGNORE] * len(prompt.input_ids)
        for slot, shares in zip(prompt.slots, targets.fixed[index], strict=True):
            if shares.any():
                labels[slot] = label_ids[int(shares.argmax())]
        rows.append(
            {
                "index": index,
                "input_ids": prompt.input_ids,
                "slots": prompt.slots,
                "labels": labels,
            }
        )
    return Dataset.from_list(rows)


def label_token_ids(contract: Contract, tokenizer: Any) -> list[int]:
    """Token ids of the labels that the rubric can use, in order."""
    width = max(len(dimension.options) for dimension in contract.rubric.dimensions)
    ids = tokenizer(list(contract.labels[:width]), add_special_tokens=False)["input_ids"]
    return [token for (token,) in ids]


def check_lengths(
    splits: Mapping[str, Sequence[Item]],
    prompts: Mapping[str, Sequence[EncodedPrompt]],
    max_length: int,
    readable: int,
) -> None:
    """Refuse items that are too long to be trained on, validated on or tested.

    Args:
        splits: the items.
        prompts: of each split, its items' prompts.
        max_length: of the recipe.
        readable: tokens that the base can read.

    Raises:
        DataError: counts them and names the longest.
    """
    room = min(max_length, readable)
    sizes = [
        (prompt.n_tokens, item.item_id, name)
        for name, items in splits.items()
        for item, prompt in zip(items, prompts[name], strict=True)
    ]
    too_long = sorted((one for one in sizes if one[0] > room), reverse=True)
    if not too_long:
        return
    limit, remedy = f"training.max_length ({room} tokens)", "Raise max_length, or shorten"
    if readable < max_length:
        limit, remedy = f"the base can read ({room} tokens)", "Shorten"
    shown = ", ".join(f"{item} of {name} ({size} tokens)" for size, item, name in too_long[:3])
    raise DataError(
        f"{len(too_long)} of {len(sizes)} prompts are longer than {limit}: {shown}"
        f"{', ...' if len(too_long) > 3 else ''}. {remedy} these items."
    )


class SlotCollator:
    """Makes a batch: rows packed behind one copy of the rubric, in one or more packs."""

    def __init__(self, targets: Targets, budget: int) -> None:
        """Batch rows of a dataset of `make_dataset`.

        Args:
            targets: of the dataset's items.
            budget: tokens a pack.
        """
        self.targets, self.budget = targets, budget
        self.masks = True  # whether packs have one

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch of B rows.

        Returns:
            `labels` (B x K; the trainer counts what is not -100) and `packs`: each with `inputs`
            of the model, where its R `rows` are, their `targets` (R x K x M in option order), whose
            slots are the logits in order, and `positions` (K x M: the label that an option stands
            behind).
        """
        labels = [[row["labels"][slot] for slot in row["slots"]] for row in rows]
        return {"labels": torch.tensor(labels), "packs": self._packs(rows)}

    def _packs(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        prompts = [EncodedPrompt(row["input_ids"], row["slots"]) for row in rows]
        targets = torch.tensor(self.targets.fixed[[row["index"] for row in rows]])
        width = targets.shape[-1]
        positions = torch.arange(width).expand(targets.shape[1], width).clone()
        return self._pack(prompts, targets, positions)

    def _pack(
        self, prompts: Sequence[EncodedPrompt], targets: torch.Tensor, positions: torch.Tensor
    ) -> list[dict[str, Any]]:
        prefix = shared_prefix(prompts)
        packs = []
        for part in split_into_packs(prompts, prefix, self.budget):
            packed = pack([prompts[i] for i in part], prefix)
            packs.append(
                {
                    "inputs": pack_tensors(packed, "cpu", self.masks),
                    "rows": Rows(packed.prefix, packed.lengths),
                    "targets": targets[part].float(),
                    "positions": positions,
                }
            )
        return packs


class TrainingCollator(SlotCollator):
    """Draws votes and wordings anew each epoch, as a function of seed, epoch and rows alone.

    Of a pair, the two texts change places from one epoch to the next.
    """

    def __init__(
        self,
        items: Sequence[Item],
        contract: Contract,
        tokenizer: Any,
        targets: Targets,
        budget: int,
        augmentation: AugmentationConfig,
        seed: int,
        reader: DecisionReader | None = None,
    ) -> None:
        """As `SlotCollator`, with what is drawn, the `seed` of the draws, and the plain reader."""
        super().__init__(targets, budget)
        self.epoch = 0
        self._items, self._rubric = items, contract.rubric
        self._augmentation, self._seed = augmentation, seed
        self._reader = None
        if augmentation.changes_prompts or contract.rubric.pair:
            self._reader = VariantReader(contract, tokenizer, reader)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """As `SlotCollator`; what an exchanged row says nothing about is not counted."""
        batch = super().__call__(rows)
        for row, labels in zip(rows, batch["labels"], strict=True):
            if self._exchanges(row["index"]):
                for k, dimension in enumerate(self._rubric.dimensions):
                    if not isinstance(dimension, Preference):
                        labels[k] = IGNORE
        return batch

    def _exchanges(self, index: int) -> bool:
        """Whether the two texts of an item change places in this epoch: in every other one."""
        if self._rubric.pair is None:
            return False
        first = random.Random(f"{self._seed}/order/{index}").random() < 0.5  # noqa: S311
        turned = exchanged(self.targets.fixed[index], self._rubric)
        return bool(turned.any()) and first == bool(self.epoch % 2)

    def _packs(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        indices = [row["index"] for row in rows]
        seed = f"{self._seed}/{self.epoch}"
        drawn, states = self.targets.draw(indices, seed), [self._items[i].state for i in indices]
        for row, index in enumerate(indices):
            if self._exchanges(index):
                states[row] = self._rubric.exchanged(states[row])
                drawn[row] = exchanged(drawn[row], self._rubric)
        targets = torch.tensor(drawn)
        if self._reader is None:
            prompts = [EncodedPrompt(row["input_ids"], row["slots"]) for row in rows]
            return self._pack(prompts, targets, self._positions(identity(self._rubric)))
        rng = random.Random(f"{seed}/{indices}")  # noqa: S311
        packs = []
        for part in torch.arange(len(rows)).chunk(self._augmentation.variants):
            variant = draw_variant(self._rubric, self._augmentation, rng)
            shown = [states[row] for row in part.tolist()]
            dropout = self._augmentation.token_dropout
            prompts = self._reader.encode(variant, shown, dropout, rng)
            packs += self._pack(prompts, targets[part], self._positions(variant))
        return packs

    def _positions(self, variant: Variant) -> torch.Tensor:
        width = self.targets.fixed.shape[-1]
        rows = [[*row, *range(len(row), width)] for row in variant.positions]
        return torch.tensor(rows)
