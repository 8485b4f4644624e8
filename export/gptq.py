"""Weights moved so that rounding them to 4 bits changes the judge's answers least.

A layer's columns are rounded one after the other, those first whose inputs are large, and what the
rounding of one changes in the layer's outputs, on prompts of the run's training items, is made up
for by the columns that are still to be rounded (GPTQ, Frantar et al., ICLR 2023, arXiv 2210.17323).
Then each column is chosen once more, now that all others are known (as in QuantEase, Behdin et al.,
2023, arXiv 2309.01885). Before all that, the layer is fitted to what it says in the merged model,
since the rounded ones before it have changed what it reads (GPTAQ, Li et al., ICML 2025, arXiv
2504.02692, does it while it rounds). The values are those that the file can hold, block by block,
and one weight of each block has the level that tells the block's scale. So the moved weights are an
ordinary model: bitsandbytes or llama.cpp, which know nothing of this, round each of them to the
level that was chosen here. (bitsandbytes then keeps the blocks' scales in 8 bits; llama.cpp's have
few digits where all weights of a block are below 1e-4.)
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from rich.console import Console
from slm_judge.training.slots import label_token_ids
from transformers.quantizers.quantizers_utils import should_convert_module

from slm_judge.artefact.base import load_model, load_tokenizer
from slm_judge.artefact.device import full_width, pack_budget
from slm_judge.artefact.judge_files import Contract
from slm_judge.backends.packing import pack, shared_prefix, split_into_packs
from slm_judge.backends.row_attention import pack_tensors
from slm_judge.data.item import load_split, split_file
from slm_judge.errors import ModelError, require
from slm_judge.progress import progress_bar
from slm_judge.prompt.readers import DecisionReader, EncodedPrompt
from slm_judge.run import Run
from slm_judge.screen import say

from .importance import Importance, listening
from .refit import label_logits, refit_labels, states

ITEMS, REFIT_ITEMS = 64, 256
"""Training items whose prompts weights are moved by, and the labels' rows fitted to, at least. Of
short ones `export.rounding_tokens` makes it more: what fewer tokens than a layer has inputs say of
them is mostly chance."""
SLOT_WEIGHT = 5.0
"""Of an answer's position, where another token of an item counts 1."""
DAMPING = 0.01
"""Of the mean diagonal of the Hessian, as in GPTQ's code."""
CATCHING_UP, CAUTION = 0.3, 0.1
"""How far a layer is fitted to what it says in the merged model, and the damping of that fit, so
that it is not one to these items (docs/results.md)."""
SHARES = (1.0, 0.95, 0.9, 0.85, 0.8)
"""Of a block's largest weight, tried as the largest that its scale can hold."""
AT_ONCE = 64
"""Columns whose errors reach the others in one product."""
_MOST = 2048  # items that are looked at


@dataclass(frozen=True)
class Grid:
    """What a file of few bits holds: in a block of weights, its levels times the block's scale."""

    block: int
    levels: tuple[float, ...]
    """Ascending."""
    signed: bool
    """Whether a weight of either sign may be on the first level, which no other then exceeds."""

    def scales(self, largest: Any) -> Any:
        """Of blocks, by what is to be the largest weight in size; exact in bfloat16."""
        scales = largest / self.levels[0] if self.signed else largest.abs() / self.levels[-1]
        return scales.bfloat16().float()

    def nearest(self, wanted: Any) -> Any:
        """The levels that are nearest to numbers."""
        if self.levels == tuple(range(int(self.levels[0]), int(self.levels[-1]) + 1)):
            return wanted.round().clamp_(self.levels[0], self.levels[-1])
        levels, bounds = self._tensors(wanted.device)
        return levels[require("torch", "export").bucketize(wanted, bounds)]

    @cache  # noqa: B019 (grids are constants)
    def _tensors(self, device: Any) -> tuple[Any, Any]:
        """The levels, and the bounds between them."""
        levels = require("torch", "export").tensor(self.levels, device=device)
        return levels, (levels[1:] + levels[:-1]) / 2


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
Q5_0 = Grid(32, tuple(float(level) for level in range(-16, 16)), signed=True)
"""The same in 5 bits."""
Others = Mapping[str, Grid | None]
"""Of layers that a file does not hold in its own grid, by name, as transformers matches them; None
where they are not rounded."""


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
        chosen = random.Random(0).sample(items, min(_MOST, len(items)))  # noqa: S311
        prompts = reader.encode([item.state for item in chosen])
        enough = _holding(run.recipe().export.rounding_tokens, prompts)
        self.movers = prompts[: max(ITEMS, enough)]
        """Whose prompts weights are moved by."""
        self.prompts = prompts[: max(REFIT_ITEMS, enough)]
        self.packs = _packs(self.prompts, self.model) if chosen else []
        self.inputs = [one.inputs for one in self.packs]


def _holding(tokens: int, prompts: Sequence[EncodedPrompt]) -> int:
    """How many of the prompts have that many tokens of their own together."""
    prefix = shared_prefix(prompts) if prompts else 0
    own = accumulate(prompt.n_tokens - prefix for prompt in prompts)
    return sum(so_far <= tokens for so_far in own)


def importance(run: Run) -> Importance:
    """What each input of the merged model's layers counts; nothing without training items."""
    asked, found = _Asked(run), Importance()
    weights = [one.weights for one in asked.packs]
    if weights:
        no_grad, model = require("torch", "export").no_grad, asked.model
        with no_grad(), full_width(model.device), listening(model, weights) as found:
            states(asked.model, asked.inputs)
    return found


def save_moved(
    run: Run,
    folder: Path,
    grid: Grid,
    console: Console,
    others: Others | None = None,
    unrounded: Unrounded | None = None,
    fit: bool = True,
) -> str:
    """Write the merged model of a run with its weights moved for a file of `grid`.

    Args:
        run: with `merged/`.
        folder: where to write it, as `merged/` is.
        grid: what the file can hold.
        console: where progress is written.
        others: layers that it holds otherwise.
        unrounded: of the same merged model, filled where it is empty.
        fit: whether the labels' rows are fitted anew afterwards.

    Returns:
        The name of the output layer, which no file rounds to 4 bits.
    """
    torch, asked = require("torch", "export"), _Asked(run)
    model, unrounded = asked.model, unrounded or Unrounded()
    if asked.prompts:
        with torch.no_grad(), full_width(model.device):
            unrounded.learn(asked)
            move(model, asked.movers, grid, console, others or {})
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
    others: Others,
) -> None:
    """Move a model's weights, layer after layer; each reads what the moved ones before it say."""
    torch, layers = require("torch", "export"), getattr(model.get_decoder(), "layers", ())
    if not layers:
        say(console, [f"{type(model).__name__} has no decoder layers that are known: its weights "
                      "are rounded as they are."])  # fmt: skip
        return
    packs = _packs(prompts, model)
    inputs = _first_inputs(model, layers, packs)
    merged = [replace(one) for one in inputs]  # what the next layer reads in the merged model
    names = {module: name for name, module in model.named_modules()}
    with progress_bar("layers", console=console) as progress:
        for number, layer in enumerate(progress.track(layers, description="rounding")):
            sums = _sums(layer, number, merged, inputs, packs)
            for alike, (hessian, lost) in sums.items():
                weights = [layer.get_submodule(part).weight for part in alike]
                grids = [_grid_of(f"{names[layer]}.{part}", grid, others) for part in alike]
                try:
                    moved = _moved(weights, grids, hessian, lost)
                except torch.linalg.LinAlgError as error:
                    where = f"{names[layer]}.{alike[0]}"
                    raise ModelError(f"{where} reads numbers that are not finite.") from error
                for weight, new in zip(weights, moved, strict=True):
                    weight.copy_(new)
            for one in inputs:
                one.hidden = one.run(layer, number)


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


def _sums(
    layer: Any,
    number: int,
    merged: Sequence[_Input],
    inputs: Sequence[_Input],
    packs: Sequence[_Pack],
) -> dict[tuple[str, ...], tuple[Any, Any]]:
    """Sums over tokens of weight z z' and weight (x - z) z', by names of layers of one input.

    x are linear layers' inputs in the merged model, whose next inputs `merged` has afterwards; z
    those in the moved one.
    """
    sums: dict[tuple[str, ...], tuple[Any, Any]] = {}
    for right, one, its_pack in zip(merged, inputs, packs, strict=True):
        (wanted, right.hidden), (read, _) = (_listen(layer, number, of) for of in (right, one))
        for alike in _of_one_input(read, len(its_pack.weights)):
            x, z = (of[alike[0]].flatten(0, -2).float() for of in (wanted, read))
            weighted = z * its_pack.weights[:, None]
            hessian, lost = sums.get(alike, (0, 0))
            sums[alike] = hessian + z.T @ weighted, lost + (x - z).T @ weighted
    return sums


def _listen(layer: Any, number: int, one: _Input) -> tuple[dict[str, Any], Any]:
    """What each linear layer of a decoder layer reads, and what the next one will."""
    torch, read = require("torch", "export"), dict[str, Any]()
    hooks = [
        module.register_forward_pre_hook(
            lambda _, given, name=name: read.__setitem__(name, given[0])
        )
        for name, module in layer.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    output = one.run(layer, number)
    for hook in hooks:
        hook.remove()
    return read, output


def _of_one_input(read: Mapping[str, Any], n_tokens: int) -> list[tuple[str, ...]]:
    """Names of layers by what they read; not experts, which read some tokens alone."""
    groups: dict[int, tuple[str, ...]] = {}
    for name, x in read.items():
        if len(x.flatten(0, -2)) == n_tokens:
            groups[id(x)] = (*groups.get(id(x), ()), name)
    return [*groups.values()]


def _grid_of(name: str, grid: Grid, others: Others) -> Grid | None:
    found = (other for key, other in others.items() if not should_convert_module(name, [key]))
    return next(found, grid)


def _moved(
    weights: Sequence[Any], grids: Sequence[Grid | None], hessian: Any, lost: Any
) -> list[Any]:
    """The weights of layers of one input, each for its own grid."""
    torch = require("torch", "export")
    lengths = torch.tensor([*map(len, weights)])
    moved = catch_up(torch.cat([*weights]), hessian, lost)
    for grid in {grid for grid in grids if grid}:
        own = torch.tensor([one == grid for one in grids]).repeat_interleave(lengths)
        rows = own.nonzero()[:, 0].to(moved.device)
        moved[rows] = round_columns(moved[rows], hessian, grid)
    found: list[Any] = moved.split(lengths.tolist())
    return found


def catch_up(weight: Any, hessian: Any, lost: Any) -> Any:
    """The weights of a layer, moved towards what it says in the merged model.

    Args:
        weight: outputs x inputs.
        hessian: inputs x inputs, sum of z z' over inputs z.
        lost: the same of (x - z) z', for the inputs x of the merged model.

    Returns:
        float32.
    """
    torch = require("torch", "export")
    if not lost.any():
        return weight.float()
    hessian = hessian.double()
    damping = CAUTION * hessian.diagonal().mean() * torch.eye(len(hessian), device=weight.device)
    factor = torch.linalg.cholesky(hessian + damping)
    step = torch.cholesky_solve((weight @ lost).double().T, factor).T
    return (weight + CATCHING_UP * step).float()


def round_columns(weight: Any, hessian: Any, grid: Grid) -> Any:
    """The weights of a layer, moved to what the file can hold.

    Args:
        weight: outputs x inputs.
        hessian: inputs x inputs, sum of x x' over inputs x.
        grid: of the file; where its blocks do not fit into a row, the weights stay.

    Returns:
        float32: levels of the grid times scales that are exact in bfloat16.
    """
    torch, weight = require("torch", "export"), weight.float()
    if weight.shape[1] % grid.block:
        return weight
    hessian = hessian.double()
    damping = DAMPING * hessian.diagonal().mean().item() or 1.0  # 1: all inputs are 0
    hessian = hessian + damping * torch.eye(len(hessian), device=hessian.device)
    counts = hessian.diagonal()
    order = counts.argsort(descending=True, stable=True)
    ordered = hessian[order][:, order]
    factor = _factor_of_inverse(ordered).float()
    scales, held = _scales(weight, counts.float(), grid)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # columns are small operations, for which threads wait
    try:
        columns = _Columns(scales.T[order], held.T[order], grid)
        moved, weight = torch.empty_like(weight), weight.T[order]
        rounded = _round(weight, columns, factor)
        _choose_again(weight, rounded, columns, ordered.float())
        moved[:, order] = rounded.T
    finally:
        torch.set_num_threads(threads)
    return moved


def _factor_of_inverse(hessian: Any) -> Any:
    """The upper Cholesky factor of the inverse: the lower one of the reversed matrix, inverted."""
    linalg = require("torch", "export").linalg
    lower = linalg.cholesky(hessian.flip(0, 1))
    return linalg.solve_triangular(lower, lower.new_ones(len(lower)).diag(), upper=False).flip(0, 1)


def _scales(weight: Any, counts: Any, grid: Grid) -> tuple[Any, Any]:
    """Choose each block's scale by what rounding to the nearest level costs.

    Args:
        weight: outputs x inputs.
        counts: of inputs, by which the square of a weight's error counts.
        grid: of the file.

    Returns:
        outputs x inputs: scales; and the level of the weight of each block that tells the engine
        its scale, the first or the last level unless all weights are 0 (nan for the others).
    """
    torch = require("torch", "export")
    blocks, counts = weight.unflatten(1, (-1, grid.block)), counts.unflatten(0, (-1, grid.block))
    least, *others = _tried(blocks, counts, grid)
    for found in others:
        least = [*map(torch.where, [found[0] < least[0]] * 4, found, least)]
    _, scale, largest, extreme = least
    held = torch.full_like(blocks, torch.nan).scatter_(2, largest, extreme)
    return scale.expand_as(blocks).flatten(1), held.flatten(1)


def _tried(blocks: Any, counts: Any, grid: Grid) -> Iterator[list[Any]]:
    """Of each block: the cost of a scale, the scale, which weight tells it, and that one's level.

    In a signed grid the first level reaches further than the last, so it is tried for either sign.
    """
    for side in (blocks, -blocks) if grid.signed else (blocks.abs(),):
        largest = side.argmax(dim=2, keepdim=True)
        for share in SHARES:
            scale = grid.scales(share * blocks.gather(2, largest))
            chosen = grid.nearest(blocks / _divisor(scale))
            cost = (counts * (blocks - chosen * scale).square()).sum(dim=2, keepdim=True)
            yield [cost, scale, largest, chosen.gather(2, largest)]


def _divisor(scales: Any) -> Any:
    return require("torch", "export").where(scales == 0, 1, scales)


class _Columns:
    """What a file can hold of the columns of a layer, in the order in which they are rounded."""

    def __init__(self, scales: Any, held: Any, grid: Grid) -> None:
        """What `_scales` gives, as inputs x outputs."""
        self._scales, self._divisors = scales, _divisor(scales)
        self._held, self._free, self._grid = held, held.isnan(), grid

    def nearest(self, column: int, wanted: Any) -> Any:
        """The column (outputs) that is nearest to one that is wanted."""
        torch = require("torch", "export")
        level = self._grid.nearest(wanted / self._divisors[column])
        return torch.where(self._free[column], level, self._held[column]) * self._scales[column]


def _round(weight: Any, columns: _Columns, factor: Any) -> Any:
    """Column by column, by the upper Cholesky factor of the Hessian's inverse.

    All are inputs x outputs, so that a column is in one place.
    """
    rest, rounded = weight.clone(), weight.clone()
    for start in range(0, len(rest), AT_ONCE):
        end = start + AT_ONCE
        own, errors = factor[start:end], rest[start:end].clone()
        for k, error in enumerate(errors):
            column = start + k
            rounded[column] = columns.nearest(column, rest[column])
            error.copy_(rest[column]).sub_(rounded[column]).div_(own[k, column])
            rest[column + 1 : end].addr_(own[k, column + 1 : end], error, alpha=-1)
        rest[end:] -= own[:, end:].T @ errors
    return rounded


def _choose_again(weight: Any, rounded: Any, columns: _Columns, hessian: Any) -> None:
    """Let each column of `rounded` be the best one beside all others, one after the other."""
    errors = weight - rounded
    for start in range(0, len(weight), AT_ONCE):
        end = start + AT_ONCE
        own = hessian[start:end, start:end]
        for k, pull in enumerate(pulls := hessian[start:end] @ errors):
            column = start + k
            better = columns.nearest(column, rounded[column] + pull / own[k, k])
            change = better - rounded[column]
            pulls[k + 1 :].addr_(own[k, k + 1 :], change, alpha=-1)
            rounded[column] = better
            errors[column] -= change
