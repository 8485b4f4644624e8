"""Many rows behind one copy of the rubric, as one sequence without padding.

    [rubric][row 1][row 2] ...

Each row attends to the rubric and to itself, and its positions go on after the rubric's, so a
row's hidden states are those of its whole prompt, while the rubric is computed once a pack.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from slm_judge.prompt.readers import EncodedPrompt


@dataclass(frozen=True)
class Pack:
    """One packed sequence of L tokens, for R rows with K slots each."""

    input_ids: npt.NDArray[np.int64]
    """1 x L."""
    position_ids: npt.NDArray[np.int64]
    """1 x L."""
    logits_to_keep: npt.NDArray[np.int64]
    """R x K flattened: positions of the slots, row by row."""
    prefix: int
    """Tokens of the rubric."""
    lengths: Sequence[int]
    """Tokens of each row behind it."""

    @property
    def n_tokens(self) -> int:
        """L."""
        return int(self.input_ids.shape[1])

    @property
    def attention_mask(self) -> npt.NDArray[np.bool_]:
        """1 x 1 x L x (tokens in the cache + L), true where the third axis' token attends to the
        fourth's.
        """
        numbers = np.repeat(np.arange(len(self.lengths)), self.lengths)
        rows = np.concatenate([np.full(self.prefix, -1), numbers])
        visible = (rows[None, :] == -1) | (rows[:, None] == rows[None, :])
        seen: npt.NDArray[np.bool_] = np.tri(len(rows), dtype=bool) & visible
        return seen[None, None, len(rows) - self.input_ids.shape[1] :]


def shared_prefix(prompts: Sequence[EncodedPrompt]) -> int:
    """Number of leading tokens that all prompts share, before the first slot of any."""
    first = prompts[0].input_ids
    length = min(prompt.slots[0] for prompt in prompts)
    for prompt in prompts[1:]:
        while prompt.input_ids[:length] != first[:length]:
            length = _first_difference(prompt.input_ids, first, length)
    return length


def _first_difference(one: Sequence[int], two: Sequence[int], end: int) -> int:
    pairs = enumerate(zip(one[:end], two[:end], strict=True))
    return next((i for i, (a, b) in pairs if a != b), end)


def split_into_packs(
    prompts: Sequence[EncodedPrompt], prefix: int, budget: int
) -> Iterator[list[int]]:
    """Indices of consecutive prompts that fit `budget` tokens a pack, at least one a pack."""
    rows: list[int] = []
    size = prefix
    for index, prompt in enumerate(prompts):
        cost = len(prompt.input_ids) - prefix
        if rows and size + cost > budget:
            yield rows
            rows, size = [], prefix
        rows.append(index)
        size += cost
    if rows:
        yield rows


def pack(prompts: Sequence[EncodedPrompt], prefix: int, cached: bool = False) -> Pack:
    """Pack prompts that share their first `prefix` tokens.

    Args:
        prompts: R rows.
        prefix: number of shared tokens.
        cached: leave the shared tokens out; they are in the model's key-value cache.
    """
    lengths = np.array([len(prompt.input_ids) - prefix for prompt in prompts])
    starts = prefix + np.concatenate([[0], lengths.cumsum()[:-1]])
    tails = [token for prompt in prompts for token in prompt.input_ids[prefix:]]
    rubric = np.arange(prefix)
    positions = np.concatenate([rubric, *(prefix + np.arange(length) for length in lengths)])
    slots = [
        start + slot - prefix
        for start, prompt in zip(starts, prompts, strict=True)
        for slot in prompt.slots
    ]
    skip = prefix if cached else 0
    return Pack(
        np.array([(prompts[0].input_ids[:prefix] + tails)[skip:]], dtype=np.int64),
        positions[None, skip:].astype(np.int64),
        np.array(slots, dtype=np.int64) - skip,
        prefix,
        lengths.tolist(),
    )


_FILLING = 256  # tokens of a row that fills; all positions are ones that a model has


def filled(packed: Pack, tokens: int) -> Pack:
    """A pack of `tokens` tokens at least: rows that nobody asks for come behind the others."""
    lacking = tokens - packed.n_tokens
    if lacking <= 0:
        return packed
    steps = np.arange(lacking) % min(_FILLING, max(packed.lengths))
    starts = np.flatnonzero(steps == 0)
    return replace(
        packed,
        input_ids=np.pad(packed.input_ids, ((0, 0), (0, lacking)), mode="edge"),
        position_ids=np.concatenate([packed.position_ids, packed.prefix + steps[None]], axis=1),
        lengths=[*packed.lengths, *np.diff([*starts, lacking]).tolist()],
    )
