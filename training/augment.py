"""Augmented training prompts: the same question put in other ways.

A `Variant` is a wording of the rubric. All rows of a pack are asked in one wording, so that they
share it; what differs by row is which tokens of the item are left out.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slm_judge.artefact.judge_files import Contract
from slm_judge.prompt.layout import build_layout, item_spans
from slm_judge.prompt.readers import DecisionReader, EncodedPrompt
from slm_judge.prompt.templates import compile_template, decision_head, decision_template
from slm_judge.recipe import AugmentationConfig
from slm_judge.rubric import Dimension, Preference, Rubric

_MAX_READERS = 256  # compiled templates kept


@dataclass(frozen=True)
class Variant:
    """A wording of the rubric."""

    rubric: Rubric
    """With drawn instructions, and with its fields and options in drawn order."""
    positions: tuple[tuple[int, ...], ...]
    """Per dimension, which label each option of the original rubric stands behind."""


def identity(rubric: Rubric) -> Variant:
    """The rubric as inference asks it."""
    return Variant(rubric, tuple(tuple(range(len(d.options))) for d in rubric.dimensions))


def draw_variant(rubric: Rubric, config: AugmentationConfig, rng: random.Random) -> Variant:
    """Draw a wording."""
    dimensions, positions = [], []
    for dimension in rubric.dimensions:
        order = list(range(len(dimension.options)))
        kind = "choice" if isinstance(dimension, Preference) else dimension.type
        if config.shuffle_options in ("all", kind):
            rng.shuffle(order)
        changes: dict[str, Any] = {"options": [dimension.options[option] for option in order]}
        if config.paraphrase:
            changes["instructions"] = _wording(dimension, rng)
        dimensions.append(dimension.model_copy(update=changes))
        positions.append(tuple(order.index(option) for option in range(len(order))))
    fields = list(rubric.fields)
    if config.permute_fields:
        rng.shuffle(fields)
    changes = {"dimensions": dimensions, "fields": fields}
    if config.paraphrase:
        changes["instructions"] = _wording(rubric, rng)
    return Variant(rubric.model_copy(update=changes), tuple(positions))


def _wording(asked: Rubric | Dimension, rng: random.Random) -> str:
    return rng.choice([asked.instructions, *asked.paraphrases])


class VariantReader:
    """Encodes items in the wording of a variant."""

    def __init__(
        self, contract: Contract, tokenizer: Any, reader: DecisionReader | None = None
    ) -> None:
        """Take layout and labels of `contract`, and the reader of its own wording."""
        self._layout = build_layout(tokenizer, contract.rubric)
        self._base = reader or DecisionReader(
            tokenizer, contract.decision_template, contract.rubric, contract.labels
        )
        self._readers: dict[str, tuple[DecisionReader, int]] = {}

    def _reader(self, variant: Variant) -> tuple[DecisionReader, int]:
        """A reader of the wording, and the number of characters before the item."""
        wording = variant.rubric.to_json()
        if wording not in self._readers:
            if len(self._readers) >= _MAX_READERS:
                self._readers.clear()
            template = decision_template(variant.rubric, self._layout)
            reader = self._base.in_other_words(template, variant.rubric)
            head = compile_template(decision_head(variant.rubric, self._layout))
            self._readers[wording] = reader, len(head.render(questions=reader.questions))
        return self._readers[wording]

    def encode(
        self,
        variant: Variant,
        states: Sequence[Mapping[str, str]],
        token_dropout: float = 0.0,
        rng: random.Random | None = None,
    ) -> list[EncodedPrompt]:
        """Encode items.

        Args:
            variant: the wording.
            states: of the items.
            token_dropout: share of the tokens inside the fields' texts to leave out; of a text of
                one token or more, one is always kept.
            rng: draws them.
        """
        reader, before = self._reader(variant)
        if not token_dropout or rng is None:
            return reader.encode(states)
        texts = [reader.render(state) for state in states]
        encoded = reader.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        prompts = []
        for state, ids, offsets in zip(
            states, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            dropped: set[int] = set()
            for start, end in item_spans(variant.rubric, self._layout, state):
                inside = [
                    token
                    for token, (first, last) in enumerate(offsets)
                    if before + start <= first < last <= before + end
                ]
                chosen = [token for token in inside if rng.random() < token_dropout]
                dropped.update(chosen if len(chosen) < len(inside) else chosen[1:])
            kept = [token_id for token, token_id in enumerate(ids) if token not in dropped]
            prompts.append(reader.read_marks(kept))
        return prompts
