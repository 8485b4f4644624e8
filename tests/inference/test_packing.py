import numpy as np
import pytest

from slm_judge.backends.packing import pack, shared_prefix, split_into_packs
from slm_judge.prompt.readers import EncodedPrompt

PROMPTS = [
    EncodedPrompt([9, 8, 1, 2, 7], [3, 4]),
    EncodedPrompt([9, 8, 3, 7], [2, 3]),
    EncodedPrompt([9, 8, 1, 5, 5, 7], [4, 5]),
]


def test_shared_prefix():
    assert shared_prefix(PROMPTS) == 2
    assert shared_prefix(PROMPTS[:1]) == 3  # never past the first slot
    assert shared_prefix([PROMPTS[0], EncodedPrompt([1, 2], [1])]) == 0


def test_a_row_sees_the_rubric_and_itself():
    packed = pack(PROMPTS, 2)
    assert packed.input_ids.tolist() == [[9, 8, 1, 2, 7, 3, 7, 1, 5, 5, 7]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 2, 3, 2, 3, 4, 5]]
    assert packed.logits_to_keep.tolist() == [3, 4, 5, 6, 9, 10]
    mask = packed.attention_mask[0, 0]
    assert np.flatnonzero(mask[6]).tolist() == [0, 1, 5, 6]
    assert np.flatnonzero(mask[1]).tolist() == [0, 1]


def test_packs_keep_the_order_and_the_budget():
    assert list(split_into_packs(PROMPTS, 2, 7)) == [[0, 1], [2]]
    assert list(split_into_packs(PROMPTS, 2, 1)) == [[0], [1], [2]]


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_one_pack_holds_all_slots(rows):
    packed = pack(PROMPTS[:rows], shared_prefix(PROMPTS[:rows]))
    assert len(packed.logits_to_keep) == 2 * rows
