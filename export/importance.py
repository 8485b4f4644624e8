"""What each input of a layer counts in the judge's answers, for llama.cpp to round weights by.

llama.cpp chooses the scales of a block so that rounding changes its weights least, each weighed by
the mean square of the input that it is multiplied with ("importance matrix"). Here those are the
inputs on prompts of the run's training items, answers' positions counted more (see `gptq`), where
llama.cpp's own tool takes running text.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from slm_judge.errors import require

Importance = dict[str, npt.NDArray[np.float32]]
"""Mean square of each input, by the layer's name in transformers."""


@contextmanager
def listening(model: Any, weights: Sequence[Any]) -> Iterator[Importance]:
    """Fill what is yielded from forward passes in the block, one for each of `weights`.

    Args:
        model: of transformers, not quantized.
        weights: of the tokens of each pass, in order.
    """
    torch, sums, found, hooks = require("torch", "export"), dict[str, Any](), Importance(), []
    output, passes = model.get_output_embeddings(), iter(weights)
    current = [next(passes, None)]

    def add(name: str, x: Any) -> None:
        rows = x.flatten(0, -2).float()
        if current[0] is not None and len(rows) == len(current[0]):  # not an expert's, of some
            sums[name] = sums.get(name, 0) + current[0] @ rows.square()

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not output:
            hook = module.register_forward_pre_hook(lambda _, x, name=name: add(name, x[0]))
            hooks.append(hook)

    def next_pass(*_: Any) -> None:
        current[0] = next(passes, None)

    hooks.append(model.register_forward_hook(next_pass))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
    total = sum(float(one.sum()) for one in weights)
    found.update({name: (one / total).cpu().numpy() for name, one in sums.items()})


def in_gguf(importance: Importance, architecture: str) -> Importance:
    """By the names that GGUF files of an architecture have for the same layers' weights."""
    gguf = require("gguf", "export")
    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    blocks = 1 + max((int(part) for name in importance for part in name.split(".")
                      if part.isdecimal()), default=0)  # fmt: skip
    names = gguf.get_tensor_name_map(number, blocks)
    named = {names.get_name(name): one for name, one in importance.items()}
    return {f"{name}.weight": one for name, one in named.items() if name}
