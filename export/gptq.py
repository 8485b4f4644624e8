"""Weights moved so that rounding them to 4 bits changes the judge's answers least.

A layer's columns are rounded one after the other, and what the rounding of one changes in the
layer's outputs, on prompts of the run's training items, is made up for by the columns that are
still to be rounded (GPTQ, Frantar et al., ICLR 2023, arXiv 2210.17323). The values are those that
the file can hold, block by block, and the largest weight of a block stays its largest. So the moved
weights are an ordinary model: bitsandbytes or llama.cpp, which know nothing of this, round each of
them to the level that was chosen here. (bitsandbytes then keeps the blocks' scales in 8 bits.)
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from slm_judge.training.slots import label_token_ids
from transformers.quantizers.quantizers_utils import should_convert_module

from slm_judge.artefact.base import load_model, load_tokenizer
from slm_judge.artefact.device import pack_budget
from slm_judge.artefact.judge_files import Contract
from slm_judge.backends.packing import pack, shared_prefix, split_into_packs
from slm_judge.backends.transformers import pack_tensors
from slm_judge.data.item import load_split, split_file
from slm_judge.errors import ModelError, require
from slm_judge.progress import progress_bar
from slm_judge.prompt.readers import DecisionReader, EncodedPrompt
from slm_judge.run import Run
from slm_judge.screen import say

from .importance import Importance, listening
from .refit import label_logits, refit_labels, states

ITEMS, REFIT_ITEMS = 64, 128
"""Training items whose prompts weights are moved by, and the labels' rows fitted to."""
SLOT_WEIGHT = 5.0
"""Of an answer's position, where another token of an item counts 1."""
DAMPING = 0.01
"""Of the mean diagonal of the Hessian, as in the paper's code."""


@dataclass(frozen=True)
class Grid:
    """What a 4-bit file can hold: in a block of weights, its levels times the block's scale."""

    block: int
    levels: tuple[float, ...]
    """Ascending."""
    signed: bool
    """Whether the scale has the sign that puts the block's largest weight on the first level."""

    def scales(self, largest: Any) -> Any:
        """Of blocks, by the weight of each that is largest in size; exact in bfloat16."""
        scales = largest / self.levels[0] if self.signed else largest.abs() / self.levels[-1]
        return scales.bfloat16().float()


NF4 = Grid(
    64,
    (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
     -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
     0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
     0.7229568362236023, 1.0),
    signed=False,
)  # fmt: skip
"""bitsandbytes' 4-bit NormalFloat (QLoRA, arXiv 2305.14314)."""
Q4_0 = Grid(32, tuple(float(level) for level in range(-8, 8)), signed=True)
"""llama.cpp's type of that name."""


@dataclass
class _Pack:
    inputs: dict[str, Any]
    weights: Any
    """Of its tokens."""


@dataclass
class _Input:
    """What a decoder layer is called with, for one pack."""

    hidden: Any
    options: list[dict[str, Any]]
    """Of each layer."""

    def run(self, layer: Any, number: int) -> Any:
        """What the next layer reads."""
        output = layer(self.hidden, **self.options[number])
        return output[0] if isinstance(output, tuple) else output


@dataclass
class Unrounded:
    """What a merged model does with training items: computed once, whatever the files."""

    logits: Any = None
    """See `label_logits`."""

    def learn(self, asked: "_Asked") -> None:
        """Ask a model, where that was not done."""
        if self.logits is None:
            hidden = states(asked.model, asked.inputs)
            self.logits = label_logits(asked.model, hidden, asked.ids, asked.rubric)


class _Asked:
    """A run's merged model, and the prompts of training items that it is asked, where they are."""

    def __init__(self, run: Run) -> None:
        """Load both."""
        torch, self.contract = require("torch", "export"), Contract.load(run.merged)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model, self.rubric = load_model(run.merged, device, "float32"), self.contract.rubric
        self.tokenizer = load_tokenizer(run.merged)
        self.ids = label_token_ids(self.contract, self.tokenizer)
        reader = DecisionReader(
            self.tokenizer, self.contract.decision_template, self.rubric, self.contract.labels
        )
        there = split_file(run.data, "train").exists()
        items = load_split(run.data, "train") if there else []
        chosen = random.Random(0).sample(items, min(REFIT_ITEMS, len(items)))  # noqa: S311
        self.prompts = reader.encode([item.state for item in chosen])
        self.packs = _packs(self.prompts, self.model) if chosen else []
        self.inputs = [one.inputs for one in self.packs]


def importance(run: Run) -> Importance:
    """What each input of the merged model's layers counts; nothing without training items."""
    asked, found = _Asked(run), Importance()
    weights = [one.weights for one in asked.packs]
    if weights:
        with require("torch", "export").no_grad(), listening(asked.model, weights) as found:
            states(asked.model, asked.inputs)
    return found


def save_moved(
    run: Run,
    folder: Path,
    grid: Grid,
    console: Console,
    kept: Sequence[str] = (),
    unrounded: Unrounded | None = None,
    fit: bool = True,
) -> str:
    """Write the merged model of a run with its weights moved for a file of `grid`.

    Args:
        run: with `merged/`.
        folder: where to write it, as `merged/` is.
        grid: what the file can hold.
        console: where progress is written.
        kept: names of layers that the file does not round, as transformers matches them.
        unrounded: of the same merged model, filled where it is empty.
        fit: whether the labels' rows are fitted anew afterwards.

    Returns:
        The name of the output layer, which no file rounds to 4 bits.
    """
    torch, asked = require("torch", "export"), _Asked(run)
    model, unrounded = asked.model, unrounded or Unrounded()
    if asked.prompts:
        with torch.no_grad():
            unrounded.learn(asked)
            move(model, asked.prompts[:ITEMS], grid, console, kept)
            if fit:
                refit_labels(model, asked.inputs, unrounded.logits, asked.ids, asked.rubric)
    else:
        missing = split_file(run.data, "train")
        say(console, [f"{missing} is missing: weights are rounded as they are."])
    model.to(getattr(torch, run.recipe().export.dtype)).save_pretrained(folder)
    asked.tokenizer.save_pretrained(folder)
    asked.contract.save(folder)
    output = model.get_output_embeddings()
    name: str = next(name for name, module in model.named_modules() if module is output)
    return name


def move(
    model: Any,
    prompts: Sequence[EncodedPrompt],
    grid: Grid,
    console: Console,
    kept: Sequence[str] = (),
) -> None:
    """Move a model's weights, layer after layer; each reads what the moved ones before it say."""
    torch, layers = require("torch", "export"), getattr(model.get_decoder(), "layers", ())
    if not layers:
        say(console, [f"{type(model).__name__} has no decoder layers that are known: its weights "
                      "are rounded as they are."])  # fmt: skip
        return
    packs = _packs(prompts, model)
    inputs = _first_inputs(model, layers, packs)
    names = {module: name for name, module in model.named_modules()}
    with progress_bar("layers", console=console) as progress:
        for number, layer in enumerate(progress.track(layers, description="rounding")):
            hessians = _hessians(layer, number, inputs, packs)
            rounded = [
                part for part in hessians if should_convert_module(f"{names[layer]}.{part}", kept)
            ]
            while rounded:
                hessian = hessians[rounded[0]]
                alike = [part for part in rounded if torch.equal(hessians[part], hessian)]
                weights = [layer.get_submodule(part).weight for part in alike]  # of one input
                try:
                    with _one_thread():
                        moved = round_columns(torch.cat(weights), hessian, grid)
                except torch.linalg.LinAlgError as error:
                    where = f"{names[layer]}.{alike[0]}"
                    raise ModelError(f"{where} reads numbers that are not finite.") from error
                for weight, part in zip(weights, moved.split([*map(len, weights)]), strict=True):
                    weight.copy_(part)
                rounded = [part for part in rounded if part not in alike]
            for one in inputs:
                one.hidden = one.run(layer, number)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Columns are many small operations, for which threads wait more than they work."""
    torch = require("torch", "export")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _packs(prompts: Sequence[EncodedPrompt], model: Any) -> list[_Pack]:
    """The prompts behind one copy of the rubric a pack; all copies together count once."""
    torch, prefix, device = require("torch", "export"), shared_prefix(prompts), model.device
    budget = pack_budget(device, model.config.get_text_config())
    parts = list(split_into_packs(prompts, prefix, budget))
    packs = []
    for part in parts:
        inputs = pack_tensors(pack([prompts[i] for i in part], prefix), device)
        weights = torch.ones(inputs["input_ids"].shape[-1], device=device)
        weights[:prefix] /= len(parts)
        weights[inputs["logits_to_keep"]] = SLOT_WEIGHT
        packs.append(_Pack(inputs, weights))
    return packs


def _first_inputs(model: Any, layers: Any, packs: Sequence[_Pack]) -> list[_Input]:
    """What the first layer reads, and with which options each is called."""
    found: list[_Input] = []

    def catch(layer: Any, given: tuple[Any, ...], options: dict[str, Any]) -> None:
        options = dict(options)
        hidden = given[0] if given else options.pop("hidden_states")
        if layer is layers[0]:
            found.append(_Input(hidden, []))
        found[-1].options.append(options)

    hooks = [layer.register_forward_pre_hook(catch, with_kwargs=True) for layer in layers]
    for one in packs:
        model(**one.inputs, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def _hessians(
    layer: Any, number: int, inputs: Sequence[_Input], packs: Sequence[_Pack]
) -> dict[str, Any]:
    """Sum over tokens of weight x x', for the inputs x of each linear layer, by its name."""
    torch, sums = require("torch", "export"), dict[str, Any]()

    def add(name: str, x: Any, weights: Any) -> None:
        rows = x.flatten(0, -2).float()
        if len(rows) == len(weights):  # not an expert's, which reads some tokens alone
            sums[name] = sums.get(name, 0) + rows.T @ (rows * weights[:, None])

    for one, its_pack in zip(inputs, packs, strict=True):
        hooks = [
            module.register_forward_pre_hook(
                lambda _, given, name=name, of=its_pack: add(name, given[0], of.weights)
            )
            for name, module in layer.named_modules()
            if isinstance(module, torch.nn.Linear)
        ]
        one.run(layer, number)
        for hook in hooks:
            hook.remove()
    return sums


def round_columns(weight: Any, hessian: Any, grid: Grid) -> Any:
    """The weights of a layer, moved to what the file can hold.

    Args:
        weight: outputs x inputs.
        hessian: inputs x inputs, sum of x x' over inputs x.
        grid: of the file; where its blocks do not fit into a row, the weights stay.

    Returns:
        float32: levels of the grid times scales that are exact in bfloat16.
    """
    torch = require("torch", "export")
    columns, rest = weight.shape[1], weight.float().clone()
    if columns % grid.block:
        return rest
    levels = torch.tensor(grid.levels, device=weight.device)
    bounds, hessian = (levels[1:] + levels[:-1]) / 2, hessian.double()
    unused = hessian.diagonal() == 0
    hessian = hessian + torch.diag(unused + DAMPING * hessian.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor = torch.linalg.cholesky(inverse, upper=True).float()
    rounded = torch.empty_like(rest)
    for start in range(0, columns, grid.block):
        end = start + grid.block
        block, errors = rest[:, start:end].clone(), torch.empty_like(rest[:, start:end])
        largest = block.abs().argmax(dim=1)
        extreme = block.gather(1, largest[:, None])[:, 0]
        scales = grid.scales(extreme)
        divisor = torch.where(scales == 0, 1, scales)
        extreme = levels[torch.bucketize(extreme / divisor, bounds)] * scales
        for k, column in enumerate(range(start, end)):
            value = levels[torch.bucketize(block[:, k] / divisor, bounds)] * scales
            value = torch.where(largest == k, extreme, value)  # so that the scale stays
            rounded[:, column] = value
            errors[:, k] = (block[:, k] - value) / factor[column, column]
            block[:, k + 1 :] -= errors[:, k, None] * factor[column, column + 1 : end]
        rest[:, end:] -= errors @ factor[start:end, end:]
    return rounded
